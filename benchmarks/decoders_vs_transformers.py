"""GPT-2, LLaMA, Mistral, Mixtral and Gemma against transformers' models of the same configuration and weights.

    python benchmarks/decoders_vs_transformers.py --malloc                 # 6 layers, 384 wide; some ten minutes
    python benchmarks/decoders_vs_transformers.py --malloc --only decode llama --json out.json
    python benchmarks/decoders_vs_transformers.py --malloc --hf llama    # what hf: costs beside the built-in plugin

A training step (8 × 256 tokens, fused AdamW, no dropout) and decoding from a cache at batch 1. Both run in one process
and take turns (A B, B A, …) with the same batch, threads, dtype, allocator, loss and optimizer. Method and table are
those of ``gpt1_vs_transformers.py``. Our training is each plugin's own ``train_step``, theirs is
``archbench.next_token_step``. Our Mixtral includes its load-balancing loss and theirs does not, which favours theirs.
Our decoding is ``generate``, theirs is the shortest greedy loop around their cache.

With ``--hf`` theirs is ``hf:``, archbench's own door to the same transformers model: its ``train_step``, and its
``generate`` from transformers' static cache.

A ratio is their seconds over ours in the same round: above 1, archbench is faster.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from gpt1_vs_transformers import DTYPES, GREEDY, Logits, take_turns
from torch import Tensor, nn

import archbench
from archbench.config import ModelConfig
from archbench.data.batches import Batch
from archbench.measure.malloc import tune_malloc

SIZES = {"vocab_size": 8192, "context_length": 1024, "n_layer": 6, "n_head": 6, "d_model": 384}
FAMILY = {**SIZES, "n_kv_head": 2, "d_head": 64, "d_ff": 1024, "rope_theta": 10_000.0}
OURS: dict[str, dict[str, Any]] = {
    "gpt2": {**SIZES, "d_ff": 1536, "embd_dropout": 0.0, "resid_dropout": 0.0, "attn_dropout": 0.0},
    "llama": FAMILY,
    "mistral": {**FAMILY, "window": 128},
    "mixtral": {**FAMILY, "n_expert": 8, "window": None},
    "gemma": {**FAMILY, "n_kv_head": 1, "d_head": 96},
}


def their_model(name: str, config: Any) -> nn.Module:
    """transformers' model of the same configuration, at its own initial weights."""
    import transformers

    if name == "gpt2":
        sizes = {"n_positions": config.context_length, "n_embd": config.d_model, "n_inner": config.d_ff}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=config.vocab_size, n_layer=config.n_layer, n_head=config.n_head, **sizes, **dropout
            )
        )
    more: dict[str, Any] = {"tie_word_embeddings": name == "gemma"}
    if name in ("mistral", "mixtral"):
        more["sliding_window"] = config.window
    if name == "mixtral":
        more |= {"num_local_experts": config.n_expert, "num_experts_per_tok": config.n_active}
    if name == "gemma":
        more["hidden_activation"] = "gelu_pytorch_tanh"
    theirs = getattr(transformers, f"{name.capitalize()}Config")(
        vocab_size=config.vocab_size, hidden_size=config.d_model, intermediate_size=config.d_ff,
        num_hidden_layers=config.n_layer, num_attention_heads=config.n_head, num_key_value_heads=config.n_kv_head,
        head_dim=config.d_head, max_position_embeddings=config.context_length, rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta}, **more,
    )  # fmt: skip
    model: nn.Module = getattr(transformers, f"{name.capitalize()}ForCausalLM")(theirs)
    return model


def models(name: str, config: ModelConfig) -> tuple[nn.Module, nn.Module]:
    """Ours and theirs, with the same weights; that their logits agree is looked at first."""
    torch.manual_seed(0)
    architecture = archbench.load(name)
    theirs = their_model(name, config)
    ours = architecture.build(config)
    ours.load_state_dict(architecture.import_weights(theirs.state_dict(), config))
    tokens = torch.randint(config.vocab_size, (2, 160))
    with torch.inference_mode():
        difference = float((ours.eval()(tokens) - theirs.eval()(tokens).logits).abs().max())
    if not difference < 1e-3:
        raise SystemExit(f"{name}: the logits differ by {difference}, so the two are not the same model")
    return ours, theirs


def as_hf(theirs: Any) -> tuple[archbench.Architecture, nn.Module]:
    """The same model and weights as ``hf:`` makes it of their ``config.json``."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.config.save_pretrained(folder)
        architecture = archbench.load(f"hf:{folder}")
    model = architecture.build(architecture.config("paper"))
    model.load_state_dict({f"inner.{name}": tensor for name, tensor in theirs.state_dict().items()})
    return architecture, model


def training(
    name: str, config: ModelConfig, dtype: torch.dtype, B: int, T: int, *, hf: bool = False
) -> dict[str, Callable[[], Any]]:
    """One training step of each, in seconds."""
    tokens = torch.randint(config.vocab_size, (B, T + 1))
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def contender(model: nn.Module, step: Callable[..., Tensor]) -> Callable[[], list[float]]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        state = archbench.TrainState(model=model.train(), optimizer=optimizer, dtype=dtype)

        def timed() -> list[float]:
            start = time.perf_counter()
            step(state, batch)
            return [time.perf_counter() - start]

        return timed

    ours, theirs = models(name, config)
    door, foreign = as_hf(theirs) if hf else (None, None)
    return {
        "archbench": contender(ours, archbench.load(name).train_step),
        "transformers": contender(foreign, door.train_step)
        if door is not None and foreign is not None
        else contender(Logits(theirs, use_cache=False), archbench.next_token_step),
    }


def decoding(
    name: str, config: ModelConfig, dtype: torch.dtype, P: int, N: int, *, hf: bool = False
) -> dict[str, Callable[[], Any]]:
    """The gaps between N tokens after a prompt of P at batch 1, in seconds."""
    prompt = torch.randint(config.vocab_size, (1, P))
    ours, theirs = (model.eval().to(dtype) for model in models(name, config))
    architecture = archbench.load(name)

    def gaps(tokens: Iterator[Tensor]) -> list[float]:
        marks = [time.perf_counter() for _ in tokens]
        return [later - earlier for earlier, later in pairwise(marks)]

    def with_their_cache() -> Iterator[Tensor]:
        cache, tokens = None, prompt
        for _ in range(N):
            with torch.inference_mode():
                output = theirs(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache, tokens = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
            yield tokens

    door, foreign = as_hf(theirs) if hf else (architecture, ours)
    foreign = foreign.eval().to(dtype)
    return {
        "archbench": lambda: gaps(architecture.generate(ours, prompt, N, GREEDY)),
        "transformers": lambda: gaps(door.generate(foreign, prompt, N, GREEDY) if hf else with_their_cache()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(OURS)}; default: all")
    parser.add_argument("--only", choices=["train", "decode"], help="one half of the cases")
    parser.add_argument("--hf", action="store_true", help="theirs through hf:, instead of by the shortest loop")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="default: float32")
    parser.add_argument("--batch", type=int, default=8, help="sequences a training step")
    parser.add_argument("--length", type=int, default=256, help="tokens of each")
    parser.add_argument("--prompt", type=int, action="append", help="prompt lengths to decode after; default: 32, 384")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens decoded a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2, help="rounds before those that count")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--malloc", action="store_true", help="tune glibc's allocator for both, as archbench run does")
    parser.add_argument("--json", type=Path, help="also write every sample there")
    options = parser.parse_args()
    if unknown := set(options.names) - OURS.keys():
        parser.error(f"no such case: {', '.join(unknown)}")
    allocator = tune_malloc() if options.malloc else "default"
    if options.threads:
        torch.set_num_threads(options.threads)

    cases: dict[str, Callable[[], dict[str, Callable[[], Any]]]] = {}
    for name in options.names or OURS:
        config = archbench.load(name).config("nano", **OURS[name])
        for kind in options.dtype or ["float32"]:
            sizes = (name, config, DTYPES[kind])
            if options.only != "decode":
                cases[f"{name}, training step, {kind}"] = partial(
                    training, *sizes, options.batch, options.length, hf=options.hf
                )
            for P in [] if options.only == "train" else options.prompt or [32, 384]:
                cases[f"{name}, a token after {P}, {kind}"] = partial(
                    decoding, *sizes, P, options.new_tokens, hf=options.hf
                )

    import transformers

    about = {"torch": torch.__version__, "transformers": transformers.__version__, "allocator": allocator,
             "threads": torch.get_num_threads()}  # fmt: skip
    print(about, file=sys.stderr)
    print("| seconds (median) | archbench | transformers | transformers / archbench |")
    print("|---|---|---|---|", flush=True)
    results = {}
    for title, prepare in cases.items():
        result = results[title] = take_turns(prepare(), options.rounds, options.warmup)
        ours, theirs = result["median_seconds"].values()
        (ratio,) = result["ratio"].values()
        print(
            f"| {title} | {ours:.4g} | {theirs:.4g} | {ratio['median']:.2f} ({ratio['p10']:.2f}–{ratio['p90']:.2f}) |",
            flush=True,
        )
        gc.collect()
    if options.json:
        options.json.write_text(json.dumps({**about, "sizes": OURS, "cases": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
