"""Runs to remember, for tests."""

from lightning_dqnlr.memory.runs import Model, RememberedRun

MODEL = Model("net", "shapes", "structure", 1000, "Adam", 32, 1000)


def run(value, held=None, *, model=MODEL, date="2026-01-01T00:00:00", **changes):
    fields = {
        "model": model,
        "policy": {"policy": "default"},
        "date": date,
        "steps": 1000,
        "ended": "completed",
        "held": held,
        "why": "a test",
        "peak": held or 0.02,
        "upper_quartile": held or 0.01,
        "metric": "val_loss",
        "mode": "min",
        "value": value,
    }
    return RememberedRun(**{**fields, **changes})
