"""Published configurations are read as transformers writes them; an error names a field the architecture lacks."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import archbench
from archbench import RunConfig
from archbench.cli.app import main
from archbench.data.dataset import prepare
from archbench.errors import (
    ArchbenchWarning,
    CheckpointError,
    ConfigError,
    HookResultError,
    MissingHookError,
    UsageError,
)
from archbench.runs.check import FLOPS, SHORTEST, _affordable
from archbench.runs.preparation import start
from forked_children import forked_children
from small_runs import with_small_corpus

transformers = pytest.importorskip("transformers")

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e4,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
"""As transformers 4 wrote it."""
GPT1: dict[str, Any] = {
    "model_type": "openai-gpt", "vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64,
    "afn": "gelu", "layer_norm_epsilon": 1e-5, "embd_pdrop": 0.1, "resid_pdrop": 0.2, "attn_pdrop": 0.3,
}  # fmt: skip


def imported(architecture: str, published: dict[str, Any]) -> Any:
    return archbench.load(architecture).import_config(published)


@pytest.mark.parametrize(
    ("architecture", "name", "fields"),
    [
        ("llama", "LlamaConfig", {}),
        (
            "llama",
            "LlamaConfig",
            {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 48, "hidden_size": 64},
        ),
        (
            "llama",
            "LlamaConfig",
            {
                "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "rms_norm_eps": 3e-5,
                "tie_word_embeddings": True, "max_position_embeddings": 77, "intermediate_size": 99, "vocab_size": 123,
                "num_hidden_layers": 3,
            },
        ),
        ("gpt1", "OpenAIGPTConfig", {}),
        ("gpt1", "OpenAIGPTConfig", {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 77, "vocab_size": 123}),
    ],
)  # fmt: skip
def test_what_transformers_saves_gives_a_model_of_the_same_parameters(
    architecture: str, name: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    config = getattr(transformers, name)(**fields)
    config.save_pretrained(tmp_path)
    ours = imported(architecture, json.loads((tmp_path / "config.json").read_text()))
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(config)
        model = archbench.load(architecture).build(ours)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in theirs.parameters())
    # What no count of parameters shows.
    assert (ours.context_length, ours.n_head) == (config.max_position_embeddings, config.num_attention_heads)
    if architecture == "llama":
        assert ours.norm_eps == config.rms_norm_eps
        assert ours.rope_theta == config.rope_parameters["rope_theta"]


def test_the_published_sizes_are_the_defaults_and_the_paper_preset() -> None:
    assert imported("llama", transformers.LlamaConfig().to_dict()) == archbench.load("llama").config("paper")
    assert imported("gpt1", transformers.OpenAIGPTConfig().to_dict()) == archbench.load("gpt1").config("paper")


def test_older_files_leave_out_what_has_a_default() -> None:
    config = imported("llama", LLAMA)
    assert (config.n_kv_head, config.d_head, config.rope_theta) == (4, 8, 5e4)
    first = {name: value for name, value in LLAMA.items() if name not in ("rope_theta", "max_position_embeddings")}
    config = imported("llama", first | {"num_key_value_heads": None, "rope_scaling": None})
    assert (config.n_kv_head, config.rope_theta, config.context_length) == (4, 10_000.0, 2048)
    assert imported("llama", LLAMA | {"rope_scaling": {"rope_type": "default"}}) == imported("llama", LLAMA)
    assert imported("gpt1", GPT1).attn_dropout == 0.3


@pytest.mark.parametrize(
    ("architecture", "change", "cause"),
    [
        ("llama", {"model_type": "mistral"}, "field model_type: it is 'mistral', but this architecture's is 'llama'"),
        ("llama", {"attention_bias": True}, "field attention_bias: it is 'True', but this architecture has only False"),
        ("llama", {"mlp_bias": True}, "field mlp_bias: it is 'True'"),
        ("llama", {"hidden_act": "gelu"}, "field hidden_act: it is 'gelu', but this architecture has only 'silu'"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "field rope_scaling: it is .*linear"),
        (
            "llama",
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "llama3", "factor": 8.0}},
            "field rope_parameters: it is .*llama3.* plain rotary",
        ),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "field rope_parameters: it is"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "field rope_parameters: it is",
        ),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "field quantization_config: .* no such thing"),
        ("llama", {"hidden_size": None}, "field hidden_size: it is missing"),
        ("llama", {"hidden_size": "32"}, "field hidden_size: it is '32', and must be a number"),
        ("gpt1", {"afn": "relu"}, "field afn: it is 'relu', but this architecture has only 'gelu'"),
        ("gpt1", {"layer_norm_epsilon": 1e-6}, "field layer_norm_epsilon: it is '1e-06'"),
        ("gpt1", {"tie_word_embeddings": False}, "field tie_word_embeddings: it is 'False'"),
        ("gpt1", {"n_special": 3}, "field n_special: it is '3'"),
        ("gpt1", {"model_type": "gpt2"}, "field model_type: it is 'gpt2'"),
    ],
)
def test_what_an_architecture_does_not_have_is_refused(architecture: str, change: dict[str, Any], cause: str) -> None:
    with pytest.raises(CheckpointError, match=cause):
        imported(architecture, {**(LLAMA if architecture == "llama" else GPT1), **change})


def test_the_hook_is_optional_and_its_result_is_checked(tmp_path: Path, minimal_plugin: str) -> None:
    (tmp_path / "without.py").write_text(minimal_plugin)
    without = archbench.load("bigram", plugins=[tmp_path / "without.py"])
    assert not without.offers("import_config")
    with pytest.raises(MissingHookError, match=r"it has no import_config hook.*import_config\(published\)"):
        without.import_config(LLAMA)
    (tmp_path / "wrong.py").write_text(minimal_plugin + "\n\n@hookimpl\ndef import_config(published):\n    return 3\n")
    with pytest.raises(HookResultError, match=r"its import_config hook returned a int\. Return a ModelConfig"):
        archbench.load("bigram", plugins=[tmp_path / "wrong.py"]).import_config(LLAMA)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ``model`` of a LLaMA's configuration, weights nobody loads, and a small corpus; the test is in it."""
    (tmp_path / "model").mkdir()
    save_file({"unread": torch.zeros(1)}, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA))
    monkeypatch.chdir(with_small_corpus(tmp_path))
    return tmp_path


def started(folder: Path, architecture: str = "llama", **values: Any) -> tuple[RunConfig, Any]:
    """The frozen configuration and the model's, of a run that is started and goes no further."""
    data = {"corpus": str(folder / "small.txt"), "tokenizer": "byte"}
    given = {"weights": str(folder / "model"), "phases": ("quality",), "profile": "smoke", "data": data, **values}
    run = start(RunConfig(architecture=architecture, out=str(folder / "out"), **given))
    return run.config, archbench.load(architecture).info.config(**run.model)


def test_the_weights_own_configuration_is_what_a_run_is_of(folder: Path) -> None:
    config, model = started(folder)
    assert model == imported("llama", LLAMA), "also V, which the tokenizer has less of"
    assert (config.preset, config.vocabulary) == ("published:model", "preset")
    assert RunConfig(**config.model_dump()) == config, "a run that is resumed keeps it"
    config, model = started(folder, overrides={"context_length": 32})
    assert model == imported("llama", LLAMA).override(context_length=32)
    (folder / "model" / "model.safetensors").touch()
    config, model = started(folder, weights=str(folder / "model" / "model.safetensors"))
    assert (config.preset, model) == ("published:model", imported("llama", LLAMA)), "a file has its folder's"


def test_without_a_configuration_the_preset_says_it_as_ever(folder: Path, minimal_plugin: str) -> None:
    for content in ("{}", "[1]", '{"run_id": "an archbench run has a config.json too"}'):
        (folder / "model" / "config.json").write_text(content)
        config, model = started(folder)
        assert (config.preset, model) == ("nano", archbench.load("llama").config("nano", vocab_size=257))
    (folder / "model" / "config.json").unlink()
    config, model = started(folder, preset="small", vocabulary="preset")
    assert (config.preset, model) == ("small", archbench.load("llama").config("small"))


def test_an_architecture_without_the_hook_has_its_presets(folder: Path, minimal_plugin: str) -> None:
    (folder / "bigram.py").write_text(minimal_plugin)
    data = {"corpus": str(folder / "small.txt"), "tokenizer": "byte"}
    config = RunConfig(
        architecture="bigram", profile="smoke", plugins=(str(folder / "bigram.py"),), weights=str(folder / "model"),
        phases=("quality",), data=data, out=str(folder / "out"),
    )  # fmt: skip
    with pytest.warns(ArchbenchWarning, match=r"config\.json is not read"):
        assert start(config).config.preset == "nano"


def test_a_preset_beside_it_has_to_say_the_same(folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        started(folder, preset="nano", vocabulary="preset")
    differ = f"its vocab_size is 1024, and {folder / 'model' / 'config.json'} says 300"
    assert str(caught.value) == f"--preset nano: {differ}. Leave --preset out: the weights bring their own sizes."
    same = transformers.LlamaConfig().to_dict()
    (folder / "model" / "config.json").write_text(json.dumps(same))
    config, model = started(folder, preset="paper")
    assert (config.preset, model) == ("paper", archbench.load("llama").config("paper"))
    (folder / "model" / "config.json").write_text(json.dumps({**same, "rms_norm_eps": 1e-5}))
    with pytest.raises(UsageError, match=r"its norm_eps is 1e-06, and .* says 1e-05"):  # no tensor's shape would tell
        started(folder, preset="paper")
    config, _ = started(folder, preset="paper", overrides={"norm_eps": 2e-5})
    assert config.preset == "paper", "what --set says, both say"


BAD = {
    "not JSON": ("llama", "{", 6, r"configuration .*config\.json: it is damaged"),
    "of another architecture": (
        "gpt1", json.dumps(LLAMA), 6,
        r"gpt1 with .*config\.json, published configuration, field model_type: it is 'llama', but this architecture's "
        r"is 'openai-gpt'\. Use an architecture that takes it: archbench run llama --weights ",
    ),
    "of none that is here": (
        "llama", json.dumps(LLAMA | {"model_type": "bert"}), 6, "it is 'bert', .* Use weights of this arch",
    ),
    "scaled": (
        "llama", json.dumps(LLAMA | {"rope_scaling": {"type": "yarn", "factor": 2}}), 6, "field rope_scaling: .*yarn",
    ),
    "impossible": (
        "llama", json.dumps(LLAMA | {"num_hidden_layers": 0}), 6, r"with .*config\.json, LlamaConfig\.n_layer: Input",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_configuration_that_cannot_be_used_is_one_paragraph(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    architecture, content, code, cause = BAD[case]
    (folder / "model" / "config.json").write_text(content)
    arguments = ["--weights", "model", "--tokenizer", "byte", "--corpus", "small.txt", "--profile", "smoke", "--quiet"]
    assert_one_paragraph(main(["run", architecture, *arguments]), code, cause, capsys)


def test_a_pickle_is_refused_and_not_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {folder / 'ran'}",)

    (folder / "model" / "model.safetensors").unlink()
    (folder / "model" / "pytorch_model.bin").write_bytes(pickle.dumps({"a.weight": Malicious()}))
    arguments = ["--weights", "model", "--tokenizer", "byte", "--corpus", "small.txt", "--profile", "smoke", "--quiet"]
    with forked_children():
        code = main(["run", "llama", *arguments, "--unchecked", "--phases", "quality", "--set", "n_layer=1"])
    assert_one_paragraph(code, 6, r"pytorch_model\.bin: .*archbench runs no code from files", capsys)
    assert not (folder / "ran").exists()


def test_code_that_a_configuration_names_is_not_run(folder: Path) -> None:
    """transformers would run it if it were asked to trust it."""
    (folder / "model" / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Model: ...\nConfig = Model\n")
    named = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Model", None]}
    for file in ("config.json", "tokenizer_config.json"):
        (folder / "model" / file).write_text(json.dumps(LLAMA | {"auto_map": named}))
    tokenizer = Tokenizer(WordLevel({"a": 0, "<unk>": 1}, "<unk>"))
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    _, model = started(folder, data={"corpus": str(folder / "small.txt"), "tokenizer": "file:model/tokenizer.json"})
    assert model == imported("llama", LLAMA)
    assert not (folder / "ran").exists()


def assert_one_paragraph(code: int, expected: int, cause: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = capsys.readouterr()
    assert code == expected, said.err
    assert said.out == ""
    assert said.err.startswith("Error: ")
    assert said.err.count("\n") == 1
    assert re.search(cause, said.err), said.err


def test_speeds_and_scores_of_long_contexts_stay_affordable(folder: Path) -> None:
    (folder / "model" / "config.json").write_text(
        json.dumps(LLAMA | {"max_position_embeddings": 16_384, "vocab_size": 50_000})
    )
    (folder / "small.txt").write_text((folder / "small.txt").read_text() * 2)
    config, model = started(folder, phases=("quality", "prefill"))
    assert config.speed.prompt_lengths == (512, 1536)
    assert config.quality.batch_size == 1, "windows of 3.3 GB of logits each"
    assert model.context_length == 16_384
    config, _ = started(folder, phases=("quality", "prefill"), overrides={"context_length": 128})
    assert config.speed.prompt_lengths == (32, 96)
    assert config.quality.batch_size == 16


def test_a_text_shorter_than_the_context_can_be_scored_and_not_trained_on(folder: Path) -> None:
    (folder / "small.txt").write_text("A text of some sixty bytes, all of which is scored.\n")
    config, _ = started(folder, phases=("quality", "decode"), overrides={"context_length": 4096})
    assert max(config.speed.prompt_lengths or ()) < 60
    with pytest.raises(UsageError, match="a prompt of 100 tokens does not fit the training text of 5"):
        started(folder, phases=("decode",), overrides={"context_length": 4096}, speed={"prompt_lengths": [100]})
    with pytest.raises(archbench.errors.DataError, match="shorter than one context of 4096"):
        started(folder, phases=("train",), overrides={"context_length": 4096})


def test_a_text_is_scored_as_a_whole_where_nothing_is_trained(folder: Path) -> None:
    def scored(**values: Any) -> tuple[str, int]:
        data = {"corpus": str(folder / "small.txt"), "tokenizer": "byte", **values.pop("data", {})}
        given = {"architecture": "llama", "profile": "smoke", "out": str(folder / "out"), "phases": ("quality",)}
        run = start(RunConfig(**given | {"weights": str(folder / "model"), "data": data} | values))
        return run.facts["scored"], sum(document.n_bytes for document in prepare(run.config.data).validation)

    size = (folder / "small.txt").stat().st_size
    assert scored() == ("the whole text", size)
    part, held = scored(data={"validation_fraction": 0.2})
    assert (part, held) == (f"the last {held / size:.1%} of the bytes", pytest.approx(0.2 * size, rel=0.1))
    _, trained = scored(phases=("train", "quality"))
    assert trained == scored(weights=None)[1] == pytest.approx(0.1 * size, rel=0.1)
    assert scored(data={"corpus": "shakespeare"})[0] == "the validation split"
    with pytest.raises(ConfigError, match="nothing would be left to train on"):
        scored(phases=("train",), data={"validation_fraction": 1})


def test_a_large_model_is_checked_at_a_context_that_a_cpu_can_afford() -> None:
    llama, cpu, cuda = archbench.load("llama"), torch.device("cpu"), torch.device("cuda")
    nano = llama.config("nano")
    assert _affordable(llama, nano, cpu)[0] == nano
    smollm = llama.config(
        "paper", vocab_size=49_152, context_length=8192, n_layer=30, n_head=9, n_kv_head=3, d_model=576, d_head=64,
        d_ff=1536, tied_head=True,
    )  # fmt: skip
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in llama.build(smollm).parameters())
    assert parameters == 134_515_008
    shorter, flops = _affordable(llama, smollm, cpu)
    assert shorter == smollm.override(context_length=512)
    assert 2 * parameters * shorter.context_length == flops <= FLOPS < 2 * flops
    assert _affordable(llama, smollm, cuda)[0].context_length == 4096, "8,192 rows of 49,152 logits are 1.6 GB"
    assert _affordable(llama, llama.config("paper"), cpu)[0].context_length == SHORTEST
