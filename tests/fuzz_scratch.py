"""A folder with everything that a command line may name, and what has changed in it since."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import command_line
import comparison_files
import gguf_files
from small_runs import SMALL, with_small_corpus

RUNS = {"finished": "20261101T100000-aaaaaa", "broken off": "20261101T110000-bbbbbb"}
FILES = (
    "small.txt", "empty.txt", "binary.bin", "latin1.txt", "page.html", "notes.md", "table.csv", "picture.png",
    "deep.json",
    "run.toml", "dots.toml", "wrong.toml", "bigram.py", "wrong.py", "raises.py", "exits.py", "nothing.py", "plugins",
    "tokenizer.json", "model.gguf", "torn.gguf", "weights.safetensors", "torn.safetensors", "results",
    "results/*.parquet",
    f"results/{RUNS['finished']}.parquet", f"results/{RUNS['finished']}.json", f"results/{RUNS['broken off']}",
    f"results/{RUNS['finished']}/config.json", f"results/{RUNS['finished']}/checkpoints", "torn.parquet", "study",
    "study/runs.parquet", "study/comparison.json", "study/plan.json", "cells", "empty", "pipe", "link", "dangling",
    "loop", "null", "zero",
    "sparse", "a folder/ünï.txt", "nosuch", "nosuch/new", "new.html", "new.md", "new.csv", "new.png", "new.svg",
    "../home",
    "-dash",
)  # fmt: skip
"""Names in the working folder; some are of nothing that is there."""

LINKS = {"link": "small.txt", "dangling": "nosuch", "loop": "loop", "null": "/dev/null", "zero": "/dev/zero"}

State = dict[str, tuple[int, ...] | str]


class Scratch:
    """``cwd`` is the working folder, ``home`` has caches and settings, ``temporary`` is for temporary files."""

    def __init__(self, root: Path, filled: Path) -> None:
        self._filled = filled
        self.root = root
        self.cwd, self.home, self.temporary = root / "cwd", root / "home", root / "tmp"
        for folder in (self.home, self.temporary):
            folder.mkdir(parents=True)
        shutil.copytree(filled, self.cwd, symlinks=True)
        self._make_special()
        self._before = self.state()

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables that keep a command inside the folder."""
        home = str(self.home)
        return {
            "HOME": home, "TMPDIR": str(self.temporary), "NO_COLOR": "1", "ARCHBENCH_CACHE": f"{home}/cache",
            "ARCHBENCH_CONFIG": f"{home}/config",
            "XDG_CACHE_HOME": home, "XDG_CONFIG_HOME": home, "XDG_DATA_HOME": home, "XDG_STATE_HOME": home,
            "HF_HUB_OFFLINE": "1", "HF_HOME": home,
        }  # fmt: skip

    def state(self) -> State:
        """Path under the root, outside ``home`` -> what it is; a file that is written has another time."""
        found: State = {}
        for folder, folders, files in os.walk(self.root):
            for name in [*folders, *files]:
                path = Path(folder, name)
                facts = path.lstat()
                key = str(path.relative_to(self.root))
                if stat.S_ISDIR(facts.st_mode):
                    found[key] = (facts.st_mode,)
                elif stat.S_ISLNK(facts.st_mode):
                    found[key] = os.readlink(path)
                else:
                    found[key] = (facts.st_mode, facts.st_size, facts.st_mtime_ns, facts.st_ino)
            if Path(folder) == self.root:
                folders.remove("home")
        return found

    def changes(self) -> tuple[list[str], list[str]]:
        """Paths that are new, and those that are changed or gone, since the last :meth:`restore`."""
        after = self.state()
        new = sorted(after.keys() - self._before.keys())
        return new, sorted(path for path, facts in self._before.items() if after.get(path) != facts)

    def restore(self) -> None:
        """Make everything as it was at first."""
        new, changed = self.changes()
        for path in [*new, *changed]:
            _remove(self.root / path)
        for path in changed:  # folders before what is in them
            _copy(self._filled / Path(path).relative_to("cwd"), self.root / path)
        self._make_special()
        self._before = self.state()

    def _make_special(self) -> None:
        if not (self.cwd / "pipe").exists():
            os.mkfifo(self.cwd / "pipe")
        if not (self.cwd / "sparse").exists():
            with (self.cwd / "sparse").open("wb") as file:
                file.truncate(2 << 30)


def filled(folder: Path) -> Path:
    """A folder with all of :data:`FILES` that are there, except for those that cannot be copied."""
    folder.mkdir()
    _write_texts(folder)
    _write_runs(folder)
    comparison_files.write_comparison(folder / "study", comparison_files.ARCHITECTURES[:2], probes=False, kernels=False)
    gguf_files.write_gguf(
        folder / "model.gguf",
        {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.merges": ["a b"]},
        {"token_embd.weight": np.zeros((2, 4), np.float32)},
    )
    safetensors.numpy.save_file({"wte.weight": np.zeros((4, 4), np.float32)}, folder / "weights.safetensors")
    parquet = folder / "results" / f"{RUNS['finished']}.parquet"
    torn = {
        "torn.parquet": parquet,
        "torn.gguf": folder / "model.gguf",
        "torn.safetensors": folder / "weights.safetensors",
    }
    for name, whole in torn.items():
        (folder / name).write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    for name, target in LINKS.items():
        (folder / name).symlink_to(target)
    for name in ("empty", "cells"):
        (folder / name).mkdir()
    return folder


def _write_texts(folder: Path) -> None:
    with_small_corpus(folder)
    bigram = (Path(__file__).parent / "example_plugins" / "bigram.py").read_text()
    texts = {
        "empty.txt": "", "page.html": "<p>Mine", "notes.md": "Mine", "table.csv": "mine,1\n",
        "deep.json": "[" * 100_000,

        "run.toml": 'architecture = "bigram"\nplugins = ["bigram.py"]\n[training]\nsteps = 2\n'
        '[data]\ncorpus = "small.txt"\n',
        "dots.toml": "a" + ".a" * 20_000 + " = 1\n", "wrong.toml": 'seed = "x"\ntraining = 3\nout = []\n',
        "bigram.py": bigram, "wrong.py": bigram.replace("@hookimpl\ndef build", "def build").replace('"bigram"',
        '"wrong"'),
        "raises.py": "raise RuntimeError('no\\x1b[2J')\n", "exits.py": "raise SystemExit(3)\n", "nothing.py": "",
        "-dash": "text", "a folder/ünï.txt": "Zwölf Boxkämpfer. " * 200,
        "plugins/other.py": bigram.replace('"bigram"', '"other"'), "plugins/broken.py": "def\n",
        "tokenizer.json": json.dumps({
            "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None,
            "decoder": None, "truncation": None, "padding": None,
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
        }),
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "latin1.txt").write_bytes("Zwölf".encode("latin-1") * 50)
    (folder / "binary.bin").write_bytes(bytes(range(256)) * 40)
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")


def _write_runs(folder: Path) -> None:
    """A finished run, and one that was broken off after its last checkpoint."""
    options = ["--plugin", "bigram.py", *SMALL[:8], *SMALL[12:], "--unchecked", "--phases", "train"]
    for run_id in RUNS.values():
        with pytest.MonkeyPatch.context() as patch:  # a line names the same run each time
            patch.setattr("archbench.runs.preparation.new_run_id", lambda *_, run_id=run_id, **__: run_id)
            done = command_line.archbench("run", "bigram", *options, cwd=folder)
        assert done.returncode == 0, done.stderr
    broken = folder / "results" / RUNS["broken off"]
    for left in (broken.with_suffix(".parquet"), broken.with_suffix(".json"), broken / "rows-train.jsonl"):
        left.unlink()


def _copy(source: Path, target: Path) -> None:
    if source.is_symlink():
        target.symlink_to(os.readlink(source))
    elif source.is_dir():
        target.mkdir(exist_ok=True)
        shutil.copystat(source, target)
    elif source.exists():
        shutil.copy2(source, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
