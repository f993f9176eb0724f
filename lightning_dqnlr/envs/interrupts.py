"""Ctrl-C in the middle of one of many runs ends all of them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.exceptions import SIGTERMException

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[None]:
    """For what trains with Trainers: an interrupt comes out of it as one, and as nothing else.

    A Trainer turns Ctrl-C into `sys.exit(1)`, or into whatever it then stumbles over when it clears
    up what is not there yet (before the first batch a RuntimeError), and SIGTERM into another exit.
    Whoever goes on after a run that failed would go on after these, too.

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
