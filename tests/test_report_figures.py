"""The report's figures: what is drawn is what was measured, in colours that can be told apart."""

from __future__ import annotations

import math
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from archbench import available
from archbench.presentation.quantities import duration, number, percent, quantity, ratio
from archbench.presentation.tables import escaped
from archbench.report.character_plot import characters
from archbench.report.contents import Contents, read
from archbench.report.cost_figures import pareto_figure
from archbench.report.evidence import Evidence, Score, of_comparison
from archbench.report.figures import Axis, Figure, Panel, Series, data_of, tick_text, ticks_of
from archbench.report.markdown import markdown
from archbench.report.styles import DARK, HEAT, LIGHT, ink_on, style_of, styles_of
from archbench.report.vega import image
from archbench.study.costs import CostRow
from comparison_files import ARCHITECTURES, SEEDS, STEPS, T, frame_of, write_comparison


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(tmp_path_factory.mktemp("comparison"))


@pytest.fixture(scope="module")
def contents(folder: Path) -> Contents:
    (part,) = read([str(folder)])
    return part


def figure(contents: Contents, key: str) -> Figure:
    return next(figure for figure in contents.figures if figure.key == key)


def series_of(figure: Figure, panel: int, name: str, role: str) -> Series:
    return next(one for one in figure.panels[panel].series if one.name == name and one.role.startswith(role))


def test_loss_is_the_mean_over_seeds_within_their_range(contents: Contents, folder: Path) -> None:
    drawn = series_of(figure(contents, "loss"), 0, "llama", "mean")
    rows = frame_of(folder)
    rows = rows[(rows.architecture == "llama") & (rows.phase == "train") & (rows.metric == "loss")]
    by_seed = rows.pivot(index="seed", columns="repeat", values="value").to_numpy()
    assert by_seed.shape == (SEEDS, STEPS)
    # 240 steps in 80 points: three neighbours are averaged.
    for point in (0, 1, 79):
        means = by_seed[:, 3 * point : 3 * point + 3].mean(axis=1)
        assert drawn.y[point] == pytest.approx(means.mean(), rel=1e-5)
        assert (drawn.low[point], drawn.high[point]) == pytest.approx((means.min(), means.max()), rel=1e-5)


def test_loss_is_drawn_against_tokens_flops_and_seconds_of_the_run(contents: Contents, folder: Path) -> None:
    loss = figure(contents, "loss")
    assert [panel.title for panel in loss.panels] == ["tokens", "FLOPs", "seconds"]
    tokens, flops, seconds = (series_of(loss, panel, "rwkv7", "mean").x[-1] for panel in range(3))
    rows = frame_of(folder)
    rows = rows[(rows.architecture == "rwkv7") & (rows.phase == "train")]
    per_token = rows[rows.metric == "flops_per_token"].value.iloc[0]
    spent = rows[rows.metric.isin(["step_seconds", "first_step_seconds"])].groupby("seed").value.sum().mean()
    assert flops / tokens == pytest.approx(per_token, rel=1e-5)
    assert seconds == pytest.approx(spent, rel=0.01)


def test_a_diverged_seed_is_drawn_by_itself_and_left_out_of_the_mean(contents: Contents) -> None:
    loss = figure(contents, "loss")
    assert series_of(loss, 0, "mamba2", "mean").role == f"mean of {SEEDS - 1} seeds"
    alone = series_of(loss, 0, "mamba2", f"seed {SEEDS - 1}, diverged")
    assert alone.x[-1] < series_of(loss, 0, "mamba2", "mean").x[-1] / 2


def test_differences_are_drawn_with_all_three_intervals(contents: Contents) -> None:
    rows = {(row[1], row[2]): row for row in data_of(figure(contents, "difference"))[1]}
    columns = data_of(figure(contents, "difference"))[0]
    combined = rows["llama", "seeds and documents"]
    difference = 2.431 / 2.512 - 1
    assert combined[columns.index("x")] == pytest.approx(difference)
    assert combined[columns.index("low")] == pytest.approx(difference - 0.0014)
    assert rows["llama", "seeds alone"][columns.index("high")] == pytest.approx(difference + 0.0011)
    assert combined[columns.index("y")] == "llama"


def test_the_data_behind_a_figure_has_every_point_drawn(contents: Contents) -> None:
    for one in contents.figures:
        columns, rows = data_of(one)
        assert all(len(row) == len(columns) for row in rows)
        if one.key != "probes":
            assert len(rows) == sum(len(series.x) for panel in one.panels for series in panel.series)
    assert len(data_of(figure(contents, "probes"))[1]) == len(ARCHITECTURES) * 4


def test_the_front_is_what_nothing_else_beats(folder: Path) -> None:
    evidence = of_comparison(folder)
    random = np.random.default_rng(0)
    for _ in range(20):
        points = random.integers(1, 6, size=(5, 2))  # whole numbers, so that some tie
        drawn = pareto_figure(with_points(evidence, points))
        assert drawn is not None
        front = {series.name for series in drawn.panels[0].series if series.role == "on the front"}
        beaten = {
            name
            for name, mine in zip(evidence.names, points, strict=True)
            if any((other <= mine).all() and (other < mine).any() for other in points)
        }
        assert front == set(evidence.names) - beaten


def with_points(evidence: Evidence, points: np.ndarray) -> Evidence:
    from dataclasses import replace

    named = list(zip(evidence.names, points, strict=True))
    scores = tuple(Score(name, float(quality), None, None) for name, (_, quality) in named)
    costs = tuple(
        CostRow(metric="decode", label="decoding", unit="s", architecture=name, value=float(cost), verdict="exact")
        for name, (cost, _) in named
    )
    return replace(evidence, scores=scores, costs=costs, spent=())


def test_loss_by_position_shows_where_training_ended_and_who_cannot_read_on(contents: Contents) -> None:
    position = figure(contents, "position")
    assert [rule.low for panel in position.panels for rule in panel.rules] == [T, T]
    assert {series.name for series in position.panels[2].series} == {
        one.name for one in ARCHITECTURES if one.reads == 4
    }
    assert position.remarks == ("gpt1: it cannot read 256 positions: its learned positions end at 128.",)


def test_the_rate_chosen_is_marked_and_an_edge_flagged(contents: Contents) -> None:
    tuning = figure(contents, "learning-rate")
    assert series_of(tuning, 0, "llama", "chosen").x == (pytest.approx(0.002 * 1.45),)
    assert series_of(tuning, 0, "hybrid", "chosen").label == "flagged"


def test_an_architecture_looks_the_same_in_every_figure(contents: Contents) -> None:
    for one in contents.figures:
        if one.key != "kernels":
            for panel in one.panels:
                for series in panel.series:
                    assert series.style in (None, contents.styles.get(series.name))


def test_every_architecture_looks_different_and_as_it_does_on_every_other_page() -> None:
    built_in = [entry.name for entry in available() if entry.package == "archbench"]
    names = [*built_in, *(f"plugin-{number}" for number in range(30))]
    every = styles_of({name: name for name in names})
    assert len(set(every.values())) == len(names)
    assert len({every[name].colour for name in built_in}) == len(built_in)
    for name in names[:15]:
        assert styles_of({name: name, "gpt1": "gpt1"})[name] == style_of(name)
    assert {name: every[name] for name in built_in} == {name: style_of(name) for name in built_in}


def test_runs_of_one_architecture_share_its_colour_and_differ_in_their_markers() -> None:
    drawn = styles_of({"llama 1a": "llama", "llama 2b": "llama", "gpt1": "gpt1"})
    assert {drawn["llama 1a"].colour, drawn["llama 2b"].colour} == {style_of("llama").colour}
    assert drawn["llama 1a"].marker != drawn["llama 2b"].marker


# Machado, Oliveira & Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision Deficiency",
# table 1, severity 1: linear RGB as people without red (protanopia) or green (deuteranopia) cones see it.
PROTANOPIA = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    x, y, z = np.cbrt(TO_XYZ @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("seen", [np.eye(3), PROTANOPIA, DEUTERANOPIA], ids=["all", "no red", "no green"])
def test_colours_can_be_told_apart_without_red_or_green_cones(palette: tuple[str, ...], seen: np.ndarray) -> None:
    for one, other in combinations(palette, 2):
        distance = np.linalg.norm(lab(seen @ linear(one)) - lab(seen @ linear(other)))
        assert distance > 12.9, f"{one} and {other} are {distance:.1f} apart in CIELAB, where 2.3 is just noticeable"


@pytest.mark.parametrize(("palette", "paper"), [(LIGHT, "#ffffff"), (DARK, "#15181c")], ids=["light", "dark"])
def test_lines_stand_out_from_the_paper(palette: tuple[str, ...], paper: str) -> None:
    ground = TO_XYZ[1] @ linear(paper) + 0.05
    for colour in palette:
        ink = TO_XYZ[1] @ linear(colour) + 0.05
        assert max(ink, ground) / min(ink, ground) > 2.5, colour


def test_numbers_in_a_heat_map_can_be_read_at_every_value() -> None:
    for value in np.linspace(0, 1, 21):
        channels = [
            np.interp(value, [stop for stop, _ in HEAT], [int(c[i : i + 2], 16) for _, c in HEAT]) for i in (1, 3, 5)
        ]
        ground = TO_XYZ[1] @ linear("#" + "".join(f"{round(channel):02x}" for channel in channels)) + 0.05
        ink = TO_XYZ[1] @ linear(ink_on(value)) + 0.05
        assert max(ink, ground) / min(ink, ground) >= 4.5  # WCAG 2.2, 1.4.3


@pytest.mark.parametrize(
    ("values", "unit", "scale", "ticks"),
    [
        ((96 * 1024, 6 * 2**20), "B", "log", (2**17, 2**19, 2**21, 2**23)),
        ((3e-4, 4e-3), "s", "log", (5e-4, 1e-3, 2e-3)),
        ((1e-5, 1.0), "s", "log", (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)),
        ((1.0, 2.0), "s", "linear", ()),
    ],
)
def test_ticks_are_round_and_few(values: tuple[float, ...], unit: str, scale: str, ticks: tuple[float, ...]) -> None:
    assert ticks_of(values, unit, scale) == pytest.approx(ticks)  # type: ignore[arg-type]


def test_bytes_that_hardly_differ_have_labels_that_do() -> None:
    ticks = ticks_of((350.1 * 2**20, 350.9 * 2**20), "B", "linear")
    axis = Axis("memory", "B", ticks=ticks)
    labels = [tick_text(axis, index) for index in range(len(ticks))]
    assert labels == ["350 MiB", "350.25 MiB", "350.5 MiB", "350.75 MiB", "351 MiB"]


def test_values_that_are_all_the_same_have_one_label_and_it_says_the_value() -> None:
    """A drawing library has no step between ticks there, and would say 3."""
    style = styles_of({"gpt1": "gpt1"})["gpt1"]
    panel = Panel(
        "history", Axis("date", "date"), Axis("bits per byte", "bit/byte"),
        (Series("gpt1", style, (1e9, 2e9), (3.2416, 3.2416), drawn="line+points"),),
    )  # fmt: skip
    texts = re.findall(r">([^<>]+)</text>", image(Figure("history", "History", "", (panel,)), "svg").decode())
    assert "3.2416" in texts
    assert "3" not in texts
    assert sum("3.2416" in line for line in characters(panel, 80)) == 1


@pytest.mark.parametrize(
    ("value", "text"), [(1.1, "1.100"), (0.0123, "0.0123"), (2731.6, "2,732"), (2.2e9, "2.20e+09"), (None, "–")]
)
def test_ratios_have_three_digits_however_far_from_one(value: float | None, text: str) -> None:
    assert ratio(value) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0041, "s", "4.10 ms"), (5500.0, "s", "92 min"), (9000.0, "s", "2 h 30 min"), (393216.0, "B", "384 KiB"),
        (1.74e12, "FLOP", "1.74 TFLOP"), (245760.0, "token", "245,760 tokens"), (25431.0, "token/s", "25,431 tokens/s"),
        (None, "s", "–"), (float("nan"), "B", "–"),
        (2.5, "bit/byte", "2.5000 bit/byte"), (-0.00314, "relative", "−0.31 %"),
    ],
)  # fmt: skip
def test_numbers_are_shown_with_a_prefix_and_three_digits(value: float | None, unit: str, text: str) -> None:
    assert quantity(value, unit) == text
    assert text.startswith(number(value, unit))
    assert percent(0.0) == "+0.00 %"


@pytest.mark.parametrize(
    ("seconds", "text"), [(40.2, "40 s"), (5500, "92 min"), (9000, "2 h 30 min"), (108_000, "30 h"), (math.inf, "–")]
)
def test_a_time_that_people_wait_is_said_in_one_way(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_dollar_in_a_name_is_a_dollar(folder: Path) -> None:
    pytest.importorskip("vl_convert", reason="the extra archbench[report] is not installed")
    from dataclasses import replace

    from archbench.report.vega import image

    drawn = figure(read([str(folder)])[0], "pareto")
    broken = tuple(
        replace(panel, series=tuple(replace(one, label="$\\frac{$") for one in panel.series)) for panel in drawn.panels
    )
    assert image(replace(drawn, panels=broken)).startswith(b"\x89PNG")


def test_the_summary_has_verdict_tables_and_images(contents: Contents) -> None:
    text = markdown([contents], [{"loss": "figures/loss.png"}])
    assert "**llama is better than gpt1; rwkv7 is equivalent to gpt1; hybrid and mamba2 are undecided.**" in text
    assert "| llama | **better** | 2.4310 |" in text
    assert "![Training loss](figures/loss.png)" in text
    assert text.count("![") == 1
    lines = [line for line in text.splitlines() if line.startswith("|")]
    widths = [line.count("|") - line.count("\\|") for line in lines]
    assert set(widths) == {13, 14, 8, 7}  # no row is wider than its head


def test_markdown_shows_markup_as_it_is() -> None:
    assert escaped("<b>|a_b|*\n#") == "&lt;b&gt;\\|a\\_b\\|\\* \\#"
