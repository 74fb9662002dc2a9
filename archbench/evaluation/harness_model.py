"""A model as lm-evaluation-harness asks it: log-likelihoods, rolling ones, and text until a stop.

Importing this file registers the model ``archbench`` with the harness, whose command line is then
``python -m archbench.evaluation.harness_model run --model archbench --model_args run=results/RUN_ID``: release 0.4.13
has no entry points by which its own command could find it.

How a text is split, leading spaces, the token before an empty context and length normalisation are the harness's own
(``TemplateLM``). As in its ``HFLM``, a context begins with the token that the tokenizer's file puts before texts.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor, nn

from archbench.config import ModelConfig
from archbench.data.byte_tokenizer import Tokenizer
from archbench.errors import ConfigError
from archbench.inference.sampling import Sampling
from archbench.measure.scoring import scoring
from archbench.plugin.architecture import Architecture
from archbench.presentation.step_view import StepView
from archbench.runs.models import loaded

LOGITS_AT_ONCE = 1 << 28
"""Most logits of a batch of the size ``auto``: 1 GiB in float32."""

MOST_AT_ONCE = 64
"""Most sequences of a batch of the size ``auto``."""

_TOO_LONG = "Train it with a longer context, or leave the task out"

_Tokens = list[int]
_Request = tuple[tuple[str, str] | None, _Tokens, _Tokens]
_Answer = tuple[float, bool]


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A loaded model, in evaluation mode, of any architecture.

    Args:
        config: the model's; its ``context_length`` T is the most that is read at once.
        dtype: autocast dtype; log-softmax is always float32, sums are float64.
        batch_size: sequences at a time; ``auto``: as many as :data:`LOGITS_AT_ONCE` allows.
        steps: shows how far it is.

    Attributes:
        cut: requests whose context lost its beginning, because it was longer than T.
    """

    def __init__(
        self,
        architecture: Architecture,
        model: nn.Module,
        tokenizer: Tokenizer,
        config: ModelConfig,
        *,
        dtype: torch.dtype = torch.float32,
        batch_size: int | str = "auto",
        steps: StepView | None = None,
    ) -> None:
        super().__init__()
        self.architecture, self.model, self.reader = architecture, model, tokenizer
        self.max_length, self.dtype, self.steps, self.cut = config.context_length, dtype, steps, 0
        self._device = next((one.device for one in model.parameters()), torch.device("cpu"))
        fits = LOGITS_AT_ONCE // (config.context_length * config.vocab_size)
        automatic = str(batch_size).startswith("auto")
        self.batch_size = max(1, min(MOST_AT_ONCE, fits)) if automatic else int(batch_size)

    @property
    def eot_token_id(self) -> int:
        return self.reader.separator

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> _Tokens:
        ids = [int(one) for one in self.reader.encode(string)]
        begins = add_special_tokens is not False and getattr(self.reader, "begins_texts", False)
        return [self.reader.separator, *ids] if begins else ids

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[_Answer]:
        """As the harness has it, without its progress bar: ``steps`` shows progress, and --quiet shows none."""
        found: list[_Answer] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[_Request], disable_tqdm: bool = False, **_: Any
    ) -> list[_Answer]:
        """Requests that read the same tokens, such as choices of one token each, share a pass."""
        T, answers = self.max_length, dict[int, _Answer]()
        readers: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, (_text, context, continuation) in enumerate(requests):
            if len(continuation) > T:
                cause = f"an answer of {len(continuation)} tokens is longer than the context of {T} tokens"
                raise ConfigError(f"model {self.architecture.name}", cause, _TOO_LONG)
            self.cut += len(context) + len(continuation) > T + 1
            readers[tuple(context + continuation)[-(T + 1) : -1]].append(number)
        inputs = sorted(readers, key=lambda one: (-len(one), one))
        with scoring(self.model, self._device, self.dtype):
            for batch in self._batches(inputs, "log-likelihoods"):
                for tokens, logits in zip(batch, self._logits(batch), strict=True):
                    numbers = readers[tokens]
                    answers |= _answers(logits[: len(tokens)], {one: requests[one][2] for one in numbers})
                    for one in numbers:
                        if (text := requests[one][0]) is not None:
                            self.cache_hook.add_partial("loglikelihood", text, answers[one])
        return [answers[number] for number in range(len(requests))]

    def _batches(self, inputs: Sequence[Any], what: str) -> Iterator[Sequence[Any]]:
        count = -(-len(inputs) // self.batch_size)
        for number in range(count):
            if self.steps is not None:
                self.steps.begun(what, number + 1, count)
            yield inputs[number * self.batch_size : (number + 1) * self.batch_size]

    def _logits(self, batch: Sequence[Sequence[int]]) -> Tensor:
        """Logits (B, T, V) of sequences padded on the right, which nothing before it can see."""
        length = max(map(len, batch))
        padded = [[*tokens, *[self.eot_token_id] * (length - len(tokens))] for tokens in batch]
        logits: Tensor = self.model(torch.tensor(padded, device=self._device))
        return logits

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        windows = [
            [(None, *make_disjoint_window(window)) for window in self._windows(request.args[0])] for request in requests
        ]
        scores = iter(self._loglikelihood_tokens(list(itertools.chain.from_iterable(windows))))
        totals = [math.fsum(nats for nats, _ in itertools.islice(scores, len(own))) for own in windows]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _windows(self, text: str) -> Iterator[tuple[_Tokens, _Tokens]]:
        """Those of :func:`archbench.measure.scoring.rolling_windows`: only the text's own tokens are predicted."""
        tokens = self.tok_encode(text, add_special_tokens=False)
        found: Iterator[tuple[_Tokens, _Tokens]] = get_rolling_token_windows(
            token_list=tokens, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
        )
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Prompts of equal length and equal settings are decoded together, from the architecture's own cache."""
        texts: dict[int, str] = {}
        alike: dict[tuple[int, str], list[tuple[int, _Tokens]]] = defaultdict(list)
        for number, request in enumerate(requests):
            context, settings = request.args
            new = normalize_gen_kwargs(settings, self.max_gen_toks)["max_gen_toks"]
            if (room := self.max_length - new) < 1:
                cause = f"its context of {self.max_length} tokens has no room for an answer of up to {new}"
                raise ConfigError(f"model {self.architecture.name}", cause, _TOO_LONG)
            prompt = self.tok_encode(context) or [self.eot_token_id]
            self.cut += len(prompt) > room
            prompt = prompt[-room:]
            alike[len(prompt), repr(settings)].append((number, prompt))
        for group in alike.values():
            settings = requests[group[0][0]].args[1]
            for batch in self._batches(group, f"answers to {len(group)} prompts of {len(group[0][1])} tokens"):
                for (number, _), text in zip(batch, self._continued([one for _, one in batch], settings), strict=True):
                    texts[number] = text
                    self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return [texts[number] for number in range(len(requests))]

    max_gen_toks = 256
    """Most new tokens where a task names no number; ``HFLM``'s."""

    def _continued(self, prompts: Sequence[_Tokens], settings: dict[str, Any]) -> list[str]:
        wanted = normalize_gen_kwargs(settings, self.max_gen_toks)
        stops = [one for one in handle_stop_sequences(wanted.get("until"), eos=None) if one]
        sampling = Sampling(greedy=True, eos=self.eot_token_id)
        if wanted["do_sample"]:
            chosen = {name: wanted[name] for name in ("temperature", "top_k", "top_p") if wanted.get(name)}
            sampling = Sampling(eos=self.eot_token_id, **chosen)
        tokens = torch.tensor(prompts, device=self._device)
        ids: list[_Tokens] = [[] for _ in prompts]
        open_ = set(range(len(prompts)))
        for new in self.architecture.generate(self.model, tokens, wanted["max_gen_toks"], sampling):
            for row in sorted(open_):
                ids[row].append(int(new[row]))
                text = self.reader.decode(ids[row])
                if ids[row][-1] == self.eot_token_id or any(stop in text for stop in stops):
                    open_.remove(row)
            if not open_:
                break
        return [postprocess_generated_text(self.reader.decode(own), stops, None) for own in ids]


@register_model("archbench")
class HarnessRun(HarnessModel):
    """The model of a finished run, by the arguments of ``--model_args``.

    Args:
        run: the run's folder, or its id under ``out``, or last.
        dtype: as torch names it; None for the run's own.
    """

    def __init__(
        self,
        run: str,
        out: str = "results",
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
    ) -> None:
        found = loaded(run, out=out, device=device or "auto")
        precision = getattr(torch, dtype or found.folder.config.dtype)
        super().__init__(
            found.architecture, found.model, found.tokenizer, found.config, dtype=precision, batch_size=batch_size
        )


def _answers(logits: Tensor, continuations: dict[int, _Tokens]) -> dict[int, _Answer]:
    """Of logits (T, V): the log-likelihood of each continuation that ends there, and whether it is the likeliest."""
    newest = max(map(len, continuations.values()))
    scores = logits[-newest:].float().log_softmax(dim=-1)  # (newest, V)
    likeliest = scores.argmax(dim=-1)
    found = {}
    for number, tokens in continuations.items():
        ids = torch.tensor(tokens, device=scores.device)
        nats = scores[-len(tokens) :].gather(-1, ids[:, None]).sum(dtype=torch.float64)
        found[number] = (float(nats), bool((likeliest[-len(tokens) :] == ids).all()))
    return found


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
