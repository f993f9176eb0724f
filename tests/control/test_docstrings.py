"""The examples in the docstrings of control, policy and host do what they say."""

import doctest
import importlib
import pkgutil

import pytest

PACKAGES = [
    importlib.import_module(f"lightning_dqnlr.{name}") for name in ("control", "policy", "host")
]
MODULES = [
    module.name
    for package in PACKAGES
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_what_they_show(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
