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
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral, Real
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from lightning_dqnlr.errors import ConfigurationError

POSITIVE = "(0, inf)"
NOT_NEGATIVE = "[0, inf)"
# Annotations of a dataclass's fields, for `check_settings`.
Count = Annotated[int, 1]
Share = Annotated[float, "[0, 1]"]
Positive = Annotated[float, POSITIVE]
NotNegative = Annotated[float, NOT_NEGATIVE]
Finite = Annotated[float, "(-inf, inf)"]
# A value may come from a file of any size; its beginning tells which one it is.
_LONGEST = 100


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
    if isinstance(value, bool) or not isinstance(value, Real) or not _contains(interval, value):
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


def check_kind(name: str, value: object, kind: type, each: type | None = None) -> None:
    """Refuses what is not of a type, as JSON tells types apart.

    Args:
        name: of the argument.
        value: what was given; a tuple counts as a list.
        kind: wanted.
        each: type of every item of a list.

    Raises:
        ConfigurationError: otherwise.
    """
    items = value if isinstance(value, list | tuple) else ()
    fits = isinstance(value, list | tuple) if kind is list else isinstance(value, kind)
    if not fits or (each and not all(isinstance(item, each) for item in items)):
        words = {dict: "an object", list: "a list", bool: "true or false", str: "text"}
        wanted = words.get(kind, kind.__name__) + (f" of {each.__name__}" if each else "")
        _refuse(name, value, wanted, optional=False)


def check_fields(
    name: str, value: object, required: Collection[str], optional: Collection[str] = ()
) -> None:
    """Refuses what is no object with these fields, of which only the optional ones may be absent.

    Args:
        name: of the object.
        value: what was given.
        required: names of the fields that it must have.
        optional: names of those that it may have.

    Raises:
        ConfigurationError: otherwise; names the fields.
    """
    if not isinstance(value, Mapping):
        _refuse(name, value, "an object", optional=False)
    missing = [field for field in required if field not in value]
    known = {*required, *optional}
    unknown = [field for field in value if field not in known]
    if missing or unknown:
        raise ConfigurationError(
            f"{name} must have certain fields; missing: {_short(str(missing))}, unknown: "
            f"{_short(str(unknown))}."
        )


def check_settings(settings: object, prefix: str) -> None:
    """Refuses a dataclass with a field outside the range that its annotation gives.

    `Annotated[float, "(0, 1]"]` stands for the numbers of an interval. `Annotated[int, 1]` stands
    for the integers from 1 on, and `Annotated[int, 1, 9]` for those up to 9. `Literal` and `bool`
    name their choices, and `| None` allows None. The items of a tuple or `Sequence` are checked one
    by one. A field with another annotation is not looked at.

    Args:
        settings: the dataclass, whose annotations can be evaluated.
        prefix: precedes the fields' names in messages.

    Raises:
        ConfigurationError: names the field.
    """
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        _check_annotated(f"{prefix}{name}", getattr(settings, name), hint)


def _check_annotated(name: str, value: Any, hint: Any, optional: bool = False) -> None:
    kind = get_origin(hint)
    parts = get_args(hint)
    if kind in (Union, UnionType):
        _check_annotated(name, value, parts[0], optional=True)
    elif kind in (tuple, Sequence):
        for item in value or ():
            _check_annotated(name, item, parts[0])
    elif kind is Literal or hint is bool:
        check_choice(name, value, parts or (True, False), optional=optional)
    elif kind is Annotated and isinstance(parts[1], str):
        check_number(name, value, parts[1], optional=optional)
    elif kind is Annotated:
        check_integer(name, value, *parts[1:], optional=optional)


def _contains(interval: str, given: Real) -> bool:
    try:
        value = float(given)
    except OverflowError:  # an integer beyond all floats
        return False
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value >= low if interval.startswith("[") else value > low
    below = value <= high if interval.endswith("]") else value < high
    return above and below


def _refuse(name: str, value: object, wanted: str, optional: bool) -> NoReturn:
    hint = " YAML reads 1e-6 as text, 1.0e-6 as a number."
    hint = hint if isinstance(value, str) and "number" in wanted else ""
    text = _short(repr(value))
    raise ConfigurationError(f"{name}={text} must be {wanted}{', or None' * optional}.{hint}")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
