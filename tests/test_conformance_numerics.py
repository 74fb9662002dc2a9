"""The checks of side effects, seeds, bfloat16 and torch.compile find their faults, and restore the process."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from archbench.errors import PluginError
from archbench.testing.checks import check_bfloat16, check_compile, check_seed, check_side_effects
from archbench.testing.evaluation import Check, run_check
from archbench.testing.global_state import watched
from edited_plugins import plugin, tiny
from rotary_edits import imported
from rotary_edits import subject as rotary


@pytest.mark.parametrize(
    "check", [check_side_effects, check_seed, check_bfloat16, check_compile], ids=lambda check: check.name
)
@pytest.mark.parametrize("name", ["gpt1", "bigram", "with dropout"])
def test_right_models_pass(check: Check, name: str, tmp_path: Path) -> None:
    result = run_check(check, plugin(tmp_path) if name == "with dropout" else tiny(name))
    assert result.status == "passed", result.evidence


CHANGES_WHAT_IS_NOT_ITS_OWN = {
    "threads": ({"build": "torch.set_num_threads(3)"}, r"in build it changed the number of threads from \d+ to 3"),
    "dtype": (
        {"generate": "torch.set_default_dtype(torch.float64)"},
        "in generate it changed the default dtype from torch.float32 to torch.float64",
    ),
    "device": ({"generate": "torch.set_default_device('meta')"}, "it changed the default device from cpu to meta"),
    "gradients": ({"generate": "torch.set_grad_enabled(False)"}, "it changed the grad mode from True to False"),
    "gradients, before they are needed": (
        {"forward": "torch.set_grad_enabled(False)"},
        "in the forward pass it changed the grad mode",
    ),
    "determinism": (
        {"train_step": "torch.use_deterministic_algorithms(True)"},
        "in train_step it changed torch.are_deterministic_algorithms_enabled() from False to True",
    ),
    "precision": (
        {"build": "torch.set_float32_matmul_precision('high')"},
        "it changed the precision of float32 products from highest to high",
    ),
    "folder": ({"build": "os.chdir('/')"}, "it changed the working folder from"),
    "environment": (
        {"build": "os.environ['OMP_NUM_THREADS_OF_MINE'] = '1'"},
        "it changed the environment variables: OMP_NUM_THREADS_OF_MINE from nothing to '1'",
    ),
    "interrupts": (
        {"generate": "signal.signal(signal.SIGINT, signal.SIG_IGN)"},
        "it changed the signal handlers: SIGINT from default_int_handler to",
    ),
    "a thread": (
        {"build": "threading.Thread(target=threading.Event().wait, name='spinner', daemon=True).start()"},
        "in build it left a thread running (spinner)",
    ),
    "a fork": ({"train_step": "os.waitpid(os.fork(), 0)"}, "in train_step it forked the process"),
    "tokens": (
        {"forward": "tokens[:, 0] = 60"},
        r"the forward pass changed [12] of the 48 values of the tokens in place, at \[0, 0\] from \d+ to 60",
    ),
    "targets": (
        {"train_step": "batch.targets.zero_()"},
        r"train_step changed 4\d of the 48 values of the batch's targets",
    ),
    "prompt": ({"generate": "prompt.add_(1)"}, "generate changed 24 of the 24 values of the prompt in place"),
    "torch's seed": (
        {"train_step": "torch.manual_seed(0)"},
        "train_step sets the seed of torch: called",
    ),
    "numpy's seed": ({"build": "np.random.seed(0)"}, "build sets the seed of numpy"),
    "random's seed": ({"generate": "random.seed(0)"}, "generate sets the seed of random"),
}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("name", CHANGES_WHAT_IS_NOT_ITS_OWN)
def test_a_side_effect_is_named_and_undone(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    parts, message = CHANGES_WHAT_IS_NOT_ITS_OWN[name]
    pattern = message if "\\" in message else re.escape(message)
    subject = plugin(tmp_path, **parts)
    before = shared_state()
    result = run_check(check_side_effects, subject)
    assert shared_state() == before
    assert result.status == "failed"
    assert re.search(pattern, result.evidence), result.evidence
    assert capfd.readouterr().out == ""


def test_printing_is_noted_and_kept_from_the_callers_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edits = {"build": "print('building ' + 100 * 'x')", "forward": "os.write(1, b'hello')"}
    result = run_check(check_side_effects, plugin(tmp_path, **edits))
    assert result.status == "noted"
    assert result.good
    assert f"build prints 'building {51 * 'x'}'" in result.evidence
    assert "the forward pass prints 'hello'" in result.evidence
    assert capfd.readouterr().out == ""


def test_what_a_library_wraps_on_import_is_noted_and_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As lightning does with torch.compile."""
    library = tmp_path / "site-packages" / "lightly.py"
    library.parent.mkdir()
    call = "functools.wraps(torch.compile)(lambda *given, before=torch.compile, **named: before(*given, **named))"
    library.write_text(f"import functools, torch\ntorch.compile = {call}\n")
    monkeypatch.syspath_prepend(library.parent)
    before = torch.compile
    subject = rotary("a library that wraps", (imported("import lightly"),), tmp_path)
    assert torch.compile is before
    result = run_check(check_side_effects, subject)
    assert result.status == "noted", result.evidence
    assert "lightly" in result.evidence
    assert "torch.compile" in result.evidence


def shared_state() -> list[object]:
    torch_state, numpy_state = torch.get_rng_state().tolist(), np.random.get_state()
    settings = [torch.get_num_threads(), torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()]
    algorithms = [torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()]
    surroundings = [os.getcwd(), dict(os.environ), signal.getsignal(signal.SIGINT), sys.stdout]
    return [settings, algorithms, surroundings, torch_state, numpy_state[1].tolist(), random.getstate()]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("torch.set_num_threads(3)", r"it changed the number of threads from \d+ to 3\. .*--threads"),
        ("torch.set_default_dtype(torch.float64)", "it changed the default dtype from torch.float32 to torch.float64"),
        ("torch.set_grad_enabled(False)", "it changed the grad mode from True to False"),
        ("os.fork()", "it forked the process"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_watched_work_that_changes_the_process_is_an_error_of_the_plugin(code: str, message: str) -> None:
    before = shared_state()
    with pytest.raises(PluginError, match=f"^phase train of wrong: {message}"), watched("phase train of wrong"):
        exec(code)  # a forked child that went on would run the rest of the tests a second time
    assert shared_state() == before


def test_what_watched_work_raises_passes_through_and_the_state_is_put_back() -> None:
    before = shared_state()
    with pytest.raises(ZeroDivisionError), watched("phase train of wrong"):
        exec("torch.set_num_threads(3); 1 / 0")
    assert shared_state() == before


def test_a_fork_outside_a_watch_continues() -> None:
    with watched("phase train of right"):
        pass
    child = os.fork()
    if child == 0:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_threads_from_before_are_no_fault() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert run_check(check_side_effects, tiny("bigram")).status == "passed"
    finally:
        done.set()
        thread.join()


OWN_GENERATOR = """
model, generator = Model(config), torch.Generator().manual_seed(3)
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.02, generator=generator)
return model
"""
DOES_NOT_REPEAT = {
    "weights from numpy": (
        {"build": "model = Model(config)\nmodel.head.bias.data += np.random.rand()\nreturn model"},
        "built twice under seed 0, the initial values of head.bias differ",
    ),
    "targets from numpy": (
        {"train_step": "batch.targets[:] = torch.from_numpy(np.random.randint(0, 61, batch.targets.shape))"},
        "the loss of step 0 is ",
    ),
    "weights moved after the last loss": (
        {
            "train_step": """
            loss = next_token_step(state, batch)
            state.model.head.bias.data += np.random.rand() * (state.step == 3)
            return loss
            """
        },
        "trained twice with the same losses for 3 steps, the values of head.bias differ",
    ),
    "samples from numpy": (
        {"generate": "return iter([torch.from_numpy(np.random.randint(0, 61, 2)) for _ in range(max_new_tokens)])"},
        "generate, called twice with the same seeds, samples other tokens from new token 0 on",
    ),
    "a seed of its own": ({"build": OWN_GENERATOR}, "seeds 0 and 1 give the same initial weights"),
}
BREAKS_IN_BFLOAT16 = {
    "raises": (
        {"forward": "x = x @ torch.eye(16)"},
        "with its weights in bfloat16 the model raised RuntimeError: expected m1 and m2 to have the same dtype",
    ),
    "is infinite": (
        {"forward": "x = x * 1e-3 / ((torch.ones_like(x) + 1e-3) - 1)"},
        "of 7808 of the logits are not finite",
    ),
    "is lost": ({"forward": "x = torch.sin(1000 * x)"}, "the logits are off by "),
    "is of another dtype": ({"forward": "return self.head(x).double()"}, "the logits are torch.float64"),
    "decodes something else": (
        {
            "build": """
            Model.new_cache = lambda self, batch_size, capacity: None
            Model.extend = lambda self, tokens, cache: self(tokens)[:, -1] * self.head.weight.dtype.itemsize
            """
        },
        "the logits of extend are off by ",
    ),
    "learns something else": (
        {"forward": "x = x * (1 + 20 * torch.is_autocast_enabled('cpu'))"},
        "trained under autocast to bfloat16, the loss of the first step is ",
    ),
    "loses its weights": (
        {"train_step": "state.model.head.bias.data.div_(float(state.dtype == torch.float32))"},
        "after one training step under autocast to bfloat16, embedding.weight is not finite",
    ),
    "rounds its weights": (
        {"train_step": "state.model.to(state.dtype)"},
        "training turned embedding.weight from torch.float32 into torch.bfloat16",
    ),
}
COMPILES_TO_SOMETHING_ELSE = {
    "prints": (
        {"forward": "print(end='')"},
        "torch.compile makes no one graph of it: Failed to trace builtin operator: Dynamo does not know how to trace "
        "builtin operator `print`",
    ),
    "asks for a value": ({"forward": "if x.sum().item() > 0:\n    x = x + 1"}, "(PATH: if x.sum().item() > 0:)"),
    "other logits": (
        {"forward": "x = x * (1.1 if torch.compiler.is_compiling() else 1.0)"},
        "in evaluation mode, its logits of 24 positions are off by ",
    ),
    "other logits at a second length": (
        {"forward": "x = x * (1.1 if torch.compiler.is_compiling() and x.shape[1] < 20 else 1.0)"},
        "in training mode, its logits of 13 positions are off by ",
    ),
    "other gradients": (
        {"forward": "x = x if not torch.compiler.is_compiling() else x.detach() / 2 + x / 2"},
        "compiled, the gradient of embedding.weight is off by ",
    ),
    "no gradients": (
        {"forward": "x = x if not torch.compiler.is_compiling() else x.detach()"},
        "compiled, embedding.weight gets no gradient",
    ),
}
CASES = [
    pytest.param(check, parts, message, id=f"{check.name}: {name}")
    for check, cases in (
        (check_seed, DOES_NOT_REPEAT),
        (check_bfloat16, BREAKS_IN_BFLOAT16),
        (check_compile, COMPILES_TO_SOMETHING_ELSE),
    )
    for name, (parts, message) in cases.items()
]


@pytest.mark.parametrize(("check", "parts", "message"), CASES)
def test_what_goes_wrong_is_named(check: Check, parts: dict[str, str], message: str, tmp_path: Path) -> None:
    result = run_check(check, plugin(tmp_path, **parts))
    assert result.status == "failed", result.evidence
    evidence = re.sub(r"\([^()]*wrong\.py:\d+: ", "(PATH: ", result.evidence)
    assert message in evidence, evidence


def test_a_model_of_constants_has_no_seed_to_tell_apart(tmp_path: Path) -> None:
    build = "model = Model(config)\nfor p in model.parameters(): p.data.zero_()\nreturn model"
    result = run_check(check_seed, plugin(tmp_path, build=build))
    assert result.status == "passed"
    assert "every initial value is a constant" in result.evidence
