"""Checks of arguments: one message for each kind of mistake, with the name and the allowed range.

A caller may hand over what it read from a configuration. Text and booleans are no numbers here,
and NaN lies in no interval.

Example:
    >>> check_number("decay_share", 0.3, "(0, 1]")
    >>> check_integer("horizon", None, 1, optional=True)
    >>> check_number("epsilon", 2.0, "[0, 1]")
    Traceback (most recent call last):
    lightning_dqnlr.errors.ConfigurationError: epsilon=2.0 must be a number in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real

from lightning_dqnlr.errors import ConfigurationError

POSITIVE = "(0, inf)"
NOT_NEGATIVE = "[0, inf)"


def check_number(
    name: str, value: object, interval: str = "(-inf, inf)", *, optional: bool = False
) -> None:
    """Refuses what is no number, or lies outside an interval.

    Args:
        name: of the argument, as the user wrote it.
        value: what was given.
        interval: in the notation of mathematics, as "(0, 1]".
        optional: whether None is allowed.

    Raises:
        ConfigurationError: otherwise.
    """
    if optional and value is None:
        return
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not _contains(interval, float(value)):  # type: ignore[arg-type]
        _refuse(name, value, f"a number in {interval}", optional)


def check_integer(
    name: str, value: object, least: int, most: float = math.inf, *, optional: bool = False
) -> None:
    """Refuses what is no integer (2.0 is none), or lies outside least..most, both included.

    Args:
        name: of the argument.
        value: what was given; NumPy's integers count.
        least: the smallest that is allowed.
        most: the largest one.
        optional: whether None is allowed.

    Raises:
        ConfigurationError: otherwise.
    """
    if optional and value is None:
        return
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not least <= int(value) <= most:  # type: ignore[call-overload]
        wanted = f"of at least {least}" if math.isinf(most) else f"from {least} to {most}"
        _refuse(name, value, f"an integer {wanted}", optional)


def check_choice(
    name: str, value: object, choices: Collection[object], *, optional: bool = False
) -> None:
    """Refuses what is none of the choices.

    Args:
        name: of the argument.
        value: what was given.
        choices: those there are, as `typing.get_args` gives them.
        optional: whether None is allowed.

    Raises:
        ConfigurationError: otherwise.
    """
    if not (optional and value is None) and value not in choices:
        _refuse(name, value, "one of " + ", ".join(map(repr, choices)), optional)


def _contains(interval: str, value: float) -> bool:
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value >= low if interval.startswith("[") else value > low
    below = value <= high if interval.endswith("]") else value < high
    return above and below


def _refuse(name: str, value: object, wanted: str, optional: bool) -> None:
    hint = " Text is no number: YAML reads 1e-6 as text, and 1.0e-6 as a number."
    hint = hint if isinstance(value, str) and "number" in wanted else ""
    raise ConfigurationError(f"{name}={value!r} must be {wanted}{', or None' * optional}.{hint}")
