"""Tokenizers: lossless ones spell every byte of any text, and no text can pass for a special token."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from archbench.data import text_cuts
from archbench.data.byte_tokenizer import Tokenizer
from archbench.data.corpora import load_corpus
from archbench.data.documents import Corpus, TextDocument, make_corpus
from archbench.data.tokenizers import load_tokenizer
from archbench.errors import DataError, UnknownNameError, UsageError

HARD = {
    "emoji": "👍🏽 🇨🇭 \U0001f9d1\u200d\U0001f680",
    "joined emoji": "👩‍👩‍👧‍👦👨‍❤️‍💋‍👨",
    "line ends": "a\r\nb\rc\n\r\n\n\nd\n",
    "control": "a\0b\0\0\x01\x1b[0m\x7f\x1c\x1d",
    "combining": "e\u0301 Z\u0351\u0300\u036b o\u0308\u0304 \ufb01",
    "cjk": "漢字とかな交じり文。한국어 中文，標點",
    "white space": " " * 500 + "\t\t x  \n  \n" + "\u00a0\u2003\u2028\u3000\x85" + " ",
    "byte order mark": "\ufefftext\ufeff",
    "special tokens": "<|endoftext|> </s> <unk> [SEP] <s><|endoftext|><|endoftext|>",
    "contractions": "I'll've '\n's 't\n're",
    "planes": "\U0010ffff\ue000\U000e0001\u0378",
    "empty": "",
}
TEXTS = st.text(alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\r\t'slx.\u3000\x1c")))


@pytest.fixture(scope="session")
def sonnet() -> Corpus:
    text = load_corpus("shakespeare").splits["train"][0].text
    train, validation = (TextDocument("train", text[:30_000]), TextDocument("validation", text[30_000:33_000]))
    return make_corpus("sonnet", {"train": (train,), "validation": (validation,)}, licence="", source="")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


def gpt2_like(path: Path, *, special: bool) -> Path:
    """A tokenizer.json as GPT-2's, small, whose separator is among the added tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the endoftext of the text <|endoftext|> " * 9], trainer)
    add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
    add(["<|endoftext|>", "<s>"])
    tokenizer.enable_truncation(5)
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def lossless(sonnet: Corpus, folder: Path) -> dict[str, Tokenizer]:
    file = f"file:{gpt2_like(folder / 'special.json', special=True)}"
    other = f"file:{gpt2_like(folder / 'ordinary.json', special=False)}"
    return {spec: load_tokenizer(spec, corpus=sonnet, cache=folder) for spec in ("byte", "bpe:400", file, other)}


def spelled(tokenizer: Tokenizer, text: str) -> bytes:
    table = tokenizer.token_bytes()
    assert table is not None
    return b"".join(table[i] for i in tokenizer.encode(text))


@pytest.mark.parametrize("text", HARD.values(), ids=HARD.keys())
def test_token_bytes_are_the_texts_bytes(lossless: dict[str, Tokenizer], text: str) -> None:
    for tokenizer in lossless.values():
        assert tokenizer.lossless
        ids = tokenizer.encode(text)
        assert len(tokenizer.token_bytes() or ()) == tokenizer.vocab_size
        assert spelled(tokenizer, text) == text.encode()
        assert tokenizer.decode(ids) == text
        assert ids.dtype == np.int64


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_any_text_survives(lossless: dict[str, Tokenizer], text: str) -> None:
    for tokenizer in lossless.values():
        assert spelled(tokenizer, text) == text.encode()
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("template", "separator"),
    [(None, "<|endoftext|>"), ("<bos> $A", "<bos>"), ("<bos> $A <|endoftext|>", "<|endoftext|>")],
)
def test_the_separator_is_what_the_file_puts_before_a_text(
    template: str | None, separator: str, tmp_path: Path
) -> None:
    """As LLaMA's files do: a model that saw it before every text predicts the first word from it, and from no other."""
    ids = {"<|endoftext|>": 0, "<bos>": 1, "a": 2}
    tokenizer = tokenizers.Tokenizer(models.BPE(ids, []))
    if template is not None:
        special = [(name, ids[name]) for name in ("<|endoftext|>", "<bos>")]
        template_step = processors.TemplateProcessing(single=template, special_tokens=special)
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template_step])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(f"file:{tmp_path / 'tokenizer.json'}").separator == ids[separator]


def test_text_that_spells_the_separator_does_not_end_a_document(lossless: dict[str, Tokenizer]) -> None:
    for tokenizer in lossless.values():
        ids = tokenizer.encode("a<|endoftext|>b <|endoftext|>")
        assert tokenizer.separator not in ids
        assert len(ids) > 5, "nor is it truncated as the file asks"


def test_a_lone_surrogate_is_refused_and_located(lossless: dict[str, Tokenizer]) -> None:
    for tokenizer in lossless.values():
        with pytest.raises(DataError, match=r"character 3 is the lone surrogate U\+DC80"):
            tokenizer.encode("abc\udc80")


@given(st.lists(TEXTS, max_size=20).map("\n".join))
@settings(max_examples=300, deadline=None)
def test_encoding_in_pieces_changes_no_token(lossless: dict[str, Tokenizer], text: str) -> None:
    tokenizer = lossless["bpe:400"]
    whole = tokenizer.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_cuts, "PIECE", 1)
        patch.setattr(text_cuts, "BATCH", 2)
        assert tokenizer.encode(text).tolist() == whole.tolist()


def test_bpe_has_the_ids_asked_for_and_shortens_text(sonnet: Corpus, lossless: dict[str, Tokenizer]) -> None:
    tokenizer = lossless["bpe:400"]
    assert (tokenizer.vocab_size, tokenizer.separator) == (400, 399)
    data = sonnet.splits["validation"][0]
    assert len(tokenizer.encode(data.text)) < 0.7 * data.n_bytes


def test_bpe_is_trained_on_the_training_split_alone(sonnet: Corpus, tmp_path: Path) -> None:
    other = make_corpus(
        "sonnet",
        {"train": sonnet.splits["train"], "validation": (TextDocument("z", "qzxj" * 9999),)},
        licence="",
        source="",
    )
    fingerprints = {load_tokenizer("bpe:300", corpus=c, cache=tmp_path).fingerprint for c in (sonnet, other)}
    assert len(list(tmp_path.rglob("*.json"))) == 2, "each was trained"
    assert len(fingerprints) == 1


def test_bpe_is_the_same_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from archbench.data.corpora import load_corpus; "
        "from archbench.data.tokenizers import load_tokenizer; "
        "corpus, cache = load_corpus('shakespeare'), pathlib.Path(sys.argv[1]); "
        "print(load_tokenizer('bpe:512', corpus=corpus, cache=cache).fingerprint)"
    )
    prints = [
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / threads)],
            env={**os.environ, "PYTHONHASHSEED": threads, "RAYON_NUM_THREADS": threads},
            check=True,
            capture_output=True,
        ).stdout
        for threads in ("1", "2")
    ]
    assert prints[0] == prints[1]


def test_a_trained_tokenizer_is_found_again(
    sonnet: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = load_tokenizer("bpe:300", corpus=sonnet, cache=tmp_path)
    (cached,) = tmp_path.rglob("*.json")
    cached.write_text(cached.read_text()[:500])
    assert load_tokenizer("bpe:300", corpus=sonnet, cache=tmp_path).fingerprint == first.fingerprint
    assert "damaged" in caplog.text
    monkeypatch.setattr(trainers, "BpeTrainer", None)
    assert load_tokenizer("bpe:300", corpus=sonnet, cache=tmp_path).fingerprint == first.fingerprint


def test_a_saved_tokenizer_comes_back_the_same(lossless: dict[str, Tokenizer], tmp_path: Path) -> None:
    for number, tokenizer in enumerate(lossless.values()):
        tokenizer.save(tmp_path / str(number))
        again = load_tokenizer(f"saved:{tmp_path / str(number)}")
        for attribute in ("name", "vocab_size", "lossless", "separator", "fingerprint"):
            assert getattr(again, attribute) == getattr(tokenizer, attribute)
        assert again.encode(HARD["cjk"]).tolist() == tokenizer.encode(HARD["cjk"]).tolist()


def test_a_file_without_an_end_of_text_token_gets_one_more_id(folder: Path) -> None:
    definition = gpt2_like(folder / "plain.json", special=True).read_text()
    (folder / "plain.json").write_text(definition.replace("<|endoftext|>", "<|other|>"))
    tokenizer = load_tokenizer(f"file:{folder / 'plain.json'}")
    assert tokenizer.separator == tokenizer.vocab_size - 1
    assert tokenizer.lossless


def test_tokenizers_that_change_text_say_so(folder: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(gpt2_like(folder / "changing.json", special=True)))
    changes = {
        "normalizer": normalizers.NFC(),
        "pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True),
    }
    for part, change in changes.items():
        changed = tokenizers.Tokenizer.from_str(tokenizer.to_str())
        setattr(changed, part, change)
        changed.save(str(folder / f"{part}.json"))
        assert not load_tokenizer(f"file:{folder / part}.json").lossless
    words = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "words.json"))
    loaded = load_tokenizer(f"file:{folder / 'words.json'}")
    assert not loaded.lossless
    assert loaded.token_bytes() is None


@pytest.mark.parametrize("spec", ["bpe:256", "bpe:-5", "bpe:1e3", "bpe:many"])
def test_an_impossible_vocabulary_is_refused(sonnet: Corpus, spec: str) -> None:
    with pytest.raises(UsageError, match=r"at least 257.*bpe:1024"):
        load_tokenizer(spec, corpus=sonnet)


def test_a_vocabulary_larger_than_the_text_gives_says_how_large_it_may_be(sonnet: Corpus, tmp_path: Path) -> None:
    train = (TextDocument("a", sonnet.splits["train"][0].text[:500]),)
    short = make_corpus("short", {"train": train, "validation": train}, licence="", source="")
    with pytest.raises(DataError, match=r"too short: it gives (\d+) tokens.*bpe:\1 or fewer") as raised:
        load_tokenizer("bpe:5000", corpus=short, cache=tmp_path)
    largest = str(raised.value).rsplit("bpe:", 1)[1].split()[0]
    assert load_tokenizer(f"bpe:{largest}", corpus=short, cache=tmp_path).vocab_size == int(largest)


def test_misspelt_and_unreadable_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'byte'"):
        load_tokenizer("bytes")
    with pytest.raises(DataError, match=r"absent\.json.*No such file"):
        load_tokenizer(f"file:{tmp_path}/absent.json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match=r"other\.json.*field model"):
        load_tokenizer(f"file:{tmp_path}/other.json")
    with pytest.raises(DataError, match=r"archbench_tokenizer\.json.*No such file"):
        load_tokenizer(f"saved:{tmp_path}")


def test_without_a_network_the_hub_is_named(tmp_path: Path) -> None:
    code = (
        "from archbench.data.tokenizers import load_tokenizer\n"
        "from archbench.errors import DataError\n"
        "try:\n    load_tokenizer('hf:someone/absent')\n"
        "except DataError as error:\n    print(error)\n"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    assert "hf:someone/absent" in done.stdout
    assert "Hugging Face" in done.stdout
    assert "file:tokenizer.json" in done.stdout
