"""A private state of torch's global generators, from which dropout draws."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
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


# From glibc's <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_BLOCK = 32 * 2**20  # the most that M_MMAP_THRESHOLD may be
_KEPT = 2**30


def keep_freed_memory() -> bool:
    """Lets this process keep up to 1 GiB that it has freed, for what it allocates next.

    By default, glibc gives blocks as large as the activations of many replicas back to the system
    and gets them anew, page by page, filled with zeros: a third of the time of convolutions.
    False, and nothing changes, if the C library is another.
    """
    mallopt = _from_libc("mallopt")
    if mallopt is None:
        return False
    direct = mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
    return direct == mallopt(_M_TRIM_THRESHOLD, _KEPT) == 1


def give_back_freed_memory() -> bool:
    """Returns to the system what this process has freed, holes between live blocks included.

    The tensors of two episodes differ in size. A heap that keeps the holes of all of them grows
    from task to task. False, and nothing changes, if the C library is another.
    """
    trim = _from_libc("malloc_trim")
    return trim is not None and trim(0) >= 0


def _from_libc(name: str) -> Callable[..., int] | None:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # not glibc
        return None


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[None]:
    """For what trains with Trainers: an interrupt comes out of it as one, and as nothing else.

    A Trainer turns Ctrl-C into `sys.exit(1)`, and SIGTERM into another exit. Before the first batch
    its clean-up may raise a RuntimeError instead. A caller that goes on after a failed run would go
    on after these, too.

    Raises:
        KeyboardInterrupt: for any of them; the signal handlers are those of before.
    """
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    except (Exception, SystemExit) as error:
        if not _comes_from_interrupt(error):
            raise
        for number, handler in handlers.items():  # a Trainer that stumbled has left its own
            if handler is not None:  # one set outside of Python, which cannot be set from here
                signal.signal(number, handler)
        raise KeyboardInterrupt from error


def _comes_from_interrupt(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt | SIGTERMException):
        error = error.__context__
    return error is not None
