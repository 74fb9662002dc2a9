"""A run whose audit fails has no numbers of that phase, and says why; unchecked, it has them with a mark."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from archbench.config import RunConfig
from archbench.errors import ConformanceError
from archbench.runs.conformance import CHECK, Findings
from archbench.runs.folder import RunFolder
from archbench.runs.preparation import start
from archbench.runs.quality import run_quality
from archbench.runs.rows import Rows
from archbench.runs.speed import run_decode
from archbench.runs.train import run_train
from command_line import archbench
from small_runs import value, with_small_corpus

EXAMPLE = (Path(__file__).parent / "example_plugins" / "bigram.py").read_text()
FORWARD = "        self.config = config\n\n    def forward(self, tokens):\n        logits = super().forward(tokens)\n"
CPU = torch.device("cpu")

PEEKS = FORWARD + (
    "        if len(tokens) > 3:\n"
    "            logits[:, :-1].scatter_(2, tokens[:, 1:, None], 9.0)\n"
    "        return logits\n"
)
REMEMBERS = (
    "        self.config = config\n        self.register_buffer('seen', torch.zeros(257))\n\n"
    "    def forward(self, tokens):\n"
    "        if not self.training:\n            self.seen += torch.bincount(tokens.flatten(), minlength=257)\n"
    "        return super().forward(tokens) + self.seen.log1p()\n"
)


def prepared(folder: Path, body: str, *, generate: str = "", **fields: object) -> RunFolder:
    """A run of the bigram with other code in it, ready for its first phase."""
    source = "import torch\n" + EXAMPLE.replace(
        "        self.config = config\n", body or "        self.config = config\n"
    )
    honest = "return decode_without_cache(model, prompt, max_new_tokens, sampling)"
    assert honest in source
    (folder / "wrong.py").write_text(source.replace(honest, generate or honest).replace('"bigram"', '"wrong"'))
    settings = {
        "architecture": "wrong",
        "profile": "smoke",
        "plugins": [str(folder / "wrong.py")],
        "preset": "nano",
        "overrides": {"context_length": 16},
        "data": {"corpus": str(with_small_corpus(folder) / "small.txt"), "tokenizer": "byte"},
        "training": {"steps": 4, "batch_size": 4, "validate_every": 2},
        "speed": {"prompt_lengths": [4], "batch_sizes": [2], "new_tokens": 6, "repeats": 1, "warmup": 0},
        "out": str(folder / "results"),
        **fields,
    }
    return start(RunConfig(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("checked", [True, False])
def test_a_score_that_peeks_in_large_batches_is_no_row(checked: bool, tmp_path: Path) -> None:
    run = prepared(tmp_path, PEEKS, phases=("quality",), checked=checked)
    rows = Rows("quality")
    if checked:
        with pytest.raises(ConformanceError, match="audit_suffix") as refusal:
            run_quality(run, CPU, rows, quiet=True)
        assert refusal.value.culprit == "architecture wrong (preset nano)"
        assert "sees what it has to predict" in refusal.value.cause
        assert not rows.finished()
    else:
        run_quality(run, CPU, rows, quiet=True)
        found = {row["metric"]: row["value"] for row in rows.finished()}
        assert found["audit_passed"] == 0
        assert found["audit_suffix"] > found["audit_tolerance"] == 1e-3
        assert found["audit_rescoring"] == found["audit_state"] == 0


def test_text_that_validation_writes_into_a_buffer_ends_the_training(tmp_path: Path) -> None:
    run = prepared(tmp_path, REMEMBERS, phases=("train",))
    with pytest.raises(ConformanceError, match=r"changes seen in its state_dict"):
        run_train(run, CPU, Rows("train"), quiet=True)


def test_a_right_run_has_the_rows_of_its_audit(tmp_path: Path) -> None:
    run = prepared(tmp_path, "", phases=("train", "quality", "decode"))
    found = {}
    for phase, measure in (("train", run_train), ("quality", run_quality), ("decode", run_decode)):
        rows = Rows(phase)
        measure(run, CPU, rows, quiet=True)
        run.write_rows(phase, rows.finished())
        found |= {(phase, row["metric"]): row["value"] for row in rows.finished() if row["metric"].startswith("audit_")}
    passed = {key: value for key, value in found.items() if key[1] == "audit_passed"}
    assert passed == {("train", "audit_passed"): 1, ("quality", "audit_passed"): 1, ("decode", "audit_passed"): 1}
    assert found["train", "audit_loss"] == pytest.approx(0, abs=1e-5)
    assert {key[1] for key in found if key[0] == "train"} == {
        "audit_loss", "audit_tokens", "audit_movement", "audit_state", "audit_passed",
    }  # fmt: skip
    assert found["decode", "audit_decode"] == pytest.approx(0, abs=1e-5)


def test_tokens_that_a_full_pass_would_not_choose_have_no_speed(tmp_path: Path) -> None:
    wrong = "return (token * 0 for token in decode_without_cache(model, prompt, max_new_tokens, sampling))"
    run = prepared(tmp_path, "", generate=wrong, phases=("decode",))
    with pytest.raises(ConformanceError, match="audit_decode"):
        run_decode(run, CPU, Rows("decode"), quiet=True)


@pytest.mark.slow
def test_the_refused_run_keeps_its_other_rows_and_one_that_says_why(tmp_path: Path) -> None:
    from archbench import read_results

    run = prepared(tmp_path, PEEKS, phases=("train", "quality", "decode"))
    Findings().write(run)  # as if the checks had passed: they see much of this, and this is about what they do not
    run.write_rows(CHECK, [])
    done = archbench("run", "wrong", "--resume", run.run_id, "--out", run.config.out, "--quiet", cwd=tmp_path)
    assert done.returncode == ConformanceError.exit_code
    assert "architecture wrong" in done.stderr
    frame = read_results(run.path.with_suffix(".parquet"))
    assert value(frame, "train", "steps") == 4
    (failed,) = frame[frame.phase == "quality"].to_dict("records")
    assert failed["metric"] == "failed"
    assert failed["value"] != failed["value"]
    assert failed["status"].startswith("ConformanceError: architecture wrong")
    assert "audit_suffix" in failed["status"]
    assert "decode" not in set(frame.phase)
