"""Where ``hf:PLACE`` leads: its name by content, and places that cannot be used."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import archbench
from archbench.config import RunConfig
from archbench.errors import StorageError
from command_line import archbench as command
from hf_families import V, written

transformers = pytest.importorskip("transformers", minversion="5.24")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_the_content_of_a_configuration_names_it_and_not_its_path(tmp_path: Path) -> None:
    here, there = written(tmp_path / "a" / "tiny", "llama"), written(tmp_path / "b" / "tiny", "llama")
    names = {archbench.load(f"hf:{place}").name for place in (here, there, here / "config.json")}
    assert len(names) == 1
    (name,) = names
    assert re.fullmatch(r"hf:tiny@[0-9a-f]{12}", name)
    hashes = {RunConfig(architecture=one, profile="smoke").config_hash() for one in names}
    assert archbench.load(f"hf:{written(here, 'llama', rms_norm_eps=1e-4)}").name != name
    shutil.rmtree(tmp_path / "a")
    assert archbench.load(name).name == name, "processes of a study find it by its name alone"
    assert {RunConfig(architecture=name, profile="smoke").config_hash()} == hashes


def test_folders_of_one_name_and_configuration_have_names_by_their_weights(tmp_path: Path) -> None:
    """As two checkpoints of a training: one number in the middle of a tensor differs."""
    names, weight = [], torch.zeros(V, 32)
    for place in (tmp_path / "first" / "tiny", tmp_path / "second" / "tiny"):
        save_file({"lm_head.weight": weight}, written(place, "llama") / "model.safetensors")
        names.append(archbench.load(f"hf:{place}").name)
        weight[V // 2, 16] = 1
    alone = archbench.load(f"hf:{place / 'config.json'}").name
    assert len({*names, alone}) == 3
    assert [archbench.load(name).weights for name in names] == [tmp_path / one / "tiny" for one in ("first", "second")]
    assert archbench.load(f"hf:{shutil.copytree(place, tmp_path / 'moved' / 'tiny')}").name == names[1]


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        ({"model_type": "no_such_kind"}, "no_such_kind"),
        ({"model_type": "t5"}, "t5"),
        ({"hidden_size": 3}, "model_type"),
        ({"model_type": "llama", "hidden_size": "wide"}, "hidden_size"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}, "auto_map"),
        ({"model_type": "llama", "quantization_config": {"bits": 4}}, "quantization_config"),
        ([1], "model_type"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_named(content: Any, culprit: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    done = command("show", "hf:config.json", cwd=tmp_path)
    assert done.returncode == 6, done.stderr
    assert culprit in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_configuration_names_no_code_that_is_run(field: str, tmp_path: Path) -> None:
    """Neither beside it nor on the hub, from where transformers would fetch a kernel of that name."""
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Model: ...\n")
    code = {"AutoConfig": "evil.Model", "AutoModelForCausalLM": "evil.Model"}
    architecture = archbench.load(f"hf:{written(tmp_path, 'llama', auto_map=code, **{field: 'some-org/some-kernel'})}")
    model: Any = architecture.build(architecture.config("nano"))
    assert type(model.inner) is transformers.LlamaForCausalLM
    assert model.inner.config._attn_implementation == "sdpa"
    assert not ran.exists()


def test_a_record_of_the_cache_that_was_changed_is_damaged(tmp_path: Path) -> None:
    name = archbench.load(f"hf:{written(tmp_path, 'llama')}").name
    file = Path(os.environ["ARCHBENCH_CACHE"]) / "hf" / f"{name.removeprefix('hf:')}.json"
    file.write_text(file.read_text().replace('"weights": null', '"weights": "/elsewhere"'))
    with pytest.raises(StorageError, match=re.escape(str(file))):
        archbench.load(name)


def test_a_name_that_leads_nowhere_is_said_also_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name, code in (("./absent", 2), ("tiny@0123456789ab", 2), ("some-org/some-model", 6)):
        done = command("check", f"hf:{name}", "--quiet", cwd=tmp_path)
        assert done.returncode == code, done.stderr
        assert name in done.stderr
