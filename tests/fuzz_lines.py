"""Command lines made from the commands' own arguments and options: right ones, nearly right ones and hostile ones.

A line is a function of its seed alone, so that a number reproduces it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from fuzz_scratch import FILES, RUNS

MEASURING = ("run", "compare", "tune", "probe", "scale", "kernels", "check", "doctor", "regress", "generate")
"""Commands that may be at work for long."""

# fmt: off
SMALL = (
    "--profile", "smoke", "--corpus", "small.txt", "--set", "n_layer=1", "--set", "context_length=32", "--threads", "1",
)
BEGINNINGS: dict[str, tuple[tuple[str, ...], ...]] = {
    "run": (
        ("gpt1", *SMALL, "--steps", "2", "--batch-size", "2", "--unchecked", "--phases", "train"),
        ("bigram", "--plugin", "bigram.py", *SMALL[:4], "--steps", "2", "--batch-size", "2"),
        ("bigram", "--resume", RUNS["broken off"], "--trust"),
    ),
    "compare": (("gpt1", "llama", *SMALL, "--unchecked", "--no-tuning", "--seeds", "2"),),
    "tune": (("gpt1", *SMALL, "--unchecked"),),
    "probe": (
        (
            "bigram", "--plugin", "bigram.py", "--parameters", "0", "--updates", "2", "--examples", "10", "--seeds",
            "1", "--task", "state-parity", "--learning-rate", "0.01", "--unchecked",
        ),
    ),
    "scale": (("gpt1", *SMALL[:4], "--sizes", "10k,20k", "--budgets", "1k,2k", "--no-tuning"),),
    "kernels": (("--lengths", "16", "--repeats", "2", "--losses", "8x8x8", "--heads", "2"),),
    "check": (("bigram", "--plugin", "bigram.py", "--check", "hooks"),),
    "generate": (("bigram", "--run", RUNS["finished"], "--max-new-tokens", "3"),),
    "results": (("results",), ("study/runs.parquet",)),
    "report": (("results",), ("study", "-o", "new.html")),
    "show": (("gpt1",), ("bigram", "--plugin", "bigram.py")),
    "list": ((), ("--plugin", "bigram.py")),
    "new": (("my-own",),),
    "clean": ((), ("results",), ("results", "--yes"), ("results", "--only", "unfinished", "--yes")),
    "fsck": (("results",), ("study",)),
    "trust": (("bigram.py",), ("results",)),
    "regress": (("HEAD", "HEAD"),),
}
"""What a line of the command may begin with: a small amount of work, which later options can change."""

NAMES = ("gpt1", "llama", "bigram", "rwkv7", "all", "nosuch", "gtp1", "none", "GPT1", "../gpt1", "gpt1,llama", "wrong")
HOSTILE = (  # no folder or device of this machine that could be written to: null and zero are links
    "", " ", "\t", "\n", "a\nb", "\x1b[31mred\x1b[0m", "\x07", "\x7f", "\x9b31m", "é", "日本語", "\u202egnp.exe",
    "\ufeff",
    "🦙" * 50, "x" * 5000, "-", "--", "---", "-1", "0", "1e999", "nan", "inf", "-inf", "-0.0", "1e-400", "0x10",
    "1_000",
    "99999999999999999999", "1" + "0" * 5000, "1e12", "4294967296", "٣", "²", "1,,2", ",", "1,2,3,x", "=", "=1", "a=",
    "a==b", "a.b.c=1", "..", "../..", "/proc", "~", "~nosuch", "*", "**/*", "[", "{}", "[]", "null", "true", '"', "'",
    "$(id)", "`id`",
    "%s%n", "{0}", "\\", "\\x00", "=cmd|' /C calc'!A0", "<script>alert(1)</script>", "[bold]x[/bold]", "\udcff",
    "null", "zero", "/proc/self/fd/0", "/proc/self/mem", "/proc/self/environ", "/proc/kmsg", "/sys", "/proc/new",
    "CON", "NUL", ".", "a" * 300 + ".html", "last", "none", "auto", "cuda", "cuda:99", "cpu:1", "mps", "meta", "all",
    "hf:../x", "hf:", "file:", "file:pipe", "file:zero", "file:tokenizer.json", "gguf:model.gguf", "gguf:pipe",
    "bpe:0",
    "bpe:-1", "bpe:1e9", "bpe:99999999999", "byte", "saved:..", "saved:results", "bpe:300",
)
NUMBERS = (
    "0", "1", "2", "3", "8", "16", "1k", "1.5k", "2M", "0.1", "1e-3", "1e-9", "100000", "100000000",
    "1000000000000",
)
FIELDS = (
    "n_layer", "d_model", "n_head", "context_length", "vocab_size", "d_ff", "dropout", "training.steps",
    "training.schedule",
    "training.batch_size", "training.warmup", "training.validate_every", "training.checkpoint_every",
    "quality.documents",
    "speed.batch_sizes", "speed.prompt_lengths", "data.corpus", "data.tokenizer", "time_limit", "seed", "threads",
    "out",
    "overrides.n_layer", "plugins", "phases", "device", "nosuch", "training", "training.nosuch", "a.b", "", ".",
    "training.",
)
JSON_VALUES = (
    "1", "0", "-1", "null", "[1, 2]", "[]", "{}", "true", '"x"', "1e400", "NaN", "Infinity", "cosine", "[" * 2000,
    "",
)
RIGHT: dict[str, tuple[str, ...]] = {
    "profile": ("smoke",), "preset": ("nano", "small"), "device": ("cpu", "auto"), "dtype": ("float32", "bfloat16"),
    "corpus": ("small.txt", "a folder/ünï.txt", "link", "shakespeare"), "tokenizer": ("byte", "bpe:300",
    "file:tokenizer.json"),
    "weights": ("weights.safetensors", "model.gguf"), "file": ("run.toml",), "run": ("last", RUNS["finished"]),
    "out": ("results", "new", "empty", "a folder"), "output": ("new.html", "page.html"), "md": ("new.md",),
    "csv": ("-", "new.csv"),
    "png": ("new", "empty"), "plot": ("new.png", "new.svg"), "path": ("results", "study"), "runs": ("results", "study"),
    "prompt": ("Once", ""), "prompt_file": ("small.txt",), "plugin": ("bigram.py",), "plugins": ("bigram.py",),
    "overrides": ("n_layer=1", "context_length=16"), "only": ("hooks", "flops", "checkpoints", "cache"),
    "threads": ("1",),
    "jobs": ("1", "2"),
    "heads": ("2",), "head_widths": ("16",), "lengths": ("8,16",), "temperature": ("0.5",), "top_k": ("3",),
    "top_p": ("0.9",),
    "training_steps": ("1", "3"), "training_tokens": ("500",), "training_flops": ("1e7",), "training_seconds": ("0.2",),
    "training_batch_size": ("1", "2"), "training_accumulation": ("1", "2"), "training_learning_rate": ("1e-3",),
    "config": ("training.validate_every=1", "training.checkpoint_every=1", "quality.documents=1",
    "data.validation_fraction=0.2"),
    "phases": ("train", "train,quality", "decode", "none"), "seeds": ("2",), "sweeps": ("1",), "sizes": ("10k,20k",),
    "budgets": ("1k,2k",), "seed": ("0", "7"), "limit": ("0", "1", "60"), "where": ("phase=train", "metric=loss",
    "seed=0"),
}
"""Parameter -> values that it takes."""

COLUMNS = ("phase=decode", "phase=train", "metric=loss", "role=trial", "run_id=last", "seed=0", "seed=x", "nosuch=1",
           "value=1", "value=nan", "status=", "time_utc=2026", "architecture=bigram", "contaminated=true",
           "phase")
# fmt: on


@cache
def commands() -> dict[str, Any]:
    """Name -> command, from the application itself."""
    import typer

    from archbench.cli.app import app

    group: Any = typer.main.get_command(app)
    return {name: command.whole for name, command in group.commands.items()}


def line(seed: int | str) -> list[str]:
    """The words of one command line."""
    random_ = random.Random(f"archbench {seed}")
    name = random_.choice(list(commands()))
    parameters = commands()[name].params
    hostile = random_.choice((0.0, 0.05, 0.4))
    beginning = random_.choice(BEGINNINGS.get(name, ((),))) if random_.random() < 0.9 else ()
    parts: list[list[str]] = []
    for _ in range(random_.choice((0, 1, 1, 1, 2, 2, 3, 5))):
        parameter = random_.choice(parameters)
        part = _part(parameter, random_, hostile)
        parts += [part] * random_.choice((1, 1, 1, 1, 1, 2))
    words = [*beginning, *(word for part in parts for word in part)]
    if random_.random() < 0.1:
        random_.shuffle(words)
    if words and random_.random() < hostile / 3:
        words[random_.randrange(len(words))] = random_.choice(HOSTILE)
    if words and random_.random() < 0.05:
        del words[random_.randrange(len(words))]
    if random_.random() < 0.05:
        words.insert(
            random_.randint(0, len(words)), random_.choice(("--", "--debug", "--help", "--nosuch", "-x", "--json=1"))
        )
    if "--quiet" in {option for one in parameters for option in one.opts} and random_.random() < 0.5:
        words.append("--quiet")
    line = [name, *words]
    if random_.random() < 0.03:
        line.insert(0, line.pop(random_.randrange(len(line))))
    if random_.random() < 0.02:
        line[0] = random_.choice((name[:-1], name.upper(), name + "s", "", "\x1b[2J", "--version", "-h", "-V"))
    return line


def _part(parameter: Any, random_: random.Random, hostile: float) -> list[str]:
    value = _value(parameter, random_, hostile)
    if parameter.param_type_name == "argument":
        return [value]
    option = random_.choice(parameter.opts)
    if getattr(parameter, "is_flag", False):
        return [option] if random_.random() < 0.97 else [f"{option}={value}"]
    if random_.random() < 0.02:
        return [option[: random_.randint(2, len(option))], value]
    if random_.random() < 0.03:
        return [option]
    return [f"{option}={value}"] if option.startswith("--") and random_.random() < 0.25 else [option, value]


def _value(parameter: Any, random_: random.Random, hostile: float) -> str:
    """Hostile with that probability; otherwise of the parameter's kind, right or nearly right."""
    if random_.random() < hostile:
        return random_.choice(HOSTILE)
    kind, name = getattr(parameter, "metavar", None) or "", parameter.name
    if (right := RIGHT.get(name.rpartition("_")[2] if name.startswith(("run_", "data_")) else name)) and (
        random_.random() < 0.8
    ):
        return random_.choice(right)
    listed = re.findall(r"\(([\w.:-]+(?:, [\w.:-]+)+)\)", parameter.help or "")
    choices: Sequence[str] = listed[-1].split(", ") if listed else ()
    if choices and random_.random() < 0.8:
        return ",".join(random_.sample(choices, random_.choice((1, 1, min(2, len(choices))))))
    if kind == "COLUMN=VALUE":
        return random_.choice(COLUMNS)
    if "=" in kind:
        fields = (
            FIELDS if "CHECK" not in kind and "METRIC" not in kind else ("hooks", "flops", "parameters", "gpt1:flops")
        )
        return f"{random_.choice(fields)}={random_.choice((*JSON_VALUES, *NUMBERS))}"
    if kind == "RUN_ID":
        return random_.choice((*RUNS.values(), "last", "20200101T000000-000000", "../results", "results"))
    if kind in ("INTEGER", "FLOAT") or any(
        word in str(getattr(parameter, "type_descriptor", "")) for word in ("int", "float")
    ):
        return random_.choice(NUMBERS)
    if name in ("architecture", "arch", "from_", "name", "base", "head", "timed", "baseline"):
        return random_.choice(NAMES)
    if name in ("plugin", "plugins", "run_plugins"):
        return random_.choice(tuple(file for file in FILES if file.endswith(".py")) + FILES)
    return random_.choice(FILES)
