"""The report's page in a real browser: it draws, sorts, follows the colour scheme, fits phone and paper, and is alone.

What is waited for is asked again and again from here: the page forbids itself to evaluate strings.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from archbench.report.contents import Contents, read
from archbench.report.figures import data_of
from archbench.report.files import title_of, write_page
from archbench.report.styles import DARK, LIGHT
from comparison_files import ARCHITECTURES, write_comparison

pytest.importorskip("vl_convert", reason="the extra archbench[report] is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (set CHROMIUM to its path)")

REFERENCE = Path(__file__).parent.parent / "results" / "reference"
OTHERS = [
    "probe-mini",
    "gpt1-revisions",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("scale-nano", "20261123T112407-da218d.parquet", "kernels-cpu", "regressions.jsonl")
    ),
]
PLOTS = ".panel:not([hidden]) .plot"
DRAWN = """new MutationObserver((_, itself) => {
    if (document.querySelector('.plot svg')) { window.drawn = performance.now(); itself.disconnect(); }
}).observe(document, {childList: true, subtree: true});"""
UNDRAWN = f"document.querySelectorAll('{PLOTS}:not(:has(svg))').length"
LINES = "#part0-context .mark-line.role-mark path"
MARKUP = "<script>alert(1)//"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Seen:
    """An open page, and what it complained of and asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> list[Contents]:
    made = [*ARCHITECTURES[:-1], replace(ARCHITECTURES[-1], name=MARKUP)]
    return read([str(write_comparison(tmp_path_factory.mktemp("comparison"), made))])


@pytest.fixture(scope="module")
def file(contents: list[Contents], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(contents, tmp_path_factory.mktemp("page") / "report.html", title=title_of(contents))


def opened(browser: Any, file: Path, *, width: int = 1280, scheme: str = "light", drawn: bool = True) -> Seen:
    """The page, with all its figures unless ``drawn`` is false."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    context.add_init_script(DRAWN)
    seen = Seen(context.new_page())
    seen.page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("dialog", lambda dialog: seen.complaints.append(f"dialog {dialog.message}"))
    seen.page.on("request", lambda request: seen.requests.append(request.url))
    seen.page.goto(file.as_uri())
    seen.page.wait_for_selector("html[data-ready]", timeout=60_000)
    if drawn:
        seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        until(seen.page, UNDRAWN, 0)
    return seen


def until(page: Any, expression: str, value: object) -> None:
    """Wait, a minute at most, until the expression has that value in the page."""
    for _ in range(600):
        found = page.evaluate(expression)
        if found == value:
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{expression} is {found!r}, not {value!r}")


@pytest.fixture(scope="module")
def wide(browser: Any, file: Path) -> Seen:
    return opened(browser, file)


def test_it_draws_without_a_complaint_and_without_the_network(wide: Seen, file: Path) -> None:
    assert wide.complaints == []
    assert wide.requests == [file.as_uri()]


def test_every_figure_is_drawn_with_all_its_series(wide: Seen, contents: list[Contents]) -> None:
    for figure in contents[0].figures:
        first = figure.panels[:1] if figure.arrangement == "switch" else figure.panels
        plots = wide.page.query_selector_all(f"#part0-{figure.key} .plot:has(svg)")
        assert len(plots) == len(first), figure.key
        for plot, panel in zip(plots, first, strict=True):
            if panel.heat is not None:
                values = [value for row in panel.heat.values for value in row if value]
                assert len(plot.query_selector_all(".mark-rect.role-mark path")) == len(values), figure.key
                continue
            points = sum(len(series.x) for series in panel.series)
            assert len(plot.query_selector_all(".mark-symbol.role-mark path")) == points, figure.key
            box = plot.query_selector("svg").bounding_box()
            assert box["width"] > 250
            assert box["height"] > 150


def test_the_page_answers_long_before_its_figures_are_drawn_each_as_it_comes_into_view(
    browser: Any, file: Path, contents: list[Contents]
) -> None:
    page = opened(browser, file, drawn=False).page
    answered = float(page.get_attribute("html", "data-ready"))
    page.locator("#part0-sizes thead button").first.click()
    assert page.locator("#said").inner_text() == "Sorted by architecture, ascending."
    last = f"#part0-{contents[0].figures[-1].key}"
    assert page.locator(f"{last} svg.marks").count() == 0
    page.locator(last).scroll_into_view_if_needed()
    page.locator(f"{last} svg.marks").first.wait_for(timeout=60_000)
    assert page.evaluate(UNDRAWN) > 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    until(page, UNDRAWN, 0)
    assert answered < 0.5 * page.evaluate("performance.now()")


def test_what_was_never_in_view_is_on_the_paper(browser: Any, tmp_path: Path) -> None:
    contents = read([str(REFERENCE / "gpt1-revisions")])  # of few figures: all are drawn
    page = opened(browser, write_page(contents, tmp_path / "page.html", title="a test"), drawn=False).page
    until(page, "typeof vegaEmbed", "function")
    page.wait_for_timeout(500)  # until the figures are unpacked too
    page.evaluate(f"addEventListener('afterprint', () => {{ document.title = String({UNDRAWN}); }})")
    assert page.evaluate(UNDRAWN) > 0
    page.pdf()
    until(page, "document.title", "0")


def test_the_switch_draws_loss_against_seconds(wide: Seen, contents: list[Contents]) -> None:
    wide.page.locator("#part0-loss .choice label", has_text="seconds").click()
    shown = wide.page.locator("#part0-loss .panel:not([hidden]) svg")
    shown.locator(".mark-line path").first.wait_for()
    assert shown.count() == 1
    assert "training time" in shown.locator(".role-axis-title text").all_text_contents()


def test_a_name_that_is_markup_is_shown_as_it_is_in_plots(wide: Seen) -> None:
    labels = wide.page.eval_on_selector_all(
        "#part0-pareto .mark-text.role-mark text", "all => all.map(one => one.textContent)"
    )
    assert MARKUP in [label.strip() for label in labels]


def test_tables_sort_by_value_both_ways_with_the_unknown_last(wide: Seen) -> None:
    heading = wide.page.locator("#part0-verdict thead th", has_text="difference")
    values = "rows => rows.map(row => row.cells[5].dataset.value)"
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    up = wide.page.eval_on_selector_all("#part0-verdict tbody tr", values)
    known = [float(value) for value in up if value]
    assert known == sorted(known)
    assert up[-2:] == ["", ""]
    heading.locator("button").press("Enter")  # by keyboard
    assert heading.get_attribute("aria-sort") == "descending"
    down = wide.page.eval_on_selector_all("#part0-verdict tbody tr", values)
    assert [float(value) for value in down if value] == known[::-1]
    assert down[-2:] == ["", ""]
    assert wide.page.locator("#said").inner_text() == "Sorted by difference, descending."
    assert wide.page.locator("#part0-verdict th[aria-sort]").count() == 1


def test_a_figure_s_data_are_one_click_away_and_downloaded_whole(wide: Seen, contents: list[Contents]) -> None:
    figure = next(figure for figure in contents[0].figures if figure.key == "loss")
    columns, rows = data_of(figure)
    details = wide.page.locator("#part0-loss details.data")
    details.locator("summary").click()
    assert details.locator("tbody tr").first.inner_text().startswith("tokens\tgpt1\tmean of 5 seeds\t2048\t")
    with wide.page.expect_download() as download:
        details.locator("button").click()
    found = list(csv.reader(io.StringIO(Path(download.value.path()).read_text())))
    assert found[0] == columns
    assert len(found) == 1 + len(rows)
    assert [float(cell) for row in found[1:] for cell in (row[3], row[6])] == [
        cell for row in rows for cell in (row[3], row[6])
    ]


def test_a_table_is_downloaded_in_base_units(wide: Seen) -> None:
    with wide.page.expect_download() as download:
        wide.page.locator("#part0-costs [data-download]").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    step = next(row for row in rows if row["quantity"] == "training step" and row["architecture"] == "llama")
    assert float(step["median [base units]"]) == 0.066


def test_provenance_names_command_runs_and_machine(wide: Seen) -> None:
    details = wide.page.locator("#part0-loss details.provenance")
    details.locator("summary").click()
    text = details.inner_text()
    assert "archbench compare gpt1 llama" in text
    assert "20261124T100000-000000" in text
    assert "Some CPU, 2 cores" in text


def test_the_legend_hides_an_architecture_in_every_figure(wide: Seen) -> None:
    page = wide.page
    before = page.locator(LINES).count()
    page.locator("#part0-loss .legend button", has_text="rwkv7").click()
    until(page, f"document.querySelectorAll('{LINES}').length", before - 4)
    assert page.locator("#part0-context .legend button", has_text="rwkv7").get_attribute("aria-pressed") == "false"
    page.locator("#part0-loss .legend button", has_text="rwkv7").click()
    until(page, f"document.querySelectorAll('{LINES}').length", before)


def rgb(colour: str) -> str:
    return "rgb({}, {}, {})".format(*(int(colour[start : start + 2], 16) for start in (1, 3, 5)))


@pytest.fixture(scope="module")
def dark(browser: Any, file: Path) -> Seen:
    return opened(browser, file, scheme="dark")


def test_plots_and_page_follow_the_colour_scheme_when_it_changes(dark: Seen) -> None:
    page = dark.page
    line = f"getComputedStyle(document.querySelector('{LINES}')).stroke"
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(line) == rgb(DARK[0])
    assert page.evaluate(ground) == "rgb(21, 24, 28)"
    page.emulate_media(color_scheme="light")
    until(page, line, rgb(LIGHT[0]))
    assert page.evaluate(ground) == "rgb(255, 255, 255)"


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_kind_of_page_fits_a_phone_in_the_dark_and_paper_and_answers_to_keys(
    browser: Any, name: str, tmp_path: Path
) -> None:
    (part,) = read([str(REFERENCE / name)])
    file = write_page([part], tmp_path / "page.html", title="a test")
    assert file.stat().st_size < 1.5e6
    seen = opened(browser, file, width=390, scheme="dark")
    page = seen.page
    if part.figures:
        assert float(page.get_attribute("html", "data-ready")) <= page.evaluate("drawn"), "it answers before it draws"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wider = "all => all.filter(one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.textContent)"
    assert page.eval_on_selector_all(".plot svg, .plot .role-axis-label text", wider) == []
    limits = page.locator("section", has=page.locator("h3", has_text="What this does not show")).locator("li")
    assert limits.count() >= 2
    for figure in part.figures:
        names = page.locator(f"#part0-{figure.key} .legend button").all_inner_texts()
        assert [one.strip() for one in names] == [name for name, _ in figure.legend]
    for panel in (panel for figure in part.figures if figure.key == "probes" for panel in figure.panels):
        shown = "all => all.filter(one => one.getAttribute('opacity') !== '0').map(one => one.textContent)"
        labels = "".join(page.eval_on_selector_all("#part0-probes .role-axis-label text", shown))
        assert panel.heat is not None
        assert [row for row in (*panel.heat.rows, *panel.heat.columns) if row not in labels] == []
    heading = page.locator(".tabled thead th button").first
    heading.press("Enter")
    assert page.locator("#said").inner_text() == f"Sorted by {heading.inner_text()}, ascending."
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 688, "height": 1000})  # as wide as A4 between its margins
    until(page, "document.documentElement.scrollWidth <= 688", True)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert seen.complaints == []
    assert seen.requests == [file.as_uri()]


def test_the_page_never_scrolls_sideways_and_tables_scroll_in_their_box(browser: Any, file: Path) -> None:
    seen = opened(browser, file, width=360)  # the narrowest: a phone's
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = "all => all.map(box => [box.scrollWidth > box.clientWidth, getComputedStyle(box).overflowX])"
    assert [True, "auto"] in seen.page.eval_on_selector_all(".tabled .scroll", boxes)
    wider = "all => all.filter(plot => plot.getBoundingClientRect().right > innerWidth).length"
    assert seen.page.eval_on_selector_all(".plot svg", wider) == 0
    assert seen.complaints == []


def test_on_paper_plots_are_light_and_not_cut_off_and_controls_are_gone(dark: Seen) -> None:
    page = dark.page
    page.emulate_media(color_scheme="dark")
    assert page.pdf().startswith(b"%PDF")
    # A page as wide as A4 between its margins.
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 688, "height": 1000})
    line = f"getComputedStyle(document.querySelector('{LINES}')).stroke"
    until(page, line, rgb(LIGHT[0]))
    assert page.evaluate("document.documentElement.scrollWidth") <= 688
    cut = "all => all.filter(svg => svg.getBoundingClientRect().right > innerWidth + 1).length"
    assert page.eval_on_selector_all(".panel:not([hidden]) svg", cut) == 0
    assert not page.locator("details").first.is_visible()
    assert not page.locator("nav").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_nothing_runs_or_styles_but_the_page_s_own_script_and_style(browser: Any, file: Path) -> None:
    seen = opened(browser, file, drawn=False)
    seen.page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", "<img src='data:,' onerror='window.ran = true'>");
        document.body.insertAdjacentHTML("beforeend", "<style>main { display: none }</style>");
    }""")
    until(seen.page, "document.images.length > 0 && [...document.images].every(image => image.complete)", True)
    assert seen.page.evaluate("window.ran === undefined") is True
    assert seen.page.evaluate("getComputedStyle(document.querySelector('main')).display") != "none"
    assert len([text for text in seen.complaints if "Content Security Policy" in text]) >= 3
