"""``archbench eval``: the field's evaluations of a trained run, or of a published model."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from archbench.cli.options import Json, Quiet, Trust, chosen_device, trust_run
from archbench.errors import CheckpointError, PluginImportError, UsageError
from archbench.presentation.terminal import console, paragraph, show

if TYPE_CHECKING:
    import pandas as pd

    from archbench.runs.folder import RunFolder


def eval_run(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run's id or folder, last, or hf:PLACE", show_default=False)
    ] = None,
    tasks: Annotated[str, typer.Option(help="Tasks, groups or YAML files of lm-evaluation-harness, with commas")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Most questions of each task", show_default="all")] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Examples before each question", show_default="each task's own")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder with the data sets (DIR/ORG/NAME), and with task files of your own"),
    ] = None,
    batch_size: Annotated[str, typer.Option(help="Sequences at a time: a number, or auto")] = "auto",
    device: Annotated[str, typer.Option(help="Where to run: auto, cpu, cuda or cuda:N")] = "auto",
    out: Annotated[str, typer.Option(help="Folder of the results")] = "results",
    trust: Trust = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask a trained model the field's questions (LAMBADA, HellaSwag, ARC …), with lm-evaluation-harness.

    The scores join the run's results, and every question with its answer is kept beside them. Where choices tie, a
    random one counts, so that a model without knowledge scores chance; lm-eval's own figure stands beside it.
    """
    names = task_names(tasks)
    if run is None:
        raise UsageError("archbench eval", "no run is named", _FOR_INSTANCE)
    if batch_size != "auto" and not (batch_size.isdecimal() and 0 < int(batch_size) <= 10**6):
        raise UsageError(f"--batch-size {batch_size}", "it is no number of sequences", "Give 1 or more, or auto")
    from archbench.plugin.registry import is_located
    from archbench.runs.folder import open_run

    published = is_located(run)
    folder = None if published else open_run(out, run)
    require_harness("archbench eval")
    where = {"device": device}
    chosen_device(where)
    from archbench.evaluation.harness_tasks import load_tasks
    from archbench.evaluation.task_scores import evaluate_run

    if folder is None:
        load_tasks(names, shots, data)  # before the model is checked, which takes longer
        folder = _published(run, where["device"], out, quiet=quiet)
    if trust:
        trust_run(out, folder.run_id)
    frame = evaluate_run(
        folder, names, shots=shots, limit=limit, data=data, batch_size=batch_size, device=where["device"], quiet=quiet
    )
    if json_:
        from archbench.cli.summary import print_rows

        print_rows(frame, out)
        return
    _print(frame, folder)


_FOR_INSTANCE = "Write for instance: archbench eval last --tasks lambada_openai,hellaswag"


def task_names(text: str) -> tuple[str, ...]:
    """Names with commas between them.

    Raises:
        UsageError: there are none.
    """
    if names := tuple(name.strip() for name in text.split(",") if name.strip()):
        return names
    raise UsageError("archbench eval", "no task is named", _FOR_INSTANCE)


def require_harness(who: str) -> None:
    """Raise a PluginImportError that says how to get it if the harness is not installed."""
    if find_spec("lm_eval") is None:
        raise PluginImportError(who, "it needs the package lm_eval", "Run: pip install 'archbench[eval]'")


def _published(name: str, device: str, out: str, *, quiet: bool) -> RunFolder:
    """A run of a published model that has measured nothing but the conformance checks.

    Raises:
        CheckpointError: the place has a configuration, and no weights.
    """
    from archbench.cli.run import configured, with_weights
    from archbench.plugin.registry import full_name
    from archbench.runs.folder import open_run
    from archbench.runs.run import run

    architecture = full_name(name, typed=True)
    given = with_weights({"profile": "smoke", "device": device, "out": out}, {}, architecture)
    if given.get("weights") is None:
        step = "Name a folder or repository with weights, or train it: archbench run"
        raise CheckpointError(name, "it has no weights", step)
    frame = run(configured({}, {**given, "architecture": architecture, "phases": ()}, None), quiet=quiet)
    return open_run(out, str(frame.run_id.iloc[0]))


def _print(frame: pd.DataFrame, folder: RunFolder) -> None:
    from archbench.report.eval_tables import eval_table

    console().print(f"\n{folder.config.architecture}, run {folder.run_id}\n", style="bold", soft_wrap=True)
    made = eval_table(frame)
    assert made is not None
    show(made)
    paragraph(f"\nEvery question and answer: {folder.path}/samples-TASK-SHOTS.jsonl", style="dim")
    paragraph(f"Rows: archbench results {folder.path}.parquet --where phase=eval", style="dim")
