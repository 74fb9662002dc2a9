"""The model starts near chance, learns, and reports the loss that all models are compared by.

Losses are computed here from the logits, in nats a token, and compared with what the plugin reports.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archbench.data.batches import Batch
from archbench.testing.attributes import module_attributes
from archbench.testing.evaluation import Fault, NotApplicable, and_more, check
from archbench.testing.finite_differences import wrong_derivative
from archbench.testing.plugin_lines import raised
from archbench.testing.subject import Subject, logits_of, seed_generators

INITIAL_TOLERANCE = 1.0
"""Nats above or below ln V. Logits of standard deviation s cost s²/2 more: a table from N(0, 1) 0.5."""

GRADIENT_BATCHES = 8
"""Batches within which each parameter has to be used: one of many experts may get no tokens in a single batch."""

DERIVED = 16
"""Positions of the sequence whose loss is differentiated."""

RATES = (1e-3, 1e-2, 1e-1)
"""Learning rates to try: one for a transformer, one for a table (each entry of which AdamW moves by the rate a step),
and one between them."""

UPDATES = 150
"""At each rate, at most. The built-in models need 20 to 50 at the best of them, 130 where C is 32."""

CYCLE, SEQUENCES = 32, 4
"""Token ids that follow one another in the batch to learn by heart, and its sequences, which start at different ids."""

LEARNT = 1 / 4
"""Of ln K, the loss of a model that knows the K ids in the batch but not what follows what. Knowing the position alone
does not reach it either: 4 sequences have 4 different tokens there, ln 4 = 0.4 ln 32."""


@check(needs=("logits",))
def check_initial_loss(subject: Subject) -> str:
    """A model that begins by being sure of what is wrong spends its budget unlearning that, and one that begins better
    than chance has seen the answers."""
    B = max(2, -(-256 // subject.T))  # sampling moves the mean of 256 by a sixteenth of one token's deviation
    batch = subject.batch(B, subject.T)
    logits = logits_of(subject.build().eval(), batch.inputs)
    loss, ideal = float(_cross_entropy(logits, batch.targets)), math.log(subject.V)
    if not abs(loss - ideal) <= INITIAL_TOLERANCE:
        spread = float(logits.std())
        hint = (
            f"its logits have a standard deviation of {spread:.2g}, where 1 is much: begin with smaller embeddings or "
            "a smaller head (a standard deviation of 0.02 is usual)"
            if loss > ideal
            else "random tokens cannot be predicted: does a position see the token that follows it?"
        )
        raise Fault(
            f"at initial weights random tokens cost {loss:.4g} nats/token, and knowing nothing costs ln V = "
            f"{ideal:.4g}: {hint}"
        )
    return f"{loss:.4g} nats/token, ln V = {ideal:.4g}"


@check(needs=("logits", "train_step"))
def check_gradients(subject: Subject) -> str:
    """A parameter without a gradient is counted, stored and multiplied by, and learns nothing; one with another
    gradient than the loss's is trained on something else."""
    model = subject.model().train()
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = subject.state(model)
    found: dict[str, Tensor | None] = {}

    def record(*arguments: object) -> None:
        for name, parameter in parameters.items():
            found[name] = None if parameter.grad is None else parameter.grad.detach().clone()

    state.optimizer.step = record  # type: ignore  # nothing moves: only the batches differ
    unused = dict.fromkeys(parameters, "none")
    batches = 0
    while unused and batches < GRADIENT_BATCHES:
        seed_generators(batches, subject.device)
        subject.architecture.train_step(state, subject.batch(4, subject.T, seed=batches))
        batches += 1
        given = {name: gradient for name, gradient in found.items() if gradient is not None}
        broken = [name for name, gradient in given.items() if not bool(gradient.isfinite().all())]
        if broken:
            raise Fault(
                f"the gradient of parameter {broken[0]!r} is not finite{and_more(broken)}, on {subject.T} random "
                "tokens: look for a root or a logarithm at 0, or a division by what may be 0, masked afterwards or not"
            )
        for name, gradient in given.items():
            if bool(gradient.count_nonzero()):
                unused.pop(name, None)
            elif name in unused:
                unused[name] = "all zeros"
    if unused:
        shown = ", ".join(f"{name!r} ({kind})" for name, kind in list(unused.items())[:3])
        further = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        raise Fault(
            f"{len(unused)} of {len(parameters)} parameters get no gradient in {batches} batches, so they never learn: "
            f"{shown}{further}. 'none' is a parameter that the loss does not depend on (unused, or behind detach(), "
            "no_grad or an argmax), 'all zeros' one whose effect is multiplied by 0 or behind a unit that never opens"
        )
    _assert_true(subject, model, subject.batch(1, min(subject.T, DERIVED)))
    return f"all {len(parameters)} parameters, within {batches} batch{'es' if batches > 1 else ''}"


def _assert_true(subject: Subject, model: nn.Module, batch: Batch) -> None:
    """Fault unless gradients are those of the parameters, of all of them, and what the loss changes by."""
    model.zero_grad()
    seed_generators(0, subject.device)
    trained = _gradients(model.train(), batch)
    evaluated = _gradients(model.eval(), batch)
    model.train()
    for name in trained:
        if name not in evaluated:
            raise Fault(
                f"in evaluation mode the logits do not depend on parameter {name!r}, on which they depend in training: "
                "another model is evaluated than is trained. Averages of past weights are no part of the architecture"
            )
    try:
        fault = wrong_derivative(model, batch, trained)
    except Exception as error:  # noqa: BLE001  a kernel for float32 alone may raise anything
        subject.note(f"gradients are not compared with finite differences: in float64 it raised {raised(error)}")
        return
    if fault:
        raise Fault(
            f"{fault}. Look at backward passes, hooks and detach() on the way to it, and at dropout that is drawn "
            "again. What is meant so, as a straight-through estimator is, takes an expected failure"
        )


def _gradients(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Gradients of the loss that are not 0, by parameter; Fault where other tensors are trained beside them."""
    named = dict(model.named_parameters())
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):  # recurrent layers need this in evaluation
        loss = _cross_entropy(model(batch.inputs), batch.targets)
        others = [leaf for leaf in _leaves(loss) if all(leaf is not parameter for parameter in named.values())]
        if others:
            kept = [where for where, value in module_attributes(model) if value is others[0]]
            raise Fault(
                f"the loss depends on a tensor of shape {tuple(others[0].shape)} that requires a gradient and is not "
                f"among model.parameters(){f' (model.{kept[0]})' if kept else ''}: it is neither trained by the "
                "recipe, nor saved, nor counted. Make it an nn.Parameter"
            )
        torch.autograd.backward(loss)
    found = {name: p.grad for name, p in named.items() if p.grad is not None and bool(p.grad.count_nonzero())}
    model.zero_grad()
    return found


def _leaves(loss: Tensor) -> list[Tensor]:
    """The tensors that ``loss`` can be differentiated with respect to."""
    nodes, seen, leaves = [loss.grad_fn], {loss.grad_fn}, []
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        if isinstance(leaf := getattr(node, "variable", None), Tensor):
            leaves.append(leaf)
        following = {function for function, _ in node.next_functions} - seen
        seen |= following
        nodes += following
    return leaves


@check(needs=("logits", "train_step"))
def check_overfit(subject: Subject) -> str:
    """A model that cannot learn one batch by heart cannot learn a language, whatever loss it reports."""
    K, T = min(CYCLE, subject.V), min(CYCLE, subject.T)
    if K < 4:
        raise NotApplicable(f"a vocabulary of {K} ids leaves next to nothing to learn")
    batch = _cycle(subject, K, T)
    target = LEARNT * math.log(min(K, SEQUENCES * T))
    best = math.inf
    for rate in RATES:
        model = subject.build()
        state = subject.state(model, learning_rate=rate)
        before = _loss(model, batch)
        for update in range(1, UPDATES + 1):
            model.train()
            subject.architecture.train_step(state, batch)
            if update % 10:
                continue
            loss = _loss(model, batch)
            if loss <= target:
                return f"{before:.3g} to {loss:.2g} nats/token in {update} updates at learning rate {rate:g}"
            best = min(best, loss)
            if not math.isfinite(loss):
                break
    raise Fault(
        f"one batch of {batch.targets.numel()} tokens, in which each id is always followed by the same other, costs "
        f"{best:.3g} nats/token at best after {UPDATES} updates at each of the learning rates "
        f"{', '.join(f'{rate:g}' for rate in RATES)} ({before:.3g} at first, {target:.2g} asked for): what follows "
        "what is not learnt, although the gradient is that of the loss. Look into the model: does a position's own "
        "token reach its logits, past units that saturate and scales that learn too slowly at these rates"
    )


def _cycle(subject: Subject, K: int, T: int) -> Batch:
    """K ids in a circle, read from B places: (B, T) each. A table of which id follows which predicts it perfectly."""
    generator = torch.Generator().manual_seed(2000 + subject.seed)
    ids = torch.randperm(subject.V, generator=generator)[:K]
    starts = torch.arange(SEQUENCES)[:, None] * K // SEQUENCES
    tokens = ids[(starts + torch.arange(T + 1)) % K].to(subject.device)  # (B, T + 1)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def _loss(model: nn.Module, batch: Batch) -> float:
    """Nats a token, in evaluation mode."""
    return float(_cross_entropy(logits_of(model.eval(), batch.inputs), batch.targets))


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all tokens, shape (), nats/token."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
