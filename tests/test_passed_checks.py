"""A model that passed the conformance checks is not checked again, until anything that decides them changes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import archbench
from archbench import RunConfig
from archbench.errors import ConformanceError
from archbench.files.seal import sealed
from archbench.runs import passed_checks
from archbench.runs.conformance import read_findings
from archbench.runs.folder import RunFolder, open_run
from archbench.testing.checks import GATE
from forked_children import forked_children
from small_runs import with_small_corpus

EXAMPLE = Path(__file__).parent / "example_plugins" / "bigram.py"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache; children are forks."""
    monkeypatch.setenv("ARCHBENCH_CACHE", str(tmp_path / "cache"))
    with forked_children():
        yield tmp_path / "cache" / "checks"


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Of a plugin of two files."""
    source = EXAMPLE.read_text()
    (tmp_path / "bigram.py").write_text(
        "import sys\nsys.path.insert(0, __file__[:-9])\nimport beside_bigram\n" + source
    )
    (tmp_path / "beside_bigram.py").write_text("")
    _age(tmp_path)
    return RunConfig(
        architecture="bigram", profile="smoke", phases=["quality"], out=str(tmp_path / "results"), threads=1,
        plugins=[str(tmp_path / "bigram.py")], data={"corpus": str(with_small_corpus(tmp_path) / "small.txt")},
        overrides={"context_length": 32},
    )  # fmt: skip


def _age(folder: Path) -> None:
    """What has changed while a run went on is not kept: all was written long ago."""
    for file in folder.glob("*.py"):
        os.utime(file, (time.time() - 100, time.time() - 100))


def checked_in(config: RunConfig) -> tuple[str, str | None, pd.DataFrame]:
    """Run it: its id, the run whose checks it has, and its rows."""
    frame = archbench.run(config, quiet=True)
    run_id = str(frame.run_id.iloc[0])
    findings = read_findings(open_run(config.out, run_id))
    assert findings is not None
    return run_id, findings.taken_from, frame


def test_a_model_is_checked_once_and_its_next_run_has_the_same_rows_of_the_checks(config: RunConfig) -> None:
    first, taken, rows = checked_in(config.override(threads=2))
    assert taken is None
    _, taken, again = checked_in(config.override(seed=1))
    assert taken == first
    assert (set(rows.threads), set(again.threads)) == ({2}, {1}), "of the run, whoever checked"
    assert set(again.conformance) == set(rows.conformance)
    columns = ["metric", "value", "parameters", "context_length", "torch_version", "device"]
    before, after = (frame[frame.phase == "check"][columns].reset_index(drop=True) for frame in (rows, again))
    assert len(before) == len(GATE)
    pd.testing.assert_frame_equal(before, after)


@pytest.mark.slow
def test_it_is_checked_again_when_it_is_asked_for_and_by_any_byte_of_its_code_or_another_size(
    config: RunConfig, tmp_path: Path
) -> None:
    first, _, _ = checked_in(config)
    assert checked_in(config.override(checked="again"))[1] is None
    second, taken, _ = checked_in(config.override(overrides={"context_length": 16}))
    assert (second != first, taken) == (True, None)
    for name in ("bigram.py", "beside_bigram.py"):
        with open(tmp_path / name, "a", encoding="utf-8") as file:
            file.write("#\n")
        _age(tmp_path)
        assert checked_in(config)[1] is None, name


class Recalled:
    """What is kept of one run, asked for by others like it."""

    def __init__(self, run: RunFolder, file: Path) -> None:
        self.run, self.file = run, file

    def __call__(self, **facts: Any) -> str | None:
        run = replace(self.run, facts={**self.run.facts, **facts})
        for name in ("check.json", "rows-check.jsonl"):
            (run.path / name).unlink(missing_ok=True)
        return passed_checks.recall(run)


@pytest.fixture
def recalled(config: RunConfig, cache: Path) -> Recalled:
    run_id, _, _ = checked_in(config)
    (file,) = cache.iterdir()
    return Recalled(open_run(config.out, run_id), file)


def test_another_torch_machine_text_or_variable_asks_for_checks_of_its_own(
    recalled: Recalled, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = recalled.run.facts
    assert recalled() == recalled.run.run_id
    assert recalled(versions={**facts["versions"], "git_revision": "another"}) is not None, "the texts are the same"
    assert recalled(versions={**facts["versions"], "torch_version": "2.0"}) is None
    assert recalled(machine={**facts["machine"], "cpu": "another"}) is None
    assert recalled(corpus_sha256="another") is None
    assert recalled(plugin_version="another") is None
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert recalled() is None


def test_a_damaged_record_is_as_none_and_one_of_failed_checks_never_counts(
    recalled: Recalled, config: RunConfig
) -> None:
    content = json.loads(recalled.file.read_text())
    whole = recalled.file.read_text()
    del content["seal"]
    for text in (whole[:-20], whole.replace('"passed"', '"failed"', 1), "[]", sealed({"question": 1})):
        recalled.file.write_text(text)
        assert recalled() is None
    content["findings"]["results"][0]["status"] = "failed"
    recalled.file.write_text(sealed(content))
    assert recalled() is None
    recalled.file.write_text(whole)
    assert recalled() is not None


def test_failed_checks_are_not_kept_and_neither_is_what_changed_meanwhile(config: RunConfig, cache: Path) -> None:
    place = Path(config.plugins[0])
    honest = place.read_text()
    source = honest + "\n\n_honest = Bigram.forward\n"
    source += "Bigram.forward = lambda self, tokens: _honest(self, tokens) + _honest(self, tokens.roll(-1, 1))\n"
    place.write_text(source)
    _age(place.parent)
    with pytest.raises(ConformanceError):
        checked_in(config)
    assert not cache.exists()
    place.write_text(honest)
    os.utime(place, (time.time() + 100, time.time() + 100))
    checked_in(config)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_said_and_the_run_goes_on(
    config: RunConfig, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("no folder")
    assert checked_in(config)[1] is None
    assert "is not kept" in capfd.readouterr().err
