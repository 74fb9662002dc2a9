"""No output replaces a file that is not of its kind, and least of all a measurement."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from archbench.errors import StorageError, UsageError
from archbench.files.outputs import MADE_BY, Kind, Output, check_outputs, write_output
from command_line import archbench as command_line
from test_results_schema import COMMON

RUN = "20260101T000000-aaaaaa"
MADE: dict[Kind, bytes] = {
    "page": b'<!doctype html><meta name="generator" content="archbench"><p>old',
    "image": b"\x89PNG\r\n\x1a\n" + MADE_BY,
    "summary": b"# A title\n\n## How it was made\n\n- command: x\n",
    "table of results": b"run_id,time_utc,schema_version,architecture\n",
    "JSON Schema": b'{\n "$defs": {}\n}\n',
    "comparison with a baseline": b'[\n {\n  "architecture": "gpt1"\n }\n]\n',
}


def archbench(*arguments: str) -> tuple[int, str]:
    done = command_line(*arguments, cwd=Path.cwd())
    return done.returncode, done.stderr


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from archbench.results.store import write_run

    monkeypatch.chdir(tmp_path)
    rows = [
        {"phase": "train", "metric": "loss", "value": 1.0 / (1 + step), "repeat": step, "tokens_seen": 100 * (1 + step)}
        for step in range(5)
    ]
    return write_run(tmp_path / "results", RUN, rows, {}, COMMON)


@pytest.mark.parametrize("kind", MADE)
def test_only_a_file_of_the_same_kind_is_replaced_unasked(tmp_path: Path, kind: Kind) -> None:
    for other, content in MADE.items():
        file = tmp_path / "file"
        file.write_bytes(content)
        output = Output(file, kind, "--output")
        if other == kind:
            write_output(output, b"new")
            assert file.read_bytes() == b"new"
        else:
            with pytest.raises(UsageError) as caught:
                write_output(output, b"new")
            assert caught.value.culprit == f"--output {file}"
            assert "--force" in caught.value.next_step
            assert file.read_bytes() == content
            write_output(output, b"new", force=True)
            assert file.read_bytes() == b"new"


def test_links_folders_streams_and_the_same_file_twice(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "notes.txt")
    (tmp_path / "new link").symlink_to(tmp_path / "not there yet")
    with pytest.raises(UsageError):
        write_output(Output(tmp_path / "link", "page"), b"new")
    with pytest.raises(UsageError, match="folder"):
        write_output(Output(tmp_path, "page"), b"new", force=True)
    write_output(Output(tmp_path / "new link", "page"), b"new")
    assert (tmp_path / "new link").is_symlink()
    assert (tmp_path / "not there yet").read_bytes() == b"new"
    write_output(Output(Path(os.devnull), "page"), b"new")
    assert not Path(os.devnull).is_file()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="nobody reads"):
        write_output(Output(tmp_path / "pipe", "page"), b"new")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_output(Output(tmp_path / "pipe", "page"), b"new")
    assert os.read(reader, 9) == b"new"
    os.close(reader)
    twice = [Output(tmp_path / "a", "page", "--output"), Output(tmp_path / "." / "a", "summary", "--md")]
    with pytest.raises(UsageError, match="--output"):
        check_outputs(twice, force=True)


@pytest.mark.parametrize(
    "command",
    [
        ("report", "results", "-o", "{target}"),
        ("report", "results", "-o", "page.html", "--md", "{target}"),
        ("results", "results", "--csv", "{target}"),
        ("kernels", "--operations", "attention", "--plot", "{target}"),
    ],
)
def test_no_command_replaces_a_measurement_or_a_run_file(results: Path, command: tuple[str, ...]) -> None:
    Path("run.toml").write_text("[run]\n")
    Path("drawing.png").write_bytes(b"\x89PNG of somebody else")
    for target in (str(results), str(results.with_suffix(".json")), "run.toml", "drawing.png"):
        if "--plot" in command and not target.endswith(".png"):
            continue
        before = Path(target).read_bytes()
        code, error = archbench(*(part.format(target=target) for part in command))
        assert code == 2, error
        assert target in error
        assert Path(target).read_bytes() == before
        assert not Path("page.html").exists(), "nothing is written before all outputs are checked"


@pytest.mark.slow
def test_a_report_replaces_its_own_page_images_and_summary(results: Path) -> None:
    pytest.importorskip("vl_convert")
    command = ("report", "results", "-o", "page.html", "--png", "images", "--md", "summary.md")
    for _ in range(2):
        code, error = archbench(*command)
        assert code == 0, error
    made = sorted(Path("images").iterdir())
    assert made
    shutil.copy(results, made[0])
    code, error = archbench(*command)
    assert (code, str(made[0]) in error) == (2, True), error
    assert made[0].read_bytes() == results.read_bytes()
    code, error = archbench(*command, "--force")
    assert code == 0, error


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_a_marked_image_is_still_an_image(tmp_path: Path, form: str) -> None:
    from archbench.report.files import marked

    vl_convert = pytest.importorskip("vl_convert")
    spec = '{"data": {"values": [{"x": 1}]}, "mark": "point", "encoding": {"x": {"field": "x"}}}'
    made = getattr(vl_convert, f"vegalite_to_{form}")(spec)
    content = marked(made if isinstance(made, bytes) else str(made).encode(), form)
    assert MADE_BY in content
    if form == "png":
        image = pytest.importorskip("PIL.Image").open(_file(tmp_path / "a.png", content))
        image.load()
        assert image.text["Software"] == MADE_BY.decode()
    elif form == "svg":
        from xml.etree import ElementTree

        assert ElementTree.fromstring(content).tag.endswith("svg")
    else:
        assert content.startswith(b"%PDF")
        assert content.rstrip().endswith(b"%%EOF")


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_schemas_do_not_replace_the_outcomes_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "probe.json").write_text('{"format": 1}')
    command = [sys.executable, "-m", "archbench.study.json_schema", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode != 0, "probe.json" in done.stderr) == (True, True)
    assert os.listdir(tmp_path) == ["probe.json"]


def test_a_new_package_goes_into_a_new_folder_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert archbench("new", "mine")[0] == 2
    assert os.listdir(tmp_path / "mine") == ["notes.txt"]
