"""What a comparison refuses before anything runs, and which plans are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from archbench.cli.progress import StudyProgress
from archbench.config import RunConfig
from archbench.errors import ConfigError, UnknownNameError, UsageError
from archbench.study.compare import Comparison, budget_of, cost_cells, seed_cells, speed_cells, turn_groups
from archbench.study.compare_plan import ComparePlan
from archbench.study.contenders import contenders
from archbench.study.engine import Session
from archbench.study.probe_plan import ProbePlan
from archbench.study.run_cells import tuning_cells, updates_of
from archbench.study.scale_plan import ScalePlan


def plan(*names: str, profile: str = "quick", training: dict[str, Any] | None = None, **fields: Any) -> ComparePlan:
    names = names or ("gpt1", "llama")
    run = RunConfig(architecture=names[0], profile=profile, training=training or {}, data={"tokenizer": "byte"})
    return ComparePlan(architectures=names, baseline=fields.pop("baseline", names[0]), run=run, **fields)


@pytest.mark.parametrize(
    ("fields", "culprit", "cause"),
    [
        ({"baseline": "lama"}, "baseline 'lama'", "not among those compared"),
        ({"match": "time", "jobs": 2}, "jobs", "slow each other down"),
        ({"training": {"seconds": 5}}, "training.seconds", "equal FLOPs"),
        ({"training": {"flops": 1e9}, "match": "params"}, "training.flops", "equally many tokens"),
        ({"factors": (0.5, 2.0)}, "factors", "the recipe's own learning rate"),
        ({"factors": (1.0, 2.0, 2.0)}, "factor 2", "named twice"),
        ({"cost_multiples": (1, 4, 4)}, "context multiple 4", "named twice"),
    ],
)
def test_a_plan_that_cannot_be_fair_is_refused_by_name(fields: dict[str, Any], culprit: str, cause: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(**fields)
    assert caught.value.culprit == culprit
    assert cause in caught.value.cause


def test_an_architecture_is_named_once() -> None:
    with pytest.raises(ConfigError, match="'gpt1'"):
        plan("gpt1", "gpt1")


def test_a_learning_rate_of_a_probe_or_a_ladder_is_named_once() -> None:
    """Its trainings would be counted twice."""
    with pytest.raises(ConfigError, match="learning rate 8"):
        ProbePlan(architectures=("gpt1",), tasks=("recall",), learning_rates=(8.0, 0.1, 8))
    run = RunConfig(architecture="gpt1", data={"tokenizer": "byte"})
    with pytest.raises(ConfigError, match=r"factor 0\.5"):
        ScalePlan(architectures=("gpt1",), sizes=(1000,), budgets=(1000,), factors=(1, 0.5, 0.5), run=run)


def test_only_what_is_measured_makes_another_plan() -> None:
    one = plan()
    assert one.digest() == plan().digest()
    assert one.digest() == one.override(run=one.run.override(out="elsewhere", time_limit=1.0)).digest()
    assert one.digest() == plan(margin=0.01, seeds=9, sweeps=1).digest()  # goes on with what there is
    assert one.digest() != plan(match="params").digest()
    assert one.digest() != plan(training={"tokens": 5}).digest()


def test_architectures_are_added_to_a_comparison_and_none_are_taken_away() -> None:
    two, three = plan("gpt1", "llama"), plan("gpt1", "llama", "rwkv7")
    begun = {"digest": two.digest(), "plan": two.model_dump(mode="json")}
    assert two.digest() != three.digest()  # a folder of its own, unless --out names the other
    assert Comparison(three).continues(begun)
    assert not Comparison(two).continues({"digest": three.digest(), "plan": three.model_dump(mode="json")})
    assert not Comparison(plan("gpt1", "llama", "rwkv7", match="params")).continues(begun)
    assert not Comparison(plan("gpt1", "llama", "rwkv7", baseline="llama")).continues(begun)


def test_architectures_that_are_added_are_timed_in_turns_with_the_baseline_in_sweeps_of_their_own(
    tmp_path: Path,
) -> None:
    two, three = (
        plan("llama", "gpt1", baseline="gpt1", sweeps=2),
        plan("llama", "gpt1", "gpt2", baseline="gpt1", sweeps=2),
    )
    keys = {cell.key for cell in speed_cells(two, contenders(two))}
    study = Comparison(three)
    session = Session(study, tmp_path, StudyProgress(tmp_path, "archbench compare", quiet=True))
    session.contenders, session.kept = contenders(three), {"plan": two.model_dump(mode="json")}
    for _ in range(2):  # in the session that adds it, and in a later one
        session.kept["turns"] = turn_groups(session.kept, three.architectures)
        known, added = (speed_cells(three, group, number) for number, group in enumerate(study.turns(session)))
        assert {cell.key for cell in known} == keys
        assert [cell.architecture for cell in added] == ["gpt1", "gpt2", "gpt1"] * 2
        assert not {cell.key for cell in added} & keys
        session.kept["plan"] = three.model_dump(mode="json")


def test_equal_flops_give_the_dearer_architecture_fewer_tokens_and_all_the_same_context() -> None:
    one = plan("gpt1", "llama", "rwkv7")
    found = contenders(one)
    baseline = found[0]
    budget = budget_of(one, baseline, seconds_per_update=0.1)
    assert baseline.size is not None
    assert budget == {"flops": 1_000_000 * baseline.size.training_flops_per_token}
    for contender in found:
        assert contender.size is not None
        assert (
            abs(contender.size.non_embedding_active_parameters / baseline.size.non_embedding_active_parameters - 1)
            < 0.02
        )
        assert contender.context_length == 128
        updates = updates_of(one, contender, budget)
        assert updates is not None
        spent = updates * 8 * 128 * contender.size.training_flops_per_token
        assert spent == pytest.approx(budget["flops"])


def test_equal_time_is_what_the_baseline_takes_for_its_tokens() -> None:
    one = plan(match="time", training={"steps": 100})
    assert budget_of(one, contenders(one)[0], seconds_per_update=0.25) == {"seconds": 25.0}
    assert budget_of(plan(match="tokens", training={"steps": 100}), contenders(one)[0], 1.0) == {"tokens": 102_400}


def test_fresh_seeds_share_no_seed_with_the_search() -> None:
    one = plan(seeds=5)
    contender = contenders(one)[0]
    budget = {"tokens": 10_000.0}
    search = tuning_cells(one, contender, budget, one.factors)
    fresh = seed_cells(one, contender, budget, 1e-3)
    assert len(search) == 10
    assert len(fresh) == 5
    assert not {cell.config.seed for cell in search} & {cell.config.seed for cell in fresh}
    assert {cell.config.training.tokens for cell in search} == {2_500}
    assert {cell.config.training.tokens for cell in fresh} == {10_000}
    assert len({cell.key for cell in search + fresh}) == 15


def test_speed_is_measured_there_and_back_with_the_baseline_at_both_ends() -> None:
    one = plan("llama", "gpt1", baseline="gpt1", sweeps=2)
    order = [(cell.architecture, cell.repeated) for cell in speed_cells(one, contenders(one))]
    there = [("gpt1", False), ("llama", False), ("gpt1", True)]
    assert order == there + there[::-1]


def test_cost_curves_are_of_models_of_that_context() -> None:
    one = plan(cost_multiples=(1, 4))
    cells = cost_cells(one, contenders(one)[1])
    assert [cell.context_length for cell in cells] == [128, 512]
    assert [cell.config.overrides["context_length"] for cell in cells] == [128, 512]
    assert [cell.config.speed.prompt_lengths for cell in cells] == [(96,), (480,)]


def test_one_that_cannot_be_matched_or_loaded_takes_no_part_and_the_reason_is_told(
    tmp_path: Any, minimal_plugin: str
) -> None:
    file = tmp_path / "bigram.py"
    file.write_text(minimal_plugin)
    broken = tmp_path / "broken.py"
    broken.write_text(
        minimal_plugin.replace('"bigram"', '"broken"').replace("return Bigram(config)", "raise RuntimeError('no')")
    )
    one = plan("gpt1", "bigram", "broken")
    one = one.override(run=one.run.override(plugins=(str(file), str(broken))))
    found = {contender.architecture: contender for contender in contenders(one)}
    assert found["gpt1"].matched
    assert not found["bigram"].matched
    assert found["bigram"].reason
    assert not found["broken"].matched
    assert "RuntimeError" in (found["broken"].reason or "")


def test_a_misspelt_name_is_an_error_before_anything_runs() -> None:
    with pytest.raises(UnknownNameError, match="'lama'"):
        contenders(plan("gpt1", "lama"))


def test_a_baseline_without_a_decoding_state_cannot_be_matched_on_it(tmp_path: Any, minimal_plugin: str) -> None:
    file = tmp_path / "bigram.py"
    file.write_text(minimal_plugin)
    one = plan("bigram", "gpt1", match="state")
    with pytest.raises(UsageError, match="decodes without a cache"):
        contenders(one.override(run=one.run.override(plugins=(str(file),))))
