"""``hf-code:PLACE``: code beside a configuration runs if the user names it so, and never because data do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import archbench
from archbench import read_results
from archbench.child.inheritance import handed_down
from archbench.config import RunConfig
from archbench.errors import CheckpointError, UntrustedCodeError
from archbench.plugin.registry import code_of, full_name
from archbench.plugin.trust import TRUSTED_VARIABLE, content_digest, trust, trusted
from command_line import archbench as command
from small_runs import begun, with_small_corpus

transformers = pytest.importorskip("transformers", minversion="5.24")

UNTRUSTED = 12
RUN_ID = "20260101T000000-abcdef"
FIELDS = {
    "model_type": "mine", "vocab_size": 257, "max_position_embeddings": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 2,
    "auto_map": {"AutoConfig": "configuration_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.Mine"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ARCHBENCH_CONFIG", str(tmp_path / "settings"))
    monkeypatch.setitem(handed_down, TRUSTED_VARIABLE, "")


@pytest.fixture
def another_day(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What this process was allowed is forgotten."""
    return lambda: monkeypatch.setitem(handed_down, TRUSTED_VARIABLE, "")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A model as the hub has them, with code that leaves ``ran`` when it runs."""
    place = tmp_path / "models" / "mine"
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(FIELDS))
    config = 'from transformers import LlamaConfig\nclass MineConfig(LlamaConfig):\n    model_type = "mine"\n'
    (place / "configuration_mine.py").write_text(config)
    (place / "modeling_mine.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "from transformers import LlamaForCausalLM\nfrom .configuration_mine import MineConfig\n"
        "class Mine(LlamaForCausalLM):\n    config_class = MineConfig\n"
    )
    return place


def kept(mine: Path) -> str:
    """Its name by content; nothing has run."""
    (package,) = code_of(f"hf-code:{mine}")
    assert not ran(mine)
    return f"hf-code:{Path(package).name}"


def ran(mine: Path) -> bool:
    return (mine.parents[1] / "ran").exists()


def test_code_runs_only_if_its_prefix_is_typed_and_its_content_is_in_the_name(mine: Path) -> None:
    refused = command("show", f"hf:{mine}", cwd=mine)
    assert refused.returncode == 6
    assert "hf-code:" in refused.stderr
    assert not ran(mine)
    done = command("show", f"hf-code:{mine}", cwd=mine)
    assert done.returncode == 0, done.stderr
    assert ran(mine)
    name = full_name(f"hf-code:{mine}")
    assert re.fullmatch(r"hf-code:mine@[0-9a-f]{12}", name)
    architecture = archbench.load(name)
    assert architecture.package == f"transformers mine by the code beside it ({mine / 'config.json'})"
    (package,) = code_of(name)
    assert architecture.revision() == content_digest(package)
    model: Any = architecture.build(architecture.config("nano"))
    assert type(model.inner).__name__ == "Mine"
    assert trusted() == [], "to show it once is no trust for later"

    with (mine / "configuration_mine.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(UntrustedCodeError):
        full_name(f"hf-code:{mine}")
    assert full_name(f"hf-code:{mine}", typed=True) != name


def test_neither_results_nor_a_run_file_nor_a_name_copied_from_them_runs_code(
    mine: Path, tmp_path: Path, another_day: Callable[[], None]
) -> None:
    name = kept(mine)
    results = tmp_path / "gift"
    for number, place in enumerate((name, f"hf-code:{mine}")):
        begun(results, f"{RUN_ID[:-1]}{number}", RunConfig(architecture=place, profile="smoke", device="cpu"))
    (tmp_path / "run.toml").write_text(f'architecture = "hf-code:{mine}"\nprofile = "smok"\n')
    commands = [
        f"generate gpt1 --device cpu --out {results} --run {RUN_ID[:-1]}0",
        f"generate gpt1 --device cpu --out {results} --run {RUN_ID[:-1]}1",
        f"run hf-code:{mine} --resume {RUN_ID[:-1]}1 --out {results}",
        f"export {RUN_ID[:-1]}1 folder --in {results}",
        "run --file run.toml",
        f"show {name}",
        f"compare gpt1 {name} --device cpu --quiet",
    ]
    another_day()
    for line in commands:
        done = command(*line.split(), cwd=tmp_path)
        if not line.startswith("export"):  # which refuses an unfinished run before
            assert done.returncode == UNTRUSTED, (line, done.stderr)
            assert f"archbench trust {code_of(name)[0]}" in " ".join(done.stderr.split())
        assert not ran(mine), line
    with pytest.raises(UntrustedCodeError):
        archbench.load(f"hf-code:{mine}")
    assert "'smok'" in command("run", "--file", "run.toml", "--trust", cwd=tmp_path).stderr
    trust(code_of(name))
    assert archbench.load(name).name == name
    assert ran(mine)


def test_what_is_planted_in_the_cache_does_not_run(mine: Path, another_day: Callable[[], None]) -> None:
    name = kept(mine)
    (package,) = map(Path, code_of(name))
    trust([package])
    another_day()
    (package / "modeling_mine").mkdir()  # imported rather than modeling_mine.py
    shutil.copy(mine / "modeling_mine.py", package / "modeling_mine" / "__init__.py")
    with pytest.raises(UntrustedCodeError):
        full_name(name, typed=True)
    assert not ran(mine)
    assert full_name(f"hf-code:{mine}", typed=True) == name
    assert not (package / "modeling_mine").exists()


@pytest.mark.parametrize(
    "named",
    ["some-org/some-model--modeling_mine.Mine", "../elsewhere.Mine", "modeling_mine.Absent", "modeling_mine.Other", 3],
)
def test_a_configuration_leads_to_no_code_elsewhere(mine: Path, named: object) -> None:
    (mine.parent / "elsewhere.py").write_text((mine / "modeling_mine.py").read_text())
    with (mine / "modeling_mine.py").open("a") as file:
        file.write("class Other: ...\n")
    for value in ({"AutoModelForCausalLM": named}, named):
        (mine / "config.json").write_text(json.dumps({**FIELDS, "code": str(mine.parent), "auto_map": value}))
        done = command("show", f"hf-code:{mine}", cwd=mine)
        assert done.returncode == 6, done.stderr
        assert "auto_map.AutoModelForCausalLM" in done.stderr


def test_a_place_without_code_and_code_that_breaks_are_said(mine: Path) -> None:
    code = (mine / "modeling_mine.py").read_text()
    for text, culprit in (("import no_such_package\n", "no_such_package"), (code.replace("_mine", "_gone"), "_gone")):
        (mine / "modeling_mine.py").write_text(text)
        done = command("show", f"hf-code:{mine}", cwd=mine)
        assert done.returncode == 3, done.stderr
        assert culprit in done.stderr
        assert "Traceback" not in done.stderr
    for file in mine.glob("*.py"):
        file.unlink()
    done = command("show", f"hf-code:{mine}", cwd=mine)
    assert done.returncode == 6, done.stderr
    assert "Python files" in done.stderr


def test_of_the_hub_only_a_commit_that_is_in_its_cache_is_run(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0123456789abcdef" * 2 + "01234567"
    place = tmp_path / "hub" / "models--some-org--some-model" / "snapshots" / commit
    shutil.copytree(mine, place)
    for name, culprit in (("some-org/some-model", "40 digits"), (f"some-org/some-model@{'0' * 40}", "hf download")):
        done = command("show", f"hf-code:{name}/config.json".replace("model@", "model/config.json@"), cwd=tmp_path)
        assert done.returncode in (2, 6), done.stderr
        done = command("show", f"hf-code:{name}", cwd=tmp_path)
        assert done.returncode == 6, done.stderr
        assert culprit in " ".join(done.stderr.split())
    assert not ran(mine)
    name = full_name(f"hf-code:some-org/some-model/config.json@{commit}", typed=True)
    assert name.startswith("hf-code:some-model@")
    assert "(some-org/some-model)" in archbench.load(name).package


@pytest.mark.slow
def test_a_run_of_code_is_measured_resumed_exported_and_named_by_its_content_in_every_row(
    mine: Path, tmp_path: Path, another_day: Callable[[], None]
) -> None:
    here = with_small_corpus(tmp_path)
    options = "--profile smoke --corpus small.txt --tokenizer byte --device cpu --threads 1 --steps 3 --quiet"
    done = command("run", f"hf-code:{mine}", *options.split(), cwd=here)
    assert done.returncode == 0, done.stderr
    name = full_name(f"hf-code:{mine}")
    frame = read_results(here / "results")
    assert {*frame.architecture} == {name}
    assert {*frame.plugin_revision} == {content_digest(code_of(name)[0])}
    another_day()
    shutil.rmtree(mine)
    done = command("generate", name, "--prompt", "a", "--max-new-tokens", "3", "--device", "cpu", cwd=here)
    assert done.returncode == 0, "one's own run goes on without a question, from the copy: " + done.stderr
    done = command("export", "last", "folder", cwd=here)
    assert done.returncode == 0, done.stderr
    assert "trust_remote_code=True" in done.stdout
    theirs = transformers.AutoModelForCausalLM.from_pretrained(here / "folder", trust_remote_code=True).eval()
    ours, _, _ = archbench.load_run(out=here / "results")
    tokens = torch.arange(40)[None]
    with torch.inference_mode():
        assert (theirs(tokens).logits - ours(tokens)).abs().max() < 1e-5
    with pytest.raises(CheckpointError):
        archbench.load(f"hf:{here / 'folder'}")


@pytest.mark.slow
def test_the_cells_of_a_comparison_run_the_code_that_its_command_names(mine: Path, tmp_path: Path) -> None:
    done = command(
        "compare", "gpt1", f"hf-code:{mine}", "--profile", "smoke", "--no-tuning", "--tokenizer", "byte", "--corpus",
        "small.txt", "--seeds", "2", "--jobs", "1", "--json", "--quiet", cwd=with_small_corpus(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert full_name(f"hf-code:{mine}") in done.stdout
