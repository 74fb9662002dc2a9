"""Each way a plugin can be broken has its own error, naming plugin, cause and next step; the others keep working."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import archbench
from archbench import errors
from archbench.plugin.registry import TRACKER, find
from archbench.scaffold.package import package_files, write_package


def broken(source: str, old: str, new: str) -> str:
    assert old in source
    return source.replace(old, new)


# (what is done to a working plugin, the error, what the message says)
CASES: dict[str, tuple[Callable[[str], str | None], type[errors.ArchbenchError], list[str]]] = {
    "module missing": (
        lambda source: None,
        errors.PluginImportError,
        ["No module named 'acme_bigram'", "pip uninstall"],
    ),
    "import fails": (
        lambda source: "import no_such_thing\n" + source,
        errors.PluginImportError,
        ["No module named 'no_such_thing'"],
    ),
    "a part of it is missing, it says": (
        lambda source: "import archbench\nraise archbench.errors.UsageError('model.py', 'it is missing', 'Get it')",
        errors.PluginImportError,
        ["importing acme_bigram failed: model.py: it is missing. Get it."],
    ),
    "syntax error": (lambda source: source + "\ndef (", errors.PluginImportError, ["SyntaxError"]),
    "exits on import": (lambda source: "raise SystemExit(3)", errors.PluginImportError, ["SystemExit: 3"]),
    "misspelt hook": (
        lambda source: broken(source, "def train_step(", "def trian_step("),
        errors.MisspeltHookError,
        ["no hook called 'trian_step'", "Did you mean 'train_step'?"],
    ),
    "missing hook": (
        lambda source: broken(source, "def build(config)", "def _helper_without_mark(config)").replace(
            "@hookimpl\ndef _helper", "def _helper"
        ),
        errors.MissingHookError,
        ["no build hook", "Add a function build(config) marked @hookimpl"],
    ),
    "hook not marked": (
        lambda source: broken(source, "@hookimpl\ndef build", "def build"),
        errors.MissingHookError,
        ["build() that is not marked", "from archbench import hookimpl"],
    ),
    "unknown argument": (
        lambda source: broken(source, "def train_step(state, batch)", "def train_step(state, data)"),
        errors.HookArgumentError,
        ["argument 'data'", "train_step(state, batch)"],
    ),
    "argument with a default": (
        lambda source: broken(source, "def build(config)", "def build(config=None)"),
        errors.HookArgumentError,
        ["'config' of its build hook has a default"],
    ),
    "keyword-only argument": (
        lambda source: broken(source, "def build(config)", "def build(*, config)"),
        errors.HookArgumentError,
        ["'config' of its build hook is keyword-only"],
    ),
    "star arguments": (
        lambda source: broken(source, "def build(config)", "def build(*args)"),
        errors.HookArgumentError,
        ["takes *args", "build(config)"],
    ),
    "describe returns None": (
        lambda source: broken(source, "return ArchitectureInfo(", "ArchitectureInfo("),
        errors.HookResultError,
        ["describe hook returned None", "ArchitectureInfo"],
    ),
    "describe returns a string": (
        lambda source: broken(source, "return ArchitectureInfo(", "return repr("[:-1] + "(presets) or ("),
        errors.HookResultError,
        ["describe hook returned a str"],
    ),
    "describe raises": (
        lambda source: broken(source, "    presets =", "    raise RuntimeError('no luck')\n    presets ="),
        errors.HookFailedError,
        ["describe hook raised RuntimeError: no luck", "--debug"],
    ),
    "another name": (
        lambda source: broken(source, '"bigram"', '"trigram"'),
        errors.HookResultError,
        ["'trigram'", "entry point says 'bigram'"],
    ),
    "unusable name": (
        lambda source: broken(source, '"bigram"', '"Bi Gram"'),
        errors.HookResultError,
        ["'Bi Gram'", "lower-case"],
    ),
    "no nano preset": (
        lambda source: broken(source, '"nano"', '"tiny"'),
        errors.HookResultError,
        ["no preset called 'nano'"],
    ),
    "preset of another type": (
        lambda source: broken(source, "ModelConfig(vocab_size=257, context_length=64)", "{'vocab_size': 257}"),
        errors.HookResultError,
        ["preset 'nano'", "no ModelConfig"],
    ),
    "config of another type": (
        lambda source: broken(source, 'section 3", ModelConfig,', 'section 3", dict,'),
        errors.HookResultError,
        ["config type", "archbench.ModelConfig"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_plugin_is_named_with_cause_and_next_step_and_breaks_no_other(
    case: str, install: Callable[..., Path], minimal_plugin: str
) -> None:
    change, kind, phrases = CASES[case]
    install("acme-bigram", "bigram", change(minimal_plugin))
    with pytest.raises(kind) as caught:
        archbench.load("bigram")
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "'bigram' (package acme-bigram 1.0)" in message
    for phrase in phrases:
        assert phrase in message
    assert "\n" not in message
    install("healthy", "healthy", broken(minimal_plugin, '"bigram"', '"healthy"'))
    assert archbench.load("healthy").package == "healthy"


def test_the_cause_of_a_failed_import_and_of_a_failed_hook_is_chained(
    install: Callable[..., Path], minimal_plugin: str
) -> None:
    install("acme-bigram", "bigram", "raise KeyError('why')")
    with pytest.raises(errors.PluginImportError) as caught:
        archbench.load("bigram")
    assert isinstance(caught.value.__cause__, KeyError)
    install(
        "acme-other",
        "other",
        broken(minimal_plugin, "    presets =", "    raise RuntimeError('no luck')\n    presets ="),
    )
    with pytest.raises(errors.HookFailedError) as failed:
        archbench.load("other")
    assert isinstance(failed.value.__cause__, RuntimeError)


def test_two_packages_claiming_a_name_are_both_named_and_others_work(
    install: Callable[..., Path], minimal_plugin: str
) -> None:
    install("acme-bigram", "bigram", minimal_plugin)
    install("zenith", "bigram", minimal_plugin)
    with pytest.raises(errors.DuplicateNameError, match=r"acme-bigram.*zenith"):
        archbench.load("bigram")
    assert archbench.load("gpt1").name == "gpt1"


def test_a_prefix_finds_architectures_and_no_other_kind_of_plugin() -> None:
    with pytest.raises(errors.UnknownNameError, match=r"tracker 'hf:\./x'"):
        find(TRACKER, ["hf:./x"])


def test_an_unknown_name_asks_did_you_mean() -> None:
    with pytest.raises(errors.UnknownNameError, match=r"'gtp1'.*'gpt1'"):
        archbench.load("gtp1")


def test_in_the_folder_of_a_package_that_is_not_installed_the_next_step_is_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path / "mine", package_files("mine"))
    monkeypatch.chdir(tmp_path / "mine")
    with pytest.raises(errors.UnknownNameError, match=r"'mine'.*pip install -e \. .*archbench_mine"):
        archbench.load("mine")
    Path("pyproject.toml").write_text("[project")
    with pytest.raises(errors.UnknownNameError, match="Known"):
        archbench.load("mine")


def test_an_unknown_preset_or_field_asks_did_you_mean() -> None:
    gpt1 = archbench.load("gpt1")
    with pytest.raises(errors.UnknownNameError, match=r"'papre'.*'paper'"):
        gpt1.config("papre")
    with pytest.raises(errors.ConfigError, match=r"n_layr.*'n_layer'"):
        gpt1.config(n_layr=3)
    with pytest.raises(errors.ConfigError, match="n_layer"):
        gpt1.config(n_layer="three")
    assert gpt1.config("nano", vocab_size=300, n_layer="3").vocab_size == 300
