"""Memory and time of preparing a large text: from a file to tokens, and in a later phase.

    python benchmarks/large_text.py [--megabytes 34 340] [--tokenizer bpe:1024] [--words 50000]

The text has lines of words drawn from a vocabulary by Zipf's law, with numbers and punctuation. Each size is prepared
in a process of its own that has imported torch and tokenizers: seconds of processor time, and the peak of resident
memory above what it had before; ``trained`` is the time in which bpe:N is trained. A second process then opens the same
data, as every later phase of a run does. ``alone`` is the tokenizer on the same text, held in memory in pieces of
64 Ki characters.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

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


def measured(code: str, path: Path, tokenizer: str, cache: str) -> dict[str, float]:
    command = [sys.executable, "-c", code, str(path), tokenizer]
    variables = {**os.environ, "ARCHBENCH_CACHE": cache}
    done = subprocess.run(command, env=variables, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[34, 340])
    parser.add_argument("--tokenizer", default="bpe:1024")
    parser.add_argument("--words", type=int, default=50_000)
    parser.add_argument(
        "--alone", action="store_true", help="also time the tokenizer alone, in all the memory it takes"
    )
    options = parser.parse_args()
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            path, cache = Path(folder, "text.txt"), str(Path(folder, "cache"))
            write_text(path, megabytes, options.words)
            time.sleep(3)  # a file that has just been written is not kept in the index
            print(f"{megabytes} MB as {options.tokenizer}", flush=True)
            for name, code in [("first", MEASURED), ("later", MEASURED)] + [("alone", ALONE)] * options.alone:
                print(f"  {name}: {measured(code, path, options.tokenizer, cache)}", flush=True)


if __name__ == "__main__":
    main()
