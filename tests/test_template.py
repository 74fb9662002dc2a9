"""Phases that are forks of a template measure what phases in processes of their own do, memory included."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from archbench import read_results
from archbench.child import process, template
from archbench.child.process import Child
from command_line import own_process
from small_runs import UNCHECKED, with_small_corpus

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has templates")

STARTED = """
import sys
from archbench.child import process
from archbench.cli import main
process.template_of = lambda target, environment: None
sys.exit(main(sys.argv[1:]))
"""

TARGET = (
    "import os\nloaded = os.getpid()\ndef main(parent, request):\n    parent.send([os.getppid(), os.environ['WHO']])\n"
)


@pytest.mark.slow
def test_values_are_the_same_bit_for_bit_and_memory_is_that_of_a_process_of_its_own(tmp_path: Path) -> None:
    folder = with_small_corpus(tmp_path)
    (folder / "started.py").write_text(STARTED)
    command = ["run", "gpt1", *UNCHECKED, "--phases", "train,quality,positions,prefill"]
    assert own_process(*command, "--out", "forked", cwd=folder).returncode == 0
    subprocess.run([sys.executable, "started.py", *command, "--out", "started"], cwd=folder, check=True)
    forked, started = (read_results(folder / out) for out in ("forked", "started"))

    def of(frame: pd.DataFrame, *metrics: str) -> pd.DataFrame:
        some = frame[frame.metric.isin(metrics)].sort_values(["phase", "metric", "repeat", "context_length"])
        return some[["phase", "metric", "repeat", "context_length", "value"]].reset_index(drop=True)

    values = ("loss", "grad_norm", "bits_per_byte", "readable", "validation_loss", "tokens_scored")
    pd.testing.assert_frame_equal(of(forked, *values), of(started, *values), check_exact=True)
    memory = [of(frame, "baseline_memory_bytes", "peak_memory_bytes") for frame in (forked, started)]
    assert len(memory[0]) >= 6
    assert memory[0].value.to_list() == pytest.approx(memory[1].value.to_list(), rel=0.03)


@pytest.fixture
def target(tmp_path: Path) -> str:
    (tmp_path / "target.py").write_text(TARGET)
    return str(tmp_path / "target.py")


def told(target: str, who: str) -> list[object]:
    with Child(target, None, culprit="it", variables={"WHO": who}, forked=True) as child:
        found: list[object] = child.receive(20)
        return found


def test_another_environment_has_another_template_and_one_that_has_ended_is_replaced(target: str) -> None:
    assert told(target, "a")[1] == "a"
    (first,) = template._templates.values()
    assert told(target, "a")[1] == "a"
    assert [first] == [*template._templates.values()], "asked for the same, it is used again"
    assert told(target, "b")[1] == "b"
    (second,) = template._templates.values()
    assert second is not first
    os.kill(second._process.pid, signal.SIGKILL)
    second._process.wait()
    assert told(target, "b")[1] == "b"


def test_a_child_whose_template_ends_as_it_is_asked_for_starts_by_itself(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(template.Template):
        def __init__(self, target: str, environment: dict[str, str]) -> None:
            super().__init__(target, environment)
            self._process.kill()
            self._process.wait()
            time.sleep(0.1)

    monkeypatch.setattr(process, "template_of", Ended)
    assert told(target, "c")[1] == "c"


def test_a_target_that_cannot_be_imported_is_said_by_the_child(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    with (
        Child(str(tmp_path / "broken.py"), None, culprit="it", forked=True) as child,
        pytest.raises(Exception, match="nothing_of_that_name"),
    ):
        child.receive(20)
