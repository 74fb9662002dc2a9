"""Options made from fields take what people write, and say what is wrong with it by the option's name."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from typer.testing import CliRunner

from archbench.cli.app import app
from archbench.cli.fields import FieldOption, Given, completed, options_given, with_fields
from archbench.errors import UsageError


def given_of(model: str, option: FieldOption, text: Any) -> Given:
    """What a command with that one option gets for the text."""
    found: list[Given] = []

    @with_fields(model, option)
    def command(*, given: Given) -> None:
        found.append(given)
        assert list(options_given(command, given)) == [option.spelled] * bool(given)

    completed(command)(**{option.parameter: text})
    return found[0]


SCALE, KERNEL, RUN = (
    "archbench.study.scale_plan:ScalePlan",
    "archbench.config:KernelConfig",
    "archbench.config:RunConfig",
)


@pytest.mark.parametrize(
    ("model", "path", "text", "value"),
    [
        (SCALE, "sizes", "25k, 1.5M,300,2G,10_000", (25_000, 1_500_000, 300, 2_000_000_000, 10_000)),
        (KERNEL, "windows", "none,1024", (None, 1024)),
        (KERNEL, "losses", "16x8x32,1x2x3", ((16, 8, 32), (1, 2, 3))),
        (KERNEL, "backends", "sdpa, flex", ("sdpa", "flex")),
        (RUN, "threads", "2", 2),
        (RUN, "compile", True, True),
        (RUN, "seed", None, None),
    ],
)
def test_values_are_read_as_people_write_them(model: str, path: str, text: Any, value: Any) -> None:
    given = given_of(model, FieldOption(path), text)
    assert given == ({} if value is None else {path: value})


def test_sections_repeated_options_and_assignments_keep_their_form() -> None:
    assert given_of(SCALE, FieldOption("run.training.tokens"), "1M") == {"run": {"training": {"tokens": 1_000_000}}}
    assert given_of(RUN, FieldOption("plugins", "--plugin", many=True), ["a,b.py", "c"]) == {"plugins": ("a,b.py", "c")}
    assert given_of(RUN, FieldOption("overrides", "--set", many=True), ["d=1"]) == {"overrides": {"d": "1"}}


@pytest.mark.parametrize("text", ["", "0", "25K", "k", "1.5", "-3", "25k,,50k", "1e6", "many"])
def test_what_is_no_size_names_the_option(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--sizes"):
        given_of(SCALE, FieldOption("sizes"), text)


@pytest.mark.parametrize(("path", "text"), [("losses", "16x8"), ("head_widths", "8"), ("dtype", "float8")])
def test_a_field_judges_its_option(path: str, text: str) -> None:
    option = FieldOption(path)
    with pytest.raises(UsageError, match=f"^{option.spelled} {text}: .*"):
        given_of(KERNEL, option, text)


def test_help_and_default_are_the_fields_own() -> None:
    @with_fields(RUN, FieldOption("threads"), FieldOption("data.tokenizer"), FieldOption("training.optimizer"))
    def command(*, given: Given) -> None: ...

    options = [one.annotation.__metadata__[0] for one in inspect.signature(completed(command)).parameters.values()]
    assert [(one.help.split(" (")[0], one.show_default) for one in options] == [
        ("CPU threads", "one per core this process may use"),
        ("Tokenizer: byte, bpe:N, file:tokenizer.json, gguf:FILE, hf:NAME, ids:V", "the profile's"),
        ("Optimizer, from torch.optim", "adamw"),
    ]


@pytest.mark.parametrize("command", ["run", "compare", "tune", "probe", "scale", "kernels"])
def test_no_default_that_help_shows_is_a_name_of_the_programs_own(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"]).output
    assert "--device" in shown
    for internal in ("Undefined", "default_factory", "<class", "None)"):
        assert internal not in shown
