"""What a result depends on, as versions that a person bumps.

Whoever changes what a run's result is raises a number here (or the task's own `version`), and the
runs are made again. Where code lies, and what it is called, does not matter. Gymnasium's
environments ("CartPole-v1") and the tasks of lm-evaluation-harness are kept the same way. A test
compares digests of the deciding code with those of the last bump, so that no change goes unsaid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from lightning_dqnlr.bench.methods.plan import Method
from lightning_dqnlr.bench.methods.policies import LearnedPolicy

PROTOCOL = 1  # how a run is made and measured, for all methods
CONTROLLER = 2  # how a policy drives a run: features, actions, start, breaker, decay
# Records that ship of an earlier version, with what has become otherwise since. They stand in until
# they are made again, on the kind of CPU that made their rivals', and the report says so.
SUPERSEDED: Mapping[str, str] = {
    "controller=1": (
        "runs under the circuit breaker of version 0.1. Those in which it trips end otherwise now; "
        "the others do not (docs/how-it-works.md#circuit-breaker). Runs of unknown length come "
        "down now once their loss stands still."
    )
}
METHODS: Mapping[str, int] = {}  # by name; 1 for those that are not here
_PLAIN = (str, int, float)


def run_version(method: Method, task_version: str, device: str = "cpu") -> str:
    """The version of one method's runs on one task, as records have it.

    The task's is `BenchTask.version`, for a user's own task a digest of its content. Runs on a GPU
    are no records of runs on a CPU.

    Example:
        >>> from lightning_dqnlr.bench.methods.schedules import ScheduledLR, constant
        >>> run_version(ScheduledLR("constant", constant), "1")
        'protocol=1 task=1 method=1'
    """
    parts: dict[str, Any] = {
        "protocol": PROTOCOL,
        "task": task_version,
        "method": METHODS.get(method.name, 1),
    }
    parts |= _changed_settings(method)
    if isinstance(method, LearnedPolicy):
        parts["controller"] = CONTROLLER
    if device != "cpu":
        parts["device"] = device
    return " ".join(f"{name}={version}" for name, version in parts.items())


def stand_in(version: str) -> str:
    """The version of the shipped records that stand in for those of `version`, if any do.

    Example:
        >>> stand_in("protocol=1 task=1 method=1 controller=2")
        'protocol=1 task=1 method=1 controller=1'
    """
    for part in SUPERSEDED:
        name = part.partition("=")[0]
        version = re.sub(rf"\b{name}=\d+", part, version)
    return version


def _changed_settings(method: object) -> dict[str, Any]:
    """Numbers and words of a method that are not its class's defaults; its name is in the key."""
    if not is_dataclass(method):
        return {}
    own = [field for field in fields(method) if field.name not in ("name", "policy")]
    values = {field.name: (getattr(method, field.name), field.default) for field in own}
    return {k: v for k, (v, usual) in values.items() if isinstance(v, _PLAIN) and v != usual}


def policy_hash(method: Method) -> str | None:
    """Hash of a method's policy, weights and specification; None for methods without one.

    Raises:
        PolicyFileError: if the policy cannot be read.
    """
    return method.load().fingerprint if isinstance(method, LearnedPolicy) else None
