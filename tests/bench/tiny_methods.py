"""Methods that end a worker, or that no machine has the package for."""

import os
from dataclasses import dataclass

from lightning_dqnlr.bench.methods.plan import Plan
from lightning_dqnlr.errors import MissingPackageError


@dataclass(frozen=True)
class Killer:
    name: str = "killer"
    tuned: bool = False

    def plan(self, setting):
        os._exit(9)


@dataclass(frozen=True)
class Absent:
    name: str = "absent"
    tuned: bool = False

    def plan(self, setting):
        raise MissingPackageError("method 'absent' needs the package nowhere.")


@dataclass(frozen=True)
class Raising:
    name: str = "raising"
    tuned: bool = False

    def plan(self, setting):
        raise ArithmeticError("no plan")


@dataclass(frozen=True)
class Plain:
    name: str = "plain"
    tuned: bool = True

    def plan(self, setting):
        return Plan(lr=setting.lr)
