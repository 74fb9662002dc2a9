"""``archbench export``: a trained run as a folder that transformers reads, and that archbench reads again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from archbench import load_run, read_results
from archbench.data.byte_tokenizer import Tokenizer
from archbench.data.documents import Corpus
from archbench.data.tokenizers import load_tokenizer
from archbench.errors import StorageError
from archbench.export import transformers_folder
from archbench.export.exported_run import exported
from archbench.export.hub_upload import HubUpload
from archbench.export.tokenizer_files import tokenizer_files
from archbench.training.weights import read_weights
from command_line import archbench as command
from small_runs import UNCHECKED, value, with_small_corpus

transformers = pytest.importorskip("transformers", minversion="5.24")

TRAINED = ("--phases", "train,quality", "--device", "cpu", *UNCHECKED)
TYPES = ("openai-gpt", "gpt2", "llama", "mistral", "mixtral", "gemma", "mamba2", "recurrent_gemma", "rwkv_x070")
TEXTS = (
    "",
    " ",
    "To be, or not\r\n\n  to be?",
    "naïve 👩‍👩‍👧 e\u0301 語\x00",
    "<|endoftext|></s><s>[SEP]",
    "don't  we'll 12345",
)


def run(folder: Path, architecture: str, *options: str) -> None:
    done = command("run", architecture, *TRAINED, *options, cwd=folder)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of GPT-2 on subwords, and its export ``out``."""
    folder = with_small_corpus(tmp_path_factory.mktemp("trained"))
    run(folder, "gpt2", "--tokenizer", "bpe:300", "--set", "bias=false")
    done = command("export", "last", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert 'from_pretrained("out")' in done.stdout
    return folder


def assert_same_model(folder: Path, place: str, *, caches: bool = True) -> None:
    """transformers' model and tokenizer give what the run's give: ids, logits, greedy text and perplexity."""
    ours, tokenizer, config = load_run(out=folder / "results", device="cpu")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / place).eval()
    reader = transformers.AutoTokenizer.from_pretrained(folder / place)
    text = (folder / "small.txt").read_text()[:300]
    ids = reader(text)["input_ids"]
    assert ids == tokenizer.encode(text).tolist()
    tokens = torch.tensor([ids[: config.context_length]])
    with torch.inference_mode():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), atol=1e-5, rtol=0)
        prompt, written = tokens[:, :5], tokens[:, :5]
        for _ in range(20):
            likeliest = ours(written)[:, -1].argmax(-1)
            written = torch.cat([written, likeliest[:, None]], 1)
            if int(likeliest) == tokenizer.separator:
                break
        assert (
            theirs.generate(prompt, max_new_tokens=20, do_sample=False, use_cache=caches).tolist() == written.tolist()
        )
    shutil.rmtree(folder / "again", ignore_errors=True)
    scored = value(read_results(folder / "results", trials=True).pipe(newest), "quality", "perplexity")
    done = command(
        "run", f"hf:./{place}", "--phases", "quality", "--device", "cpu", "--corpus", "small.txt", "--tokenizer",
        f"saved:{next(path for path in (folder / 'results').iterdir() if path.is_dir()) / 'tokenizer'}", "--quiet",
        "--config", "data.validation_fraction=0.1", "--unchecked", "--threads", "1", "--out", "again", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert value(read_results(folder / "again"), "quality", "perplexity") == pytest.approx(scored, rel=1e-6)


def newest(frame: Any) -> Any:
    return frame[frame.run_id == frame.run_id.max()]


def test_a_trained_run_is_the_same_model_in_transformers(trained: Path) -> None:
    assert_same_model(trained, "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt1", "llama", "mistral", "mixtral", "gemma", "mamba2", "hybrid"])
def test_a_trained_run_of_each_architecture_is_the_same_model_in_transformers(name: str, tmp_path: Path) -> None:
    folder = with_small_corpus(tmp_path)
    run(folder, name, "--set", "n_layer=3")
    done = command("export", "last", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert_same_model(folder, "out", caches=name != "gpt1")


def test_the_export_comes_back_to_the_last_bit(trained: Path) -> None:
    one = exported(out=trained / "results")
    model = one.run.model.state_dict()
    published = json.loads((trained / "out" / "config.json").read_text())
    config = one.run.architecture.import_config(published)
    again = one.run.architecture.import_weights(read_weights(trained / "out"), config)
    assert config == one.run.config
    assert again.keys() == model.keys()
    assert all(torch.equal(again[name], model[name]) for name in model)


@pytest.mark.slow
def test_an_export_of_a_foreign_model_has_its_own_names(trained: Path, tmp_path: Path) -> None:
    """What ``hf:`` trained is exported in the layout of published files, as transformers saves it."""
    sizes = {
        "vocab_size": 257, "max_position_embeddings": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "hidden_size": 16, "intermediate_size": 24, "num_local_experts": 3,
        "num_experts_per_tok": 2,
    }  # fmt: skip
    folder = with_small_corpus(tmp_path)
    (folder / "tiny").mkdir()
    (folder / "tiny" / "config.json").write_text(json.dumps({"model_type": "mixtral", **sizes}))
    run(folder, "hf:./tiny", "--steps", "2", "--phases", "train")
    done = command("export", "last", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    ours, _, _ = load_run(out=folder / "results", device="cpu")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "out")
    theirs.save_pretrained(folder / "saved")
    assert read_weights(folder / "out").keys() == read_weights(folder / "saved").keys()
    inner: Any = ours
    for name, tensor in inner.inner.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor), name


@pytest.fixture(scope="module")
def tokenizers_of_all_kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    from test_tokenizers import gpt2_like

    folder = tmp_path_factory.mktemp("tokenizers")
    with_small_corpus(folder)
    from archbench.data.corpora import load_corpus

    corpus: Corpus = load_corpus(str(folder / "small.txt"))
    specs = ("byte", "bpe:400", f"file:{gpt2_like(folder / 'special.json', special=True)}")
    return {spec.partition(":")[0]: load_tokenizer(spec, corpus=corpus, cache=folder) for spec in specs}


@pytest.mark.parametrize("kind", ["byte", "bpe", "file"])
@pytest.mark.parametrize("model_type", TYPES)
def test_auto_tokenizer_gives_the_same_ids(
    tokenizers_of_all_kinds: dict[str, Tokenizer], model_type: str, kind: str, tmp_path: Path
) -> None:
    tokenizer = tokenizers_of_all_kinds[kind]
    for name, text in tokenizer_files(tokenizer, 32).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert reader.bos_token_id == reader.eos_token_id == tokenizer.separator
    assert reader.model_max_length == 32
    for text in TEXTS:
        ids = tokenizer.encode(text).tolist()
        assert reader(text)["input_ids"] == ids, text
        assert reader.encode(text, add_special_tokens=False) == ids
        assert reader.decode(ids) == tokenizer.decode(ids)


def test_the_card_has_the_measurements_and_no_folder_of_this_machine(trained: Path) -> None:
    card = (trained / "out" / "README.md").read_text("utf-8")
    frame = read_results(trained / "results")
    assert f"{value(frame, 'quality', 'bits_per_byte'):.4f}" in card
    for said in (
        frame.run_id.iloc[0],
        "bpe:300",
        "unchecked",
        "contaminated" if frame.contaminated.any() else "No other work",
    ):
        assert said.casefold() in card.casefold(), said
    assert str(trained) not in card


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_cannot_be_exported_is_said_in_one_paragraph_and_leaves_nothing(
    trained: Path, tmp_path: Path, minimal_plugin: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    (results,) = (path for path in (folder / "results").iterdir() if path.is_dir())
    before = left(folder)

    def refused(*arguments: str, code: int, culprit: str) -> None:
        done = command("export", *arguments, cwd=folder)
        assert done.returncode == code, done.stderr
        assert done.stderr.startswith("Error: ")
        assert done.stderr.count("\n") == 1
        assert culprit in done.stderr
        assert left(folder) == before

    refused("last", "out", code=2, culprit="out")
    refused("last", "small.txt", code=2, culprit="small.txt")
    refused("last", "small.txt/deeper", code=7, culprit="small.txt/deeper")
    parquet, aside = results.with_suffix(".parquet"), tmp_path / "aside"
    shutil.move(parquet, aside)
    refused("last", "new", code=2, culprit=results.name)
    shutil.move(aside, parquet)
    shutil.move(results / "checkpoints", aside)
    refused("last", "new", code=6, culprit=results.name)
    shutil.copytree(aside, results / "checkpoints")
    weights = max((results / "checkpoints").glob("*/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    refused("last", "new", code=6, culprit="model.safetensors")

    (folder / "plain.py").write_text(minimal_plugin)
    before.add("plain.py")
    options = ("--profile", "smoke", "--steps", "1", "--phases", "train", "--unchecked", "--quiet", "--device", "cpu")
    assert command("run", "bigram", "--plugin", "plain.py", *options, cwd=folder).returncode == 0
    refused("last", "new", code=3, culprit="export_config")


def test_a_disk_that_is_full_leaves_nothing(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    one = exported(out=trained / "results")
    for step in ("write_weights", "flush"):
        with monkeypatch.context() as patch:
            patch.setattr(transformers_folder, step, full)
            with pytest.raises(StorageError) as refused:
                transformers_folder.write_transformers_folder(one, tmp_path / "new")
        assert "new" in refused.value.culprit
        assert not left(tmp_path)


class Hub:
    """Records what it is asked; it has the models in ``has``."""

    def __init__(self, has: str = "", whole: bool = True) -> None:
        self.has, self.whole, self.asked = has, whole, []  # type: ignore[var-annotated]

    def whoami(self) -> None:
        self.asked.append("whoami")

    def repo_exists(self, repository: str) -> bool:
        return repository == self.has

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> str:
        self.asked.append((repository, private, exist_ok))
        return f"https://hub/{repository}"

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        if not self.whole:
            raise ConnectionError("it ended")
        self.asked.append((repo_id, sorted(os.listdir(folder_path))))


@pytest.mark.parametrize("public", [False, True])
def test_a_push_is_private_unless_asked_and_brings_the_folder(trained: Path, public: bool) -> None:
    hub = Hub()
    address = HubUpload("me/tiny", public=public, api=hub).upload(trained / "out")
    assert address == "https://hub/me/tiny"
    assert hub.asked == ["whoami", ("me/tiny", not public, False), ("me/tiny", sorted(left(trained / "out")))]


def test_a_push_that_cannot_be_is_said_before_anything_is_written(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError) as taken:
        HubUpload("me/tiny", public=False, api=Hub(has="me/tiny"))
    with pytest.raises(StorageError) as broken:
        HubUpload("me/tiny", public=False, api=Hub(whole=False)).upload(tmp_path)
    for refused in (taken, broken):
        assert "me/tiny" in refused.value.culprit
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    done = command("export", "last", str(tmp_path / "new"), "--push", "me/tiny", cwd=trained)
    assert done.returncode == 7, done.stderr
    assert done.stderr.startswith("Error: --push me/tiny")
    assert not left(tmp_path)
