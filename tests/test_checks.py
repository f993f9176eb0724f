"""What the argument checks let through and what they refuse, with the words a user reads."""

import doctest
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pytest

from lightning_dqnlr import checks
from lightning_dqnlr.checks import (
    Count,
    check_choice,
    check_fields,
    check_integer,
    check_kind,
    check_number,
    check_settings,
)
from lightning_dqnlr.errors import ConfigurationError


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("(0, 1]", [1e-300, 1, 0.5, np.float32(0.5)], [0, -0.0, 1.0000001]),
        ("[0, 1)", [0, 0.999], [1, -1e-300]),
        ("(0, inf)", [1e300], [math.inf, 0]),
        ("[0, inf]", [math.inf, 0], [-math.inf]),
        ("(-inf, inf)", [-1e300], [math.inf, -math.inf]),
    ],
)
def test_the_ends_of_an_interval_belong_to_it_as_the_brackets_say(interval, inside, outside):
    for value in inside:
        check_number("x", value, interval)
    for value in [*outside, math.nan, True, "0.5", None]:
        with pytest.raises(ConfigurationError, match="x="):
            check_number("x", value, interval)


def test_an_integer_is_neither_a_float_nor_a_boolean_nor_text():
    for value in (1, 3, np.int64(2)):
        check_integer("n", value, 1, 3)
    for value in (0, 4, 2.0, True, "2", None, math.nan):
        with pytest.raises(ConfigurationError, match=r"n=.* must be an integer from 1 to 3"):
            check_integer("n", value, 1, 3)


def test_none_passes_only_where_it_may():
    check_number("x", None, "(0, 1)", optional=True)
    check_integer("n", None, 1, optional=True)
    check_choice("kind", None, ("a", "b"), optional=True)
    with pytest.raises(ConfigurationError, match=r"n=0 must be .* at least 1, or None\."):
        check_integer("n", 0, 1, optional=True)


def test_a_choice_is_refused_with_all_that_there_are():
    check_choice("kind", "a", ("a", "b"))
    with pytest.raises(ConfigurationError, match="kind='c' must be one of 'a', 'b'"):
        check_choice("kind", "c", ("a", "b"))


@dataclass
class Settings:
    count: Count = 1
    share: Annotated[float, "[0, 1]"] = 0.5
    limit: Count | None = None
    kind: Literal["a", "b"] = "a"
    on: bool = False
    widths: tuple[Count, ...] = (1, 2)
    size: Annotated[int, 1, 9] = 1
    kinds: Sequence[Literal["a", "b"]] | None = None
    text: str = "whatever"

    def __post_init__(self):
        check_settings(self, "env.")


def test_a_dataclass_is_refused_by_the_first_field_outside_its_annotation():
    Settings(count=3, share=1, limit=4, kind="b", on=True, widths=(), text=None)
    for name, value, wanted in [
        ("count", 0, "an integer of at least 1"),
        ("share", math.nan, r"a number in \[0, 1\]"),
        ("limit", 0, "an integer of at least 1, or None"),
        ("kind", None, "one of 'a', 'b'"),
        ("on", "yes", "one of True, False"),
        ("widths", (1, 2.5), "an integer of at least 1"),
        ("size", 10, "an integer from 1 to 9"),
        ("kinds", ["a", "c"], "one of 'a', 'b'"),
    ]:
        with pytest.raises(ConfigurationError, match=rf"env\.{name}=.* must be {wanted}\."):
            Settings(**{name: value})


def test_the_documented_examples_are_true():
    assert doctest.testmod(checks).failed == 0


def test_kinds_are_told_apart_as_json_does():
    check_kind("x", [1], list)
    check_kind("x", ("a",), list, each=str)
    check_kind("x", {}, dict)
    check_kind("x", True, bool)
    for value, kind, each in (
        ("ab", list, None),
        (1, bool, None),
        ([1], list, str),
        ([], dict, None),
    ):
        with pytest.raises(ConfigurationError, match="x="):
            check_kind("x", value, kind, each)


def test_fields_are_those_that_there_must_and_may_be():
    check_fields("x", {"a": 1}, ["a"], ["b"])
    for value, words in (({}, r"missing: \['a'\]"), ({"a": 1, "c": 2}, r"unknown: \['c'\]")):
        with pytest.raises(ConfigurationError, match=words):
            check_fields("x", value, ["a"], ["b"])
    with pytest.raises(ConfigurationError, match="an object"):
        check_fields("x", [], ["a"])


def test_what_was_given_is_shown_by_its_beginning():
    with pytest.raises(ConfigurationError) as caught:
        check_number("x", "a" * 10_000)
    assert len(str(caught.value)) < 200


def test_an_integer_beyond_all_floats_lies_in_no_interval():
    with pytest.raises(ConfigurationError, match="x="):
        check_number("x", 10**400, "(0, inf]")
