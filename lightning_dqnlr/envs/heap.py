"""Memory that is freed and asked for again at once, as activations are at each step."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

# From glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK = 32 * 2**20  # the most that M_MMAP_THRESHOLD may be
_KEPT = 2**30


def keep_freed_memory() -> bool:
    """Lets this process keep up to 1 GiB that it has freed, for what it allocates next.

    By default, glibc gives blocks as large as the activations of many replicas back to the system
    and gets them anew, page by page, filled with zeros: a third of the time of convolutions.

    Returns:
        Whether the C library can do so; if not, nothing changes.
    """
    mallopt = _from_libc("mallopt")
    if mallopt is None:
        return False
    direct = mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK) == 1
    return bool(mallopt(_M_TRIM_THRESHOLD, _KEPT) == 1 and direct)


def give_back_freed_memory() -> bool:
    """Returns to the system what this process has freed, holes between live blocks included.

    Between two episodes, whose tensors differ in size: a heap that keeps the holes of all of them
    grows from task to task.

    Returns:
        Whether the C library can do so; if not, nothing changes.
    """
    trim = _from_libc("malloc_trim")
    if trim is None:
        return False
    trim(0)
    return True


def _from_libc(name: str) -> Callable[..., int] | None:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # not glibc
        return None
