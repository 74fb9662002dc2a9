"""flash-linear-attention (the extra ``fla``): its models come in, a Gated DeltaNet goes out, as far as a CPU can say.

Its kernels need a GPU: what they compute is not tested here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import archbench

transformers = pytest.importorskip("transformers", minversion="5.24")
pytest.importorskip("fla", reason="flash-linear-attention is not installed: pip install 'archbench[fla]'")
pytestmark = pytest.mark.slow


def test_a_family_that_only_fla_has_is_built_and_varied_by_its_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHBENCH_CACHE", str(tmp_path / "cache"))
    fields = {"model_type": "gla", "vocab_size": 257, "hidden_size": 64, "num_hidden_layers": 2, "num_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    architecture = archbench.load(f"hf:{tmp_path}")
    sizes = []
    for layers in (2, 3):
        model: Any = architecture.build(architecture.config("nano", n_layer=layers))
        assert type(model.inner).__module__.startswith("fla.models.gla")
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
    assert sizes[1] - sizes[0] == sum(one.numel() for one in model.inner.model.layers[0].parameters())


def test_an_exported_gated_deltanet_has_flas_names_and_shapes() -> None:
    import fla.models  # noqa: F401  which registers them

    architecture = archbench.load("gated-deltanet")
    config = architecture.config("nano")
    weights = architecture.export_weights(architecture.build(config).state_dict(), config)
    fields = architecture.export_config(config)
    theirs = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    family = type(transformers.AutoModelForCausalLM.from_config(theirs))
    assert family.__name__ == fields["architectures"][0]
    model, report = family.from_pretrained(None, config=theirs, state_dict=weights, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[what], what
    for name, tensor in model.state_dict().items():
        if name in weights:
            assert torch.equal(tensor, weights[name]), name
