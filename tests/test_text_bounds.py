"""Corpora that are no ordinary text files end in an error that names them, in seconds and in bounded memory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from archbench.config import DataConfig
from archbench.data import local_text, token_file
from archbench.data.corpora import load_corpus
from archbench.data.dataset import prepare
from archbench.data.documents import Corpus
from archbench.data.local_text import FileDocument
from archbench.errors import DataError, StorageError
from command_line import archbench

POSIX = pytest.mark.skipif(os.name == "nt", reason="needs the special files of a POSIX system")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def sock(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(path.parent)  # a socket's path is short
        listener.bind(path.name)


def loop(path: Path) -> None:
    path.symlink_to(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2 << 30)


def secret(path: Path) -> None:
    path.write_text("text\n" * 100)
    path.chmod(0)


def bad_end(path: Path) -> None:
    path.write_bytes("naïve text\n".encode() * 200_000 + b"\xc3")


def bad_between_blocks(path: Path) -> None:
    path.write_bytes(b"x" * (2**20 - 1) + b"\xc3\x28" + b"x" * 2**20)


def nulls(path: Path) -> None:
    path.write_bytes(b"text\n" + b"\0" * 5000)


IRREGULAR: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (pipe, "named pipe"),
    "socket": (sock, r"socket|No such device"),
    "loop": (loop, r"symbolic links|no such file"),
    "device": (device, "a device"),
    "sparse": (sparse, r"2,147,483,648 bytes are NUL"),
    "secret": (secret, "Permission denied"),
    "bad end": (bad_end, r"byte 2400000 \(0xc3\) is not UTF-8"),
    "bad between blocks": (bad_between_blocks, r"byte 1048575 \(0xc3\) is not UTF-8"),
    "nulls": (nulls, "binary"),
}


@POSIX
@pytest.mark.parametrize("kind", IRREGULAR)
@pytest.mark.parametrize("within", ["itself", "in a folder"])
def test_what_is_no_text_file_is_named(kind: str, within: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "secret" and os.geteuid() == 0:
        pytest.skip("root may read any file")
    monkeypatch.chdir(tmp_path)
    make, says = IRREGULAR[kind]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("some text\n" * 10)
    make(folder / "z.txt")
    with pytest.raises(DataError, match=rf"z\.txt.*({says})"):
        load_corpus(str(folder / "z.txt" if within == "itself" else folder))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("path", ["/proc/self/status", "/proc/cpuinfo", "/dev/zero", "/dev/null"])
def test_files_without_an_end_of_their_own_are_named(path: str) -> None:
    with pytest.raises(DataError, match=rf"{path}.*(more than the 0 bytes|a device)"):
        load_corpus(path)


@POSIX
@pytest.mark.parametrize("make", [pipe, loop])
def test_the_command_names_it_before_anything_is_measured(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(file := tmp_path / "file")
    begun = time.monotonic()
    done = archbench("run", "gpt1", "--profile", "smoke", "--corpus", file, "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 4
    assert str(file) in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out/**/*.json"))
    assert time.monotonic() - begun < 60


def test_links_to_folders_and_very_deep_folders_are_no_trouble(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "again").symlink_to(folder)
    (folder / "a.txt").write_text("first text\n" * 20)
    deep = os.open(folder, os.O_RDONLY)
    for _ in range(1010):  # deeper than Python's stack; the path is still short enough to be opened
        os.mkdir("d", dir_fd=deep)
        deep, above = os.open("d", os.O_RDONLY, dir_fd=deep), deep
        os.close(above)
    file = os.open("b.txt", os.O_WRONLY | os.O_CREAT, dir_fd=deep)
    os.write(file, b"second text\n" * 20)
    os.close(file)
    os.close(deep)
    try:
        corpus = load_corpus(str(folder), validation_fraction=0.5)
    finally:
        subprocess.run(["rm", "-rf", folder / "d"], check=True)  # deeper than pytest can remove
    assert [one.name for one in corpus.splits["train"]] == ["a.txt"]
    assert [one.name for one in corpus.splits["validation"]] == ["d/" * 1010 + "b.txt"]


def test_a_folder_of_too_many_files_is_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_text, "MOST_FILES", 5)
    for number in range(6):
        (tmp_path / f"{number}.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match="more than 5 text files"):
        load_corpus(str(tmp_path))


def test_a_name_that_is_not_utf8_becomes_one_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("some text\n" * 20)
    assert load_corpus(str(tmp_path)).splits["train"][0].name.encode() == rb"caf\xe9.txt"


@pytest.mark.parametrize("change", ["shorter", "longer", "other"])
def test_a_file_that_changes_while_it_is_read_is_named(change: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"line\n" * 1_000_000)
    document = load_corpus(str(path)).splits["train"][0]
    blocks = document.blocks()
    next(blocks)
    changes = {"shorter": b"line\n", "longer": b"line\n" * 2_000_000, "other": b"enil\n" * 1_000_000}
    path.write_bytes(changes[change])
    with pytest.raises(DataError, match=r"text\.txt.*changes while"):
        list(blocks)
    with pytest.raises(DataError, match=r"text\.txt.*changes while"):
        next(document.blocks())


def settled(path: Path) -> None:
    """As if the file had been there for a while."""
    os.utime(path, (1e9, 1e9))


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that makes files that have just been written old enough to be kept."""
    from archbench.data import text_index

    monkeypatch.setattr(text_index, "_SETTLED", 0)


@pytest.mark.usefixtures("unhurried")
def test_a_later_phase_reads_no_text_and_has_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.txt").write_text(f"document {number} naïve\n" * 20)
    config = DataConfig(corpus=str(folder), tokenizer="bpe:270", validation_fraction=0.25)
    first = prepare(config, cache=tmp_path)

    def reads(document: FileDocument) -> None:
        raise AssertionError(f"{document.path} is read again")

    monkeypatch.setattr(FileDocument, "blocks", reads)
    monkeypatch.setattr(local_text, "_checked", reads)
    again = prepare(config, cache=tmp_path)
    monkeypatch.undo()
    assert again.corpus == first.corpus
    assert again.train.tobytes() == first.train.tobytes()
    facts = [[(one.name, one.n_bytes, one.tokens.tolist()) for one in data.validation] for data in (first, again)]
    assert facts[0] == facts[1]
    assert again.corpus.to_bytes("train") == first.corpus.to_bytes("train")


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("change", ["content", "content at the same time", "another file", "one file more"])
def test_a_text_that_changed_between_phases_is_an_error(change: str, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.txt").write_text(f"text {name}\n" * 50)
        settled(folder / f"{name}.txt")
    config = DataConfig(corpus=str(folder), tokenizer="byte")
    sha256 = prepare(config, cache=tmp_path).corpus.sha256
    assert prepare(config, cache=tmp_path, sha256=sha256).corpus.sha256 == sha256
    if change == "one file more":
        (folder / "c.txt").write_text("text c\n" * 50)
    else:
        if change == "another file":
            (folder / "b.txt").unlink()
        (folder / "b.txt").write_text("text x\n" * 50)
    if change == "content at the same time":
        settled(folder / "b.txt")
    with pytest.raises(DataError, match=r"not the one that the run began with"):
        prepare(config, cache=tmp_path, sha256=sha256)


WRONG_PARTS = b'{"corpus_sha256": "", "held_out": "", "splits": {"train": [[9, 0, 1]]}}'


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("damage", [b"{", WRONG_PARTS, b"[" * 9999])
def test_a_damaged_index_is_made_again_and_it_is_said(
    damage: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some lines\n" * 100)

    def load() -> Corpus:
        return load_corpus(str(text), cache=tmp_path)

    expected = load()
    (index,) = tmp_path.glob("texts/*.json")
    good = index.read_bytes()
    index.write_bytes(damage)
    assert load() == expected
    assert "damaged" in caplog.text
    assert index.read_bytes() == good


def test_a_file_that_has_just_changed_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some lines\n" * 100)
    load_corpus(str(tmp_path / "text.txt"), cache=tmp_path)
    assert not list(tmp_path.glob("texts/*"))


def test_a_disk_that_is_too_small_for_the_tokens_is_said_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = DataConfig(corpus="shakespeare", tokenizer="byte")
    monkeypatch.setattr(token_file, "LARGE", 1 << 20)
    monkeypatch.setattr(token_file.shutil, "disk_usage", lambda _: Disk(free=10**6))
    with pytest.raises(StorageError, match=r"need about 0\.00 GiB, and 0\.00 GiB are free.*ARCHBENCH_CACHE"):
        prepare(config, cache=tmp_path)
    assert not list(tmp_path.rglob("*.npy"))
    monkeypatch.setattr(token_file.shutil, "disk_usage", lambda _: Disk(free=10**10))
    prepare(config, cache=tmp_path)
    assert "need about" in caplog.text


class Disk:
    def __init__(self, free: int) -> None:
        self.free = free


PEAK = """
import re, sys, pathlib, torch, tokenizers
from archbench.config import DataConfig
from archbench.data.batches import BatchSampler
from archbench.data.dataset import prepare
from archbench.measure.scoring import blocks

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) >> 10

before = peak()
data = prepare(DataConfig(corpus=sys.argv[1], tokenizer=sys.argv[3]), cache=pathlib.Path(sys.argv[2]))
sampler = BatchSampler(data.train, batch_size=64, context_length=1024, seed=0)
for step in range(sampler.blocks_per_epoch // 64):
    sampler.batch(step)
highest = max(int(part.max()) for document in data.validation for part in blocks(document.tokens))
assert highest < data.tokenizer.vocab_size
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("tokenizer", ["byte", "bpe:1024"])
def test_four_times_the_text_takes_no_more_memory_to_prepare_and_to_train_on(tokenizer: str, tmp_path: Path) -> None:
    peaks = []
    for megabytes in (50, 200):
        words = " ".join(f"word{number % 5000}" for number in range(100_000)) + "\n"
        path = tmp_path / f"{megabytes}.txt"
        path.write_text(words * (megabytes * 10**6 // len(words)))
        command = [sys.executable, "-c", PEAK, path, tmp_path / "cache", tokenizer]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert max(peaks) < 300, f"{peaks} MiB"
    assert abs(peaks[1] - peaks[0]) < 50, f"{peaks} MiB"
