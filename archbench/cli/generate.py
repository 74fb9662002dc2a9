"""``archbench generate``: text from a trained run, streamed as it is decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from archbench.cli.options import Device, Name, Trust, named, trust_run
from archbench.errors import DataError, UsageError
from archbench.presentation.terminal import echo, put


def generate(
    architecture: Name = None,
    run: Annotated[str, typer.Option(metavar="RUN_ID", help="The run whose model generates, or last")] = "last",
    out: Annotated[str, typer.Option(help="Folder of the results")] = "results",
    prompt: Annotated[str | None, typer.Option(help="Text to continue; without one, a new document begins")] = None,
    prompt_file: Annotated[str | None, typer.Option(help="A UTF-8 text file to continue")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=2**24, help="Most tokens to generate")] = 200,
    temperature: Annotated[float, typer.Option(help="Divisor of the logits; higher values vary the text more")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k likeliest tokens")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the likeliest tokens that together have this probability")
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always take the likeliest token")] = False,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**31 - 1, help="Seed of the sampling", show_default="another text each time"),
    ] = None,
    device: Device = "auto",
    decoding: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="How steps are taken: graph (replays of a captured step), eager or static (their twin)",
            show_default="graph, where the model can",
        ),
    ] = None,
    trust: Trust = False,
) -> None:
    """Continue a prompt with a trained model; the prompt and the text stream to standard output."""
    architecture = named(architecture, "generate")
    text = _prompt(prompt, prompt_file)

    import torch

    from archbench.inference import decoding_kind
    from archbench.inference.sampling import Sampling
    from archbench.runs.graph_decoding import why_not
    from archbench.runs.models import loaded

    if trust:
        trust_run(out, run)
    found = loaded(run, out=out, device=device)
    trained, model, tokenizer = found.architecture, found.model, found.tokenizer
    if trained.name != architecture:
        step = f"Write: archbench generate {trained.name} --run {run}"
        raise UsageError(f"run {run}", f"it trained {trained.name}, not {architecture}", step)
    where = next(model.parameters()).device
    generator = torch.Generator(where)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, greedy=greedy, eos=tokenizer.separator, generator=generator
    )
    ids = tokenizer.encode(text) if text else [tokenizer.separator]
    tokens = torch.as_tensor(ids, dtype=torch.int64, device=where).unsqueeze(0)  # (1, P)
    stream = TextStream(tokenizer.decode)
    _write(text)
    kind = decoding or "graph"
    with torch.inference_mode(), decoding_kind.decoding(kind) as ran:
        for token in trained.generate(model, tokens, max_new_tokens, sampling):
            if int(token) == tokenizer.separator:
                break
            _write(stream.push(int(token)))
    _write("\n")
    if kind != "eager":
        reason = why_not(ran)
        echo(f"Decoding: {kind}" if reason is None else f"Decoding is not {kind}: {reason}", error=True)


class TextStream:
    """Decodes a stream of tokens without splitting characters.

    A token of a byte-level vocabulary may end inside a UTF-8 sequence, which decoders show as a final U+FFFD. So a
    final U+FFFD is held back until the next token. The window keeps a few earlier tokens, because some vocabularies
    decode a token differently at the beginning of a text.

    Args:
        decode: token ids -> text; prefixes of ids must give prefixes of the text, except for a final U+FFFD.
    """

    _WINDOW = 8

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._shown = ""

    def push(self, token: int) -> str:
        """The text that became certain with this token; sometimes empty."""
        self._ids.append(token)
        text = self._decode(self._ids)
        certain = text.removesuffix("\ufffd")
        new = certain[len(self._shown) :]
        self._shown = certain
        if len(self._ids) > 2 * self._WINDOW:
            self._ids = self._ids[-self._WINDOW :]
            self._shown = self._decode(self._ids).removesuffix("\ufffd")
        return new


def _prompt(prompt: str | None, prompt_file: str | None) -> str:
    if prompt is not None and prompt_file is not None:
        raise UsageError("--prompt", "it is given beside --prompt-file", "Give one of the two")
    if prompt_file is None:
        return prompt or ""
    from archbench.files.loader import read_text

    culprit = f"--prompt-file {prompt_file}"
    return read_text(prompt_file, error=DataError, culprit=culprit, next_step="Name a text file in UTF-8")


def _write(text: str) -> None:
    if text:
        put(text)
