"""What archbench's custom PyTorch operators share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

from archbench.errors import UsageError
from archbench.kernels.triton_guard import flop_counter


def no_second_derivative(operation: str, remedy: str) -> Callable[..., NoReturn]:
    """The gradient of a backward operator: an error.

    Raises:
        UsageError: whenever the result is called.
    """

    def refuse(ctx: Any, *gradients: Any) -> NoReturn:
        raise UsageError(operation, "it has no second derivative", remedy)

    return refuse


def count_flops(*formulas: tuple[Any, Callable[..., int]]) -> Callable[[], None]:
    """Registers FLOP formulas with torch's ``FlopCounterMode``, once: now if that is imported, else when called.

    A counter knows the formulas registered before it is made, and few processes count.

    Args:
        formulas: pairs of an operator packet and its formula, which takes the shapes of the operator's arguments.
    """
    registered = False

    def register() -> None:
        nonlocal registered
        if not registered:
            registered = True
            for operator, formula in formulas:
                flop_counter().register_flop_formula(operator)(formula)

    if "torch.utils.flop_counter" in sys.modules:
        register()
    return register
