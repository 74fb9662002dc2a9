"""``hf:PLACE``: a configuration of transformers is an architecture, known by its content, and the model it means."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import archbench
from archbench import read_results
from archbench.config import DataConfig, TrainingConfig
from archbench.data.batches import Batch
from archbench.data.dataset import EncodedDocument, prepare
from archbench.errors import ConfigError
from archbench.measure.flops import count_flops, on_meta
from archbench.measure.scoring import score
from archbench.study.matching import match
from archbench.training.state import TrainState
from command_line import archbench as command
from hf_families import FAMILIES, T, V, written
from small_runs import value, with_small_corpus

transformers = pytest.importorskip("transformers", minversion="5.24")

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "hf.md").read_text("utf-8")
QUICK = ("generate", "cached_decode", "state_bytes", "flops")
"""Of the nineteen checks those that ask most of this plugin and take seconds."""


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))


def checked(place: Path, *options: str) -> dict[str, str]:
    """The result of each check of ``hf:PLACE``, which conforms."""
    done = command("check", f"hf:{place}", "--json", "--quiet", *options, cwd=place)
    found = {line["check"]: line["status"] for line in map(json.loads, done.stdout.splitlines()) if "check" in line}
    assert done.returncode == 0, (found, done.stderr)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["olmoe", "mamba2"])
def test_experts_and_a_recurrence_decode_and_count_as_the_checks_ask(kind: str, tmp_path: Path) -> None:
    found = checked(written(tmp_path / kind, kind), *(part for name in QUICK for part in ("--check", name)))
    assert found.keys() == {*QUICK}
    assert {*found.values()} <= {"passed", "noted"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_of_the_table_passes_all_checks(kind: str, tmp_path: Path) -> None:
    found = checked(written(tmp_path / kind, kind))
    assert len(found) == 19
    assert {*found.values()} <= {"passed", "noted", "not applicable"}


def test_the_page_lists_the_families_that_are_tested() -> None:
    assert {*re.findall(r"^\| `(\w+)` \| all 19", PAGE, re.MULTILINE)} == {*FAMILIES}


@pytest.mark.parametrize(
    "kind", ["llama", pytest.param("gpt2", marks=pytest.mark.slow), pytest.param("mistral", marks=pytest.mark.slow)]
)
def test_it_is_the_model_that_is_built_in_here_too(kind: str, tmp_path: Path) -> None:
    """Logits, losses of 20 updates, perplexity, FLOPs and parameters."""
    dropout = (
        {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        if kind == "gpt2"
        else {"head_dim": 8, "rms_norm_eps": 1e-6}
    )
    place = written(tmp_path, kind, **dropout)
    foreign, builtin = archbench.load(f"hf:{place}"), archbench.load(kind)
    theirs_config = foreign.config("paper")
    ours_config = builtin.import_config(json.loads((place / "config.json").read_text()) | {"n_inner": None})
    torch.manual_seed(0)
    theirs, ours = foreign.build(theirs_config), builtin.build(ours_config)
    for parameter in theirs.parameters():  # initial weights are too near to uniform to tell a mistake
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    published = {name.removeprefix("inner."): tensor for name, tensor in theirs.state_dict().items()}
    ours.load_state_dict(builtin.import_weights(published, ours_config))
    tokens = torch.randint(V, (20, 4, T + 1))
    with torch.inference_mode():
        assert (ours.eval()(tokens[0, :, :-1]) - theirs.eval()(tokens[0, :, :-1])).abs().max() < 1e-5

    recipe = TrainingConfig(steps=20, batch_size=4, learning_rate=1e-3)
    losses = []
    for architecture, model in ((builtin, ours.train()), (foreign, theirs.train())):
        state = TrainState.create(model, recipe)
        steps = (Batch(batch[:, :-1].contiguous(), batch[:, 1:].contiguous()) for batch in tokens)
        losses.append([float(architecture.train_step(state, batch)) for batch in steps])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)

    text = bytes(range(32, 127)) * 2
    document = EncodedDocument("text", torch.tensor([*text]).numpy(), len(text))
    perplexity = [score(model, [document], separator=256, context_length=T).perplexity for model in (ours, theirs)]
    assert perplexity[0] == pytest.approx(perplexity[1], rel=1e-4)
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (ours, theirs)]
    assert sizes[0] == sizes[1]
    counts = [count_flops(on_meta(model), 1, T) for model in (ours, theirs)]
    assert counts[0].forward_per_token == counts[1].forward_per_token
    assert counts[0].training_per_token == counts[1].training_per_token


@pytest.mark.slow
def test_matching_varies_the_sizes_by_transformers_names_and_keeps_heads_legal(tmp_path: Path) -> None:
    architecture = archbench.load(f"hf:{written(tmp_path, 'qwen3', hidden_size=64, head_dim=16)}")
    found = match(architecture, "nano", {"context_length": 32, "vocab_size": 300}, target=150_000)
    assert found.matched
    config: Any = architecture.config("nano", **found.overrides)
    fields = config.fields()
    assert (fields["hidden_size"], fields["intermediate_size"]) == (config.d_model, config.d_ff)
    assert fields["num_attention_heads"] % fields["num_key_value_heads"] == 0
    assert fields["max_position_embeddings"] == 32
    with pytest.raises(ConfigError, match="d_state"):
        architecture.config("nano", d_state=3)
    linked = archbench.load(f"hf:{written(tmp_path / 'linked', 'mamba2')}")
    with pytest.raises(ConfigError, match="must equal num_heads"):  # transformers' own rule, which a search skips
        linked.config("nano", n_head=4)


def test_deeper_models_repeat_the_pattern_of_their_layers(tmp_path: Path) -> None:
    pattern = ["sliding_attention", "full_attention"]
    config: Any = archbench.load(f"hf:{written(tmp_path, 'gemma3_text', layer_types=pattern)}").config(
        "nano", n_layer=3
    )
    assert config.fields()["layer_types"] == [*pattern, pattern[0]]


def test_what_matching_keeps_is_said(tmp_path: Path) -> None:
    place = written(tmp_path, "olmoe", num_experts=4)
    done = command("show", f"hf:{place}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "olmoe by transformers" in done.stdout
    kept = archbench.load(f"hf:{written(tmp_path / 'x', 'mamba2')}").info.summary
    assert "varies n_layer, d_model, n_head, d_head, n_group, d_state" in kept


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder that transformers saved, with a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    torch.manual_seed(0)
    config = transformers.Qwen3Config(**{**FAMILIES["qwen3"], "vocab_size": 300}, tie_word_embeddings=False)
    model = transformers.Qwen3ForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder = with_small_corpus(tmp_path) / "Tiny Qwen"
    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: number for number, token in enumerate([*alphabet, "<|endoftext|>"])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_folder_with_weights_is_measured_as_it_is(published: Path) -> None:
    (published.parent / "small.txt").write_text((published.parent / "small.txt").read_text()[:2000])
    done = command(
        "run", f"hf:{published}", "--profile", "smoke", "--corpus", "small.txt", "--phases", "quality",
        "--threads", "1", "--unchecked", "--quiet", cwd=published.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    frame = read_results(published.parent / "results")
    row = frame.iloc[0]
    assert re.fullmatch(r"hf:Tiny-Qwen@[0-9a-f]{12}", row.architecture)
    assert row.plugin_package == f"transformers qwen3 ({published / 'config.json'})"
    assert row.plugin_version == transformers.__version__
    assert row.plugin_revision == f"sha256:{row.architecture[-12:]}"
    assert row.preset == "published:Tiny Qwen"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(published).eval()
    assert row.parameters == sum(parameter.numel() for parameter in theirs.parameters())

    class Theirs(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return theirs(tokens).logits

    text = DataConfig(
        corpus=str(published.parent / "small.txt"), tokenizer=f"file:{published / 'tokenizer.json'}",
        validation_fraction=1,
    )  # fmt: skip
    data = prepare(text)
    expected = score(Theirs(), data.validation, separator=data.tokenizer.separator, context_length=T).perplexity
    assert value(frame, "quality", "perplexity") == pytest.approx(expected, rel=1e-5)


def test_only_the_first_model_of_a_process_looks_for_the_shapes_of_its_cache(tmp_path: Path) -> None:
    architecture = archbench.load(f"hf:{written(tmp_path, 'llama')}")
    models: list[Any] = [architecture.build(architecture.config("nano", n_layer=layers)) for layers in (1, 1, 2)]
    first, again, deeper = (model._shapes for model in models)
    assert first is again
    assert len(deeper) == 2 * len(first)


def test_transformers_draws_no_progress_bar_while_weights_are_read_and_may_afterwards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    architecture = archbench.load(f"hf:{written(tmp_path, 'llama')}")
    config = architecture.config("nano")
    theirs = {name.removeprefix("inner."): value for name, value in architecture.build(config).state_dict().items()}
    architecture.import_weights(theirs, config)
    assert capsys.readouterr().err == ""
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_a_family_with_a_cache_of_its_own_decodes_without_one_and_show_says_so(tmp_path: Path) -> None:
    architecture = archbench.load(f"hf:{written(tmp_path, 'minimax')}")
    model = architecture.build(architecture.config("nano")).eval()
    prompt = torch.randint(V, (1, 5))
    tokens = torch.stack([*architecture.generate(model, prompt, 3, archbench.Sampling(greedy=True))], 1)
    with torch.inference_mode():
        assert tokens[0, 0] == model(prompt)[0, -1].argmax()
    assert "decodes without a cache" in architecture.info.summary


def test_bad_weights_are_refused_before_anything_is_written(published: Path) -> None:
    def refused(code: int, culprit: str) -> None:
        done = command("run", f"hf:{published}", "--profile", "smoke", "--unchecked", "--quiet", cwd=published.parent)
        assert done.returncode == code, done.stderr
        assert culprit in "".join(done.stderr.split("\n")), done.stderr
        assert "Traceback" not in done.stderr
        assert not list((published.parent / "results").glob("*")), "nothing half written"

    weights, config = published / "model.safetensors", published / "config.json"
    good = weights.read_bytes(), config.read_text()
    weights.write_bytes(good[0][: len(good[0]) // 2])
    refused(6, "model.safetensors")
    weights.rename(published / "part.safetensors")
    (published / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "part.safetensors"')
    (published / "part.safetensors").write_bytes(good[0])
    refused(6, "model.safetensors.index.json")
    for lacking in ({"lm_head.weight": "gone.safetensors"}, {"no.such": "part.safetensors"}):
        (published / "model.safetensors.index.json").write_text(json.dumps({"weight_map": lacking}))
        refused(6, "gone" if "lm_head.weight" in lacking else "no.such")
    (published / "model.safetensors.index.json").unlink()
    (published / "part.safetensors").rename(published / "pytorch_model.bin")
    refused(6, "pytorch_model.bin")
    (published / "pytorch_model.bin").unlink()
    weights.write_bytes(good[0])
    config.write_text(good[1].replace('"vocab_size": 300', '"vocab_size": 310'))
    refused(6, "vocab_size is 310")
    config.write_text(good[1])
    tokenizer = json.loads((published / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"token{number}": 257 + number for number in range(100)}
    (published / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(2, "357 ids")


def test_a_run_refuses_weights_that_changed_since_they_got_their_name(published: Path) -> None:
    name = archbench.load(f"hf:{published}").name
    other = {key: value + 1 for key, value in load_file(published / "model.safetensors").items()}
    save_file(other, published / "model.safetensors")
    options = "--profile smoke --corpus small.txt --unchecked --device cpu --quiet"
    done = command("run", name, *options.split(), cwd=published.parent)
    assert done.returncode == 6, done.stderr
    assert "have changed since" in done.stderr


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from archbench_plugins.hf import source

    monkeypatch.setattr(source, "find_spec", lambda name: None)
    done = command("show", "hf:./anything", cwd=tmp_path)
    assert done.returncode == 3
    assert "archbench[hf]" in done.stderr


@pytest.mark.slow
def test_two_foreign_configurations_are_compared_with_gpt1(tmp_path: Path) -> None:
    places = [f"hf:{written(tmp_path / kind, kind)}" for kind in ("qwen3", "olmo2")]
    done = command(
        "compare", "gpt1", *places, "--match", "params", "--profile", "smoke", "--no-tuning", "--tokenizer", "byte",
        "--corpus", "small.txt", "--seeds", "3", "--jobs", "1", "--json", "--quiet", cwd=with_small_corpus(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert "hf:qwen3@" in json.dumps(outcome)
    done = command("report", next((tmp_path / "results").glob("compare-*")), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
