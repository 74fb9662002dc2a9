"""What runs without a comparison show and do not show, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from archbench.presentation.quantities import compact, number, quantity
from archbench.report.basis import several_machines
from archbench.report.kernel_tables import LETTERS
from archbench.report.run_limits import value_of
from archbench.report.serving_percentiles import LEFT_OUT, served_in_words

if TYPE_CHECKING:
    import pandas as pd

NO_VERDICT = (
    "These are runs without a comparison, so there is no verdict: sizes, budgets and learning rates may differ, and "
    "differences may be chance. archbench compare matches sizes, tunes learning rates, and gives intervals."
)

KERNELS = (
    "Each candidate computes the same on the same inputs, in turns. The tables begin with the fastest of each case, "
    f"and show errors beside times. Their letters: {LETTERS}"
)


def summary_of(rows: pd.DataFrame) -> str:
    """One run in a sentence or three: what it needs, how fast it is, and how it ended."""
    first, sentences = rows.iloc[0], []
    bits, corpus = value_of(rows, "quality", "bits_per_byte"), rows[rows.phase != "eval"].corpus.dropna().unique()
    if bits is not None:
        tokens = rows[rows.phase == "train"].tokens_seen.max()
        after = "" if tokens != tokens else f", after training on {compact(float(tokens))} tokens"
        text = f" of {corpus[0]}" if len(corpus) else ""
        sentences.append(f"{first.architecture} needs {number(bits, 'bit/byte')} bits per byte{text}{after}.")
    speed, share = value_of(rows, "train", "tokens_per_second"), value_of(rows, "train", "mfu")
    if speed is not None:
        peak = "published" if value_of(rows, "train", "peak_flops_published") else "measured"
        of = "" if share is None else f", at {share:.0%} of the {peak} FLOP/s of this machine"
        sentences.append(f"It trains {quantity(speed, 'token/s')}{of}.")
    sentences += served_in_words(rows)
    if (failed := rows[rows.status != "ok"]).size:
        sentences.append(f"It did not finish: {failed.phase.iloc[0]}: {failed.status.iloc[0]}.")
    if (at := value_of(rows, "train", "diverged")) is not None:
        sentences.append(f"It diverged at step {at:.0f}.")
    return " ".join(sentences) or "Nothing was measured of quality or training."


def limits_of(rows: pd.DataFrame) -> Iterator[str]:
    """What these runs do not show, a sentence each."""
    modelled = rows[rows.architecture != "none"]
    if modelled.empty or (modelled.phase == "kernel").all():
        yield "Other shapes: a kernel that wins at these sizes can lose at others."
        yield "Whole models: a faster kernel makes a model faster only by its share of the model's time."
    elif (modelled.phase == "probe").all():
        yield "What an architecture cannot do: more updates, another size or another learning rate may be enough."
    else:
        seeds = modelled.groupby("name").seed.nunique()
        if (seeds == 1).any():
            yield "Chance: one seed says nothing of the spread between seeds (--seed 1 --seed 2 measures more)."
        if len(seeds) > 1:
            yield "Which is better: sizes, budgets and learning rates may differ. archbench compare matches them."
        if (modelled.phase == "serve").any():
            yield from LEFT_OUT
        if (modelled.phase == "train").any():
            yield (
                "Other learning rates: none was tuned. Another one can be better by more than two architectures differ."
            )
        if len(corpora := modelled[modelled.phase != "eval"].corpus.dropna().unique()) == 1:
            yield f"Other text: one corpus ({corpora[0]})."
        if (modelled.phase == "eval").any():
            yield "What a model can do: scores of tasks depend on prompts, shots and the choice of tasks."
        sizes = modelled.parameters.dropna()
        if len(sizes):
            yield f"Other sizes: up to {compact(float(sizes.max()))} parameters here. Rankings change with size."
    if (mixed := several_machines(rows)) is not None:
        yield mixed
    devices = ", ".join(rows.device_name.drop_duplicates().astype(str))
    yield f"Other machines: speed and memory are those of {devices}."
    if rows.run_id.nunique() == 1:
        yield "Another run on this machine: bars and samples are of one process, and processes differ."
    else:
        yield "Changes of the machine: runs of different days differ by more than their own samples do."
