"""Plugins given by path: files, folders and packages, by option or environment variable; loaded only when asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import archbench
from archbench import errors
from archbench.plugin.discovery import plugin_paths

EXAMPLES = Path(__file__).parent / "example_plugins"


def names(*plugins: Path) -> list[str]:
    return [entry.name for entry in archbench.available(plugins)]


def test_a_file_is_a_plugin_under_the_name_it_gives_itself(tmp_path: Path, minimal_plugin: str) -> None:
    file = tmp_path / "whatever.py"
    file.write_text(minimal_plugin)
    assert "bigram" in names(file)
    architecture = archbench.load("bigram", plugins=[file])
    assert architecture.package == architecture.source == str(file)
    assert architecture.version.startswith("sha256:")
    assert "whatever" not in sys.modules


def test_a_files_version_follows_its_text(tmp_path: Path, minimal_plugin: str) -> None:
    file = tmp_path / "my_arch.py"
    file.write_text(minimal_plugin)
    first = archbench.load("bigram", plugins=[file])
    file.write_text(minimal_plugin.replace("A table", "One table"))
    os.utime(file, ns=(1, 1))  # editors on coarse clocks may leave the same time; any other time means: read it again
    second = archbench.load("bigram", plugins=[file])
    assert second.info.summary.startswith("One table")
    assert first.version != second.version


def test_a_folder_has_a_plugin_in_each_file_but_those_with_an_underscore(tmp_path: Path, minimal_plugin: str) -> None:
    (tmp_path / "one.py").write_text(minimal_plugin.replace('"bigram"', '"one"'))
    (tmp_path / "two.py").write_text(minimal_plugin.replace('"bigram"', '"two"'))
    (tmp_path / "_private.py").write_text("raise RuntimeError('must not be loaded')")
    found = names(tmp_path)
    assert {"one", "two", "gpt1"} <= set(found)
    assert len(found) == len(names()) + 2


def test_a_package_folder_is_one_plugin_with_relative_imports(tmp_path: Path, minimal_plugin: str) -> None:
    package = tmp_path / "mine"
    package.mkdir()
    (package / "parts.py").write_text(minimal_plugin)
    (package / "__init__.py").write_text(
        "from .parts import *\nfrom .parts import describe, build, train_step, generate\n"
    )
    assert archbench.load("bigram", plugins=[package]).name == "bigram"


def test_the_environment_variable_names_several_plugins(
    tmp_path: Path, minimal_plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(minimal_plugin.replace('"bigram"', f'"{name}"'))
    monkeypatch.setenv("ARCHBENCH_PLUGINS", os.pathsep.join([str(tmp_path / "one.py"), str(tmp_path / "two.py")]))
    assert {"one", "two"} <= set(names())
    assert archbench.load("two").name == "two"
    assert len(plugin_paths([tmp_path / "one.py"])) == 2  # given twice, loaded once


def test_a_broken_file_breaks_no_other_and_is_what_an_unknown_name_is_blamed_on(
    tmp_path: Path, minimal_plugin: str
) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "my_arch.py"
    good.write_text(minimal_plugin)
    bad.write_text("import no_such_thing")
    assert str(bad) in names(good, bad)
    with pytest.warns(archbench.errors.ArchbenchWarning, match=r"my_arch\.py.*no_such_thing"):
        assert archbench.load("bigram", plugins=[good, bad]).name == "bigram"
    for name in ("my-arch", str(bad)):
        with pytest.raises(
            errors.PluginImportError, match=r"my_arch\.py.*No module named 'no_such_thing'.*Install no_such_thing"
        ):
            archbench.load(name, plugins=[good, bad])


def test_a_neighbour_that_cannot_be_imported_is_explained(tmp_path: Path) -> None:
    (tmp_path / "helper_beside.py").write_text("x = 1")
    (tmp_path / "mine.py").write_text("import helper_beside")
    with pytest.raises(errors.PluginImportError, match="package"):
        archbench.load("mine", plugins=[tmp_path / "mine.py"])


def test_a_file_that_takes_an_installed_name_is_refused_and_both_are_named(
    tmp_path: Path, minimal_plugin: str, install: Callable[..., Path]
) -> None:
    install("acme-bigram", "bigram", minimal_plugin)
    file = tmp_path / "mine.py"
    file.write_text(minimal_plugin.replace("A table", "Another table"))
    with pytest.raises(errors.DuplicateNameError, match=r"acme-bigram \(acme_bigram\) and .*mine\.py"):
        archbench.load("bigram", plugins=[file])


def test_a_file_that_is_what_is_installed_is_no_second_claim(
    tmp_path: Path, minimal_plugin: str, install: Callable[..., Path]
) -> None:
    site = install("acme-bigram", "bigram", minimal_plugin)
    (tmp_path / "copy.py").write_text(minimal_plugin)
    for file in (site / "acme_bigram.py", tmp_path / "copy.py"):
        assert names(file) == names()
        assert archbench.load("bigram", plugins=[file]).package == "acme-bigram"


@pytest.mark.parametrize(
    ("path", "phrase"),
    [
        ("missing.py", "no such file or folder"),
        ("notes.txt", "not a Python file"),
        ("empty", "no plugin in that folder"),
    ],
)
def test_a_path_without_a_plugin_is_a_usage_error(tmp_path: Path, path: str, phrase: str) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.UsageError, match=f"{path}: .*{phrase}"):
        archbench.load("gpt1", plugins=[tmp_path / path])


def test_wrappers_go_around_every_architecture_that_is_loaded_with_them(tmp_path: Path, minimal_plugin: str) -> None:
    other = tmp_path / "other.py"
    other.write_text(minimal_plugin.replace("return next_token_step(state, batch)", "return state"))
    stopwatch = EXAMPLES / "stopwatch.py"
    assert names(stopwatch) == names()  # it is no architecture
    assert archbench.load("bigram", plugins=[other]).wrappers == ()
    import torch

    for name in ("bigram", "gpt1"):
        wrapped = archbench.load(name, plugins=[other, stopwatch])
        assert wrapped.wrappers == ("stopwatch",)
    wrapped = archbench.load("bigram", plugins=[other, stopwatch])
    assert wrapped.train_step(torch.ones(()), None) == 1  # type: ignore[arg-type]
    module = next(module for module in sys.modules.values() if getattr(module, "__file__", None) == str(stopwatch))
    assert len(module.seconds) == 1


def test_a_broken_wrapper_is_never_left_out_silently(tmp_path: Path, minimal_plugin: str) -> None:
    wrapper = tmp_path / "meter.py"
    source = (
        "from archbench import hookimpl\n@hookimpl(wrapper=True)\ndef train_step(state, batch):\n    return (yield)\n"
    )
    wrapper.write_text(source.replace("batch", "data"))
    with pytest.raises(errors.HookArgumentError, match=r"meter\.py.*'data'"):
        archbench.load("gpt1", plugins=[wrapper])
    wrapper.write_text(source.replace("return (yield)", "return None"))
    os.utime(wrapper, ns=(1, 1))
    with pytest.raises(errors.HookArgumentError, match=r"meter\.py.*yield"):
        archbench.load("gpt1", plugins=[wrapper])


def test_a_wrapper_that_loses_the_result_is_named(tmp_path: Path, minimal_plugin: str) -> None:
    (tmp_path / "other.py").write_text(minimal_plugin)
    (tmp_path / "meter.py").write_text(
        "from archbench import hookimpl\n@hookimpl(wrapper=True)\ndef build(config):\n    yield\n"
    )
    architecture = archbench.load("bigram", plugins=[tmp_path / "other.py", tmp_path / "meter.py"])
    with pytest.raises(errors.HookResultError, match=r"meter.*build.*None"):
        architecture.build(architecture.config())
