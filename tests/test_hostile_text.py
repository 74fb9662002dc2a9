"""Text from files cannot command the terminal, a spreadsheet, a Markdown reader, a JSON reader or the page."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from archbench.cli.app import main
from archbench.cli.output import print_json, say
from archbench.errors import ArchbenchWarning
from archbench.presentation.characters import harmless, visible
from archbench.presentation.tables import Column, Kind, Table, escaped, markdown, table
from archbench.presentation.terminal import console, echo, show
from archbench.report.contents import read
from archbench.report.markdown import markdown as summary
from archbench.results.reading import read_results
from archbench.results.store import write_run
from test_cli_results import COMMON

ROOT = Path(__file__).parents[1]
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
EVIL = "\x1b]8;;http://evil\x07\x1b[2J\r\x9b31m\u202e\u2066\u200b\x7f[red]<b>|`*=2+5*cmd|' /C calc'!A0"
FORMULA = "=cmd|' /C calc'!A0"


def strictly(line: str) -> Any:
    """JSON as the strictest reader takes it: no NaN, no infinities, no halves of surrogate pairs."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(line, parse_constant=refuse)
    json.dumps(found, ensure_ascii=False).encode()
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three runs whose names and texts are hostile; one failed."""
    names = ("device_name", "corpus", "tokenizer", "plugin_package", "preset", "attention", "malloc", "git_revision")
    names += ("operation",)
    out = tmp_path / "out"
    measured = {"phase": "decode", "metric": "seconds_per_token", "batch_size": 1, "prompt_length": 16}
    rows: list[dict[str, Any]] = [{**measured, "value": seconds} for seconds in (0.001, 0.002)]
    for number, evil in enumerate((EVIL, FORMULA, "-1.5")):
        common = {**COMMON, **dict.fromkeys(names, evil), "architecture": f"gpt1{evil}"}
        more = [
            {"phase": "train", "metric": "failed", "unit": "1", "value": None, "status": f"PluginError: {evil}"}
        ] * (number < 1)
        write_run(out, f"2026010{number + 1}T000000-00000{number}", [*rows, *more], {}, common)
    return out


@pytest.mark.parametrize(
    "arguments",
    [["results"], ["results", "--raw"], ["results", "--json"], ["results", "--where", "corpus=nothing"]],
    ids=" ".join,
)
def test_names_in_a_results_file_do_not_command_the_terminal(
    folder: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([arguments[0], str(folder), *arguments[1:]]) == (2 if "--where" in arguments else 0)
    shown = "".join(capsys.readouterr())
    assert OBEYED.findall(shown) == []
    if "--where" not in arguments:  # whose error may name the values that there are
        assert "\\x1b" in shown or "\\u001b" in shown, "shown, not dropped"
        assert "[red]" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", EVIL], ["show", f"gpt1{EVIL}"], ["results", EVIL], ["run", "gpt1", "--config", f"{EVIL}=1"],
        ["run", "gpt1", "--set", EVIL], ["run", "gpt1", "--file", EVIL], [EVIL], ["run", "gpt1", f"--{EVIL}"],
        ["results", str(ROOT / "results" / "reference"), "--where", f"phase={EVIL}"], ["report", EVIL],
        ["--debug", "show", EVIL],
    ],
    ids=lambda arguments: " ".join(arguments).replace(EVIL, "EVIL")[:40],
)  # fmt: skip
def test_errors_show_control_characters_instead_of_obeying_them(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    main(arguments)
    assert OBEYED.findall("".join(capsys.readouterr())) == []


def test_warnings_and_lines_show_them_too_and_markup_is_not_interpreted(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(EVIL, ArchbenchWarning, stacklevel=1)
    echo(EVIL)
    say("Note", EVIL)
    out = console()
    out.print(EVIL, style="red")
    for kind in ("name", "text", "verdict"):
        show(hostile(kind))
    shown = "".join(capsys.readouterr())
    assert OBEYED.findall(shown) == []
    assert shown.count("\\x1b[2J\\r\\x9b31m\\u202e\\u2066\\u200b\\x7f[red]<b>") >= 6


def hostile(kind: Kind) -> Table:
    return table(EVIL, EVIL, [Column(EVIL, kind), Column("n", hint=EVIL)], [(EVIL, 1.0)], caption=EVIL, notes=[EVIL])


def test_a_line_feed_in_a_name_does_not_forge_a_line_of_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    show(table("t", "", [Column("name", "name")], [("gpt1\nError: forged",)]))
    assert "gpt1\\nError: forged" in capsys.readouterr().out


def test_nothing_prints_but_what_makes_control_characters_visible() -> None:
    """``print``, ``typer.echo`` and rich's Console are used in their one home only."""
    homes = {"presentation/terminal.py", "presentation/screen.py", "cli/output.py"}
    homes |= {"regression/benchmark.py"}  # runs beside the archbench of other revisions, of which it imports nothing
    found = []
    for file in (ROOT / "archbench").rglob("*.py"):
        place = file.relative_to(ROOT / "archbench").as_posix()
        if place in homes or place.startswith(("scaffold/my-arch", "scaffold/wraps")):
            continue
        if not re.search("print|echo|Console", text := file.read_text()):
            continue
        calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
        named = {ast.unparse(call.func): call.lineno for call in calls}
        printing = {"print", "typer.echo", "typer.secho", "Console", "traceback.print_exc", "traceback.print_exception"}
        found += [f"{place}:{named[name]} {name}" for name in printing & set(named)]
    assert found == []


def test_csv_has_no_formulas_and_pandas_reads_it_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", str(folder), "--csv", "-"]) == 0
    text = capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 7
    assert [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "@", "\t", "\r"))] == []
    assert {row["corpus"] for row in rows} == {visible(EVIL), f"'{FORMULA}", "-1.5"}, "numbers stay"
    back, frame = pd.read_csv(io.StringIO(text)), read_results(folder)
    assert back.value.tolist()[:2] == frame.value.tolist()[:2]
    assert back.threads.tolist() == frame.threads.tolist()
    assert back.architecture.tolist() == frame.architecture.map(visible).tolist()


@pytest.mark.parametrize("text", ["=1+1", "+cmd|x", "-2+3", "@SUM(A1)", "\t=1", "-", "+"])
def test_a_formula_gets_an_apostrophe(text: str) -> None:
    assert harmless(text) == "'" + text


@pytest.mark.parametrize("text", ["-1.5", "+3", "-1e-9", "-inf", "gpt1", "", "a=b", "'=1"])
def test_numbers_and_other_text_stay_as_they_are(text: str) -> None:
    assert harmless(text) == text


def test_markdown_shows_hostile_text_and_does_not_obey_it(folder: Path) -> None:
    pytest.importorskip("jinja2", reason="the extra archbench[report] is not installed")
    lines = [*markdown(hostile("name")), *summary(read([str(folder)]), [{}]).splitlines()]
    for line in lines:
        assert OBEYED.findall(line) == []
        bare = re.sub(r"(`+).*?\1", "", re.sub(r"\\.", "", line))
        assert "<" not in bare
        assert "[red]" not in bare
        assert "`" not in bare
    width = len(re.findall(r"(?<!\\)\|", lines[4]))
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines[4:7]] == [width] * 3


@pytest.mark.parametrize("start", ["# ", "- ", "+ ", "1. ", "12) ", "> ", "~~~", "```", "---", "    ", "| ", "$x$ "])
def test_the_beginning_of_a_line_of_markdown_is_no_block(start: str) -> None:
    shown = escaped(f"{start}text")
    assert not re.match(r"#|[-+*] |\d+[.)] |>|~~~|```|---|\s|\||\$", shown)


def test_an_empty_result_prints_no_line_of_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    never_together = ("--where", "phase=train", "--where", "metric=seconds_per_token")
    assert main(["results", str(folder), "--json", *never_together]) == 0
    assert capsys.readouterr().out == ""


def test_json_lines_are_json_for_the_strictest_reader(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["results", str(folder), "--json"])
    rows = [strictly(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["corpus"] for row in rows} == {EVIL, FORMULA, "-1.5"}, "as they are, by JSON's own escapes"
    value = {"nan": float("nan"), "inf": [float("inf"), 1.0], EVIL: (EVIL, "\udcff", "\U000e0001", "é")}
    print_json(value)
    (line,) = capsys.readouterr().out.splitlines()
    assert OBEYED.findall(line) == []
    assert strictly(line) == {"nan": None, "inf": [None, 1.0], EVIL: [EVIL, "\\udcff", "\U000e0001", "é"]}


def test_the_page_shows_hostile_names_and_obeys_none(folder: Path) -> None:
    pytest.importorskip("vl_convert", reason="the extra archbench[report] is not installed")
    from archbench.report.files import title_of
    from archbench.report.page import page

    contents = read([str(folder)])
    shown = page(contents, title=title_of(contents))
    body = re.sub(r"<script.*?</script>", "", shown[shown.index("<body>") :], flags=re.DOTALL)
    assert "<b>" not in body
    assert not re.search(r"unsafe|<\w[^>]* (on\w+|style)=", shown[: shown.index("<style>")] + body)
    assert "[red]&lt;b&gt;" in body
    assert OBEYED.findall(body) == []


def test_visible_is_idempotent_and_leaves_ordinary_text_alone() -> None:
    assert visible("a – µ 漢字 é\tb\nc") == "a – µ 漢字 é\tb\nc"
    assert visible(visible(EVIL)) == visible(EVIL)
    assert visible("a\tb\n", lines=False) == "a\\tb\\n"
