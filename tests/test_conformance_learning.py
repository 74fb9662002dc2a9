"""A model that reports another loss, or does not learn what it is given, is caught, and the message names the fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from archbench.testing.checks import check_gradients, check_initial_loss, check_overfit, check_train_step
from archbench.testing.evaluation import Fault, NotApplicable
from edited_plugins import Edit, edited, tiny

IMPORTS = ("from torch import nn", "import torch\nimport torch.nn.functional as F\nfrom torch import nn")
KEPT = "        self.config = config"
STEP = "    return next_token_step(state, batch)"


def model(*lines: str, forward: tuple[str, ...] = ("return x",)) -> list[Edit]:
    """More lines for the bigram's ``__init__``, and for its forward pass, where ``x`` are its logits."""
    init, body = ("".join(f"\n        {line}" for line in part) for part in (lines, forward))
    forward_text = f"    def forward(self, tokens):\n        x = super().forward(tokens){body}"
    return [IMPORTS, (KEPT, f"{KEPT}{init}\n\n{forward_text}")]


def step(loss: str, returned: str = "total", *, update: str = "state.update()") -> list[Edit]:
    """A ``train_step`` by hand: ``loss`` of each micro-batch's ``logits`` is trained on, ``returned`` is given back."""
    lines = (
        "total = torch.zeros(())",
        "micros = state.split(batch)",
        "for micro in micros:",
        "    logits = state.model(micro.inputs)",
        "    entropy = F.cross_entropy(logits.flatten(0, 1), micro.targets.flatten())",
        "    total += entropy.detach() / len(micros)",
        f"    state.backward({loss}, 1 / len(micros))",
        update,
        f"return {returned}",
    )
    return [IMPORTS, (STEP, "\n".join(f"    {line}" for line in lines))]


@pytest.mark.parametrize("name", ["gpt1", "bigram"])
def test_right_plugins_pass(name: str) -> None:
    subject = tiny(name)
    assert "ln V = 4.111" in check_initial_loss(subject)
    assert "as from the logits; 5 updates, one of two micro-batches, as by the recipe" in check_train_step(subject)
    assert check_gradients(subject).startswith("all ")
    assert "nats/token in" in check_overfit(subject)


@pytest.mark.parametrize(
    "sizes", [{"context_length": 1}, {"context_length": 2}, {"vocab_size": 4}, {"vocab_size": 32}], ids=str
)
def test_a_context_and_a_vocabulary_of_any_size_can_be_checked(sizes: dict[str, int]) -> None:
    subject = tiny("gpt1", **sizes)
    for check in (check_initial_loss, check_train_step, check_gradients):
        check(subject)


@pytest.mark.parametrize("sizes", [{"context_length": 1}, {"vocab_size": 4}])
def test_the_smallest_context_and_vocabulary_are_enough_to_overfit(sizes: dict[str, int]) -> None:
    check_overfit(tiny("gpt1", **sizes))


def test_three_ids_are_too_few_to_overfit() -> None:
    with pytest.raises(NotApplicable, match="a vocabulary of 3 ids"):
        check_overfit(tiny("gpt1", vocab_size=3))


def test_dropout_is_the_same_in_both_losses_and_nothing_to_overfit() -> None:
    subject = tiny("gpt1", embd_dropout=0.1, resid_dropout=0.1, attn_dropout=0.1)
    assert check_train_step(subject).endswith("as by the recipe")
    check_gradients(subject)
    check_overfit(subject)


def test_a_loss_besides_that_is_trained_on_and_not_returned_is_right(tmp_path: Path) -> None:
    balancing = step("entropy + 0.01 * (logits.logsumexp(-1) ** 2).mean()")
    subject = edited(tmp_path, "bigram", *balancing)
    assert "% of the gradient is of something else than that loss" in check_train_step(subject)
    check_overfit(subject)
    (tmp_path / "wrong").mkdir()
    returned = step("entropy + 0.01 * (logits.logsumexp(-1) ** 2).mean()", "total + 0.17")
    with pytest.raises(Fault, match=r"a loss of .* trained on besides .* not into what is returned"):
        check_train_step(edited(tmp_path / "wrong", "bigram", *returned))


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (
            model(forward=("return 10 * x",)),
            r"cost \d\d\.\d+ nats/token, and knowing nothing costs ln V = 4.111: .* standard deviation of 9.9, where",
        ),
        (
            model(forward=("return x + 8 * F.one_hot(tokens.roll(-1, 1), 61)",)),
            "random tokens cannot be predicted: does a position see the token that follows it",
        ),
    ],
    ids=["too sure", "sees the answers"],
)
def test_initial_weights_that_know_too_much(tmp_path: Path, edits: list[Edit], message: str) -> None:
    with pytest.raises(Fault, match=message):
        check_initial_loss(edited(tmp_path, "bigram", *edits))


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (step("entropy", "total * micro.targets.shape[1]"), "it looks like the sum over positions"),
        (step("entropy", "total.exp()"), "it looks like a perplexity"),
        (
            [IMPORTS, (STEP, f"    logits = state.model(batch.inputs)\n{STEP.replace('return', 'loss =')}\n"
             "    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.targets[:, 1:].flatten()).detach()")],
            "batch.targets are the next tokens already, and it looks as if they were shifted again",
        ),
        (step("0 * entropy"), r"the gradient of the update is 0 times that of the loss: call state\.backward"),
        (
            step("entropy", update="state.optimizer.step()"),
            r"called state\.update\(\) 0 times and moved the parameters 1 times",
        ),
        (
            step("entropy", update="state.optimizer.step() if state.accumulation > 1 else None; state.update()"),
            r"moved the parameters 2 times with the batch in 2 micro-batches\. Call state",
        ),
        (
            step("entropy", "entropy.detach()"),
            r"returned a loss of .* with the batch in 2 micro-batches.* it looks like that of the last micro-batch",
        ),
    ],
    ids=["positions", "perplexity", "shifted", "no gradient", "own update", "two updates", "last micro-batch"],
)  # fmt: skip
def test_wrong_steps(tmp_path: Path, edits: list[Edit], message: str) -> None:
    with pytest.raises(Fault, match=message):
        check_train_step(edited(tmp_path, "bigram", *edits))


def test_an_expert_that_few_tokens_reach_is_waited_for(tmp_path: Path) -> None:
    rare = model(
        "self.expert = nn.Parameter(torch.zeros(61))",
        forward=("return x + self.expert * (tokens[:, :1, None] < 4)",),
    )  # fmt: skip
    assert check_gradients(edited(tmp_path, "bigram", *rare)) == "all 2 parameters, within 2 batches"


def test_a_parameter_of_the_training_loss_alone_learns(tmp_path: Path) -> None:
    scaled = model("self.temperature = nn.Parameter(torch.ones(()))")
    _, trained = step("entropy + (state.module.temperature * logits).logsumexp(-1).mean()")
    assert check_gradients(edited(tmp_path, "bigram", *scaled, trained)) == "all 2 parameters, within 1 batch"


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (
            model("self.gate = nn.Parameter(torch.ones(61))", forward=("return x + 0 * self.gate",)),
            r"1 of 2 parameters get no gradient in 8 batches, so they never learn: 'gate' \(all zeros\)",
        ),
        (
            model("self.gates = nn.ParameterList(torch.ones(1) for _ in range(5))"),
            r"5 of 6 .*'gates.0' \(none\), 'gates.1' \(none\), 'gates.2' \(none\) and 2 more\. 'none' is",
        ),
        (
            model(
                "self.gate = nn.Parameter(-torch.ones(61))",
                forward=("return x + self.gate.sqrt().where(self.gate > 0, 0)",),
            ),
            "the gradient of parameter 'gate' is not finite, on 24 random tokens: .* masked afterwards or not",
        ),
    ],
    ids=["times zero", "unused", "masked NaN"],
)
def test_parameters_that_do_not_learn(tmp_path: Path, edits: list[Edit], message: str) -> None:
    with pytest.raises(Fault, match=message):
        check_gradients(edited(tmp_path, "bigram", *edits))


@pytest.mark.parametrize(
    ("edits", "best"),
    [
        (model(forward=("return self.weight[: tokens.shape[1]].expand_as(x)",)), r"1\.39"),  # ln 4
        (model(forward=("return (self.weight[0] + 0 * self.weight.sum()).expand_as(x)",)), r"3\.47"),  # ln 32
    ],
    ids=["position alone", "frequency alone"],
)
def test_knowing_less_than_what_follows_what_is_not_enough(tmp_path: Path, edits: list[Edit], best: str) -> None:
    with pytest.raises(Fault, match=f"costs {best} nats/token at best after 150 updates.*what is not learnt"):
        check_overfit(edited(tmp_path, "bigram", *edits))
