"""``archbench generate`` streams text from a trained run, in whole characters; here of a plugin given by path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from archbench import load_run
from archbench.cli.generate import TextStream
from archbench.data.byte_tokenizer import ByteTokenizer
from archbench.plugin.trust import vouch
from archbench.runs.folder import open_run
from archbench.training.checkpoints import latest_checkpoint, load_weights
from command_line import archbench, printed

EXAMPLE = Path(__file__).parent / "example_plugins" / "bigram.py"
HARD = "naïve 👩‍👩‍👧 e\u0301 語\r\n\x00 end"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the example plugin was trained for three steps: its text is nearly random bytes."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["--profile", "smoke", "--steps", "3", "--phases", "train", "--unchecked", "--quiet"]
    done = archbench("run", "bigram", "--plugin", EXAMPLE, *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def generate(trained: Path, *options: str | Path) -> bytes:
    code, out, error = printed("generate", "bigram", *options, cwd=trained)
    assert code == 0, error
    return out


def test_the_output_is_valid_utf8_however_wild_the_model_and_starts_with_the_prompt(trained: Path) -> None:
    (trained / "prompt.txt").write_bytes(HARD.encode())
    options = ("--prompt-file", "prompt.txt", "--max-new-tokens", "300", "--temperature", "3", "--seed", "1")
    text = generate(trained, *options).decode("utf-8")
    assert text.startswith(HARD)
    assert text.endswith("\n")
    assert len(text) > len(HARD) + 50


def test_a_seed_gives_the_same_text_and_without_a_prompt_a_document_begins(trained: Path) -> None:
    options = ("--max-new-tokens", "40", "--top-p", "0.9", "--temperature", "0.8")
    first, again, other = (generate(trained, *options, "--seed", seed) for seed in ("5", "5", "6"))
    assert first == again != other


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        (["--run", "20200101T000000-000000"], "20200101T000000-000000"),
        (["--temperature", "0"], "temperature"),
        (["--top-k", "0"], "top_k"),
        (["--top-p", "1.5"], "top_p"),
        (["--top-k", "5", "--top-p", "0.5"], "top_k and top_p"),
        (["--prompt", "x" * 1000], "prompt"),
        (["--prompt", "a", "--prompt-file", "b"], "--prompt-file"),
        (["--prompt-file", "missing.txt"], "missing.txt"),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
    ],
)
def test_bad_input_is_one_paragraph(trained: Path, options: list[str], phrase: str) -> None:
    done = archbench("generate", "bigram", *options, cwd=trained)
    assert done.returncode in (2, 4)
    assert done.stderr.startswith("Error: ")
    assert phrase in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_of_another_architecture_is_refused(trained: Path) -> None:
    done = archbench("generate", "gpt1", "--prompt", "A", cwd=trained)
    assert done.returncode == 2
    assert "bigram" in done.stderr


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_a_stream_shows_exactly_the_text_and_each_piece_is_whole(text: str) -> None:
    tokenizer = ByteTokenizer()
    stream = TextStream(tokenizer.decode)
    pieces = [stream.push(int(token)) for token in tokenizer.encode(text)]
    assert "".join(pieces) == text.removesuffix("\ufffd")
    for piece in pieces:
        piece.encode("utf-8")
        assert len(piece) <= 1 or "\ufffd" in text


@given(st.lists(st.integers(0, 255), max_size=80))
def test_a_stream_of_any_bytes_shows_what_decoding_them_at_once_would_but_for_an_unfinished_end(ids: list[int]) -> None:
    tokenizer = ByteTokenizer()
    stream = TextStream(tokenizer.decode)
    assert "".join(stream.push(token) for token in ids) == tokenizer.decode(ids).removesuffix("\ufffd")


def test_a_run_is_loaded_by_its_id_its_folder_or_as_the_last(trained: Path) -> None:
    out = trained / "results"
    vouch(open_run(out, "last").config.plugins)
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    loaded = [load_run(*run, out=out, device="cpu") for run in ((), (folder.name,))]
    loaded.append(load_run(folder, out="elsewhere", device="cpu"))
    weights = [model.state_dict() for model, _, _ in loaded]
    checkpoint = latest_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    stored = load_weights(checkpoint)
    for one in weights:
        assert one.keys() == stored.keys()
        assert all(torch.equal(one[name], stored[name]) for name in stored)
    model, tokenizer, config = loaded[0]
    assert not model.training
    assert config.vocab_size == tokenizer.vocab_size == model(torch.tensor([[1, 2]])).shape[-1]
