"""``archbench doctor``: this machine, its peak speeds, and the noise of its timings."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archbench.cli.options import Json, Plugins
from archbench.errors import UsageError
from archbench.presentation.quantities import quantity
from archbench.presentation.tables import Column, Table, table
from archbench.presentation.terminal import echo

if TYPE_CHECKING:
    import torch

EXTRAS = {
    "datasets": "corpora from the hub (hf:NAME); pip install 'archbench[datasets]'",
    "vl-convert-python": "archbench report and plots; pip install 'archbench[report]'",
    "lm_eval": "the field's evaluations (archbench eval); pip install 'archbench[eval]'",
    "transformers": "its models as architectures (hf:PLACE); pip install 'archbench[hf]'",
    "nvidia-ml-py": "a GPU's energy, clocks and other processes; pip install 'archbench[gpu]'",
    "triton": "compiled kernels on GPUs, and archbench kernels --static; pip install 'archbench[kernels]'",
}

Fact = dict[str, Any]


def doctor(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    plugin: Plugins = None,
    prove: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Prove what the device computes and how fast; continues a folder",
            show_default="no proofs",
        ),
    ] = None,
    proof: Annotated[
        list[str] | None, typer.Option(help="With --prove: this proof only (repeatable)", show_default="all")
    ] = None,
    json: Json = False,
) -> None:
    """Examine this machine: environment, peaks, noise floor, attention backends, plugins, extras. Takes seconds.

    The noise floor comes from A/A runs: one workload is timed against itself, so every difference is chance. The
    memory bandwidth is kept in the cache, and later runs say how much of it decoding uses.

    With --prove, kernels, models, training and decoding are held to what is expected of them, in about half an hour
    on a GPU (exit code 9 if something fails); what ended is not repeated, and archbench report FOLDER makes its page.
    """
    from archbench.cli.output import print_json
    from archbench.presentation.terminal import show
    from archbench.runs.device import default_device, resolve_device

    chosen = resolve_device(default_device() if device == "auto" else device)
    name = str(chosen)
    if proof and prove is None:
        raise UsageError("--proof", "it needs --prove: nothing is proved otherwise", "Add --prove FOLDER")
    if prove is not None:
        from archbench.cli.proving import prove as prove_all

        prove_all(prove, name, proof or [], command=shlex.join(["archbench", *sys.argv[1:]]), json=json)
        return
    sections: list[tuple[str, Iterator[Fact], Callable[[list[Fact]], Table] | None]] = [
        ("environment", _environment(name), _environment_table),
        ("peak", _peaks(name), _peak_table),
        ("noise", _noise(name), None),
        ("attention", _attention(chosen), _attention_table),
        ("plugin", _plugins(plugin or []), _plugin_table),
        ("extra", _extras(), _extra_table),
    ]
    for number, (kind, facts, made) in enumerate(sections):
        if json:
            for fact in facts:
                print_json({"kind": kind, **fact})
        else:
            found = list(facts)  # measures
            if number:
                echo()
            if made is None:
                _print_noise(found)
            else:
                show(made(found))


def _environment(device: str) -> Iterator[Fact]:
    from archbench.measure.machine import describe
    from archbench.measure.malloc import tune_malloc

    yield {**describe(device), "malloc": tune_malloc()}


def _peaks(device: str) -> Iterator[Fact]:
    """Peaks as a run measures them, in base units; null where the device or its data sheet has none."""
    import torch

    from archbench.measure.peaks import keep_bandwidth, measure_bandwidth, measure_gemm, published_peak

    dtypes = [torch.float32, torch.bfloat16, *([torch.float16] if device.startswith("cuda") else [])]
    for dtype in dtypes:
        yield {
            "what": f"matrix product, {str(dtype).removeprefix('torch.')}",
            "unit": "FLOP/s",
            "measured": measure_gemm(device, dtype),
            "published": published_peak(device, dtype),
        }
    bandwidth = measure_bandwidth(device)
    keep_bandwidth(device, bandwidth)
    yield {"what": "memory bandwidth", "unit": "B/s", "measured": bandwidth, "published": None}


def _noise(device: str) -> Iterator[Fact]:
    from archbench.measure.environment import contamination, snapshot
    from archbench.measure.noise_floor import measure_noise

    before = snapshot(device)
    floor = measure_noise(device)
    yield {
        "pairs": len(floor.ratios),
        "low": floor.low,
        "high": floor.high,
        "median": floor.median,
        "median_low": floor.median_low,
        "median_high": floor.median_high,
        "contaminated": contamination(before, snapshot(device)),
    }


def _attention(device: torch.device) -> Iterator[Fact]:
    """Why each backend cannot run here (null if it can), for float32, heads of width 64 and no dropout."""
    import torch

    from archbench.kernels import resolve_attention, why_not
    from archbench.kernels.attention_backends import BACKENDS

    width, dtype = 64, torch.float32
    automatic = resolve_attention(
        "auto", device_type=device.type, device_index=device.index, dtype=dtype, D=width, T=512, S=512
    )
    for backend in BACKENDS:
        cannot = partial(why_not, backend, device.type, dtype, width, device_index=device.index)
        yield {
            "backend": backend,
            "automatic": backend == automatic,
            "why_not_inference": cannot(),
            "why_not_training": cannot(gradients=True),
        }


def _plugins(plugins: list[str]) -> Iterator[Fact]:
    from archbench.plugin.description_cache import described
    from archbench.plugin.discovery import plugin_paths
    from archbench.plugin.registry import available

    if not plugin_paths(plugins):  # the names of what is installed are known without running it
        for entry in available():
            yield {"name": entry.name, "package": entry.package, "version": entry.version, "source": entry.source}
        return
    for one in described(plugins):
        for claim, source in zip(one["packages"], one["sources"], strict=True):
            package, _, version = claim.rpartition(" ")
            yield {"name": one["name"], "package": package, "version": version, "source": source}


def _extras() -> Iterator[Fact]:
    from importlib.metadata import PackageNotFoundError, version

    for package, use in EXTRAS.items():
        try:
            found: str | None = version(package)
        except PackageNotFoundError:
            found = None
        yield {"package": package, "version": found, "use": use}


def _environment_table(facts: list[Fact]) -> Table:
    columns = Column("environment", "name"), Column("", "text")
    rows = ((name.removesuffix("_bytes").replace("_", " "), _value(name, value)) for name, value in facts[0].items())
    return table("environment", "", columns, rows)


def _value(name: str, value: Any) -> str | None:
    if value is None:
        return None
    return quantity(value, "B") if name.endswith("_bytes") else str(value)


def _peak_table(facts: list[Fact]) -> Table:
    columns = Column("best of this device", "name"), Column("measured"), Column("published")
    rows = (
        (fact["what"], quantity(fact["measured"], fact["unit"]), quantity(fact["published"], fact["unit"]))
        for fact in facts
    )
    return table("peaks", "", columns, rows)


def _print_noise(facts: list[Fact]) -> None:
    from archbench.presentation.terminal import console

    (noise,) = facts
    out = console()
    out.print("noise floor", style="bold")
    out.print(
        f"95 % of {noise['pairs']} pairs of equal work differ by a factor of {noise['low']:.3f} to {noise['high']:.3f}."
    )
    floor = max(abs(noise["median_low"] - 1), abs(noise["median_high"] - 1))
    out.print(f"The median of all pairs is known to ± {floor:.1%}: smaller differences in speed are chance.")
    for reason in noise["contaminated"]:
        out.print(f"Not quiet: {reason}. Speeds measured now are marked contaminated.", style="yellow")


def _attention_table(facts: list[Fact]) -> Table:
    rows = []
    for fact in facts:
        inference, training = fact["why_not_inference"], fact["why_not_training"]
        if inference:
            here = f"no: {inference}"
        elif training:
            here = f"not in training: {training}"
        else:
            here = "yes, and auto" if fact["automatic"] else "yes"
        rows.append((fact["backend"], here))
    return table("attention", "", (Column("attention", "name"), Column("here", "text")), rows)


def _plugin_table(facts: list[Fact]) -> Table:
    columns = Column("plugin", "name"), Column("package", "name", priority=1), Column("source", "path", priority=2)
    rows = ((fact["name"], f"{fact['package']} {fact['version']}", fact["source"]) for fact in facts)
    return table("plugins", "", columns, rows, notes=["Whether each works: archbench list"])


def _extra_table(facts: list[Fact]) -> Table:
    columns = Column("optional", "name"), Column("version", "name"), Column("for", "text")
    rows = ((fact["package"], fact["version"] or "not installed", fact["use"]) for fact in facts)
    return table("extras", "", columns, rows)
