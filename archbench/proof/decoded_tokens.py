"""Decoding on the device: what a cache, or a captured step, gives is what a full pass over the same text prefers."""

from __future__ import annotations

import torch

from archbench.inference.decoding_kind import decoding
from archbench.inference.sampling import Sampling
from archbench.measure.score_audit import greedy_finding, tolerance
from archbench.plugin.registry import load
from archbench.proof.statements import Bench, Statements, attempted, judged
from archbench.proof.whole_models import builtin
from archbench.testing.subject import seed_generators

NEW, PROMPT, B = 40, 17, 2


def tokens(bench: Bench) -> Statements:
    """Every built-in's smallest preset, greedy, in float32 and on GPUs in bfloat16; by steps of both kinds."""
    for name in builtin():
        for dtype in (torch.float32, *([torch.bfloat16] if bench.gpu else [])):
            yield from attempted(name, _tokens(name, dtype, bench))


def _tokens(name: str, dtype: torch.dtype, bench: Bench) -> Statements:
    architecture = load(name)
    config = architecture.config("nano")
    seed_generators(0, bench.device)
    model = architecture.build(config).to(bench.device, dtype).eval()
    generator = torch.Generator().manual_seed(2)
    prompt = torch.randint(config.vocab_size, (B, PROMPT), generator=generator).to(bench.device)
    allowed = tolerance(dtype)
    for kind in ("eager", "graph" if bench.gpu else "static"):
        with decoding(kind) as ran:
            decoded = list(architecture.generate(model, prompt, NEW, Sampling(greedy=True)))
        value = greedy_finding(model, prompt, decoded, config.context_length, allowed).value
        holds = len(decoded) == NEW and value is not None and value <= allowed and kind in ("eager", *ran.kinds)
        what = f"{name}, {str(dtype).removeprefix('torch.')}, {kind}: {NEW} tokens after {PROMPT} against full passes"
        shown = "not judged" if value is None else f"{value:.1e} nats below the best"
        yield judged(what, holds, f"≤ {allowed:.0e}", "; ".join((shown, *sorted(ran.reasons))))
