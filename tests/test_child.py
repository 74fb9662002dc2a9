"""A child process: its messages, errors and time limit, and that nothing of it is left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

from archbench.child.pool import Pool
from archbench.child.process import Child, LostError
from archbench.errors import PhaseError, UsageError


@pytest.fixture(params=[False, True], ids=["started", "forked"], autouse=True)
def forked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Each child of these tests is a process of its own once, and once a fork of a template."""
    if request.param:
        monkeypatch.setattr(Child, "__init__", partialmethod(Child.__init__, forked=True))
    return bool(request.param)


CHILD = """
import os, signal, subprocess, sys, time
from archbench.errors import UsageError

def main(parent, request):
    while (order := parent.receive()) is not None:
        if order == "refuse":
            raise UsageError("--much", "it is too much", "Ask for less")
        if order == "fail":
            {}["missing"]
        if order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "exit":
            os._exit(3)
        if order == "sleep":
            parent.send(os.getpid())
            time.sleep(1000)
        if order == "tidy":
            try:
                parent.send("ready")
                time.sleep(1000)
            finally:
                open(request, "w").close()
        if order == "start":
            sleeper = subprocess.Popen(["sleep", "1000"])
            if os.fork() == 0:
                time.sleep(1000)
            parent.send(sleeper.pid)
            os._exit(0)
        if order == "start elsewhere":
            started = [subprocess.Popen(["sleep", "1000"], start_new_session=True).pid]
            reading, writing = os.pipe()
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.write(writing, str(os.getpid()).encode())
                    time.sleep(1000)
                os._exit(0)
            parent.send([*started, int(os.read(reading, 20)), os.getpid()])
            if request == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1000)
        if order == "import":
            parent.send("ready")
            import slow
            time.sleep(1000)
        if order == "fork":
            if os.fork() == 0:
                parent.send("from the copy")
        print("printed")
        parent.send([request, order])
"""


@pytest.fixture
def target(tmp_path: Path) -> str:
    (tmp_path / "child.py").write_text(CHILD)
    return str(tmp_path / "child.py")


def runs(process: int) -> bool:
    """Whether it exists and is more than an entry that nobody has collected."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(seen: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_messages_go_both_ways_and_prints_are_no_messages(target: str, capfd: pytest.CaptureFixture[str]) -> None:
    with Child(target, {"a": 1}, culprit="it") as child:
        for order in ("one", ["two", None], "fork"):
            child.send(order)
            assert child.receive(20) == [{"a": 1}, order]
    assert capfd.readouterr() == ("", "printed\n" * 3)


@pytest.mark.parametrize(
    ("order", "kind", "said"),
    [("refuse", UsageError, "--much: it is too much. Ask for less."), ("fail", PhaseError, "KeyError: 'missing'")],
)
def test_errors_come_home_with_their_traceback(target: str, order: str, kind: type[Exception], said: str) -> None:
    with Child(target, None, culprit="the measuring") as child:
        child.send(order)
        with pytest.raises(kind) as raised:
            child.receive(20)
    assert said in str(raised.value)
    assert target in raised.value.__notes__[0]


@pytest.mark.parametrize(("order", "how"), [("die", "was killed"), ("exit", "ended with exit code 3")])
def test_a_child_that_dies_says_how_as_often_as_it_is_asked(target: str, order: str, how: str) -> None:
    with Child(target, None, culprit="it") as child:
        child.send(order)
        for _ in range(2):
            with pytest.raises(LostError, match=how):
                child.receive(20)


def test_a_child_that_takes_too_long_is_ended_and_its_position_known(target: str) -> None:
    with Child(target, None, culprit="it", traced=True) as child:
        child.send("sleep")
        process = child.receive(20)
        with pytest.raises(LostError, match=r"took longer than 0\.5 s"):
            child.receive(0.5)
        assert not runs(process)
        line = CHILD.splitlines().index("            time.sleep(1000)") + 1
        assert f'child.py", line {line} in main' in child.position()


def test_what_a_child_started_ends_with_it(target: str) -> None:
    with Child(target, None, culprit="it") as child:
        child.send("start")
        sleeper = child.receive(20)
        with pytest.raises(LostError, match="exit code 0"):  # although a forked copy holds the pipe
            child.receive(20)
        wait_for(lambda: not runs(sleeper))


@pytest.mark.parametrize("end", ["child", "killed child", "killed guard", "parent", "killed parent"])
def test_what_a_child_started_in_another_session_ends_too(target: str, tmp_path: Path, end: str, forked: bool) -> None:
    place = tmp_path / "processes"
    request = "die" if end == "killed child" else None
    program = f"""
import json, sys, time
from pathlib import Path
from archbench.child.process import Child
with Child({target!r}, {request!r}, culprit="it", forked={forked}) as child:
    child.send("start elsewhere")
    Path({str(place)!r} + "~").write_text(json.dumps([*child.receive(20), child._process.pid]))
    Path({str(place)!r} + "~").rename({str(place)!r})
    sys.stdin.readline()
sys.stdin.readline()
"""
    parent = subprocess.Popen([sys.executable, "-P", "-c", program], stdin=subprocess.PIPE)
    assert parent.stdin is not None
    wait_for(place.exists)
    started = json.loads(place.read_text())
    if end == "child":
        parent.stdin.write(b"\n")
        parent.stdin.flush()
    elif end == "killed guard":
        os.kill(started[-1], signal.SIGKILL)
    elif end != "killed child":
        parent.send_signal(signal.SIGTERM if end == "parent" else signal.SIGKILL)
    wait_for(lambda: not any(map(runs, started)), seconds=5)
    parent.kill()
    parent.wait()


def test_a_child_outlives_the_thread_that_started_it(target: str) -> None:
    children: list[Child] = []
    thread = threading.Thread(target=lambda: children.append(Child(target, 1, culprit="it")))
    thread.start()
    thread.join()
    with children[0] as child:
        child.send("order")
        assert child.receive(20) == [1, "order"]
        time.sleep(0.2)
        child.send("order")
        assert child.receive(20) == [1, "order"]


def test_a_signal_to_the_child_alone_is_said_to_be_one(target: str) -> None:
    with Child(target, None, culprit="it") as child:
        child.send("sleep")
        os.kill(child.receive(20), signal.SIGTERM)
        with pytest.raises(LostError, match="was ended by SIGTERM"):
            child.receive(20)


def test_an_import_is_made_whole_before_a_child_is_interrupted(target: str, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(f"import time\ntime.sleep(0.3)\nopen({str(tmp_path / 'whole')!r}, 'w')\n")
    with Child(target, None, culprit="it", variables={"PYTHONPATH": str(tmp_path)}) as child:
        child.send("import")
        child.receive(20)
        time.sleep(0.1)
        child.interrupt(KeyboardInterrupt("SIGTERM"))
        with pytest.raises(LostError, match="was ended by SIGTERM"):
            child.receive(20)
    assert (tmp_path / "whole").exists()


def test_a_child_that_is_interrupted_while_it_starts_prints_no_traceback(
    target: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for moment in (0.0, 0.005, 0.01, 0.015, 0.02, 0.03):
        with Child(target, None, culprit="it") as child:
            time.sleep(moment)
            child.interrupt(KeyboardInterrupt("SIGINT"))
            with pytest.raises(LostError, match="was ended by SIGINT"):
                child.receive(20)
    assert capfd.readouterr().err == ""


def test_an_interrupted_child_puts_its_files_in_order(target: str, tmp_path: Path) -> None:
    def interrupted() -> None:
        with Child(target, str(tmp_path / "tidied"), culprit="it") as child:
            child.send("tidy")
            assert child.receive(20) == "ready"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "tidied").exists()


def test_a_child_dies_with_its_parent_while_it_still_imports(tmp_path: Path, forked: bool) -> None:
    place = tmp_path / "process"
    slow = f"import os, time\nopen({str(place)!r}, 'w').write(str(os.getpid()))\ntime.sleep(1000)\n"
    (tmp_path / "slow.py").write_text(slow)
    program = f"""
from archbench.child.process import Child
with Child({str(tmp_path / "slow.py")!r}, None, culprit="it", forked={forked}) as child:
    child.receive()
"""
    parent = subprocess.Popen([sys.executable, "-P", "-c", program])
    wait_for(lambda: place.exists() and place.read_text() != "")
    child = int(place.read_text())
    assert runs(child)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not runs(child))


def _results(pool: Pool) -> dict[str, Any]:
    """What the calls that are running return, or how their children died."""
    found: dict[str, Any] = {}
    while pool.running:
        if (ended := pool.ended(1.0)) is not None:
            found[ended.name] = ended.lost or ended.result
    return found


def test_a_pool_gives_each_call_its_result_and_uses_a_child_again(tmp_path: Path) -> None:
    with Pool(2, culprit="it") as pool:
        for names in ("ab", "c"):
            for name in names:
                pool.call(name, os.fspath, tmp_path / name)
            assert _results(pool) == {name: str(tmp_path / name) for name in names}


def test_a_child_of_a_pool_that_dies_costs_its_call_and_another_takes_its_place() -> None:
    with Pool(1, culprit="it") as pool:
        for code in (3, 4):
            pool.call(f"{code}", os._exit, code)
            assert _results(pool) == {f"{code}": f"ended with exit code {code}"}
