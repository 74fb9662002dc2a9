"""Decoding a GPT-1 through ``generate``, against the same operations written by hand, and against reading its weights.

    python benchmarks/decoding_by_hand.py                        # nano and the published size, batches 1 and 8
    python benchmarks/decoding_by_hand.py --preset nano --batch 1 --json out.json

``archbench`` replays a recorded step (the kind ``graph``), as ``archbench generate`` does; ``archbench, eager`` asks
for every operation anew. ``unpacked`` replays without packed copies of weights, as with ``--config products=unpacked``;
nothing is packed at batch 1. ``by hand`` is the shortest loop of torch calls that decodes these weights: no modules,
views made once, a cache allocated once. It is what is left when nothing but the operations costs time. ``by hand,
linear`` takes its products from ``archbench.kernels.linear`` instead of ``F.linear``. ``reading`` sums each weight that
a token reads, once: the limit that memory sets. Embeddings are not counted, of which a token reads a row.

All take turns in one process, with the same prompt, threads and allocator; a turn's figure is the median of the gaps
between tokens. A ratio is theirs over ours in the same round: above 1, archbench is faster. What is ours must give the
tokens that the hand gives. Published implementations: ``peers.py``.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import archbench
from archbench.inference.decoding_kind import decoding
from archbench.kernels import linear
from archbench.kernels.product_choice import choose_products
from archbench.measure.malloc import tune_malloc
from archbench.measure.product_speeds import ProductSpeeds, room_for_copies

GREEDY = archbench.Sampling(greedy=True)


def by_hand(model: Any, prompt: Tensor, new_tokens: int, product: Callable[..., Tensor]) -> Iterator[Tensor]:
    """The greedy continuation of prompt (B, P) by a GPT-1, (B,) each; ``product`` is F.linear or another."""
    (B, P), C, H = prompt.shape, model.config.d_model, model.config.n_head
    D, length = C // H, P + new_tokens
    embedding, positions = model.embedding.weight.detach(), model.position_embedding.weight.detach()
    blocks = [
        (
            torch.empty(B, H, length, D), torch.empty(B, H, length, D),
            *block.attention.qkv.parameters(), *block.attention.out.parameters(), *block.attention_norm.parameters(),
            *block.feed_forward.up.parameters(), *block.feed_forward.down.parameters(),
            *block.feed_forward_norm.parameters(),
        )
        for block in model.blocks
    ]  # fmt: skip

    @torch.inference_mode()
    def step(tokens: Tensor, start: int) -> Tensor:
        T = tokens.shape[1]
        end = start + T
        x = F.embedding(tokens, embedding).add_(positions[start:end])
        for keys, values, W_qkv, b_qkv, W_out, b_out, g1, s1, W_up, b_up, W_down, b_down, g2, s2 in blocks:
            q, k, v = product(x, W_qkv, b_qkv).view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)
            keys[:, :, start:end] = k
            values[:, :, start:end] = v
            y = F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], is_causal=T > 1)
            x = F.layer_norm(product(y.transpose(1, 2).reshape(B, T, C), W_out, b_out).add_(x), (C,), g1, s1)
            y = product(F.gelu(product(x, W_up, b_up), approximate="tanh"), W_down, b_down)
            x = F.layer_norm(y.add_(x), (C,), g2, s2)
        return product(x[:, -1], embedding).argmax(-1)

    token = step(prompt, 0)
    yield token
    for start in range(P, P + new_tokens - 1):
        token = step(token.unsqueeze(1), start)
        yield token


def contenders(preset: str, B: int, P: int, new_tokens: int) -> dict[str, Callable[[], list[float]]]:
    """By name: one decoding, and the gaps between its tokens in seconds."""
    torch.manual_seed(0)
    gpt1 = archbench.load("gpt1")
    config: Any = gpt1.config(preset)
    model = gpt1.build(config).eval()
    prompt = torch.randint(config.vocab_size, (B, P))
    speeds = ProductSpeeds()

    def ours(kind: str, *, packing: bool = True) -> Iterator[Tensor]:
        choose_products(speeds, packing=room_for_copies() if packing else 0)  # as in a run
        with decoding(kind) as ran:
            yield from gpt1.generate(model, prompt, new_tokens, GREEDY)
        if ran.reasons:
            raise SystemExit(f"archbench does not decode by {kind}: {', '.join(ran.reasons)}")

    loops: dict[str, Callable[[], Iterator[Tensor]]] = {
        "archbench": lambda: ours("graph"),
        "archbench, eager": lambda: ours("eager"),
        "unpacked": lambda: ours("graph", packing=False),
        "by hand": lambda: by_hand(model, prompt, new_tokens, F.linear),
        "by hand, linear": lambda: by_hand(model, prompt, new_tokens, linear),
    }
    given = {name: torch.stack(list(loop())) for name, loop in loops.items()}
    for name, tokens in given.items():
        if (tokens != given["by hand"]).float().mean() > 0.02:  # two nearly equal logits are a matter of rounding
            raise SystemExit(f"{name} decodes other tokens than the operations by hand do")
    read = [model.head_parameters()[0], *(weight for weight in model.blocks.parameters() if weight.dim() == 2)]

    def reading() -> Iterator[Tensor]:
        for _ in range(new_tokens):
            with torch.inference_mode():
                for weight in read:
                    weight.sum()
            yield prompt

    loops["reading"] = reading

    def gaps(tokens: Iterator[Tensor]) -> list[float]:
        marks = [time.perf_counter() for _ in tokens]
        return [later - earlier for earlier, later in pairwise(marks)]

    return {name: lambda loop=loop: gaps(loop()) for name, loop in loops.items()}


def take_turns(loops: dict[str, Callable[[], list[float]]], rounds: int, warmup: int) -> dict[str, list[float]]:
    """Every loop once a round, in one order and then in the other; the median of each turn."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(warmup + rounds):
        for name in loops if turn % 2 == 0 else reversed(loops):
            sample = median(loops[name]())
            if turn >= warmup:
                seconds[name].append(sample)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", help="default: nano and paper")
    parser.add_argument("--batch", type=int, action="append", help="default: 1 and 8")
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens decoded a turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2, help="rounds before those that count")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--json", type=Path, help="also write every sample there")
    options = parser.parse_args()
    allocator = tune_malloc()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, allocator {allocator}")
    results = {}
    for preset in options.preset or ["nano", "paper"]:
        for B in options.batch or [1, 8]:
            loops = contenders(preset, B, options.prompt, options.new_tokens)
            seconds = results[f"{preset}, batch {B}"] = take_turns(loops, options.rounds, options.warmup)
            print(f"{preset}, batch {B}, after {options.prompt} tokens:")
            ours = next(iter(seconds.values()))
            for name, samples in seconds.items():
                ratios = sorted(theirs / own for theirs, own in zip(samples, ours, strict=True))
                told = f"{median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
                print(f"  {name:16} {1e3 * median(samples):8.3f} ms  {told}", flush=True)
            del loops
            gc.collect()
    if options.json:
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "allocator": allocator}
        options.json.write_text(json.dumps({**about, "cases": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
