"""The plan of a probe: architectures, their size, tasks and seeds."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from archbench.bounds import Factor, Parameters, Threads
from archbench.config import DTypeName, Frozen
from archbench.study.records import named_once, plan_digest

TOLERANCE = 0.02
"""Largest relative deviation of a model's size from the requested one."""


class ProbePlan(Frozen):
    """Everything that a probe depends on. Plans with the same :meth:`digest` can share a folder."""

    architectures: tuple[str, ...] = Field(min_length=1, description="names of the architectures")
    tasks: tuple[str, ...] = Field(min_length=1, description="names of the tasks")
    seeds: int = Field(3, ge=1, le=100, description="seeds of the initial weights and training examples")
    parameters: Parameters | None = Field(
        100_000,
        ge=1000,
        description="non-embedding active parameters of every model, within 2 %; null for the preset as it is",
    )
    preset: str = Field("nano", description="preset from which the search for that size starts")
    overrides: dict[str, Any] = Field(default_factory=dict, description="replaced fields of the model's configuration")
    updates: int | None = Field(
        None, ge=1, le=10**9, description="optimizer updates of each training; null for the task's own"
    )
    learning_rates: tuple[Factor, ...] | None = Field(
        None, min_length=1, max_length=100, description="peak learning rates tried; null for the task's own"
    )
    examples: int = Field(1000, ge=10, le=1_000_000, description="test examples for each condition")
    dtype: DTypeName = Field("float32", description="number format of matrix products, by autocast")
    device: str = Field("cpu", description="cpu, cuda or cuda:N")
    threads: Threads = Field(1, description="CPU threads of each training")
    jobs: int = Field(1, ge=1, le=1024, description="trainings at a time")
    checked: bool = Field(True, description="skip an architecture that fails the conformance checks")
    plugins: tuple[str, ...] = Field((), description="plugin files and folders loaded by path")

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        named_once(architecture=self.architectures, task=self.tasks, learning_rate=self.learning_rates)
        return self

    def digest(self) -> str:
        """Eight hex digits; plans that differ only in architectures, tasks, seeds and jobs have the same."""
        return plan_digest(self.model_dump(mode="json", exclude={"architectures", "tasks", "seeds", "jobs"}))
