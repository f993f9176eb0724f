"""A private state of torch's global generators, from which dropout draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class RandomStream:
    """The random numbers of one training run, whatever else draws from the global generators.

    Args:
        seed: of the stream.
        device: where the run trains.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._cuda = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(self._cuda):
            torch.manual_seed(seed)
            self._state = self._get()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Draws come from the stream inside the block; afterwards the global state is as before."""
        with torch.random.fork_rng(self._cuda):
            torch.set_rng_state(self._state[0])
            for device, state in zip(self._cuda, self._state[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            try:
                yield
            finally:
                self._state = self._get()

    def _get(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self._cuda)]
