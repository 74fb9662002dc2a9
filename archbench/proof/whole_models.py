"""Whole models, built in, by each attention backend: the loss and all gradients agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from archbench.data.batches import Batch
from archbench.kernels import attention_backend, record_attention, why_not
from archbench.plugin.registry import available, load
from archbench.proof.statements import Bench, Statement, Statements, attempted, judged, not_run
from archbench.testing.subject import seed_generators

EXACT = 2e-4
"""Relative difference of all gradients together, in float32: the order of additions, through some layers."""

B, T = 2, 200


def builtin() -> list[str]:
    """Names of the built-in architectures."""
    return [entry.name for entry in available() if entry.package == "archbench"]


def agreement(bench: Bench) -> Statements:
    """Each built-in's smallest preset, in float32: every backend against the definition; bfloat16 against float32."""
    usable = []
    for backend in ("triton", "sdpa"):
        reason = why_not(backend, bench.device.type, torch.float32, 64, device_index=bench.device.index)
        if reason is None:
            usable.append(backend)
        else:
            yield not_run(f"models by {backend}", reason)
    for name in builtin():
        yield from attempted(name, _agreement(name, usable, bench))


def _agreement(name: str, backends: Sequence[str], bench: Bench) -> Statements:
    model, batch = _model(name, bench)
    exact, ran = _gradients(model, batch, "reference", torch.float32, bench)
    if not ran:
        yield not_run(f"{name}: backends", "it has no attention")
    for backend in backends if ran else ():
        yield _compared(f"{name}, float32, {backend} against reference", exact, model, batch, backend, bench)
    if bench.gpu:
        yield from _rounded(name, exact, model, batch, bench)


def _model(name: str, bench: Bench) -> tuple[nn.Module, Batch]:
    architecture = load(name)
    config = architecture.config("nano")
    seed_generators(0, bench.device)
    model = architecture.build(config).to(bench.device).eval()  # no dropout, and gradients all the same
    length = min(T, config.context_length)
    tokens = torch.randint(config.vocab_size, (B, length + 1), generator=torch.Generator().manual_seed(1))
    return model, Batch(tokens[:, :-1], tokens[:, 1:])


def _gradients(
    model: nn.Module, batch: Batch, backend: str, dtype: torch.dtype, bench: Bench
) -> tuple[tuple[float, Tensor], set[str]]:
    """The mean loss with all gradients in one vector, and the backends that ran."""
    model.zero_grad(set_to_none=True)
    tokens, targets = batch.inputs.to(bench.device), batch.targets.to(bench.device)
    with attention_backend(backend), record_attention() as ran:
        with torch.autocast(bench.device.type, dtype, enabled=dtype != torch.float32):
            logits = model(tokens)
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad.flatten().float() for p in model.parameters() if p.grad is not None]
    return (float(loss.detach()), torch.cat(gradients)), ran


def _distance(found: tuple[float, Tensor], exact: tuple[float, Tensor]) -> tuple[float, float]:
    """Relative differences of the loss and of the gradients."""
    loss = abs(found[0] - exact[0]) / abs(exact[0]) if exact[0] else float("inf")
    norm = float(exact[1].norm())
    return loss, float((found[1] - exact[1]).norm()) / norm if norm else float("inf")


def _compared(
    what: str, exact: tuple[float, Tensor], model: nn.Module, batch: Batch, backend: str, bench: Bench
) -> Statement:
    found, ran = _gradients(model, batch, backend, torch.float32, bench)
    loss, gradients = _distance(found, exact)
    holds = max(loss, gradients) <= EXACT and bool(ran) and all(one.startswith(backend) for one in ran)
    shown = f"loss {loss:.0e}, gradients {gradients:.0e}, ran {', '.join(sorted(ran))}"
    return judged(what, holds, f"≤ {EXACT:.0e}, by {backend}", shown)


def _rounded(
    name: str, exact: tuple[float, Tensor], model: nn.Module, batch: Batch, bench: Bench
) -> Iterator[Statement]:
    """bfloat16 by archbench's own choice is no further from float32 than the definition in bfloat16, doubled."""
    usual, _ = _gradients(model, batch, "reference", torch.bfloat16, bench)
    found, ran = _gradients(model, batch, "auto", torch.bfloat16, bench)
    bound, error = _distance(usual, exact)[1], _distance(found, exact)[1]
    shown = f"{error:.1e}, ran {', '.join(sorted(ran)) or 'no attention'}"
    yield judged(f"{name}, bfloat16, auto: gradients from float32's", error <= 2 * bound, f"≤ {2 * bound:.1e}", shown)
