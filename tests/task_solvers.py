"""Models that solve the built-in tasks by construction, from what they have read so far and nothing else."""

import torch
from archbench_plugins.tasks import copying, memorisation, noisy_recall, recall, selective_copying, state_tracking
from torch import nn


class Solver(nn.Module):
    """tokens (B, T) -> logits (B, T, V), one-hot at ``answer(prefix)``: causal, as it is given prefixes only."""

    def __init__(self, answer, vocab_size):
        super().__init__()
        self.answer, self.vocab_size = answer, vocab_size

    def forward(self, tokens):
        answers = [[self.answer(row[: end + 1]) for end in range(len(row))] for row in tokens.tolist()]
        return nn.functional.one_hot(torch.tensor(answers), self.vocab_size).float()


def recalled(prefix):
    """The token behind the first place where the last one stood."""
    before = prefix[:-1]
    key = prefix[-1]
    return before[before.index(key) + 1] if key in before and before.index(key) + 1 < len(before) else 0


def selected(prefix):
    tokens = [token for token in prefix if token < selective_copying.TOKENS]
    return tokens[prefix.count(selective_copying.MARKER) - 1] if selective_copying.MARKER in prefix else 0


def copied(prefix):
    if copying.COPY not in prefix:
        return 0
    start = prefix.index(copying.COPY)
    letters, done = prefix[1:start], len(prefix) - start - 1
    return letters[done] if done < len(letters) else 0


def product(table):
    def answer(prefix):
        state = 0
        for element in prefix:
            state = int(table[state, element])
        return state

    return answer


def remembered(prefix):
    return int(memorisation.VALUE_OF[prefix[-2]]) if prefix[-1] == memorisation.ASK else 0


SOLVERS = {
    "recall": recalled,
    "selective-copying": selected,
    "copying": copied,
    "state-s3": product(state_tracking.S3),
    "state-parity": product(state_tracking.PARITY),
    "noisy-recall": recalled,
    "memorisation": remembered,
}

GUESSES = {
    # What a guesser chooses from, uniformly, that ignores what it would have to remember.
    "recall": lambda prefix: [token for token in prefix if recall.KEYS <= token < recall.FILLER],
    "selective-copying": lambda prefix: range(selective_copying.TOKENS),
    "copying": lambda prefix: range(copying.LETTERS),
    "state-s3": lambda prefix: range(6),
    "state-parity": lambda prefix: range(2),
    "noisy-recall": lambda prefix: sorted({t for t in prefix if noisy_recall.KEYS <= t < noisy_recall.FIRST_NOISE}),
    "memorisation": lambda prefix: range(memorisation.FACTS, 2 * memorisation.FACTS),
}
