"""``archbench new`` writes a package that works at once, from the template or from any architecture of one module."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import archbench
from archbench.cli import main
from archbench.errors import UnknownNameError, UsageError
from archbench.plugin.registry import available
from archbench.scaffold import action_reference
from archbench.scaffold.origin import find_origin
from archbench.scaffold.package import check_name, package_files, write_package
from forked_children import ForkedCommand
from installations import RunCLI

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "archbench" / "scaffold" / "my-arch"
BIGRAM = Path(__file__).parent / "example_plugins" / "bigram.py"

Install = Callable[..., Path]


def copy_of(name: str, *plugins: Path) -> dict[str, str]:
    return package_files("mine", find_origin(name, available(plugins)))


def test_it_writes_an_architecture_that_can_be_loaded_and_says_what_to_do_next(cli: RunCLI, tmp_path: Path) -> None:
    done = cli("new", "fresh-start", "--out", "some where", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "some where" / "fresh-start"
    written = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    workflow = ".github/workflows/archbench.yml"
    own = ["README.md", "archbench_fresh_start.py", "pyproject.toml", "tests/test_fresh_start.py"]
    assert written == [workflow, ".gitignore", *own]
    (used,) = re.findall(r"uses: (\S+/archbench@\S+)", (folder / workflow).read_text())
    assert used in done.stdout, "where archbench comes from, or what to replace"
    for command in ("cd 'some where/fresh-start'", "pytest", "pip install -e .", "archbench run fresh-start"):
        assert f"\n  {command}" in done.stdout
    architecture = archbench.load("fresh-start", plugins=[folder / "archbench_fresh_start.py"])
    assert set(architecture.info.presets) == {"nano", "small"}
    for preset in architecture.info.presets:
        with torch.device("meta"):
            model = architecture.build(config := architecture.config(preset))
        tokens = torch.zeros(2, config.context_length, dtype=torch.int64, device="meta")
        assert model(tokens).shape == (2, config.context_length, config.vocab_size)


def test_the_template_is_what_it_writes_and_names_the_place_to_change() -> None:
    assert package_files("my-arch") == {
        file.relative_to(TEMPLATE).as_posix(): file.read_text()
        for file in TEMPLATE.rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    module = (TEMPLATE / "archbench_my_arch.py").read_text()
    assert "Mixer" in ast.get_docstring(ast.parse(module))  # type: ignore[operator]
    assert len([line for line in module.splitlines() if line.strip()]) <= 90


@pytest.mark.parametrize(
    ("direct", "links", "found"),
    [
        (
            {"url": "https://github.com/me/archbench.git", "vcs_info": {"vcs": "git", "commit_id": "abc123"}},
            [],
            "me/archbench@abc123",
        ),
        ({"url": "https://gitlab.com/me/archbench", "vcs_info": {"vcs": "git", "commit_id": "abc123"}}, [], None),
        (None, ["Documentation, https://me.dev", "Source, https://github.com/me/archbench"], "me/archbench@v7.1"),
        (None, ["Source, https://github.com/OWNER/archbench"], None),
    ],
)
def test_the_workflow_uses_the_archbench_that_is_installed(
    direct: dict[str, object] | None,
    links: list[str],
    found: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    info = tmp_path / "archbench-7.1.dist-info"
    info.mkdir()
    about = ["Metadata-Version: 2.1", "Name: archbench", "Version: 7.1", *(f"Project-URL: {link}" for link in links)]
    (info / "METADATA").write_text("\n".join(about) + "\n")
    if direct is not None:
        (info / "direct_url.json").write_text(json.dumps(direct))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(action_reference, "ROOT", tmp_path)  # no checkout
    assert action_reference.action_reference() == (found or action_reference.UNKNOWN)


def test_the_workflow_uses_the_checkout_that_pip_installed_a_copy_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "a clone"
    remote = ("remote", "add", "origin", "git@github.com:me/archbench.git")
    identity = ("-c", "user.name=me", "-c", "user.email=me@mine.dev")
    clone.mkdir()
    for command in (("init", "-q"), remote, (*identity, "commit", "-q", "--allow-empty", "-m", "x")):
        subprocess.run(["git", *command], cwd=clone, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, check=True, capture_output=True, text=True).stdout
    info = tmp_path / "archbench-7.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: archbench\nVersion: 7.1\n")
    (info / "direct_url.json").write_text(json.dumps({"url": clone.as_uri(), "dir_info": {}}))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(action_reference, "ROOT", tmp_path)  # no checkout
    assert action_reference.action_reference() == f"me/archbench@{head.strip()}"


@pytest.mark.parametrize("name", ["none", "class", "mixer", "tensor", "torch", "a-1-b"])
def test_no_name_spoils_what_is_written(name: str) -> None:
    files = package_files(name)
    for path, text in files.items():
        assert not [spelling for spelling in ("my-arch", "my_arch", "MyArch") if spelling in text], path
        if path.endswith(".py"):
            compile(text, path, "exec")
    module = "archbench_" + name.replace("-", "_")
    assert tomllib.loads(files["pyproject.toml"])["project"]["entry-points"]["archbench"] == {name: module}
    assert f"{module}.py" in files


@pytest.mark.parametrize("name", ["", "My", "1st", "a_b", "a--b", "-a", "a-", "a/b", "../a", "a b", "é"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        check_name(name, [])


def test_a_name_that_somebody_has_is_refused(minimal_plugin: str, install: Install) -> None:
    install("acme-bigram", "bigram", minimal_plugin)
    with pytest.raises(UsageError, match=r"acme-bigram"):
        check_name("bigram", available())
    with pytest.raises(UsageError, match="archbench_plugins"):
        check_name("plugins", available())


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    assert main(["new", "mine", "--out", str(tmp_path)]) == 0  # an empty folder is as good as none
    module = tmp_path / "mine" / "archbench_mine.py"
    module.write_text("my work")
    assert main(["new", "mine", "--out", str(tmp_path)]) == 2
    assert module.read_text() == "my work"
    assert "Error: " in capsys.readouterr().err


def test_a_copy_of_gpt1_is_gpt1_under_another_name(tmp_path: Path) -> None:
    files = copy_of("gpt1")
    first, _, rest = files["archbench_mine.py"].partition("\n")
    assert first == f"# Copied from gpt1 of archbench {archbench.__version__} (Apache-2.0) by archbench new."
    assert rest == (ROOT / "plugins" / "gpt1.py").read_text().replace('name="gpt1"', 'name="mine"')
    module = tmp_path / "archbench_mine.py"
    module.write_text(files["archbench_mine.py"])
    logits = []
    for architecture in (archbench.load("gpt1"), archbench.load("mine", plugins=[module])):
        torch.manual_seed(0)
        model = architecture.build(architecture.config(vocab_size=50)).eval()
        logits.append(model(torch.arange(20)[None]))
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    "chosen", [["-k", "hooks or logits or causality"], pytest.param([], marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_a_copy_passes_its_own_tests_at_once(chosen: list[str], tmp_path: Path) -> None:
    write_package(tmp_path / "mine", copy_of("gpt1"))
    done = ForkedCommand("-q", *chosen, cwd=tmp_path / "mine", program="pytest").finished()
    assert done.returncode == 0, done.stdout


def test_a_copy_is_made_without_importing_and_says_where_it_comes_from(install: Install, minimal_plugin: str) -> None:
    source = minimal_plugin + "\nraise RuntimeError('imported')\n"
    install("acme-bigram", "bigram", source)
    files = copy_of("bigram")
    assert files["archbench_mine.py"] == (
        "# Copied from bigram of acme-bigram 1.0 (licence unknown) by archbench new.\n"
        + source.replace('"bigram"', '"mine"')
    )


def test_a_file_can_be_copied_too() -> None:
    first, *_ = copy_of("bigram", BIGRAM)["archbench_mine.py"].splitlines()
    assert first.startswith("# Copied from bigram (bigram.py, sha256:")


NAMED = 'NAME = "bigram"\n@hookimpl\ndef describe():\n    "é"; return archbench.ArchitectureInfo(name=NAME)\n'


@pytest.mark.parametrize("given", ["NAME", "'bigram'"])
def test_the_name_is_found_where_it_is_a_constant_or_stands_after_other_characters(
    install: Install, given: str
) -> None:
    source = NAMED.replace("NAME)", f"{given})") if given != "NAME" else NAMED
    install("acme-bigram", "bigram", source)
    copied = ast.parse(copy_of("bigram")["archbench_mine.py"])
    call = next(node for node in ast.walk(copied) if isinstance(node, ast.Call))
    literal = call.keywords[0].value if given != "NAME" else copied.body[0].value  # type: ignore[attr-defined]
    assert ast.unparse(literal) == "'mine'"


def test_an_object_in_a_module_stays_the_plugin(install: Install, minimal_plugin: str) -> None:
    site = install("acme-bigram", "bigram", minimal_plugin)
    points = next(site.glob("acme_bigram-*/entry_points.txt"))
    points.write_text("[archbench]\nbigram = acme_bigram:plugin\n")
    settings = tomllib.loads(copy_of("bigram")["pyproject.toml"])
    assert settings["project"]["entry-points"]["archbench"] == {"mine": "archbench_mine:plugin"}


@pytest.mark.parametrize(
    ("source", "phrase"),
    [
        ("from .parts import Block", "more than one module: line 1 imports .parts"),
        ("import acme_bigram.parts", "more than one module: line 1 imports acme_bigram.parts"),
        ("info = ArchitectureInfo(name())", "so its name cannot be replaced"),
        ("def describe(:", "line 1 of its source is not Python"),
        (None, "there is no module acme_bigram"),
    ],
)
def test_what_cannot_be_copied_is_refused_with_the_reason(install: Install, source: str | None, phrase: str) -> None:
    install("acme-bigram", "bigram", source)
    with pytest.raises(UsageError, match=rf"--from bigram \(acme-bigram\): .*{phrase}.*leave --from out"):
        copy_of("bigram")


def test_a_package_is_refused_installed_or_not(install: Install, tmp_path: Path, minimal_plugin: str) -> None:
    installed = install("acme-bigram", "bigram", None) / "acme_bigram"
    named = tmp_path / "named"
    for folder, source in ((installed, minimal_plugin), (named, minimal_plugin.replace('"bigram"', '"other"'))):
        folder.mkdir()
        (folder / "__init__.py").write_text(source)
    for name, plugins in (("bigram", []), ("other", [named])):
        with pytest.raises(UsageError, match="package"):
            copy_of(name, *plugins)


def test_an_unknown_origin_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"gptt1.*'gpt1'"):
        copy_of("gptt1")
    assert main(["new", "mine", "--from", "gptt1", "--out", str(tmp_path)]) == 2
    assert not list(tmp_path.iterdir())
