"""``archbench open`` makes the page where it is missing or old, and opens it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from installations import RunCLI

RUN = "20261123T112407-da218d"
REFERENCE = Path(__file__).parents[1] / "results" / "reference"


def test_the_page_is_made_once_and_again_when_the_data_are_newer(
    cli: RunCLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, page = tmp_path / "results", tmp_path / "results" / f"{RUN}.html"
    results.mkdir()
    for end in (".parquet", ".json"):
        shutil.copy(REFERENCE / f"{RUN}{end}", results)
    browser = tmp_path / "browser"
    browser.write_text(f"#!/bin/sh\necho $1 > {tmp_path}/opened\n")
    browser.chmod(0o755)
    done = cli("open", RUN, "--in", results, "--no-browser")
    assert (done.returncode, Path(done.stdout.strip())) == (0, page)
    made = page.stat().st_mtime_ns
    monkeypatch.setattr("webbrowser._tryorder", None)  # it reads the variable the first time it is asked
    done = cli("open", RUN, "--in", results, env={"BROWSER": f"{browser} %s"})
    assert done.returncode == 0
    assert (tmp_path / "opened").read_text().strip() == page.as_uri()
    assert page.stat().st_mtime_ns == made
    os.utime(results / f"{RUN}.parquet")
    assert cli("open", results / f"{RUN}.parquet", "--no-browser").returncode == 0
    assert page.stat().st_mtime_ns > made


def test_without_a_browser_the_path_is_said(cli: RunCLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (page := tmp_path / "report.html").write_text("<html></html>")
    monkeypatch.setattr("webbrowser._tryorder", [])
    done = cli("open", page)
    assert (done.returncode, done.stdout.strip()) == (0, str(page))
    assert "no browser" in done.stderr
