"""Claims: one process of several gets each unit, also over NFS, and what a dead one had is claimed again."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from archbench.errors import StorageError
from archbench.results.claims import CLAIMS, LEASE, Claims, Owner, is_held


def _claims(folder: Path, **owner: object) -> Claims:
    return Claims(folder, Owner.this_process("local").model_copy(update=owner))


def test_one_of_many_gets_a_unit(tmp_path: Path) -> None:
    many, start = [_claims(tmp_path) for _ in range(20)], threading.Barrier(20)
    got: list[int] = []

    def take(claims: Claims) -> None:
        start.wait()
        got.extend(n for n in range(30) if claims.take(f"{n:x}") is not None)

    threads = [threading.Thread(target=take, args=(one,)) for one in many]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(30))


def test_a_claim_is_over_when_its_lease_is_by_the_clock_of_the_file_server(tmp_path: Path) -> None:
    far, here = _claims(tmp_path, host="far", boot="another"), _claims(tmp_path)
    held = far.take("a")
    assert held is not None
    assert here.take("a") is None
    now = held.file.stat().st_mtime
    os.utime(held.file, (now, now - LEASE - 5))
    again = here.take("a")
    assert again is not None
    assert again.number == 2
    assert not is_held(held.file), "the first owner sees that it has the unit no longer"
    assert is_held(again.file)
    assert [owner.host for owner in here.history("a")] == ["far", here.owner.host]


def test_renewal_keeps_a_claim(tmp_path: Path) -> None:
    far, here = _claims(tmp_path, host="far", boot="another"), _claims(tmp_path)
    far.lease = here.lease = 0.4
    with far.renewed():
        held = far.take("a")
        assert held is not None
        before, renewals = held.file.stat().st_mtime_ns, 0
        for _ in range(200):
            threading.Event().wait(0.01)
            if (now := held.file.stat().st_mtime_ns) != before:
                before, renewals = now, renewals + 1
            if renewals == 6:
                break
        assert renewals == 6
        assert here.take("a") is None


def test_what_a_killed_process_of_this_machine_had_is_claimed_at_once(tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib; from archbench.results.claims import Claims, Owner; "
        "Claims(pathlib.Path(sys.argv[1]), Owner.this_process('local')).take('a'); print(flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert _claims(tmp_path).take("a") is None
        process.kill()
    assert _claims(tmp_path).take("a") is not None


def test_what_ended_in_order_is_claimed_at_once_and_says_why(tmp_path: Path) -> None:
    far, here = _claims(tmp_path, host="far", boot="another"), _claims(tmp_path)
    held = far.take("a")
    assert held is not None
    far.write(held, ended="was preempted")
    assert here.take("a") is not None
    assert [owner.ended for owner in here.history("a")] == ["was preempted", None]
    here.finish("a")
    assert not any((tmp_path / CLAIMS).iterdir())


def test_a_damaged_claim_is_named(tmp_path: Path) -> None:
    (tmp_path / CLAIMS).mkdir()
    (tmp_path / CLAIMS / "a.1").write_text("{")
    with pytest.raises(StorageError, match=r"a\.1"):
        _claims(tmp_path).take("a")
