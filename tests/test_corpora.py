"""Corpora: text arrives byte for byte, is split once, and an error names what cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archbench.data import corpora, splitting
from archbench.data.corpora import EMBEDDED, load_corpus
from archbench.data.documents import TextDocument, make_corpus
from archbench.data.splitting import sample, split_documents
from archbench.errors import ArchbenchWarning, DataError

HARD = "\ufeffe\u0301 👩‍👩‍👧‍👦 🇨🇭\r\n\0 \t\v\f   漢字かな\n\u2028\u00a0\x85z\u0300\u0301\r\r\n"


@pytest.fixture
def text(tmp_path: Path) -> Callable[[str, bytes], str]:
    def write(name: str, data: bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)

    return write


def test_shakespeare_is_eight_plays_to_train_on_and_one_to_validate_on() -> None:
    corpus = load_corpus("shakespeare")
    names = {split: [document.name for document in documents] for split, documents in corpus.splits.items()}
    assert names["train"][0] == "HAMLET, PRINCE OF DENMARK"
    assert len(names["train"]) == 8
    assert names["validation"] == ["THE MERCHANT OF VENICE"]
    assert names["test"] == ["THE WINTER'S TALE"]
    assert len(corpus.to_bytes("train")) == 1_034_688
    assert len(corpus.to_bytes("validation")) == 120_397


def test_python_is_whole_modules_with_the_last_tenth_held_out() -> None:
    corpus = load_corpus("python")
    documents = (*corpus.splits["train"], *corpus.splits["validation"])
    listed = Path(corpora.__file__).with_name("embedded").joinpath("python_stdlib_files.txt").read_text().split()
    assert [document.name for document in documents] == listed
    assert len(corpus.to_bytes("train") + corpus.to_bytes("validation")) == 1_224_559
    assert 0.05 < len(corpus.to_bytes("validation")) / 1_224_559 < 0.15


def test_every_embedded_file_stands_in_the_provenance_with_its_checksum() -> None:
    provenance = Path(corpora.__file__).with_name("embedded").joinpath("PROVENANCE.md").read_text()
    for embedded in EMBEDDED.values():
        for file_name, sha256 in embedded.files.values():
            assert f"`{file_name}`" in provenance
            assert f"`{sha256}`" in provenance
        assert embedded.licence.lower() in provenance.lower()


def test_a_damaged_embedded_corpus_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path(corpora.__file__).with_name("embedded") / "python_stdlib.txt"
    (tmp_path / "python_stdlib.txt").write_bytes(original.read_bytes().replace(b"def", b"fed", 1))
    monkeypatch.setattr(corpora, "_FOLDER", tmp_path)
    with pytest.raises(DataError, match=r"python_stdlib\.txt.*checksum.*Reinstall"):
        load_corpus("python")


def test_a_file_keeps_its_exact_bytes(text: Callable[[str, bytes], str]) -> None:
    data = (HARD * 20).encode()
    corpus = load_corpus(text("hard.txt", data))
    assert corpus.to_bytes("train") + corpus.to_bytes("validation") == data


def test_a_file_is_cut_after_a_line_with_training_first(text: Callable[[str, bytes], str]) -> None:
    data = b"".join(b"line %04d\n" % i for i in range(1000))
    corpus = load_corpus(text("lines.txt", data), validation_fraction=0.2)
    assert corpus.to_bytes("train") == data[:8000]
    assert corpus.to_bytes("validation").startswith(b"line 0800\n")


def test_a_folder_is_its_text_files_in_the_order_of_their_paths(text: Callable[[str, bytes], str]) -> None:
    folder = Path(text("mine/b.md", b"second " * 30)).parent
    text("mine/a/z.py", b"first " * 30)
    text("mine/c.txt", b"third " * 10)
    text("mine/empty.txt", b"")
    text("mine/picture.png", b"\x89PNG\xff")
    text("mine/.hidden.txt", b"hidden")
    text("mine/.git/x.txt", b"hidden")
    corpus = load_corpus(str(folder))
    names = [document.name for split in ("train", "validation") for document in corpus.splits[split]]
    assert names == ["a/z.py", "b.md", "c.txt"]
    assert [document.name for document in corpus.splits["validation"]] == ["c.txt"]


def test_a_file_that_repeats_another_cannot_leak_into_validation(text: Callable[[str, bytes], str]) -> None:
    folder = Path(text("mine/a.txt", b"licence text " * 20)).parent
    text("mine/b.txt", b"some other text " * 20)
    text("mine/c.txt", b"licence text " * 20)
    with pytest.warns(ArchbenchWarning, match="1 of 3 files repeat"):
        corpus = load_corpus(str(folder), validation_fraction=0.4)
    assert [document.name for document in corpus.splits["train"]] == ["a.txt"]
    assert [document.name for document in corpus.splits["validation"]] == ["b.txt"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # seconds say nothing on a busy machine
@given(
    st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60), min_size=1),
    st.floats(0.01, 0.99),
)
def test_a_split_loses_and_repeats_nothing(texts: list[str], fraction: float) -> None:
    documents = [TextDocument(str(i), text) for i, text in enumerate(texts)]
    try:
        train, validation = split_documents(documents, fraction, culprit="corpus")
    except DataError:
        share = (1 - fraction) * sum(len(text.encode()) for text in texts)
        assert share < len(texts[0][0].encode()), "training's share holds the first character"
        return
    assert train
    assert validation
    assert "".join(document.text for document in (*train, *validation)) == "".join(texts)


@pytest.mark.parametrize("sizes", [[100_000], [5_000, 95_000], [99_000, 500, 500], [1000] * 100])
def test_validation_gets_about_the_share_asked_for(sizes: list[int]) -> None:
    documents = [TextDocument(str(i), "x" * size) for i, size in enumerate(sizes)]
    _, validation = split_documents(documents, 0.1, culprit="corpus")
    share = sum(len(document.text) for document in validation) / sum(sizes)
    assert 0.05 <= share <= 0.2


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("empty.txt", b"", r"empty\.txt.*empty"),
        ("latin.txt", "naïve café".encode("latin-1"), r"latin\.txt.*byte 2 \(0xef\) is not UTF-8.*iconv"),
        ("surrogate.txt", b"ab\xed\xa0\x80cd", r"byte 2 \(0xed\) is not UTF-8"),
        ("picture.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", r"picture\.png.*binary"),
        ("utf16.txt", "hello world".encode("utf-16"), r"UTF-16"),
        ("utf16le.txt", "hello world".encode("utf-16-le"), r"UTF-16"),
        ("one.txt", b"a", r"1 bytes are too few"),
    ],
)
def test_a_file_that_is_no_corpus_is_refused(
    text: Callable[[str, bytes], str], name: str, data: bytes, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        load_corpus(text(name, data))


def test_a_folder_without_text_says_which_files_it_looks_for(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(b"\0")
    with pytest.raises(DataError, match=r"no text files.*\.txt"):
        load_corpus(str(tmp_path))


def test_a_misspelt_corpus_gets_a_suggestion() -> None:
    with pytest.raises(DataError, match="Did you mean 'shakespeare'"):
        load_corpus("shakespear")


def test_a_lone_surrogate_is_refused_and_located() -> None:
    documents = (TextDocument("a", "ab\ud800cd"),)
    with pytest.raises(DataError, match=r"character 2 is the lone surrogate U\+D800"):
        make_corpus("mine", {"train": documents, "validation": documents}, licence="", source="")


def test_the_checksum_sees_text_and_boundaries() -> None:
    def checksum(*texts: str) -> str:
        train = tuple(TextDocument("same", text) for text in texts)
        return make_corpus("mine", {"train": train, "validation": train}, licence="", source="").sha256

    assert checksum("ab", "c") == checksum("ab", "c")
    assert len({checksum("abc"), checksum("ab", "c"), checksum("a", "bc"), checksum("abd")}) == 4


def test_a_sample_of_long_text_is_evenly_spread_and_cuts_no_character(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "BLOCK", 100)
    texts = ["".join(chr(0x100 + (n * 7 + i) % 500) for i in range(n)) for n in (1, 3000, 40, 0, 5000, 2)]
    documents = [TextDocument(str(n), text) for n, text in enumerate(texts)]
    total = sum(one.n_bytes for one in documents)
    assert list(sample(documents, total)) == documents
    found = list(sample(documents, total // 4))
    assert sum(one.n_bytes for one in found) == pytest.approx(total / 4, rel=0.05)
    assert all(one.n_bytes <= 102 and one.text in texts[int(one.name)] for one in found)
    assert {one.name for one in found} >= {"1", "4"}
