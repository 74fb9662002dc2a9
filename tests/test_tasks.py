"""Diagnostic tasks: each generator draws what its definition says, and its score means what it says."""

import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from archbench_plugins.tasks import copying, memorisation, noisy_recall, recall, selective_copying, state_tracking
from scipy import stats

from archbench import IGNORED, Examples, Task
from archbench.data.tasks import TaskSampler, check_task
from archbench.errors import HookResultError
from archbench.measure.accuracy import accuracy
from archbench.plugin.registry import available_tasks
from task_solvers import GUESSES, SOLVERS, Solver

TASKS = available_tasks()
CONDITIONS = [(name, condition) for name, task in TASKS.items() for condition in task.tests]


def random(seed=0):
    return np.random.default_rng(seed)


def test_the_six_tasks_of_the_documentation_are_there():
    assert list(TASKS) == sorted(TASKS)  # entry points come by name
    assert set(TASKS) == set(SOLVERS)


@pytest.mark.parametrize(("name", "condition"), CONDITIONS)
def test_a_model_that_solves_the_task_by_construction_scores_one(name, condition):
    task = TASKS[name]
    assert accuracy(Solver(SOLVERS[name], task.vocab_size), task.test(condition, 20)) == 1.0


@pytest.mark.parametrize("name", TASKS)
def test_what_is_trained_on_is_the_same_problem(name):
    task = TASKS[name]
    batch = TaskSampler(task, 3, ()).batch(7)
    examples = Examples(batch.inputs.numpy()[:20], batch.targets.numpy()[:20])
    assert accuracy(Solver(SOLVERS[name], task.vocab_size), examples) == 1.0


@pytest.mark.parametrize(("name", "condition"), CONDITIONS)
def test_a_guess_is_right_as_often_as_the_task_declares(name, condition):
    task, choose = TASKS[name], random(5)
    examples = task.test(condition, 400)
    right = asked = 0
    for inputs, targets in zip(examples.inputs.tolist(), examples.targets.tolist(), strict=True):
        for place, target in enumerate(targets):
            if target != IGNORED:
                right += choose.choice(list(GUESSES[name](inputs[: place + 1]))) == target
                asked += 1
    chance = task.chance[condition]
    assert abs(right / asked - chance) < 4 * np.sqrt(chance * (1 - chance) / asked)


@pytest.mark.parametrize(("name", "condition"), CONDITIONS)
def test_no_single_answer_does_better_than_chance(name, condition):
    task = TASKS[name]
    targets = task.test(condition, 2000).targets
    answers = targets[targets != IGNORED]
    most = Counter(answers.tolist()).most_common(1)[0][1] / len(answers)
    chance = task.chance[condition]
    assert most < chance + 5 * np.sqrt(chance * (1 - chance) / len(answers)) + 1e-3


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_gives_the_same_bits_and_leaves_global_generators_alone(name):
    task = TASKS[name]
    numpy_before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    first, again = (TaskSampler(task, 1, ()).batch(5) for _ in range(2))
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.targets, again.targets)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    assert torch.equal(torch.get_rng_state(), torch_before)
    for other in (TaskSampler(task, 2, ()).batch(5), TaskSampler(task, 1, ()).batch(6)):
        assert not torch.equal(first.inputs, other.inputs)


def test_another_process_draws_the_same_test_examples():
    code = (
        "import hashlib; from archbench.plugin.registry import available_tasks\n"
        "for name, task in available_tasks().items():\n"
        "    for one in task.tests: print(name, one, hashlib.sha256(task.test(one, 50).inputs.tobytes()).hexdigest())"
    )
    command, other = [sys.executable, "-c", code], {"PYTHONHASHSEED": "1"}
    elsewhere = subprocess.run(command, capture_output=True, text=True, check=True, env=other).stdout
    here = [
        f"{name} {one} {hashlib.sha256(TASKS[name].test(one, 50).inputs.tobytes()).hexdigest()}"
        for name, one in CONDITIONS
    ]
    assert elsewhere.splitlines() == here


@pytest.mark.parametrize(("name", "condition"), CONDITIONS)
def test_training_validation_and_test_examples_are_disjoint(name, condition):
    task = TASKS[name]
    test = task.test(condition, 500)
    validation = task.validation(condition, 200, test)
    tested, validated = ({row.tobytes() for row in part.inputs} for part in (test, validation))
    sampler = TaskSampler(task, 0, [test, validation])
    trained = {row.numpy().tobytes() for step in range(20) for row in sampler.batch(step).inputs}
    assert not tested & validated
    assert not trained & (tested | validated)


def tiny(random, count):
    """Of 16 examples in all."""
    inputs = random.integers(2, size=(count, 4))
    return Examples(inputs, inputs.copy())


def tiny_task(train=tiny, **fields):
    values = {
        "name": "tiny", "summary": "-", "source": "-", "vocab_size": 2, "context_length": 4, "train": train,
        "tests": {"all": tiny}, "chance": {"all": 0.5}, "updates": 10, "batch_size": 32,
    }  # fmt: skip
    return Task(**values | fields)


def test_of_few_examples_those_held_out_are_drawn_again():
    held_out = Examples(np.array([[0, 0, 0, 0], [1, 1, 1, 1]]), np.zeros((2, 4), dtype=np.int64))
    sampler = TaskSampler(tiny_task(), 0, [held_out])
    rows = {tuple(row) for step in range(20) for row in sampler.batch(step).inputs.tolist()}
    assert len(rows) == 14
    assert not rows & {(0, 0, 0, 0), (1, 1, 1, 1)}


@pytest.mark.parametrize("tested", [3, 6, 9])
def test_of_few_examples_none_is_both_validated_and_tested_however_many_of_each(tested):
    test = tiny_task().test("all", tested)
    validation = tiny_task().validation("all", 200, test)
    assert not {tuple(row) for row in test.inputs.tolist()} & {tuple(row) for row in validation.inputs.tolist()}


def test_a_task_of_which_everything_is_held_out_is_refused():
    every = np.array([[number >> bit & 1 for bit in range(4)] for number in range(16)])
    sampler = TaskSampler(tiny_task(), 0, [Examples(every, every)])
    with pytest.raises(HookResultError, match="held out"):
        sampler.batch(0)


@pytest.mark.parametrize(("pairs", "n_keys"), [(4, 16), (8, 16), (16, 16), (8, 48)])
def test_recall_shows_distinct_pairs_asks_each_key_once_and_has_no_key_among_what_fills(pairs, n_keys):
    examples = recall.draw(random(), 500, pairs, n_keys)
    shown, rest = examples.inputs[:, : 2 * pairs], examples.inputs[:, 2 * pairs :]
    keys, values = shown[:, ::2], shown[:, 1::2]
    filler = n_keys + recall.VALUES
    assert keys.max() == n_keys - 1 < values.min()
    assert values.max() < filler
    assert all(len(set(row)) == pairs for part in (keys, values) for row in part.tolist())
    asked = examples.targets[:, 2 * pairs :] != IGNORED
    assert (examples.targets[:, : 2 * pairs] == IGNORED).all()
    assert (rest[~asked] == filler).all()
    assert np.array_equal(np.sort(rest[asked].reshape(500, pairs)), np.sort(keys))
    assert not asked[:, 1::2].any()  # queries keep a slot's distance, as in the reference


def test_the_gaps_of_recall_follow_the_power_law_of_the_reference():
    pairs, count = 4, 4000
    slots = (recall.T - 2 * pairs) // 2
    examples = recall.draw(random(1), count, pairs)
    found = np.nonzero(examples.targets[:, 2 * pairs :] != IGNORED)[1] // 2
    weights = recall.POWER * np.arange(1, slots + 1) ** (recall.POWER - 1)
    other = random(2)
    expected = np.concatenate(
        [other.choice(slots, size=pairs, replace=False, p=weights / weights.sum()) for _ in range(count)]
    )
    table = [np.bincount(part, minlength=slots) for part in (found, expected)]
    assert stats.chi2_contingency(np.array(table)).pvalue > 0.001
    assert np.bincount(found)[0] > 3 * np.bincount(found)[10]  # not uniform


def test_recall_is_trained_on_every_number_of_pairs_alike():
    asked = (recall.mixed(random(), 6000).targets != IGNORED).sum(axis=1)
    numbers = (recall.EASIEST, *recall.PAIRS)
    assert set(asked) == set(numbers)
    assert stats.chisquare([np.sum(asked == pairs) for pairs in numbers]).pvalue > 0.001


def test_selective_copying_puts_its_tokens_anywhere_and_asks_for_them_in_order():
    examples = selective_copying.draw(random(), 4000)
    read, markers = np.split(examples.inputs, [selective_copying.READ], axis=1)
    tokens = read < selective_copying.TOKENS
    assert (tokens.sum(axis=1) == selective_copying.COPIED).all()
    assert (read[~tokens] == selective_copying.BLANK).all()
    assert (markers == selective_copying.MARKER).all()
    assert stats.chisquare(tokens.sum(axis=0)).pvalue > 0.001  # every place as likely
    assert np.array_equal(read[tokens].reshape(4000, -1), examples.targets[:, selective_copying.READ :])


def test_copying_is_trained_on_lengths_up_to_sixteen_all_alike():
    examples = copying.shorter(random(), 8000)
    lengths = (examples.targets != IGNORED).sum(axis=1)
    assert stats.chisquare(np.bincount(lengths, minlength=17)[1:]).pvalue > 0.001
    assert examples.inputs.shape[1] == 2 * copying.LONGEST_TRAINED + 1
    asked = examples.targets != IGNORED
    assert not asked[examples.inputs == copying.PADDING].any()


def test_the_states_are_those_of_permutations_applied_one_after_the_other():
    examples = state_tracking.draw(random(), 50, state_tracking.S3, 20, every=True)
    for elements, products in zip(examples.inputs.tolist(), examples.targets.tolist(), strict=True):
        things = (0, 1, 2)
        for element, product in zip(elements, products, strict=True):
            permutation = state_tracking.PERMUTATIONS[element]
            things = tuple(things[place] for place in permutation)
            assert state_tracking.PERMUTATIONS[product] == things
    table = state_tracking.S3
    assert not np.array_equal(table, table.T)
    bits = state_tracking.draw(random(), 50, state_tracking.PARITY, 20, every=True)
    assert np.array_equal(bits.targets, bits.inputs.cumsum(axis=1) % 2)


def test_the_state_of_a_test_is_asked_for_once_at_its_full_length():
    for length in state_tracking.LENGTHS:
        targets = TASKS["state-s3"].test(f"length {length}", 10).targets
        assert targets.shape == (10, length)
        assert (targets[:, :-1] == IGNORED).all()


@pytest.mark.parametrize("pairs", noisy_recall.PAIRS)
def test_noise_never_parts_a_pair_and_nothing_is_asked_at_it(pairs):
    examples = noisy_recall.draw(random(), 1000, pairs)
    first_value, first_noise = noisy_recall.FIRST_VALUE, noisy_recall.FIRST_NOISE
    noise = examples.inputs >= first_noise
    share = noisy_recall.NOISE_SHARE
    assert abs(noise.mean() - share / (share + 2 * (1 - share))) < 0.01  # of what comes; a pair is two tokens
    assert (examples.targets[noise] == IGNORED).all()
    for inputs, targets in zip(examples.inputs.tolist(), examples.targets.tolist(), strict=True):
        seen = {}
        for place, (token, target) in enumerate(zip(inputs, targets, strict=True)):
            if token >= noisy_recall.KEYS:
                assert target == IGNORED
                continue
            if place + 1 < len(inputs):
                assert first_value <= inputs[place + 1] < first_noise
                assert seen.get(token, inputs[place + 1]) == inputs[place + 1]
            if target == IGNORED:
                assert token not in seen
            else:
                assert len(seen) == pairs
                assert target == seen[token]
            if place + 1 < len(inputs):
                seen[token] = inputs[place + 1]


def test_the_facts_are_the_same_everywhere_and_never_shown():
    batches = [TaskSampler(TASKS["memorisation"], seed, ()).batch(0) for seed in (0, 1)]
    facts = {}
    for batch in batches:
        asked, answers = batch.inputs[:, ::2].flatten().tolist(), batch.targets[:, 1::2].flatten().tolist()
        for key, answer in zip(asked, answers, strict=True):
            assert facts.setdefault(key, answer) == answer
        assert not ((batch.inputs >= memorisation.FACTS) & (batch.inputs < memorisation.ASK)).any()
    assert len(set(facts.values())) == len(facts)


WRONG = {
    "a wrong length": (lambda random, count: Examples(np.zeros((count, 9), int), np.zeros((count, 9), int)), "longer"),
    "a token too large": (lambda random, count: Examples(np.full((count, 4), 2), np.zeros((count, 4), int)), "ids"),
    "an answer too large": (lambda random, n: Examples(np.zeros((n, 4), int), np.full((n, 4), 2)), "answers"),
    "no question": (lambda random, count: Examples(np.zeros((count, 4), int), np.full((count, 4), IGNORED)), "nothing"),
    "global randomness": (
        lambda random, count: (lambda a: Examples(a, a))(np.random.randint(0, 2, size=(count, 4), dtype=np.int64)),
        "differ for the same generator",
    ),
    "an exception": (lambda random, count: 1 / 0, "ZeroDivisionError"),
    "floats": (lambda random, count: Examples(np.zeros((count, 4)), np.zeros((count, 4))), "float64"),
    "something else": (lambda random, count: None, "NoneType"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_generator_is_refused_with_what_is_wrong(fault):
    draw, message = WRONG[fault]
    with pytest.raises(HookResultError, match=message):
        check_task(tiny_task(draw), "plugin 'x'")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chance": {}}, "different conditions"),
        ({"chance": {"all": 1.0}}, "chance"),
        ({"name": "Tiny"}, "name"),
        ({"updates": 0}, "updates"),
        ({"learning_rates": ()}, "learning rates"),
    ],
)
def test_a_task_with_a_wrong_field_is_refused(fields, message):
    with pytest.raises(HookResultError, match=message):
        check_task(tiny_task(**fields), "plugin 'x'")


class Fixed(torch.nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, tokens):
        return self.logits.expand(*tokens.shape, -1)


def test_an_answer_that_is_not_a_number_is_wrong():
    examples = Examples(np.zeros((3, 4), int), np.zeros((3, 4), int))
    assert accuracy(Fixed(torch.tensor([1.0, 0.0])), examples) == 1.0
    assert accuracy(Fixed(torch.tensor([float("nan"), 0.0])), examples) == 0.0
    assert accuracy(Fixed(torch.tensor([float("inf"), 0.0])), examples) == 0.0
