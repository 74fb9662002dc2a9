"""``archbench list`` and ``archbench show``: what there is, what is broken, and what a size costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import archbench
from archbench.cli.show import folded
from installations import RunCLI

Install = Callable[..., Path]


def test_list_shows_the_good_and_why_each_other_is_broken(install: Install, minimal_plugin: str, cli: RunCLI) -> None:
    install("acme-bigram", "bigram", minimal_plugin)
    install("acme-typo", "typo", minimal_plugin.replace("def train_step(", "def trian_step("))
    install("acme-gone", "gone", None)
    install("zenith", "bigram2", minimal_plugin)
    install("acme-twin", "twin", minimal_plugin)
    install("zenith-twin", "twin", minimal_plugin)
    done = cli("list")
    assert done.returncode == 0
    first = next(line for line in done.stdout.splitlines() if " bigram " in line)
    for part in ("A table of next-token logits", "Shannon 1948", "acme-bigram 1.0", "nano"):
        assert part in first
    broken = [line for line in done.stdout.splitlines() if line.startswith("broken: ")]
    assert len(broken) == 4
    for phrases in (
        ["'typo' (package acme-typo 1.0)", "Did you mean 'train_step'?"],
        ["'gone' (package acme-gone 1.0)", "No module named 'acme_gone'"],
        ["'bigram2' (package zenith 1.0)", "entry point says 'bigram2'"],
        ["'twin'", "acme-twin", "zenith-twin"],
    ):
        assert any(all(phrase in line for phrase in phrases) for line in broken), (phrases, broken)


def test_list_as_json_has_one_object_an_architecture(install: Install, minimal_plugin: str, cli: RunCLI) -> None:
    install("acme-bigram", "bigram", minimal_plugin)
    install("acme-gone", "gone", None)
    found = {row["name"]: row for row in map(json.loads, cli("list", "--json").stdout.splitlines())}
    assert found["bigram"]["error"] is None
    assert found["bigram"]["packages"] == ["acme-bigram 1.0"]
    assert found["gpt1"]["presets"] == ["nano", "small", "paper"]
    assert found["gone"]["error"]["type"] == "PluginImportError"
    assert found["gone"]["presets"] == []


def test_what_plugins_say_is_kept_until_something_changes_and_what_is_broken_is_asked_anew(
    install: Install, minimal_plugin: str, cli: RunCLI, tmp_path: Path
) -> None:
    """Each plugin notes when its code runs."""
    ran, kept = tmp_path / "ran", {"ARCHBENCH_CACHE": str(tmp_path / "cache")}
    note = f"with open({str(ran)!r}, 'a') as file:\n    file.write(__name__ + ' ')\n"
    site = install("acme-bigram", "bigram", minimal_plugin + note)
    install("acme-typo", "typo", minimal_plugin.replace("def train_step(", "def trian_step(") + note)
    wrapper = tmp_path / "wrapper.py"
    wrapper.write_text("import archbench\n@archbench.hookimpl(wrapper=True)\ndef build(config):\n    return (yield)\n")

    def listed(*options: str | Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
        ran.write_text("")
        done = cli("list", "--json", *options, env=kept)
        assert (done.returncode, done.stderr) == (0, "")
        return {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}, ran.read_text().split()

    first, modules = listed()
    assert {*modules} == {"acme_bigram", "acme_typo"}
    again, modules = listed()
    assert again == first
    assert modules == ["acme_typo"]
    wrapped, modules = listed("--plugin", wrapper)
    assert "acme_bigram" in modules
    assert wrapped["bigram"]["wrappers"] == ["wrapper"]
    assert listed("--plugin", wrapper) == (wrapped, ["acme_typo"])
    (site / "acme_bigram.py").write_text(minimal_plugin.replace("A table of", "Another table of") + note)
    changed, modules = listed()
    assert "acme_bigram" in modules
    assert changed["bigram"]["summary"].startswith("Another table of")
    for file in (tmp_path / "cache" / "descriptions").iterdir():
        file.write_text(file.read_text().replace("Another", "No other"))
    assert listed()[0] == changed


def test_show_prints_the_published_size_of_gpt1(cli: RunCLI) -> None:
    shown = cli("show", "gpt1", "--preset", "paper").stdout
    assert "116,534,784" in shown
    assert "72 KiB/token" in shown  # 2 tensors × 12 layers × 768 × 4 bytes
    facts = json.loads(cli("show", "gpt1", "--preset", "paper", "--json").stdout)
    assert facts["parameters"] == 116_534_784
    assert facts["cache_bytes_per_token"] == 2 * 12 * 768 * 4
    # 2 FLOPs a parameter in a matrix (12 C² a layer, and the head), and 4 C T a layer for attention
    matrices = 12 * 12 * 768**2 + 40_478 * 768
    assert facts["forward_flops_per_token"] == pytest.approx(2 * matrices + 12 * 4 * 768 * 512)
    assert facts["training_flops_per_token"] == pytest.approx(3 * facts["forward_flops_per_token"])


def test_what_show_found_is_kept_for_the_same_question(cli: RunCLI, tmp_path: Path) -> None:
    kept = {"ARCHBENCH_CACHE": str(tmp_path)}
    first = [cli("show", "gpt1", *options, env=kept).stdout for options in ([], ["--json"], ["--set", "n_layer=3"])]
    assert len([*(tmp_path / "descriptions").iterdir()]) == 2, "tables and JSON are made from the same facts"
    again = [cli("show", "gpt1", *options, env=kept).stdout for options in ([], ["--json"], ["--set", "n_layer=3"])]
    assert again == first
    assert len({*first}) == 3
    assert cli("show", "gpt1", "--set", "n_layer=0", env=kept).returncode == 2


def test_the_layer_table_adds_up_also_when_folded(cli: RunCLI) -> None:
    facts = json.loads(cli("show", "gpt1", "--set", "n_layer=3", "--json").stdout)
    assert facts["config"]["n_layer"] == 3
    for layers in (facts["layers"], folded(facts["layers"])):
        assert sum(layer["parameters"] for layer in layers) == facts["parameters"]
        flops = sum(layer["forward_flops_per_token"] for layer in layers)
        assert flops == pytest.approx(facts["forward_flops_per_token"])
    blocks: list[dict[str, Any]] = [layer for layer in folded(facts["layers"]) if layer["path"].startswith("blocks")]
    assert {layer["count"] for layer in blocks} == {3}


@pytest.mark.parametrize(
    ("arguments", "phrases"),
    [
        (["gtp1"], ["architecture 'gtp1'", "Did you mean 'gpt1'?"]),
        (["gpt1", "--preset", "papre"], ["preset 'papre' of gpt1", "Did you mean 'paper'?"]),
        (["gpt1", "--set", "n_layr=3"], ["n_layr", "no such field", "Did you mean 'n_layer'?"]),
        (["gpt1", "--set", "n_layer=three"], ["n_layer", "three"]),
        (["gpt1", "--set", "n_layer"], ["--set n_layer", "NAME=VALUE"]),
        (["gpt1", "--set", "n_head=7"], ["n_head", "7"]),
        (["gpt1", "--plugin", "missing.py"], ["--plugin missing.py", "no such file"]),
        (["gpt1", "--plugin", "~nosuch/mine.py"], ["--plugin ~nosuch/mine.py", "no such file"]),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_code_2(cli: RunCLI, arguments: list[str], phrases: list[str]) -> None:
    done = cli("show", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    for phrase in phrases:
        assert phrase in done.stderr


def test_showing_needs_no_memory_for_the_model(install: Install, minimal_plugin: str, cli: RunCLI) -> None:
    """A trillion parameters, on the meta device."""
    install("acme-bigram", "bigram", minimal_plugin)
    facts = json.loads(cli("show", "bigram", "--set", f"vocab_size={10**6}", "--json").stdout)
    assert facts["parameters"] == 10**12
    assert facts["cache_bytes_per_token"] is None
    assert archbench.load("bigram").info.presets["nano"].vocab_size == 257
