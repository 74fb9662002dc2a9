"""``archbench report`` says what the files say: verdict first, every number, what is missing, and what went wrong."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from archbench.errors import ArchbenchWarning, StorageError
from archbench.report.contents import read
from archbench.report.figures import Figure
from archbench.report.files import title_of, write_page
from archbench.report.styles import LIGHT
from comparison_files import ARCHITECTURES, UNMATCHED, edit, write_comparison
from installations import RunCLI

pytest.importorskip("vl_convert", reason="the extra archbench[report] is not installed")
pytest.importorskip("jinja2", reason="the extra archbench[report] is not installed")

REFERENCE = next((Path(__file__).parent.parent / "results" / "reference").glob("*.parquet"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(tmp_path_factory.mktemp("comparison"))


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return made(folder, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two architectures, without probes and kernels."""
    folder = tmp_path_factory.mktemp("small") / "comparison"
    return write_comparison(folder, ARCHITECTURES[:2], probes=False, kernels=False)


@pytest.fixture
def own(small: Path, tmp_path: Path) -> Path:
    """A comparison to spoil."""
    return Path(shutil.copytree(small, tmp_path / "comparison"))


def made(folder: Path, out: Path) -> str:
    contents = read([str(folder)])
    return write_page(contents, out / "report.html", title=title_of(contents)).read_text()


class Elements(HTMLParser):
    """Start tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, text: str) -> None:
        if not self._open or self._open[-1] not in ("script", "style"):
            self.texts.append(text)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def table(page: str, key: str) -> Iterator[list[str]]:
    """The plain values of each row of a table."""
    body = page.split(f'id="part0-{key}"', 1)[1].split("<tbody>", 1)[1].split("</tbody>", 1)[0]
    for row in body.split("<tr>")[1:]:
        yield [attributes["data-value"] or "" for tag, attributes in Elements(row).tags if tag in ("td", "th")]


def test_the_verdict_comes_first_and_then_what_it_does_not_show(page: str) -> None:
    text = Elements(page).text
    verdict = "llama is better than gpt1; rwkv7 is equivalent to gpt1; hybrid and mamba2 are undecided."
    order = [verdict, "What was held equal", "What this does not show", "Sizes and spending", "Training loss"]
    places = [text.index(words) for words in order[:1]] + [text.rindex(words) for words in order[1:]]
    assert places == sorted(places)
    assert "equal training FLOPs" in text
    assert "not significant, and the 90 % interval" in text
    assert "these models have 1.10 M to 1.11 M parameters" in text
    assert "0.22 per parameter" in text
    assert f"Anything about {UNMATCHED}, which could not be matched in size." in text


def test_the_verdict_table_has_every_number_of_the_file(page: str, folder: Path) -> None:
    quality = json.loads((folder / "comparison.json").read_text())["quality"]
    fields = (
        "bits_per_byte",
        "sd",
        "low",
        "difference",
        "combined_low",
        "seed_low",
        "document_low",
        "p",
        "p_holm",
        "seeds",
    )
    rows = list(table(page, "verdict"))
    quality.sort(key=lambda one: (one["bits_per_byte"] is None, one["bits_per_byte"]))
    assert [row[:2] for row in rows] == [[one["architecture"], one["verdict"]] for one in quality]
    for row, one in zip(rows, quality, strict=True):
        assert row[2:] == ["" if one[field] is None else str(one[field]) for field in fields]


def test_sizes_and_spending_stand_beside_quality_in_base_units(page: str, folder: Path) -> None:
    content = json.loads((folder / "comparison.json").read_text())
    spent = {row["architecture"]: row for row in content["spent"]}
    rows = {row[0]: row for row in table(page, "sizes")}
    for model in content["models"]:
        row = rows[model["architecture"]]
        assert row[2:5] == [
            str(model[field]) for field in ("parameters", "active_parameters", "non_embedding_active_parameters")
        ]
        assert row[10] == str(model["state_bytes"])
        if model["matched"]:
            used = spent[model["architecture"]]
            assert row[7:10] == [str(used[f"training_{what}"]) for what in ("tokens", "flops", "seconds")]


def test_speeds_stand_with_their_interval_and_the_noise_floor(page: str) -> None:
    text = Elements(page).text
    assert "training step llama 66 ms 1.100 [1.087, 1.113] [0.975, 1.026] more" in text
    assert "peak memory in training llama 511 MiB 1.011 [1.007, 1.015] [0.975, 1.026] below noise floor" in text


def test_reasons_causes_and_the_unmatched_are_told(page: str) -> None:
    text = Elements(page).text
    assert "mamba2: 1 of 5 seeds diverged; the mean of the others would flatter it." in text
    assert "About 9 seeds of each would decide." in text
    assert f"{UNMATCHED} takes no part: the nearest size has 3.8 % more" in text
    assert "gpt1 at 4,096: out of memory: 4096 positions did not fit." in text
    assert "hybrid: flagged; still falling after two more points." in text
    assert "the loss stopped being finite at step 80" in text


def test_the_page_fetches_nothing(page: str) -> None:
    for tag, attributes in Elements(page).tags:
        assert tag not in ("link", "iframe", "object", "embed", "img"), tag
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    assert "default-src 'none'" in page.split("</head>")[0]


def test_names_and_causes_that_are_markup_are_shown_as_text(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    folder = write_comparison(tmp_path / "out", [ARCHITECTURES[0], replace(ARCHITECTURES[1], name=name)])
    content = json.loads((folder / "comparison.json").read_text())
    content["cells"][-1]["cause"] = "</script><img src=x onerror=alert(2)>"
    edit(folder, **content)
    page = made(folder, tmp_path)
    elements = Elements(page)
    assert [tag for tag, _ in elements.tags].count("script") == 2
    assert "img" not in [tag for tag, _ in elements.tags]
    assert f"{name} is better than gpt1." in elements.text
    assert "</script><img src=x onerror=alert(2)>" in elements.text


def test_what_was_not_measured_is_said_in_one_line_and_not_drawn(own: Path, tmp_path: Path) -> None:
    edit(own, costs=[], curves=[], positions=[], tuning=[], spent=[])
    page = made(own, tmp_path)
    missing = "quality against cost, cost against context length, loss by position, learning rates, probes, kernels"
    assert f"Not measured: {missing}." in Elements(page).text
    drawn = [attributes["id"] for tag, attributes in Elements(page).tags if tag == "figure"]
    assert drawn == ["part0-difference", "part0-loss", "part0-validation"]


def test_nothing_decided_is_said_so(own: Path, tmp_path: Path) -> None:
    content = json.loads((own / "comparison.json").read_text())
    content["quality"][1] |= {"verdict": "inconclusive", "seeds_needed": 40, "reason": None}
    edit(own, quality=content["quality"])
    text = Elements(made(own, tmp_path)).text
    assert "Nothing is decided" in text
    assert "About 40 seeds of each would decide." in text


def test_a_verdict_that_was_read_before_says_so(own: Path, tmp_path: Path) -> None:
    assert "earlier analyses" not in Elements(made(own, tmp_path)).text
    edit(own, looks=[{"seeds": 3, "margin": 0.0025}, {"seeds": 5, "margin": 0.0025}])
    assert "There were earlier analyses, with 3 seeds, margin 0.25 %" in Elements(made(own, tmp_path)).text


def test_runs_without_a_comparison_have_no_verdict(tmp_path: Path) -> None:
    page = made(REFERENCE, tmp_path)
    text = Elements(page).text
    assert "Which is better" not in text
    assert "What this does not show" in text
    assert 'id="part0-verdict"' not in page
    assert "20261123T112407-da218d" in text
    measured = {row[1]: row[2] for row in table(page, "summary")}
    assert measured["bits per byte"] == "2.5008 bit/byte"


def test_a_results_folder_shows_the_comparisons_in_it(small: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        folder = Path(shutil.copytree(small, tmp_path / f"compare-{number}"))
        edit(folder, finished=f"2026-11-2{number}T00:00:00+00:00", command=f"archbench compare number {number}")
    parts = read([str(tmp_path)])
    assert [dict(part.facts)["command"] for part in parts] == [
        "archbench compare number 2",
        "archbench compare number 1",
    ]


def test_an_unfinished_comparison_is_left_out_of_a_folder_with_a_warning(own: Path) -> None:
    shutil.copytree(own, own.parent / "finished")
    (own / "comparison.json").unlink()
    with pytest.warns(ArchbenchWarning, match="the comparison is not finished"):
        assert len(read([str(own.parent)])) == 1


@pytest.mark.parametrize(
    ("spoil", "cause", "step"),
    [
        pytest.param(lambda own: (own / "comparison.json").unlink(), "unfinished", "Finish it", id="unfinished"),
        pytest.param(lambda own: (own / "comparison.json").write_text("{"), "it is damaged", "Repeat the", id="torn"),
        pytest.param(lambda own: edit(own, format=2), "its format is 2", "Install the newest archbench", id="newer"),
        pytest.param(lambda own: edit(own, quality=...), "the field quality is wrong", "Repeat the", id="no field"),
        pytest.param(lambda own: edit(own, quality=[]), "the baseline 'gpt1' has no", "Repeat the", id="empty"),
        pytest.param(lambda own: (own / "runs.parquet").unlink(), "the rows of the", "Repeat the", id="no rows"),
        pytest.param(lambda own: (own / "runs.parquet").write_bytes(b"x"), "it is corrupt", "Move it", id="torn rows"),
    ],
)
def test_a_comparison_that_cannot_be_read_is_an_error_with_a_next_step(
    own: Path, spoil: Any, cause: str, step: str
) -> None:
    spoil(own)
    with pytest.raises(StorageError) as caught:
        read([str(own)])
    assert cause in caught.value.cause
    assert caught.value.next_step.startswith(step)


def test_the_runs_of_an_unfinished_comparison_can_be_shown_as_the_error_says(own: Path) -> None:
    (own / "comparison.json").unlink()
    with pytest.raises(StorageError) as caught:
        read([str(own)])
    (part,) = read([caught.value.next_step.rpartition(": ")[2]])
    assert part.verdict is None
    assert len(part.tables[0].rows) == 10


def test_the_command_writes_page_images_and_summary(small: Path, cli: RunCLI, tmp_path: Path) -> None:
    made = cli("report", small, "-o", "out/page.html", "--png", "out/figures", "--md", "out/summary.md", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[0].startswith("llama is better than gpt1")
    assert 3e5 < (tmp_path / "out/page.html").stat().st_size < 1.5e6
    (part,) = read([str(small)])
    assert len(part.figures) >= 5
    assert len(list((tmp_path / "out/figures").glob("*.png"))) == len(part.figures)
    assert "![Training loss](figures/loss.png)" in (tmp_path / "out/summary.md").read_text()
    for one in part.figures:
        assert_whole_and_not_blank(tmp_path / f"out/figures/{one.key}.png", one)


def assert_whole_and_not_blank(file: Path, figure: Figure) -> None:
    drawn = Image.open(file)
    drawn.load()
    assert drawn.format == "PNG"
    assert drawn.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    assert drawn.width >= 1500
    pixels = np.asarray(drawn.convert("RGB"))[::2, ::2].reshape(-1, 3)
    assert 0.005 < (pixels != 255).any(axis=1).mean() < 0.95, figure.key
    for name, style in figure.legend:
        colour = [int(LIGHT[style.colour][start : start + 2], 16) for start in (1, 3, 5)]
        assert (pixels == colour).all(axis=1).any(), f"{name} is not drawn in {figure.key}"


def test_the_command_says_where_nothing_is(cli: RunCLI) -> None:
    made = cli("report", "nowhere")
    assert made.returncode == 7
    assert made.stderr.startswith("Error: nowhere: there are no results.")


@pytest.mark.parametrize(("module", "package"), [("vl_convert", "vl-convert-python"), ("jinja2", "jinja2")])
def test_a_missing_package_is_named_with_the_extra_that_has_it(
    module: str, package: str, cli: RunCLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    made = cli("report", REFERENCE, "-o", tmp_path / "page.html")
    assert made.returncode == 2
    assert f"{package} is not installed. Install it with: pip install 'archbench[report]'." in made.stderr
    assert not (tmp_path / "page.html").exists()
