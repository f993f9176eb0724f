"""`BarRate`: the learning rate in a progress bar, as `lr 3.2e-03`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

Metrics = dict[str, Any]
_HOOK = "get_metrics"


class BarRate:
    """Adds the learning rate that was used last to what a Trainer's progress bar shows.

    A number would become 0.003 in Rich's bar, and 0.000 soon after. A text stays as it is. The
    bar's own `get_metrics` is where Lightning has texts added. The instance gets one of its own,
    until the run ends.

    Args:
        trainer: of the run.

    Example:
        rate = BarRate(trainer)
        rate.show([3.2e-3])  # the bar shows lr=3.2e-03
        rate.close()
    """

    def __init__(self, trainer: Trainer) -> None:
        self._bar: Any = trainer.progress_bar_callback
        self._texts: list[str | None] = []
        if self._bar is not None:
            shown = _WithRates(self._bar.get_metrics, self._texts)
            setattr(self._bar, _HOOK, shown)

    def show(self, used: Sequence[float | None]) -> None:
        """Takes the rates of the steps just made; None leaves an optimizer's as it was.

        Args:
            used: one for each optimizer.
        """
        before = self._texts + [None] * (len(used) - len(self._texts))
        self._texts[:] = [
            old if rate is None else f"{rate:.1e}" for rate, old in zip(used, before, strict=True)
        ]

    def close(self) -> None:
        """Gives the bar its own `get_metrics` back; it goes on to show the last rate."""
        if self._bar is not None and isinstance(self._bar.get_metrics, _WithRates):
            delattr(self._bar, _HOOK)
        self._bar = None


class _WithRates:
    """A bar's `get_metrics`, with the rates."""

    def __init__(self, inner: Callable[..., Metrics], texts: Sequence[str | None]) -> None:
        self._inner = inner
        self._texts = texts

    def __call__(self, trainer: Trainer, pl_module: LightningModule) -> Metrics:
        metrics = self._inner(trainer, pl_module)
        # A module may show a metric of its own by that name.
        name = "dqnlr/lr" if "lr" in metrics else "lr"
        for index, text in enumerate(self._texts):
            suffix = f"/{index}" if len(self._texts) > 1 else ""
            if text is not None:
                metrics[f"{name}{suffix}"] = text
        return metrics
