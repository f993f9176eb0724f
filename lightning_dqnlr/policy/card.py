"""The card of a policy on the Hub, written from its record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_dqnlr.policy.policy import LRPolicy

# Of the summaries in a record, with their headings.
_FIGURES = {
    "regret_iqm": "IQM of regret",
    "regret_median": "median",
    "regret_p90": "90th pct.",
    "regret_max": "worst",
    "validation_regret_iqm": "IQM, validation loss",
}


def card(policy: LRPolicy, repository: str) -> str:
    """The card in Markdown: how to use the policy, how good it is, how it was made.

    Args:
        policy: with the record of its training.
        repository: "org/name" on the Hub.

    Example:
        >>> from lightning_dqnlr.policy.policy import LRPolicy
        >>> "hf://org/name" in card(LRPolicy.load("default"), "org/name")
        True
    """
    return f"""---
library_name: lightning-dqnlr
pipeline_tag: reinforcement-learning
tags:
- lightning-dqnlr
- learning-rate
- dqn
---

# {repository}

A policy of lightning-dqnlr. It sets the learning rate while a model trains.

```python
from lightning_dqnlr import DQNLRCallback

callback = DQNLRCallback(policy="hf://{repository}")
```

`pip install "lightning-dqnlr[hub]"` brings what this needs. The policy is two files, safetensors
and JSON; nothing of them is executed.

## Measured

{_measured(policy.record)}
## What it does

{_controller(policy)}
## How it was trained

```json
{_fenced(settings(policy))}
```
"""


def settings(policy: LRPolicy) -> str:
    """How a policy was trained, as JSON, but for its scores and the description of its tasks.

    Example:
        >>> from lightning_dqnlr.policy.policy import LRPolicy
        >>> '"reward": "LogProgress()"' in settings(LRPolicy.load("default"))
        True
    """
    scores = ("validation", "test", "tasks")
    origin = {name: value for name, value in policy.record.items() if name not in scores}
    members = origin.get("members")
    if isinstance(members, list):
        origin["members"] = [_member(member) for member in members]
    return json.dumps(origin, indent=2)


def _member(member: Any) -> Any:
    if not isinstance(member, Mapping):
        return member
    validation = member.get("validation")
    score = validation.get("score") if isinstance(validation, Mapping) else None
    kept = {name: value for name, value in member.items() if name not in ("tasks", "validation")}
    return kept if score is None else {**kept, "validation": score}


def _measured(record: Mapping[str, Any]) -> str:
    """The table of what the record holds; a record may hold anything."""
    tests = record.get("test")
    found = dict(tests) if isinstance(tests, Mapping) else {}
    if isinstance(record.get("validation"), Mapping):
        found["on the tasks of its selection"] = record["validation"]
    rows = [_row(name, summary) for name, summary in found.items() if _has_figures(summary)]
    if not rows:
        return "Its record holds no scores.\n"
    header = ["", *_FIGURES.values()]
    table = [header, ["---"] * len(header), *rows]
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
    return (
        "Regret compares a run's final training loss with that of the tuned cosine schedule. It is "
        "the log\nof their ratio: 0 is as good, 0.10 is 10% above it.\n\n" + lines + "\n"
    )


def _has_figures(summary: Any) -> bool:
    return isinstance(summary, Mapping) and any(
        isinstance(summary.get(name), int | float) for name in _FIGURES
    )


def _row(name: str, summary: Mapping[str, Any]) -> list[str]:
    values = [summary.get(key) for key in _FIGURES]
    cells = [f"{value:.3f}" if isinstance(value, int | float) else "" for value in values]
    return [str(name).replace("|", "/").replace("\n", " "), *cells]


def _controller(policy: LRPolicy) -> str:
    spec = asdict(policy.spec)
    multipliers = ", ".join(f"x{value:g}" for value in policy.spec.actions.multipliers)
    plain = {k: v for k, v in spec.items() if isinstance(v, int | float | str | bool)}
    rows = "\n".join(f"| `{name}` | {value} |" for name, value in plain.items())
    return (
        f"At each decision it multiplies the learning rate by one of {multipliers}. It sees\n"
        f"{len(policy.spec.features)} numbers on losses, gradients and updates. It starts with "
        f"`start={policy.start}` and\n`circuit_breaker={policy.circuit_breaker}`.\n\n"
        f"| setting of the controller | value |\n| --- | --- |\n{rows}\n"
    )


def _fenced(text: str) -> str:
    """Text that cannot end the block of code around it."""
    return text.replace("```", "` ` `")
