"""Quality: windows as lm-evaluation-harness's, and a score that a plain token-by-token scorer agrees with."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from archbench.data.dataset import EncodedDocument
from archbench.errors import DataError, HookResultError, UsageError
from archbench.measure import scoring
from archbench.measure.scoring import QualityScore, rolling_windows, score

SEPARATOR = 10


class Recurrent(nn.Module):
    """A small model whose every logit depends on all it read, in order; dropout shows which mode it runs in."""

    def __init__(self, vocab_size: int = 11) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, 16)
        self.layer = nn.GRU(16, 16, batch_first=True)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(16, vocab_size)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.seen.append(tuple(tokens.shape))
        return 4 * self.head(self.dropout(self.layer(self.embedding(tokens))[0]))


@pytest.fixture
def model() -> Recurrent:
    torch.manual_seed(0)
    return Recurrent()


def documents(*lengths: int) -> list[EncodedDocument]:
    random = np.random.default_rng(0)
    return [
        EncodedDocument(f"d{i}", random.integers(0, 10, length).astype(np.uint16), 2 * length)
        for i, length in enumerate(lengths)
    ]


def windows(context_length: int, context_len: int) -> list[tuple[list[int], list[int]]]:
    """Inputs and predicted tokens of 0 … 33 with the separator -100, as the harness's example writes them."""
    sequence = [-100, *range(34)]
    return [
        (sequence[begin:end], sequence[end + 1 - scored : end + 1])
        for begin, end, scored in rolling_windows(34, context_length, stride=context_length - context_len + 1)
    ]


def test_windows_are_the_harnesses_with_no_shared_context() -> None:
    """``get_rolling_token_windows(range(34), -100, max_seq_len=10, context_len=1)`` of lm-evaluation-harness."""
    assert windows(10, context_len=1) == [
        ([-100, 0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ([9, 10, 11, 12, 13, 14, 15, 16, 17, 18], [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]),
        ([19, 20, 21, 22, 23, 24, 25, 26, 27, 28], [20, 21, 22, 23, 24, 25, 26, 27, 28, 29]),
        ([23, 24, 25, 26, 27, 28, 29, 30, 31, 32], [30, 31, 32, 33]),
    ]


def test_windows_are_the_harnesses_with_shared_context() -> None:
    """The same with ``context_len=5``: windows of six new tokens."""
    assert windows(10, context_len=5) == [
        ([-100, 0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ([5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [10, 11, 12, 13, 14, 15]),
        ([11, 12, 13, 14, 15, 16, 17, 18, 19, 20], [16, 17, 18, 19, 20, 21]),
        ([17, 18, 19, 20, 21, 22, 23, 24, 25, 26], [22, 23, 24, 25, 26, 27]),
        ([23, 24, 25, 26, 27, 28, 29, 30, 31, 32], [28, 29, 30, 31, 32, 33]),
    ]


@given(n=st.integers(0, 200), T=st.integers(1, 40), data=st.data())
def test_windows_score_each_token_once_and_read_no_more_than_a_context(n: int, T: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, T))
    found = rolling_windows(n, T, stride)
    assert [i for _, end, scored in found for i in range(end - scored, end)] == list(range(n))
    assert all(end - begin == min(T, n) and begin >= 0 for begin, end, _ in found)


@pytest.mark.parametrize("stride", [0, -1, 11])
def test_a_stride_outside_the_context_is_refused(stride: int) -> None:
    with pytest.raises(UsageError, match=r"stride.*not between 1 and the context length"):
        rolling_windows(34, 10, stride)


def token_by_token(model: nn.Module, tokens: list[int], context_length: int, stride: int) -> float:
    """Nats of a document with one forward pass a token, its left context worked out for itself."""
    total = 0.0
    for place, token in enumerate(tokens):
        begin = 0
        if place >= context_length:
            later = (place - context_length) // stride  # whole strides after the first window
            begin = min(context_length + (later + 1) * stride, len(tokens)) - context_length
        read = [SEPARATOR, *tokens][begin : place + 1]
        with torch.no_grad():
            logits = model(torch.tensor([read]))[0, -1].double()
        total -= torch.log_softmax(logits, -1)[token].item()
    return total


@pytest.mark.parametrize("stride", [None, 1, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_token_by_token_scorer_agrees(model: Recurrent, stride: int | None, batch_size: int) -> None:
    texts = documents(1, 30, 8, 7, 9, 33, 7)
    result = score(model, texts, separator=SEPARATOR, context_length=8, stride=stride, batch_size=batch_size)
    model.eval()
    for document, scored in zip(texts, result.documents, strict=True):
        expected = token_by_token(model, document.tokens.tolist(), 8, stride or 8)
        assert scored.nats == pytest.approx(expected, rel=1e-5)  # float32 logits
        assert (scored.name, scored.tokens, scored.bytes) == (document.name, len(document.tokens), document.n_bytes)
    nats = sum(document.nats for document in result.documents)
    assert (result.tokens, result.bytes) == (95, 190)
    assert result.loss == pytest.approx(nats / 95)
    assert result.perplexity == pytest.approx(math.exp(nats / 95))
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / 190)


def test_windows_go_in_batches_without_padding(model: Recurrent) -> None:
    score(model, documents(30, 5, 5, 16), separator=SEPARATOR, context_length=8, batch_size=3)
    assert sorted(model.seen) == [(2, 5), (3, 8), (3, 8)]


def test_large_logits_are_taken_in_chunks_to_the_same_score(model: Recurrent, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score(model, documents(100), separator=SEPARATOR, context_length=8)
    monkeypatch.setattr(scoring, "_LOGITS_AT_ONCE", 30)
    assert score(model, documents(100), separator=SEPARATOR, context_length=8).loss == pytest.approx(whole.loss)


def test_knowing_nothing_costs_the_logarithm_of_the_vocabulary() -> None:
    class Ignorant(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return torch.zeros(*tokens.shape, 256)

    result = score(Ignorant(), documents(1000), separator=SEPARATOR, context_length=128)
    assert result.loss == pytest.approx(math.log(256), rel=1e-6)
    assert result.perplexity == pytest.approx(256, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(4)  # eight bits a token, and two bytes


def test_dropout_is_off_and_the_modes_come_back(model: Recurrent) -> None:
    model.train()
    model.layer.eval()
    first, second = (score(model, documents(50), separator=SEPARATOR, context_length=8) for _ in range(2))
    assert first == second
    assert (model.training, model.dropout.training, model.layer.training) == (True, True, False)


def test_training_goes_on_after_a_score_that_built_a_models_tables(model: Recurrent) -> None:
    class Lazy(nn.Module):
        table: Tensor | None = None

        def forward(self, tokens: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.ones(11)
            logits: Tensor = model(tokens)
            return logits * self.table

    lazy = Lazy()
    score(lazy, documents(20), separator=SEPARATOR, context_length=8)
    lazy(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    assert model.head.weight.grad is not None


def test_half_precision_logits_are_scored_in_single_precision(model: Recurrent) -> None:
    exact, half = (
        score(model, documents(500), separator=SEPARATOR, context_length=8, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.loss != exact.loss
    assert half.loss == pytest.approx(exact.loss, rel=0.01)  # logits of about 2, to 8 bits


def test_a_diverged_model_scores_nan_not_an_error(model: Recurrent) -> None:
    nn.init.constant_(model.head.bias, float("nan"))
    result = score(model, documents(20), separator=SEPARATOR, context_length=8)
    assert isinstance(result, QualityScore)
    assert math.isnan(result.loss)
    assert math.isnan(result.perplexity)
    nn.init.constant_(model.head.bias, 0.0)
    nn.init.constant_(model.head.weight, 1e6)
    with torch.no_grad():
        model.head.weight[0] *= -1
    assert score(model, documents(20), separator=SEPARATOR, context_length=8).perplexity == math.inf


def test_logits_that_cannot_be_scored_are_refused(model: Recurrent) -> None:
    with pytest.raises(HookResultError, match="cover 9 token ids, and the text uses id 10"):
        score(_Cut(model, 9), documents(20), separator=SEPARATOR, context_length=8)
    with pytest.raises(HookResultError, match=r"shape \(2, 11\), not logits \(B, T, V\)"):
        score(_Last(model), documents(16), separator=SEPARATOR, context_length=8)
    with pytest.raises(DataError, match="no token to score"):
        score(model, documents(0), separator=SEPARATOR, context_length=8)


class _Cut(nn.Module):
    def __init__(self, inner: nn.Module, V: int) -> None:
        super().__init__()
        self.inner, self.V = inner, V

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.inner(tokens)
        return logits[..., : self.V]


class _Last(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.inner(tokens)
        return logits[:, -1]
