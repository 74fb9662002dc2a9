"""A ``generate`` that does not yield what it promises, when asked, is caught, and the message names the fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from archbench.errors import HookResultError
from archbench.testing.checks import check_generate
from archbench.testing.evaluation import Fault
from archbench.testing.subject import Subject
from edited_plugins import Edit, edited, tiny

HOOK = "return decode_without_cache(model, prompt, max_new_tokens, sampling)"
IMPORTS = """
import dataclasses, itertools
import torch
from archbench import Sampling
_kept = {}

"""


def with_generate(folder: Path, body: str, *edits: Edit) -> Subject:
    """The bigram plugin whose hook returns ``own(model, prompt, n, sampling)``, of that body."""
    own = "def own(model, prompt, n, sampling):\n" + "\n".join(f"    {line}" for line in body.strip().splitlines())
    hook = (HOOK, "return own(model, prompt, max_new_tokens, sampling)")
    return edited(folder, "bigram", hook, *edits, more=IMPORTS + own)


def decoding(step: str = "yield token", *, before: str = "", sampling: str = "sampling") -> str:
    """A generator around archbench's own, which does ``step`` for each token."""
    return f"{before}\nfor i, token in enumerate(decode_without_cache(model, prompt, n, {sampling})):\n    {step}"


@pytest.mark.parametrize("name", ["gpt1", "bigram"])
@pytest.mark.parametrize("T", [1, 2, 5, 24])
def test_right_plugins_pass(name: str, T: int) -> None:
    assert "as soon as they are known" in check_generate(tiny(name, context_length=T))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (decoding(), None),
        (
            "return iter(list(decode_without_cache(model, prompt, n, sampling)))",
            "works ahead.*Yield each token as soon",
        ),
        (
            "tokens = decode_without_cache(model, prompt, n, sampling)\n"
            "while pair := list(itertools.islice(tokens, 2)): yield from pair",
            r"generate does \d operations for token \d and \d\d for another: it computes several tokens at a time",
        ),
        (
            "tokens = decode_without_cache(model, prompt, n, sampling)\nyield next(tokens)\nyield from list(tokens)",
            "computes several tokens at a time",
        ),
        (
            decoding("if i < n - 1 or n == 1: yield token"),
            "max_new_tokens = 8 generate yields 7 tokens: it has to yield 8",
        ),
        (decoding("yield token") + "\nyield token", "generate yields more than 8 tokens"),
        (decoding("yield token[:, None] if i == 2 else token"), r"token 3 is of shape \(2, 1\), torch.int64"),
        (decoding("yield token.int() if i == 2 else token"), r"token 3 is of shape \(2,\), torch.int32"),
        (decoding("yield token + 61 * (i == 2)"), r"token 3 is \[.*\]: ids have to be from 0 to V - 1 = 60"),
        (decoding(before="prompt[:, 0] = 0"), "generate changes the prompt that it is given"),
        (decoding("yield prompt[:, -1].copy_(token)"), "changes the prompt"),
        (decoding("yield prompt[:, i % prompt.shape[1]]"), "token 1 that generate yields lies in the caller's prompt"),
        (
            decoding("yield buffer.copy_(token)", before="buffer = prompt.new_zeros(len(prompt))"),
            "yielded as token 1 was overwritten by a later one",
        ),
        (decoding(sampling="Sampling()"), r"with Sampling\(greedy=True\) token \d differs between two calls"),
        (decoding("yield (token + _kept.setdefault(n, n)) % 61"), "token 1 depends on max_new_tokens"),
        (
            decoding(sampling="dataclasses.replace(sampling, eos=None)"),
            r"with Sampling\(eos=\d+\).* sequence 0 has \d+ as token 2 instead of \d+: it has ended, and has to",
        ),
        (
            decoding("yield token\n    if sampling.eos is not None and (token == sampling.eos).any(): return"),
            r"generate stops after 1 tokens of 8, although sequence 1 has not ended: stop when all have",
        ),
        (
            decoding("yield token if sampling.eos is None else torch.full_like(token, sampling.eos)"),
            "sequence 1 has .* as token 1 instead of .*: it has not ended",
        ),
        (decoding(before="model.eval()"), "after its last token.* the model itself"),
        (decoding("yield token") + "\nmodel.train()", "leaves the model in training mode, although"),
        (
            "was = [(m, m.training) for m in model.modules()]\nmodel.eval()\n"
            + decoding()
            + "\nfor m, mode in was: m.training = mode",
            "closed after its first token generate leaves the model itself in evaluation mode.*in a 'finally'",
        ),
        (decoding(sampling="Sampling(greedy=True, eos=sampling.eos)"), "samples with four seeds.* are all the same"),
        (
            decoding(sampling="dataclasses.replace(sampling, generator=None)"),
            r"token \d differs between two samples with the same seed: draw from sampling.generator",
        ),
    ],
)
def test_a_generate_that_breaks_its_promise_is_caught(tmp_path: Path, body: str, message: str | None) -> None:
    subject = with_generate(tmp_path, body)
    if message is None:
        check_generate(subject)
        return
    with pytest.raises(Fault, match=message):
        check_generate(subject)


def test_one_token_and_one_sequence_are_asked_for(tmp_path: Path) -> None:
    """A squeeze of everything loses the batch of one, which architecture.generate itself refuses."""
    with pytest.raises(HookResultError, match=r"tensors of shape \(1,\)"):
        check_generate(with_generate(tmp_path, decoding("yield token.squeeze()")))


def test_dropout_that_stays_on_is_caught(tmp_path: Path) -> None:
    body = """
tokens = prompt
ended = torch.zeros(len(prompt), dtype=torch.bool)
for _ in range(n):
    token = sampling.pick(model(tokens)[:, -1].detach())
    if sampling.eos is not None:
        token = token.masked_fill(ended, sampling.eos)
        ended = token == sampling.eos
    tokens = torch.cat([tokens, token[:, None]], 1)
    yield token
"""
    check_generate(with_generate(tmp_path, body))
    line = "        self.config = config\n"
    forward = "\n    def forward(self, tokens):\n        return nn.functional.dropout("
    dropout = (line, f"{line}{forward}super().forward(tokens), 0.5, self.training)\n")
    with pytest.raises(Fault, match=r"another one if the model is in training mode.*or dropout decides"):
        check_generate(with_generate(tmp_path, body, dropout))


def test_rows_that_share_what_they_may_use_are_no_fault_of_eos(tmp_path: Path) -> None:
    """Routing with a capacity changes a sequence when its neighbour has ended."""
    line = "        self.config = config\n"
    forward = (
        "\n    def forward(self, tokens):\n        x = super().forward(tokens)\n        return x + 5 * x.mean(0)\n"
    )
    with pytest.raises(Fault, match=r"sequence 1 is decoded to .* beside another and to .* alone: .* a capacity"):
        check_generate(with_generate(tmp_path, decoding(), (line, line + forward)))
