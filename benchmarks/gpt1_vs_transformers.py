"""GPT-1 against transformers' models of the same size: a training step, and decoding at batch 1.

    python benchmarks/gpt1_vs_transformers.py --quick           # two layers, a minute or two
    python benchmarks/gpt1_vs_transformers.py --json out.json   # the published size

Everything compared runs in one process and takes turns (A B C A B C ...): same batch, threads, dtype, loss and fused
AdamW, and for OpenAIGPT the same weights. GPT-2, the pre-LN model of the same size, is the nearest one in transformers
with a cache and SDPA. All train through archbench.next_token_step. Our decoding is archbench.generate; theirs is the
shortest greedy loop around ``past_key_values``, so the overhead of their own ``generate`` does not count.

A ratio is their seconds over ours in the same round, so that above 1 archbench is faster; of the ratios the table
shows the median and the range from the 10th to the 90th percentile.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from archbench_plugins.gpt1 import GPT1Config
from torch import Tensor, nn

import archbench
from archbench.data.batches import Batch
from archbench.measure.malloc import tune_malloc

Contenders = dict[str, Callable[[], list[float]]]
"""By name: one turn, and the seconds of what it timed."""

GREEDY = archbench.Sampling(greedy=True)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Logits(nn.Module):
    """A transformers model behind archbench's signature: tokens (B, T) -> logits (B, T, V)."""

    def __init__(self, model: nn.Module, **arguments: Any) -> None:
        super().__init__()
        self.model = model
        self.arguments = arguments

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens, **self.arguments).logits
        return logits


def models(config: GPT1Config) -> dict[str, nn.Module]:
    """Ours, OpenAIGPT with the same weights, and GPT-2 of the same size."""
    from transformers import GPT2Config, GPT2LMHeadModel, OpenAIGPTConfig, OpenAIGPTLMHeadModel

    torch.manual_seed(0)
    gpt1 = archbench.load("gpt1")
    sizes = {
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.d_model,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "embd_pdrop": config.embd_dropout,
        "resid_pdrop": config.resid_dropout,
        "attn_pdrop": config.attn_dropout,
    }
    openai = OpenAIGPTLMHeadModel(OpenAIGPTConfig(**sizes))
    ours = gpt1.build(config)
    ours.load_state_dict(gpt1.import_weights(openai.state_dict(), config))
    outside = {"bos_token_id": None, "eos_token_id": None, "n_inner": config.d_ff}
    gpt2 = GPT2LMHeadModel(GPT2Config(**sizes, **outside))
    return {"archbench": ours, "OpenAIGPT": openai, "GPT2": gpt2}


def training(config: GPT1Config, dtype: torch.dtype, batch_size: int) -> Contenders:
    """Per model: one training step, in seconds."""
    tokens = torch.randint(config.vocab_size, (batch_size, config.context_length + 1))
    batch = Batch(tokens[:, :-1], tokens[:, 1:])

    def contender(model: nn.Module) -> Callable[[], list[float]]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        state = archbench.TrainState(model=model.train(), optimizer=optimizer, dtype=dtype)

        def step() -> list[float]:
            start = time.perf_counter()
            archbench.next_token_step(state, batch)
            return [time.perf_counter() - start]

        return step

    arguments: dict[str, dict[str, Any]] = {"archbench": {}, "OpenAIGPT": {}, "GPT2": {"use_cache": False}}
    contenders = {}
    for name, model in models(config).items():
        contenders[name] = contender(model if name == "archbench" else Logits(model, **arguments[name]))
    return contenders


def decoding(config: GPT1Config, dtype: torch.dtype, prompt_length: int, new_tokens: int) -> Contenders:
    """Per model: the gaps between tokens at batch 1, in seconds; the first token, which reads the prompt, is apart."""
    prompt = torch.randint(config.vocab_size, (1, prompt_length))
    gpt1 = archbench.load("gpt1")
    contenders = {name: model.eval().to(dtype) for name, model in models(config).items()}

    def gaps(tokens: Iterator[Tensor]) -> list[float]:
        marks = [time.perf_counter() for _ in tokens]
        return [later - earlier for earlier, later in pairwise(marks)]

    def with_cache(model: nn.Module) -> Iterator[Tensor]:
        cache, tokens = None, prompt
        for _ in range(new_tokens):
            with torch.inference_mode():
                output = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache, tokens = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
            yield tokens

    def without_cache(model: nn.Module) -> Iterator[Tensor]:
        tokens = prompt
        for _ in range(min(new_tokens, 4)):  # every token reads all others again: a few tell
            with torch.inference_mode():
                logits = model(tokens, logits_to_keep=1).logits
                tokens = torch.cat([tokens, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
            yield tokens

    return {
        "archbench": lambda: gaps(gpt1.generate(contenders["archbench"], prompt, new_tokens, GREEDY)),
        "OpenAIGPT": lambda: gaps(without_cache(contenders["OpenAIGPT"])),
        "GPT2": lambda: gaps(with_cache(contenders["GPT2"])),
    }


def take_turns(contenders: Contenders, rounds: int, warmup: int) -> dict[str, Any]:
    """Every contender once a round; seconds and ratios to the first, per contender."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            sample = median(contenders[name]())
            if turn >= warmup:
                seconds[name].append(sample)
    ratios = {
        name: sorted(theirs / ours for theirs, ours in zip(seconds[name], seconds[names[0]], strict=True))
        for name in names[1:]
    }
    return {
        "seconds": seconds,
        "median_seconds": {name: median(values) for name, values in seconds.items()},
        "ratio": {
            name: {"median": median(values), "p10": _quantile(values, 0.1), "p90": _quantile(values, 0.9)}
            for name, values in ratios.items()
        },
    }


def _quantile(ordered: list[float], q: float) -> float:
    return ordered[round(q * (len(ordered) - 1))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two layers, three rounds")
    parser.add_argument("--only", choices=["train", "decode"], help="one half of the cases")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="default: both")
    parser.add_argument("--dropout", type=float, action="append", help="rates to train with; default: 0.1 and 0")
    parser.add_argument("--prompt", type=int, action="append", help="prompt lengths to decode after; default: 32, 384")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=2, help="sequences a training step")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens decoded a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2, help="rounds before those that count")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--malloc", action="store_true", help="tune glibc's allocator for all, as archbench run does")
    parser.add_argument("--json", type=Path, help="also write every sample there")
    options = parser.parse_args()
    if options.quick:
        options.layers, options.rounds, options.warmup, options.new_tokens = 2, 3, 1, 8
    allocator = tune_malloc() if options.malloc else "default"
    if options.threads:
        torch.set_num_threads(options.threads)

    cases: list[tuple[str, Callable[[], Contenders]]] = []
    for name in options.dtype or DTYPES:
        for p in options.dropout or [0.1, 0.0]:
            config = GPT1Config(n_layer=options.layers, embd_dropout=p, resid_dropout=p, attn_dropout=p)
            if options.only != "decode":
                step = partial(training, config, DTYPES[name], options.batch)
                cases.append((f"training step, {name}, dropout {p}", step))
        for P in options.prompt or [32, 384]:
            config = GPT1Config(n_layer=options.layers)
            if options.only != "train":
                decode = partial(decoding, config, DTYPES[name], P, options.new_tokens)
                cases.append((f"decoding, {name}, after {P} tokens", decode))

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, allocator {allocator}", file=sys.stderr)
    print("| seconds (median) | archbench | OpenAIGPT | GPT2 | OpenAIGPT / archbench | GPT2 / archbench |")
    print("|---|---|---|---|---|---|", flush=True)
    results = {}
    for title, prepare in cases:
        result = results[title] = take_turns(prepare(), options.rounds, options.warmup)
        ratios = [f"{r['median']:.2f} ({r['p10']:.2f}–{r['p90']:.2f})" for r in result["ratio"].values()]
        columns = [f"{value:.4f}" for value in result["median_seconds"].values()] + ratios
        print(f"| {title} | {' | '.join(columns)} |", flush=True)
        gc.collect()
    if options.json:
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "allocator": allocator}
        options.json.write_text(json.dumps({**about, "layers": options.layers, "cases": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
