"""Code runs only if the user of this machine named it; and a plugin that cannot be imported takes no command down."""

from __future__ import annotations

import importlib.util
import json
import os
import py_compile
import stat
from pathlib import Path
from typing import Any

import pytest

from archbench.child.inheritance import handed_down
from archbench.config import RunConfig
from archbench.errors import PluginImportError, StorageError, UntrustedCodeError, UsageError
from archbench.files.seal import unsealed
from archbench.plugin.importing import import_file
from archbench.plugin.trust import MOST_BYTES, TRUSTED_VARIABLE, content_digest, require, trust, trusted
from archbench.runs import run as runs
from installations import RunCLI
from small_runs import begun, with_small_corpus

UNTRUSTED = 12
RUN_ID = "20260101T000000-abcdef"


@pytest.fixture(autouse=True)
def _nothing_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHBENCH_CONFIG", str(tmp_path / "settings"))
    monkeypatch.setitem(handed_down, TRUSTED_VARIABLE, "")


@pytest.fixture
def evil(tmp_path: Path, minimal_plugin: str) -> Path:
    """A plugin in a folder that came from elsewhere; running it leaves ``ran`` beside it."""
    file = tmp_path / "gift" / "evil.py"
    file.parent.mkdir()
    file.write_text(f"open({str(file.with_name('ran'))!r}, 'w').close()\n" + minimal_plugin)
    return file


@pytest.fixture
def gift(evil: Path) -> Path:
    """A results folder with a run that names the plugin."""
    config = RunConfig(architecture="bigram", profile="smoke", device="cpu", plugins=(str(evil),))
    begun(evil.parent / "results", RUN_ID, config)
    return evil.parent / "results"


def ran(evil: Path) -> bool:
    return evil.with_name("ran").exists()


@pytest.mark.parametrize(
    "command", ["generate bigram --device cpu --out", f"run bigram --resume {RUN_ID} --out"], ids=["generate", "resume"]
)
def test_a_results_folder_runs_no_code_that_the_user_has_not_named(
    cli: RunCLI, evil: Path, gift: Path, command: str
) -> None:
    refused = cli(*command.split(), gift)
    assert refused.returncode == UNTRUSTED, refused.stderr
    for part in (str(evil), content_digest(evil), "config.json", f"archbench trust {evil}"):
        assert part in " ".join(refused.stderr.split())
    assert not ran(evil)

    assert cli("trust", evil).returncode == 0
    cli(*command.split(), gift)
    assert ran(evil)

    evil.with_name("ran").unlink()
    evil.write_text(evil.read_text() + "\n# another content\n")
    os.utime(evil, ns=(1, 1))
    assert cli(*command.split(), gift).returncode == UNTRUSTED
    assert not ran(evil)
    cli(*command.split(), gift, "--trust")
    assert ran(evil)


def test_a_run_file_runs_no_code_that_the_user_has_not_named(cli: RunCLI, evil: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f'architecture = "bigram"\nprofile = "smok"\nplugins = ["{evil}"]\n')
    for names in ((), ("all",)):
        refused = cli("run", *names, "--file", file)
        assert refused.returncode == UNTRUSTED, refused.stderr
        assert str(file) in refused.stderr
    assert not ran(evil)
    assert "'smok'" in cli("run", "--file", file, "--trust").stderr  # it goes on, to the next error
    assert cli("run", "gpt1", "--trust").returncode == 2


def test_what_is_trusted_can_be_seen_and_forgotten(cli: RunCLI, evil: Path) -> None:
    assert cli("trust").returncode == 2
    assert cli("trust", evil.parent / "absent.py").returncode == 2
    cli("trust", evil)
    (one,) = map(json.loads, cli("trust", "--list", "--json").stdout.splitlines())
    assert (one["path"], one["digest"]) == (str(evil), content_digest(evil))
    assert cli("trust", "--forget", evil).returncode == 0
    assert trusted() == []
    assert cli("trust", "--forget", evil).returncode == 2
    (link := evil.with_name("link")).symlink_to(link)
    assert cli("trust", "--forget", link).returncode == 2
    assert not ran(evil)


def test_a_damaged_list_is_named(cli: RunCLI, evil: Path, tmp_path: Path) -> None:
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "trusted.json").write_text('{"trusted": [{"digest": 3}]}')
    refused = cli("trust", evil)
    assert refused.returncode == 7
    assert "trusted.json" in refused.stderr


def test_every_file_of_a_package_counts(tmp_path: Path) -> None:
    package = tmp_path / "mine"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "deep" / "table.bin").write_bytes(b"1")
    digests = {content_digest(package)}
    (package / "deep" / "table.bin").write_bytes(b"2")
    digests.add(content_digest(package))
    (package / "deep" / "table.bin").rename(package / "deep" / "other.bin")
    digests.add(content_digest(package))
    assert len(digests) == 3


def test_bytes_that_change_after_they_were_judged_do_not_run(evil: Path) -> None:
    with pytest.raises(UntrustedCodeError):
        require([str(evil)], "config.json")
    trust([evil])
    require([str(evil)], "config.json")
    evil.write_text(evil.read_text() + "\nimport os\n")
    with pytest.raises(PluginImportError, match="changed"):
        import_file(str(evil))
    assert not ran(evil)


@pytest.mark.parametrize("module", ["__init__.py", "inner.py"])
def test_bytecode_that_lies_beside_the_source_is_not_run(tmp_path: Path, module: str) -> None:
    package = tmp_path / f"mine_{module[:5]}"
    package.mkdir()
    (package / "inner.py").write_text("VALUE = 'source..'\n")
    (package / "__init__.py").write_text("VALUE = 'source..'\nfrom . import inner\n")
    good = (package / module).read_text()
    (package / module).write_text(good.replace("source..", "bytecode"))
    py_compile.compile(
        str(package / module), cfile=importlib.util.cache_from_source(str(package / module)), doraise=True
    )
    stamp = (package / module).stat()
    (package / module).write_text(good)
    os.utime(package / module, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # the bytecode passes as that of the source
    loaded = import_file(str(package))
    assert (loaded.VALUE, loaded.inner.VALUE) == ("source..", "source..")


@pytest.mark.parametrize("plugins", ['"."', '{"evil.py" = 1}', '["evil.py", 3]', "3"])
def test_a_run_file_whose_plugins_are_no_list_of_paths_runs_nothing(cli: RunCLI, evil: Path, plugins: str) -> None:
    """Every architecture that there is would be asked for its name before the fields are judged."""
    file = evil.parent / "run.toml"
    file.write_text(f'architecture = "all"\nprofile = "smok"\nplugins = {plugins}\n')
    refused = cli("run", "--file", file, cwd=evil.parent)
    assert refused.returncode == 2, refused.stderr
    assert "plugins" in refused.stderr
    assert not ran(evil)


@pytest.fixture
def package(tmp_path: Path, minimal_plugin: str) -> Path:
    """A package that the user trusts."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "parts.py").write_text(minimal_plugin)
    (folder / "__init__.py").write_text("from .parts import build, describe, generate, train_step\n")
    trust([folder])
    return folder


@pytest.mark.parametrize("how", ["a link to a folder", "a file written after the check"])
def test_a_module_that_the_digest_does_not_cover_is_not_run(package: Path, evil: Path, how: str) -> None:
    """A folder ``parts`` is imported rather than ``parts.py``."""
    elsewhere = package.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "__init__.py").write_text(evil.read_text())
    if how == "a link to a folder":
        (package / "parts").symlink_to(elsewhere)
    require([str(package)], "config.json")
    if how != "a link to a folder":
        elsewhere.rename(package / "parts")
    with pytest.raises(PluginImportError, match="parts"):
        import_file(str(package))
    assert not ran(evil)


def test_a_package_in_a_folder_called_as_pythons_caches_has_a_digest_of_its_own(package: Path) -> None:
    inside = package.parent / "__pycache__" / "mine"
    package.rename(inside.parent.with_name("moved"))
    inside.parent.mkdir()
    before = content_digest(package.with_name("moved"))
    package.with_name("moved").rename(inside)
    assert content_digest(inside) == before


@pytest.mark.parametrize("written", ["evil.py", "~/evil.py", "link.py"])
def test_a_path_in_a_file_means_the_same_when_it_is_judged_and_when_it_is_loaded(
    evil: Path, gift: Path, written: str, monkeypatch: pytest.MonkeyPatch, minimal_plugin: str
) -> None:
    """Where the user stands lies a trusted file of that name; it is not the one that would run, or changes."""
    here = evil.parent / "here"
    trustworthy = here / written
    trustworthy.parent.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(evil.parent))
    if written == "link.py":
        (here / "mine.py").write_text(minimal_plugin)
        trustworthy.symlink_to(here / "mine.py")
    else:
        trustworthy.write_text(minimal_plugin)
    trust([trustworthy])
    if written.startswith("~"):
        with pytest.raises(UntrustedCodeError):
            require([written], "config.json")
        return
    (place,) = require([written], "config.json")
    Path(place).write_text(evil.read_text())
    with pytest.raises(PluginImportError, match="changed"):
        import_file(place)
    assert not ran(evil)


def test_a_folder_that_a_file_names_is_judged_file_by_file_as_it_would_be_loaded(evil: Path) -> None:
    with pytest.raises(UntrustedCodeError, match=r"evil\.py"):
        require([str(evil.parent)], "config.json")
    trust([evil])
    assert require([str(evil.parent)], "config.json") == [str(evil)]
    with pytest.raises(UsageError):
        require(["/proc"], "config.json")


def test_a_digest_reads_a_bounded_number_of_bytes(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_BYTES <= 1 << 30
    monkeypatch.setattr("archbench.plugin.trust.MOST_BYTES", 1 << 24)
    with (package / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UsageError, match="MiB"):
        content_digest(package)


def test_a_folder_of_plugins_is_trusted_and_forgotten_as_one(cli: RunCLI, evil: Path) -> None:
    (evil.parent / "second.py").write_text("SECOND = 2\n")
    cli("trust", evil.parent)
    assert len(trusted()) == 2
    (evil.parent / "second.py").unlink()  # what is gone is forgotten too
    assert cli("trust", "--forget", evil.parent).returncode == 0
    assert trusted() == []


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="permissions of POSIX")
def test_only_the_user_can_write_what_is_trusted(evil: Path, tmp_path: Path) -> None:
    trust([evil])
    file = tmp_path / "settings" / "trusted.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for place, mode in ((file, 0o666), (file.parent, 0o777)):
        before = stat.S_IMODE(place.stat().st_mode)
        place.chmod(mode)
        with pytest.raises(StorageError, match=place.name):
            trusted()
        place.chmod(before)


def test_ones_own_run_is_resumed_without_a_question_and_its_phases_run_nothing_else(
    cli: RunCLI, evil: Path, tmp_path: Path, minimal_plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration is exchanged after the parent has read it, which a phase's process reads again."""
    here = with_small_corpus(tmp_path)
    (here / "mine.py").write_text(minimal_plugin)
    options = ["--profile", "smoke", "--corpus", "small.txt", "--steps", "2", "--phases", "train", "--unchecked"]
    done = cli("run", "bigram", "--plugin", "mine.py", *options, "--quiet", cwd=here)
    assert done.returncode == 0, done.stderr
    monkeypatch.setitem(handed_down, TRUSTED_VARIABLE, "")  # another day
    (folder,) = (file.parent for file in (here / "results").glob("*/config.json"))

    def unfinished() -> None:
        for file in [*folder.parent.glob(f"{folder.name}.*"), *folder.glob("rows-*")]:
            file.unlink()

    resume = ("run", "bigram", "--resume", "last", "--quiet")
    unfinished()
    done = cli(*resume, cwd=here)
    assert done.returncode == 0, done.stderr
    unfinished()
    measure = runs.run_phase

    def exchanged(*arguments: Any, **options: Any) -> Any:
        content = unsealed(json.loads((folder / "config.json").read_text()))
        content["run"]["plugins"] = [str(evil)]
        (folder / "config.json").write_text(json.dumps(content))
        return measure(*arguments, **options)

    monkeypatch.setattr(runs, "run_phase", exchanged)
    done = cli(*resume, cwd=here)
    assert done.returncode == UNTRUSTED, done.stderr
    assert not ran(evil)


def test_the_plan_of_a_study_runs_no_code(cli: RunCLI, evil: Path, tmp_path: Path) -> None:
    """A study goes on with the plan of the command line; that in the folder is only compared with it."""
    study = tmp_path / "study"
    study.mkdir()
    plan = {"architectures": ["gpt1", "llama"], "baseline": "gpt1", "run": {"plugins": [str(evil)]}}
    for name in ("plan.json", "comparison.json", "scale-plan.json", "scale.json"):
        (study / name).write_text(json.dumps({"plan": plan, "digest": "0" * 64, "contenders": []}))
    options = "--device cpu --profile smoke --quiet --out"
    for command in (f"compare gpt1 llama {options}", f"scale gpt1 {options}", "report"):
        done = cli(*command.split(), study)
        assert done.returncode in (2, 7), (command, done.stderr)
        assert str(study) in done.stderr, (command, done.stderr)
    assert not ran(evil)
