"""The report reads what ``archbench compare`` really writes: a small comparison is run, and its page made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archbench.report.contents import read
from archbench.report.files import write_page
from installations import RunCLI

pytest.importorskip("vl_convert", reason="the extra archbench[report] is not installed")
pytest.importorskip("jinja2", reason="the extra archbench[report] is not installed")


@pytest.mark.slow
def test_a_real_comparison_has_a_page(cli: RunCLI, minimal_plugin: str, tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    build = "    return Bigram(config)"
    broken = (
        "    model = Bigram(config)\n    if torch.initial_seed() == 1:\n        model.apply(_break)\n    return model"
    )
    breaks = "\n\ndef _break(module):\n    nn.init.constant_(module.weight, torch.nan)\n"
    for name in ("plain", "other", "nan"):
        source = "import torch\n" + minimal_plugin.replace('"bigram"', f'"{name}"') + breaks
        (plugins / f"{name}.py").write_text(source.replace(build, broken) if name == "nan" else source)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(str((7 * i + i * i) % 97) for i in range(9_000)))
    out = tmp_path / "compared"
    done = cli(
        "compare", "plain", "other", "nan", "--plugin", plugins, "--match", "tokens", "--profile", "smoke",
        "--corpus", text, "--seeds", "3", "--no-tuning", "--sweeps", "1", "--contexts", "1,2", "--out", out,
        "--config", "checked=false", "--config", "speed.repeats=1", "--config", "speed.new_tokens=4",
        "--tokens", "8192",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (part,) = read([str(out)])
    drawn = [figure.key for figure in part.figures]
    assert drawn[:3] == ["difference", "pareto", "loss"]
    assert {"context", "position"} <= set(drawn)
    assert part.missing == ("learning rates", "probes", "kernels")
    quality = {row["architecture"]: row for row in json.loads((out / "comparison.json").read_text())["quality"]}
    assert quality["nan"]["verdict"] == "no verdict"
    assert part.verdict is not None
    assert "nan" in part.verdict.headline
    assert any(row[0].text == "nan" and row[3].text == "diverged" for row in part.tables[-1].rows)
    page = write_page([part], tmp_path / "report.html", title="a test").read_text()
    assert "the presets as they are, and equal training tokens".capitalize() in page
