"""``archbench serve-bench``: latencies and throughput of a run's model, or an architecture's, as a server has them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from archbench.cli.fields import DEVICE, PLUGIN, SET, FieldOption, Given, options_given, with_fields
from archbench.cli.options import Json, Quiet, Results, Trust, Unchecked, chosen_device, named, trust_run
from archbench.cli.run import with_weights
from archbench.cli.several_runs import saying_how_to_resume
from archbench.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from archbench.config import RunConfig

_OF_A_NEW_MODEL = ("--profile", "--preset", "--set", "--corpus", "--tokenizer", "--plugin", "--seed")
"""Options that a run's model has settled."""


@with_fields(
    "archbench.config:RunConfig",
    FieldOption("speed.trace", help="requests to serve: a file of JSON lines, or CSV"),
    FieldOption("speed.batch_sizes", "--batch", help="B, most requests in a batch; several are served in turn"),
    FieldOption("speed.prompt_lengths", "--prompt", help="P, prompt tokens of requests that arrive at once"),
    FieldOption("speed.new_tokens", "--new", help="tokens that each of these asks for"),
    FieldOption("speed.decoding", help="eager, graph (replays of a captured step: a GPU's) or static (their twin)"),
    FieldOption("speed.repeats"),
    FieldOption("speed.warmup"),
    FieldOption("profile", shown="quick on a CPU, standard on a GPU"),
    FieldOption("preset"),
    SET,
    DEVICE,
    FieldOption("dtype"),
    FieldOption("attention"),
    FieldOption("threads"),
    FieldOption("data.corpus"),
    FieldOption("data.tokenizer"),
    PLUGIN,
    FieldOption("seed"),
    FieldOption("out"),
)
def serve_bench(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN_OR_ARCHITECTURE",
            help="A run's id, folder or last: its trained weights. Or an architecture: random ones; or hf:PLACE",
            show_default=False,
        ),
    ] = None,
    *,
    given: Given,
    results: Results = "results",
    unchecked: Unchecked = False,
    trust: Trust = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model as a server: time to first token, time per output token, inter-token latency and throughput.

    Requests come from a trace, or arrive at once in batches of each prompt length. They are served in static batches
    of equal prompt lengths, first come first served; time in the queue counts, in virtual time, without sleeping.
    Percentiles are those of vLLM's benchmark. Lists take commas.
    """
    for option, field in (("--prompt", "prompt_lengths"), ("--new", "new_tokens")):
        speed = given.get("speed", {})
        if speed.get("trace") is not None and field in speed:
            raise UsageError(option, "the requests of --trace have lengths of their own", "Leave one of them out")
    place = _run_at(model, results)
    config, checked_by = _of_run(*place, given, trust=trust) if place else (_of_name(model, given), None)
    if unchecked:
        config = config.override(checked=False)

    from archbench.runs.run import run

    with saying_how_to_resume():
        frame = run(config, quiet=quiet, checked_by=checked_by)
    _show(frame, config, json=json)


def _run_at(model: str | None, results: str) -> tuple[str, str] | None:
    """The folder of results and the id of the run that is named; None if it is an architecture."""
    from archbench.results.store import RUN_ID

    if model is None or ":" in model:
        return None
    if model == "last" or RUN_ID.fullmatch(model):
        return results, model
    path = Path(model).resolve()
    return (str(path.parent), path.stem) if RUN_ID.fullmatch(path.stem) else None


def _of_run(out: str, run_id: str, given: Given, *, trust: bool) -> tuple[RunConfig, Path]:
    """What serves the weights of a run, and its folder.

    Raises:
        ArchbenchError: an option would change its model; or see :func:`archbench.runs.serving.served_config`.
    """
    from archbench.runs.serving import served_config

    for option in options_given(serve_bench, given):
        if option in _OF_A_NEW_MODEL:
            raise UsageError(option, "the run that is served has settled it", "Leave it out, or name an architecture")
    if trust:
        trust_run(out, run_id)
    if "device" in given:
        chosen_device(given)
    config, source = served_config(out, run_id, given)
    return config, source.path


def _of_name(name: str | None, given: Given) -> RunConfig:
    from archbench.config import RunConfig

    architecture = named(name, "serve-bench")
    given.setdefault("profile", "standard" if chosen_device(given) else "quick")
    return RunConfig(**{**with_weights(given, {}, architecture), "architecture": architecture, "phases": ("serve",)})


def _show(frame: pd.DataFrame, config: RunConfig, *, json: bool) -> None:
    from archbench.cli.summary import print_rows, print_serving

    (print_rows if json else print_serving)(frame, config.out)
