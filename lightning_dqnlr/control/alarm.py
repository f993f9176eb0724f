"""`Alarm`: finds a run ruined within an interval, without making the host wait for the device.

An interval grows with the run, and a blown-up one is lost to its end. The alarm counts losses in a
row that are not below a level; a NaN is below none. `RUN` of them mean that the weights are ruined.
One alone may be a bad batch whose gradient the user has left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

RUN = 3
_TOGETHER = 2  # steps from one agreement of the processes to the next
_LOOK = 8  # steps from one look at a device to the next, where it can be had without waiting
_LOOK_TOGETHER = 16

Agree = Callable[[float], float]


class Alarm:
    """Of one run whose losses are on the host.

    Args:
        agree: the largest value over the processes of a data-parallel run; None for one process.

    Attributes:
        level: the loss from which on a step is ruined.
        typical: what a loss that is not finite is replaced by.

    Example:
        >>> alarm = Alarm()
        >>> alarm.begin(level=10.0, typical=1.0)
        >>> [alarm.add(torch.tensor(loss)).item() for loss in (1.0, 50.0, math.nan, 60.0)]
        [1.0, 50.0, 1.0, 60.0]
        >>> alarm.rings()
        True
    """

    def __init__(self, agree: Agree | None = None) -> None:
        self.level = math.inf
        self.typical = math.nan
        self._agree = agree
        self._steps = 0
        self._count = 0.0  # ruined steps in a row
        self._last = torch.zeros(())  # loss
        self._rung = False  # by hand

    @property
    def count(self) -> float:
        """Ruined steps in a row; may wait for the device."""
        return self._count

    @property
    def finite(self) -> bool:
        """Whether the last loss was finite; may wait for the device."""
        return bool(self._last.isfinite())

    @property
    def known_bad(self) -> bool:
        """Whether the last loss is known, without waiting, not to be finite."""
        return not self.finite

    @property
    def suspects(self) -> bool:
        """Whether the last steps were ruined, one lone loss that is not finite left aside."""
        return self.count > (0 if self.finite else 1)

    def begin(self, level: float, typical: float) -> None:
        """Begins an interval."""
        self.level = level
        self.typical = typical
        self._count = 0.0
        self._last = torch.zeros(())
        self._rung = False

    def ring(self) -> None:
        """Has `rings` answer yes after the next step, whatever its loss."""
        self._rung = True

    def _set_count(self, count: float) -> None:
        self._count = count

    def add(self, loss: Tensor) -> Tensor:
        """Takes a step's loss; returns it, or the typical one if it is not finite."""
        value = loss.item()
        self._last = loss
        self._steps += 1
        self._count = 0.0 if value < self.level else self._count + 1
        return loss if math.isfinite(value) else torch.full_like(loss, self.typical)

    def state_dict(self) -> dict[str, float]:
        """Builtins."""
        return {
            "level": self.level,
            "typical": self.typical,
            "count": self.count,
            "rung": self._rung,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restores what `state_dict` returned."""
        self.begin(state["level"], state["typical"])
        self._set_count(state["count"])
        self._rung = bool(state["rung"])

    def rings(self) -> bool:
        """Whether the interval is known to be ruined; the same on all processes."""
        count = RUN if self._rung else self._count
        if self._agree is None:
            return count >= RUN
        return self._steps % _TOGETHER == 0 and self._agree(count) >= RUN


class DeviceAlarm(Alarm):
    """The same where the losses are on a GPU: the count stays there.

    A copy of it to the host is begun every few steps, and read once it has arrived.

    Args:
        device: of the losses.
        agree: see `Alarm`.
    """

    def __init__(self, device: torch.device, agree: Agree | None = None) -> None:
        super().__init__(agree)
        self._counts = torch.zeros(2, device=device)  # ruined steps in a row: now, and at most
        self._arriving: Tensor | None = None
        self._event: torch.cuda.Event | None = None

    @property
    def count(self) -> float:
        return self._counts[0].item()

    def begin(self, level: float, typical: float) -> None:
        super().begin(level, typical)
        self._counts.zero_()
        self._arriving = None

    def _set_count(self, count: float) -> None:
        self._counts.fill_(count)

    def add(self, loss: Tensor) -> Tensor:
        self._last = loss
        self._steps += 1
        now, longest = self._counts.unbind()
        now.add_(1.0).mul_((loss < self.level).logical_not_())
        torch.maximum(longest, now, out=longest)
        return loss.nan_to_num(self.typical, self.typical, self.typical)

    @property
    def known_bad(self) -> bool:
        return False

    def rings(self) -> bool:
        if self._agree is not None:
            due = self._steps % _LOOK_TOGETHER == 0
            return due and self._agree(RUN if self._rung else self._counts[1].item()) >= RUN
        if self._rung:
            return True
        if self._arriving is None:
            self._send()
            return False
        return self._arrived() >= RUN

    def _send(self) -> None:
        if self._steps % _LOOK == 0:
            self._arriving = torch.zeros((), pin_memory=True)
            self._arriving.copy_(self._counts[1], non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def _arrived(self) -> float:
        assert self._arriving is not None
        assert self._event is not None
        if not self._event.query():
            return 0.0
        longest = self._arriving.item()
        self._arriving = None
        return longest


def alarm_on(device: torch.device, agree: Agree | None = None) -> Alarm:
    """The alarm for losses on this device."""
    return Alarm(agree) if device.type == "cpu" else DeviceAlarm(device, agree)
