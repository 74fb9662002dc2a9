"""Options made from the fields of a configuration, with their names, types, bounds, help texts and defaults.

The configuration's module is imported when a command is called, not for ``archbench --help``.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

import typer

from archbench.cli.options import assign, assignments
from archbench.errors import ConfigError, UnknownNameError, UsageError, did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

Given: TypeAlias = dict[str, Any]
"""A command's parameter ``given``: the fields set by options, by section."""


@dataclass(frozen=True)
class FieldOption:
    """An option made from a configuration's field; name, type, bounds, help and default are the field's own.

    Attributes:
        path: of the field: ``training.tokens``.
        name: of the option; by default the field's.
        default: text of the value if the option is not given.
        shown: the default in ``--help``.
        help: replaces the field's description.
        many: whether it is repeatable; otherwise commas separate several values.
    """

    path: str
    name: str = ""
    default: str | None = None
    shown: str = ""
    help: str = ""
    many: bool = False

    @property
    def spelled(self) -> str:
        return self.name or "--" + self.path.rpartition(".")[2].replace("_", "-")

    @property
    def parameter(self) -> str:
        """The name under which Typer passes the option."""
        return self.path.replace(".", "_")


DEVICE = FieldOption("device", shown="auto", help="where to run: auto, cpu, cuda or cuda:N")
SET = FieldOption("overrides", "--set", many=True, help="A field of the model's configuration: n_layer=6")
PLUGIN = FieldOption("plugins", "--plugin", many=True, help="Load a plugin by its path")
RECIPE = (
    FieldOption("profile", shown="quick on a CPU, standard on a GPU"),
    FieldOption("preset"),
    SET,
    DEVICE,
    FieldOption("dtype"),
    FieldOption("threads"),
    FieldOption("data.corpus"),
    FieldOption("data.tokenizer"),
    PLUGIN,
)
"""Options of all commands that train."""


def changed(options: Sequence[FieldOption], *others: FieldOption) -> tuple[FieldOption, ...]:
    """``options``, some replaced by ``others`` of the same fields."""
    by_path = {option.path: option for option in others}
    return tuple(by_path.get(option.path, option) for option in options)


def under(section: str, options: Sequence[FieldOption]) -> tuple[FieldOption, ...]:
    """The same options for the fields of a section."""
    return tuple(replace(option, path=f"{section}.{option.path}") for option in options)


def with_fields(model: str, *options: FieldOption) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command options for the fields of ``model``, in place of its parameter ``given``.

    Args:
        model: ``package.module:Class``, a pydantic model; imported only when the command is called.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        command.__dict__["field_options"] = model, options
        return command

    return decorate


def completed(command: Callable[..., None]) -> Callable[..., None]:
    """The command with its options from :func:`with_fields`, and the fields of a parameter ``conduct`` as options."""
    if "field_options" not in command.__dict__:
        return command
    model, options = command.__dict__["field_options"]
    module, _, name = model.partition(":")
    kind = getattr(importlib.import_module(module), name)
    fields = {option: _field_at(kind, option.path) for option in options}
    own = inspect.signature(command, eval_str=True).parameters
    conduct = own["conduct"].annotation if "conduct" in own else None
    shared = {} if conduct is None else inspect.signature(conduct, eval_str=True).parameters

    @functools.wraps(command)
    def filled(**values: Any) -> None:
        given: Given = {}
        for option, field in fields.items():
            value = _value(option, field, values.pop(option.parameter))
            if value is not None:
                assign(given, option.path, value)
        if conduct is not None:
            values["conduct"] = conduct(**{name: values.pop(name) for name in shared})
        command(**values, given=given)

    made = {"given": [_parameter(option, field) for option, field in fields.items()], "conduct": shared.values()}
    parameters = [
        parameter.replace(kind=parameter.KEYWORD_ONLY)
        for one in own.values()
        for parameter in made.get(one.name, [one])
    ]
    filled.__dict__["__signature__"] = inspect.Signature(parameters)
    filled.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return filled


def options_given(command: Callable[..., None], given: Given) -> Iterator[str]:
    """The options that set the fields in ``given``, as spelled on the command line."""
    _, options = command.__dict__["field_options"]
    for option in options:
        section: Any = given
        for part in option.path.split("."):
            section = section.get(part) if section else None
        if section is not None:
            yield option.spelled


def _field_at(kind: Any, path: str) -> FieldInfo:
    from archbench.config import field_at

    field = field_at(kind, path.split("."))
    assert field is not None, path
    return field


def _parameter(option: FieldOption, field: FieldInfo) -> inspect.Parameter:
    """The option for Typer. Its value is text, which the field validates later."""
    kind = _without_none(field.annotation)
    text, _, null = (option.help or field.description or "").partition("; null for ")
    if choices := _choices(kind):
        text += f" ({', '.join(choices)})"
    if option.many:
        text += " (repeatable)"
    shown = option.shown or null
    if not shown and option.default is None and kind is not bool and field.default_factory is None:
        shown = "the profile's" if field.is_required() else _written(field.get_default())
    made = typer.Option(
        option.spelled,
        metavar=None if kind is bool else _metavar(kind),
        help=text[:1].upper() + text[1:],
        show_default=shown or option.default is not None,
    )
    annotation = bool if kind is bool else list[str] if option.many else str
    return inspect.Parameter(
        option.parameter,
        inspect.Parameter.KEYWORD_ONLY,
        default=option.default,
        annotation=Annotated[annotation | None, made],
    )


def _value(option: FieldOption, field: FieldInfo, text: Any) -> Any:
    """The value of the option, validated by the field; None if it is not given.

    Raises:
        UsageError: the field refuses it.
    """
    kind = _without_none(field.annotation)
    if text is None or text == []:
        return None
    if kind is bool:
        return not field.default
    if get_origin(kind) is dict:
        return assignments(text, option.spelled)
    from pydantic import TypeAdapter, ValidationError

    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]
    value = tuple(text) if option.many else _parsed(text, kind)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        finding = error.errors(include_url=False)[0]
        culprit = f"{option.spelled} {' '.join(text) if option.many else text}"
        given, cause = finding["input"], finding["msg"][:1].lower() + finding["msg"][1:]
        if finding["type"] == "literal_error":
            raise UnknownNameError(culprit, f"there is no {given!r}", did_you_mean(given, _choices(kind))) from None
        if finding["type"] == "missing":
            cause = "a value is missing"
        step = f"It sets {option.path}: {(field.description or '').partition('; null for ')[0]}"
        raise UsageError(culprit, f"{cause} (given: {given!r})", step) from None


def check_fields(kind: type[BaseModel], values: Mapping[str, Any]) -> None:
    """Check those of ``values``, from a file, that are fields of ``kind``, each alone; a section need only be one.

    Raises:
        ConfigError: one is wrong.
    """
    from pydantic import TypeAdapter, ValidationError

    for name in kind.model_fields.keys() & values.keys():
        field = kind.model_fields[name]
        section = hasattr(field.annotation, "model_fields")
        allowed: Any = dict[str, Any] if section else Annotated[field.annotation, field]
        try:
            TypeAdapter(allowed).validate_python(values[name])
        except ValidationError as error:
            cause, culprit = error.errors(include_url=False)[0]["msg"], f"{kind.__name__}.{name}"
            raise ConfigError(culprit, cause, f"It means: {field.description or f'the section {name}'}") from None


_NUMBER = re.compile(r"([0-9][0-9_]*\.?[0-9]*)([kMG]?)")


def _parsed(text: str, kind: Any) -> Any:
    """Parse numbers and tuples: commas separate values, x separates those of a nested tuple; 25k is 25000."""
    text, bare = text.strip(), _without_none(kind)
    if get_origin(bare) is tuple:
        element = get_args(bare)[0]
        if text in ("", "none") and _without_none(element) is element:
            return ()
        return tuple(_parsed(part, element) for part in text.split("," if ... in get_args(bare) else "x"))
    if text == "none" and bare is not kind:
        return None
    found = _NUMBER.fullmatch(text)
    if found is None or _plain(bare) is not int:
        return text
    number = float(found[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[found[2]]
    return round(number) if number.is_integer() else text  # not of infinity, which 400 digits give


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        return next(one for one in get_args(kind) if one is not type(None))
    return kind


def _plain(kind: Any) -> Any:
    """``int`` of ``Annotated[int, …]``."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _choices(kind: Any) -> tuple[str, ...]:
    """The choices of a field that is a Literal, or a tuple of them; none for other types."""
    if get_origin(kind) is tuple:
        return _choices(get_args(kind)[0])
    return get_args(kind) if get_origin(kind) is Literal else ()


def _metavar(kind: Any) -> str:
    if get_origin(kind) is dict:
        return "NAME=VALUE"
    if get_origin(kind) is tuple:
        return "NxCxV" if ... not in get_args(kind) else _metavar(_without_none(get_args(kind)[0]))
    return {int: "INTEGER", float: "FLOAT"}.get(_plain(kind), "TEXT")


def _written(value: Any) -> str:
    """A value in the syntax of the command line."""
    if isinstance(value, tuple):
        return ",".join("none" if one is None else str(one) for one in value)
    return str(value) if value is not None else ""
