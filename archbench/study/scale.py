"""``archbench scale``: train each architecture at each size on each budget, and fit a law to the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pyarrow as pa

from archbench.data.dataset import prepare
from archbench.errors import UsageError
from archbench.plugin.registry import load
from archbench.presentation.quantities import short
from archbench.study.contenders import shared_fields, sized
from archbench.study.contract import Contender, Quality
from archbench.study.engine import Session, machine
from archbench.study.findings import Finding, Point, find, rank
from archbench.study.learning_rates import Tuning
from archbench.study.outcome import Record
from archbench.study.run_cells import RunCell, rows_of, run_cell, tokens_per_update
from archbench.study.run_study import TuningStudy, rows_by_key, shared_settings, tables_of
from archbench.study.scale_outcome import Cell, Model, Plan, ScaleOutcome
from archbench.study.scale_plan import ScalePlan

Work = Session[ScalePlan, RunCell, Record, ScaleOutcome]


class Ladder(TuningStudy[ScalePlan, ScaleOutcome]):
    """A ladder of sizes and budgets."""

    kind = ScaleOutcome
    verb: ClassVar[str] = "train"
    names: ClassVar[str] = "architectures or --sizes"

    def __init__(self, plan: ScalePlan) -> None:
        super().__init__(plan)
        self.tunings: dict[tuple[str, int | None], Tuning] = {}

    def contenders(self) -> list[Contender]:
        """Every architecture at every size, size by size."""
        return contenders(self.plan)

    def pilots(self, contender: Contender) -> Sequence[RunCell]:
        tokens, least = tokens_per_update(self.plan, contender), min(self.plan.budgets)
        if least < tokens:
            step = "Give larger --budgets, or a smaller --config training.batch_size"
            raise UsageError(f"a budget of {least:,} tokens", f"one update reads {tokens:,} tokens", step)
        return super().pilots(contender)

    def measure(self, session: Work) -> None:
        """Train size by size, the smallest first: an interrupted ladder has points of all architectures."""
        self.tunings = self.search(session, {"tokens": self.plan.tuning_budget}, spare=True)
        cells: list[RunCell] = []
        for one in session.taking_part():
            found = self.tunings[one.key]
            if found.learning_rate is None:
                session.leave_out(one, found.note)
            else:
                cells += point_cells(self.plan, one, found.learning_rate)
        session.run(cells)

    def quality(self, cell: RunCell, record: Record, folder: Path) -> Quality | None:
        if cell.stage != "point" or record.outcome != "ok":
            return None
        (_, size), tokens = cell.contender, cell.config.training.tokens
        assert size is not None
        assert tokens is not None
        loss = _loss(rows_of(folder, record))
        return Quality(loss, "nats/token", f"{short(size)} parameters, {short(tokens)} tokens")

    def outcome(self, session: Work, common: Mapping[str, Any]) -> tuple[ScaleOutcome, list[pa.Table]]:
        plan, contenders = self.plan, session.contenders
        text = len(prepare(plan.run.data).train)
        order = {one.key: place for place, one in enumerate(contenders)}
        measured = [(cell, record) for cell, record in session.measured.values() if cell.stage != "pilot"]
        cells = sorted(measured, key=lambda one: (one[0].stage == "point", order[one[0].contender]))
        frames = rows_by_key(session.folder, cells)
        findings = [self._finding(name, contenders, cells, frames, text) for name in plan.architectures]
        found = [finding for finding in findings if finding.points]
        ranking, unranked = rank(found)
        outcome = ScaleOutcome(
            **common,
            machine=machine(plan.run.device, _device_name(frames)),
            plan=Plan.of(
                plan,
                **shared_settings(plan.run, contenders[0]),
                tuning_budget=plan.tuning_budget if plan.tunes else None,
                train_tokens=text,
            ),
            rungs=[self._model(one) for one in contenders],
            findings=found,
            ranking=ranking,
            unranked=unranked,
            cells=[_cell(cell, record) for cell, record in cells],
        )
        return outcome, tables_of(frames)

    def _finding(
        self,
        architecture: str,
        contenders: Sequence[Contender],
        cells: Sequence[tuple[RunCell, Record]],
        frames: Mapping[str, pd.DataFrame],
        text: int,
    ) -> Finding:
        points = []
        for one in contenders:
            by_budget: dict[int, list[RunCell]] = {}
            for cell, record in cells:
                if cell.stage == "point" and cell.contender == one.key and record.outcome == "ok":
                    assert cell.config.training.tokens is not None
                    by_budget.setdefault(cell.config.training.tokens, []).append(cell)
            if one.architecture == architecture:
                points += [_point(one, budget, own, frames, text) for budget, own in by_budget.items()]
        return find(architecture, points)

    def _model(self, one: Contender) -> Model:
        """A contender as the outcome has it; depth and width are null if its configuration has no such fields."""
        config = None
        if one.size is not None:
            config = load(one.architecture, self.plan.run.plugins).config(self.plan.run.preset, **one.overrides)
        shape = {name: getattr(config, name, None) for name in ("n_layer", "d_model")}
        return Model.of(one, tuning=self.tunings.get(one.key), size=one.asked, **one.measures, **shape)


def contenders(plan: ScalePlan) -> list[Contender]:
    """Every architecture at every size, size by size; one that cannot have that size has the reason.

    Raises:
        UnknownNameError: an architecture or its preset does not exist.
        ArchbenchError: the first architecture, whose context all share, cannot be loaded.
    """
    fixed = shared_fields(plan.run, load(plan.architectures[0], plan.run.plugins))
    preset, plugins = plan.run.preset, plan.run.plugins
    return [
        replace(sized(name, preset, plugins, fixed, size), asked=size)
        for size in plan.sizes
        for name in plan.architectures
    ]


def point_cells(plan: ScalePlan, contender: Contender, learning_rate: float) -> list[RunCell]:
    """Each budget with each seed. Each has a whole schedule, because the loss in the middle of a longer run is higher
    than at the end of a shorter one (Hoffmann et al. 2022, arXiv:2203.15556, appendix B)."""
    return [
        run_cell(
            plan,
            contender,
            "point",
            ("train", "quality"),
            training={"tokens": budget, "learning_rate": learning_rate, "validate_every": None},
            seed=seed,
            beside=True,
        )
        for budget in plan.budgets
        for seed in range(plan.seeds)
    ]


def _point(
    one: Contender, budget: int, cells: Sequence[RunCell], frames: Mapping[str, pd.DataFrame], text: int
) -> Point:
    """One point, from the seeds that finished."""
    assert one.size is not None
    assert one.asked is not None
    losses, tokens = [], 0
    for cell in cells:
        rows = frames[cell.key]
        losses.append(_loss(rows))
        trained = rows[(rows.phase == "train") & (rows.metric == "training_seconds")]
        tokens = int(trained.tokens_seen.iloc[0])
    return Point(
        size=one.asked,
        budget=budget,
        N=one.size.non_embedding_active_parameters,
        D=tokens,
        flops=tokens * one.size.training_flops_per_token,
        losses=tuple(losses),
        learning_rate=cells[0].config.training.learning_rate,
        epochs=tokens / text,
    )


def _loss(rows: pd.DataFrame) -> float:
    return float(rows[(rows.phase == "quality") & (rows.metric == "loss")].value.iloc[0])


def _device_name(frames: Mapping[str, pd.DataFrame]) -> str | None:
    """Of the device that measured the first run."""
    return next((str(rows.device_name.iloc[0]) for rows in frames.values() if len(rows)), None)


def _cell(cell: RunCell, record: Record) -> Cell:
    config = cell.config
    recipe = {"tokens": config.training.tokens, "learning_rate": config.training.learning_rate}
    return Cell.of(cell, seed=config.seed, **recipe, **record.model_dump())
