"""``import archbench`` and ``archbench --help`` import nothing heavy, and nothing that runs on a CPU imports Triton."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pytest

from archbench.config import RunConfig
from archbench.results.store import write_run
from command_line import own_process as archbench
from small_runs import SMALL, begun, with_small_corpus
from test_results_schema import COMMON

HEAVY = (
    "torch",
    "triton",
    "pandas",
    "numpy",
    "pyarrow",
    "pydantic",
    "tokenizers",
    "safetensors",
    "transformers",
    "datasets",
)

_HELP = """
import io, json, sys
from contextlib import redirect_stdout
from archbench.cli import main
sys.argv[0] = "archbench"
with redirect_stdout(io.StringIO()) as out:
    code = main(["--help"])
assert code == 0 and "generate" in out.getvalue(), out.getvalue()
print(json.dumps(sorted(sys.modules)))
"""
_IMPORT = "import json, sys, archbench; dir(archbench); print(json.dumps(sorted(sys.modules)))"
_ATTENTION = """
import json, sys, torch
from archbench.kernels import causal_attention, grouped_matmul, why_not
causal_attention(*torch.zeros(3, 1, 2, 4, 16, requires_grad=True)).sum().backward()
with torch.inference_mode():
    grouped_matmul(torch.zeros(3, 8), torch.zeros(2, 4, 8), torch.tensor([1, 3], dtype=torch.int32))
why_not("triton", "cpu", torch.float32, 16), why_not("triton", "cuda", torch.float32, 16)
print(json.dumps(sorted(sys.modules)))
"""
_PUBLIC = "from archbench import causal_attention, linear_cross_entropy\nimport archbench_kernelcheck"
_COUNTER = """
import archbench.measure.flops
from archbench.kernels.attention_op import register_flop_formulas
from archbench.kernels.triton_guard import flop_counter
register_flop_formulas()
assert flop_counter().FlopCounterMode
"""
_EMPTY = """
import typer
app = typer.Typer()
@app.command()
def one(number: int = 1):
    "The first."
    from rich.console import Console
    from rich.table import Table
    table = Table("number")
    table.add_row(str(number))
    Console().print(table)
@app.command()
def two(): "The second."
app()
"""
_LIST = _HELP.replace('"--help"', '"list"').replace("generate", "rwkv7")
_SHOW = _HELP.replace('"--help"', '"show", "gpt1"').replace("generate", "feed_forward")
_FRAMES = _EMPTY.replace('"The first."', '"The first."\n    import pandas, pyarrow.parquet')
_READING = """
import json, sys
from archbench.cli import main
for command in json.loads(sys.argv[1]):
    sys.argv = ["archbench", *command]
    code = main(command)
    assert code == 0, (command, code)
    assert not {"torch", "triton", "scipy"} & set(sys.modules), (command, sorted(sys.modules))
"""
_REGISTRY = "import json, sys, archbench; archbench.available(); print(json.dumps(sorted(sys.modules)))"


ARCHBENCH = Path(sys.executable).with_name("archbench")


def modules_after(code: str, *, whole: bool = False) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    names = json.loads(done.stdout)
    return set(names) if whole else {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("code", [_IMPORT, _HELP], ids=["import archbench", "archbench --help"])
def test_nothing_heavy_is_imported(code: str) -> None:
    assert modules_after(code) & set(HEAVY) == set()


def test_finding_plugins_imports_none_of_them_and_no_torch() -> None:
    assert modules_after(_REGISTRY) & {"torch", "triton", "pandas", "archbench_plugins"} == set()


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package called triton comes first on every child's path; this file exists once one of them has imported it."""
    marker, package = tmp_path / "imported", tmp_path / "decoy" / "triton"
    package.mkdir(parents=True)
    code = f"""
        import traceback
        with open({str(marker)!r}, "a") as file:
            traceback.print_stack(file=file)
        raise ImportError("this is no triton")
    """
    (package / "__init__.py").write_text(textwrap.dedent(code))
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return marker


def test_nothing_on_a_cpu_imports_triton(imported: Path) -> None:
    """The package, its operations, attention, the FLOP counter and the check of machine code, in one process."""
    code = "\n".join([_PUBLIC, _ATTENTION, _COUNTER])
    assert not {"torch._dynamo", "torch._inductor", "triton"} & modules_after(code, whole=True), "no compiler is loaded"
    assert not imported.exists(), imported.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--unchecked", "--phases", "train"], []])
def test_a_run_on_a_cpu_imports_triton_in_none_of_its_processes(
    imported: Path, tmp_path: Path, options: list[str]
) -> None:
    done = archbench("run", "gpt1", *SMALL, *options, cwd=with_small_corpus(tmp_path))
    assert done.returncode == 0, done.stderr
    assert not imported.exists(), imported.read_text()


def test_triton_is_kept_from_the_flop_counter_and_from_nobody_else(imported: Path) -> None:
    """A process may import the counter first, and compile for its GPU afterwards."""
    asks = "from torch.utils._triton import has_triton_package\nhas_triton_package()"
    subprocess.run([sys.executable, "-c", _COUNTER + asks], check=True, capture_output=True)
    assert imported.exists()


def cpu_time(command: Sequence[str | Path]) -> float:
    """CPU time of a child, user and system, in seconds."""
    bytecode = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # as users have
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=bytecode)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results with two small runs."""
    folder = tmp_path_factory.mktemp("results")
    for number in range(2):
        rows = [{"phase": "quality", "metric": "bits_per_byte", "value": 2.5 + number, "unit": "bit/byte"}]
        run = begun(folder, f"20260101T00000{number}-aaaaaa", RunConfig(architecture="gpt1"))
        write_run(folder, run.run_id, rows, run.as_dict(), COMMON)
    return folder


READING = {
    "where": ["where"],
    "trust": ["trust", "--list"],
    "clean": ["clean", "--dry-run"],
    "rm": ["rm", "{first}", "--dry-run"],
    "results": ["results", "{results}"],
    "diff": ["diff", "{first}", "{second}"],
    "plot": ["plot", "bits_per_byte", "{results}"],
    "fsck": ["fsck", "{results}"],
}
"""Commands that read what is measured, and those that only look for files. What makes a page draws too."""

NO_FRAMES = ("where", "trust", "clean", "rm")


def reading(name: str, results: Path) -> list[str]:
    first, second = sorted(results.glob("*.parquet"))
    return [word.format(results=results, first=first, second=second) for word in READING[name]]


def test_commands_that_read_need_no_torch(results: Path) -> None:
    commands = json.dumps([reading(name, results) for name in READING])
    done = subprocess.run([sys.executable, "-c", _READING, commands], cwd=results, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def ratio(command: Sequence[str | Path], beside: Sequence[str | Path], rounds: int = 3) -> float:
    """CPU time of ``command`` relative to that of ``beside``: in seconds, a slow machine would decide.

    Medians of rounds in turns: on a shared machine the least of a few differs by half from one time to the next.
    """
    times = [(cpu_time(command), cpu_time(beside)) for _ in range(rounds + 1)][1:]  # the first writes bytecode
    ours, other = (median(column) for column in zip(*times, strict=True))
    return ours / other


def test_help_answers_in_the_time_of_an_empty_typer_application() -> None:
    assert ratio([ARCHBENCH, "--help"], [sys.executable, "-c", _EMPTY, "--help"]) < 1.5


def test_list_needs_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHBENCH_CACHE", str(tmp_path))
    assert archbench("list", cwd=tmp_path).returncode == 0
    assert modules_after(_LIST) & {*HEAVY} - {"pydantic"} == set()


@pytest.mark.slow
@pytest.mark.parametrize("command", [("list",), ("show", "gpt1")], ids=" ".join)
def test_list_and_show_need_no_torch_and_the_time_of_an_empty_typer_application(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose command prints a table, as this does: parsing options takes pydantic, and a table takes Rich."""
    monkeypatch.setenv("ARCHBENCH_CACHE", str(tmp_path))
    assert archbench(*command, cwd=tmp_path).returncode == 0
    script = _LIST if command == ("list",) else _SHOW
    assert modules_after(script) & {*HEAVY} - {"pydantic"} == set()
    assert ratio([ARCHBENCH, *command], [sys.executable, "-c", _EMPTY, "one"]) < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("name", READING)
def test_a_command_that_reads_starts_as_an_empty_typer_application_does(
    name: str, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that imports what the results are read with, if it reads them."""
    monkeypatch.setenv("ARCHBENCH_CACHE", str(results / "cache"))
    beside = _EMPTY if name in NO_FRAMES else _FRAMES
    assert ratio([ARCHBENCH, *reading(name, results)], [sys.executable, "-c", beside, "one"]) < 1.5
