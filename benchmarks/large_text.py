"""Memory and time of a large text: from a file to tokens, in a later process, and in a whole run.

    python benchmarks/large_text.py [--megabytes 34 340] [--tokenizer bpe:1024] [--words 50000] [--alone]
    python benchmarks/large_text.py --embedded --run --megabytes 1000 10000 --tokenizer byte [--folder DIR]

The text has lines of words drawn from a vocabulary by Zipf's law, with numbers and punctuation, or is the embedded
corpora in pieces, repeated in random order with a new word after each (``--embedded``). Each size is prepared in a
process of its own that has imported torch and tokenizers: seconds of processor time, and the peak of resident memory
above what it had before; ``trained`` is the time in which bpe:N is trained. A second process then opens the same data,
as every later phase of a run does. ``alone`` is the tokenizer on the same text, held in memory in pieces of 64 Ki
characters.

``--run`` trains and scores a small model on the text instead, from nothing prepared: the most resident memory that one
process of the command had, imports included. The disk needs room for the text and its tokens (twice the text as bytes);
the run is stopped, and everything removed, if less than ``--keep-free`` GiB would be left for others.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from archbench.data.corpora import load_corpus

MEASURED = """
import json, os, re, sys, time
from pathlib import Path
import tokenizers, torch
from archbench.config import DataConfig
from archbench.data.corpora import load_corpus
from archbench.data.dataset import prepare
from archbench.data.tokenizers import load_tokenizer

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

before, begun, wall = peak(), time.process_time(), time.perf_counter()
load_tokenizer(sys.argv[2], corpus=load_corpus(sys.argv[1], cache=Path(os.environ["ARCHBENCH_CACHE"])))
trained = time.process_time() - begun
data = prepare(DataConfig(corpus=sys.argv[1], tokenizer=sys.argv[2]))
print(json.dumps({
    "tokens": len(data.train) + sum(len(one.tokens) for one in data.validation),
    "MiB": round(peak() - before), "CPU-s": round(time.process_time() - begun, 2),
    "s": round(time.perf_counter() - wall, 2), "trained": round(trained, 2),
}))
"""

ALONE = """
import json, sys, time
from pathlib import Path
from archbench.config import DataConfig
from archbench.data.dataset import prepare

tokenizer = prepare(DataConfig(corpus=sys.argv[1], tokenizer=sys.argv[2])).tokenizer._tokenizer
text = Path(sys.argv[1]).read_text()
pieces = [text[start : start + (1 << 16)] for start in range(0, len(text), 1 << 16)]
begun, wall = time.process_time(), time.perf_counter()
for start in range(0, len(pieces), 16):
    tokenizer.encode_batch_fast(pieces[start : start + 16], add_special_tokens=False)
print(json.dumps({"CPU-s": round(time.process_time() - begun, 2), "s": round(time.perf_counter() - wall, 2)}))
"""

RUN = (
    "run",
    "gpt1",
    "--profile",
    "smoke",
    "--phases",
    "train,quality",
    "--config",
    "training.steps=100",
    "--unchecked",
)


def write_text(path: Path, megabytes: int, n_words: int) -> None:
    random = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = np.array(["".join(letters[random.zipf(1.3, random.integers(1, 11)) % 26]) for _ in range(n_words)])
    chances = 1 / np.arange(10, n_words + 10)
    ends = np.array([" ", ", ", ". ", "\n", "; ", " 1984 ", "'s ", " – "])
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes * 10**6:
            drawn = random.choice(words, 200_000, p=chances / chances.sum())
            file.write("".join(np.char.add(drawn, random.choice(ends, 200_000, p=[0.8, *[0.2 / 7] * 7])).tolist()))


def write_embedded(path: Path, megabytes: int) -> None:
    text = b"".join(load_corpus(name).to_bytes("train") for name in ("shakespeare", "python"))
    lines, pieces = text.splitlines(keepends=True), [b""]
    for line in lines:
        if len(pieces[-1]) > 4000:
            pieces.append(b"")
        pieces[-1] += line
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        while file.tell() < megabytes * 10**6:
            for number in random.permutation(len(pieces)).tolist():
                file.write(pieces[number] + b"%x\n" % random.integers(1 << 40))


def measured(code: str, path: Path, tokenizer: str, cache: str) -> dict[str, float]:
    command = [sys.executable, "-c", code, str(path), tokenizer]
    variables = {**os.environ, "ARCHBENCH_CACHE": cache}
    done = subprocess.run(command, env=variables, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def peak(pid: int) -> int:
    """Most resident KiB of a process; 0 if it has ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text("utf-8"))
    except OSError:
        return 0
    return int(found[1]) if found else 0


def run(path: Path, tokenizer: str, fraction: float, cache: str, keep_free: float) -> dict[str, float]:
    """Train and score on the text; the most MiB of a process, of the preparing one and of the phases', and seconds."""
    options = ("--corpus", str(path), "--tokenizer", tokenizer, "--config", f"data.validation_fraction={fraction}")
    variables = {**os.environ, "ARCHBENCH_CACHE": cache}
    begun, most = time.perf_counter(), {"preparing MiB": 0, "phases MiB": 0}
    tokens = Path(cache, "tokens")
    with subprocess.Popen(
        [sys.executable, "-m", "archbench", *RUN, *options, "--out", f"{cache}/out"], env=variables, cwd=path.parent
    ) as process:
        prepared = 0.0
        while process.poll() is None:
            most["preparing MiB"] = max(most["preparing MiB"], peak(process.pid) >> 10)
            for child in psutil.Process(process.pid).children(recursive=True):
                most["phases MiB"] = max(most["phases MiB"], peak(child.pid) >> 10)
            if not prepared and any(tokens.glob("*.json")):
                prepared = time.perf_counter() - begun
            if shutil.disk_usage(path.parent).free < keep_free * 2**30:
                process.kill()
                raise SystemExit(f"less than {keep_free} GiB are free: stopped")
            time.sleep(1)
    if process.returncode:
        raise SystemExit(process.returncode)
    return {**most, "prepared after s": round(prepared, 1), "s": round(time.perf_counter() - begun, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[34, 340])
    parser.add_argument("--tokenizer", default="bpe:1024")
    parser.add_argument("--words", type=int, default=50_000)
    parser.add_argument("--embedded", action="store_true", help="repeat the embedded corpora, with new words")
    parser.add_argument("--run", action="store_true", help="train and score a small model on it")
    parser.add_argument("--folder", help="where text and tokens are written, and removed")
    parser.add_argument("--keep-free", type=float, default=4, help="GiB of the disk that are left for others")
    parser.add_argument(
        "--alone", action="store_true", help="also time the tokenizer alone, in all the memory it takes"
    )
    options = parser.parse_args()
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path, cache = Path(folder, "text.txt"), str(Path(folder, "cache"))
            if shutil.disk_usage(folder).free < 3 * megabytes * 10**6 + options.keep_free * 2**30:
                raise SystemExit(f"{megabytes} MB of text and their tokens have no room in {folder}")
            if options.embedded:
                write_embedded(path, megabytes)
            else:
                write_text(path, megabytes, options.words)
            time.sleep(3)  # a file that has just been written is not kept in the index
            print(f"{megabytes} MB as {options.tokenizer}", flush=True)
            if options.run:
                found = run(path, options.tokenizer, min(0.1, 0.2 / megabytes), cache, options.keep_free)
                print(f"  run: {found}", flush=True)
                continue
            for name, code in [("first", MEASURED), ("later", MEASURED)] + [("alone", ALONE)] * options.alone:
                print(f"  {name}: {measured(code, path, options.tokenizer, cache)}", flush=True)


if __name__ == "__main__":
    main()
