"""What the C library does with memory that is freed: by default it keeps much of it for later.

glibc keeps freed blocks of less than 32 MiB in a heap a thread, in holes between others: 250 MB
and more after a few hundred chips.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def give_back_freed() -> bool:
    """What is free in the heap goes back to the system; whether anything did.

    Asked from time to time. To have glibc give back each block at once (`mallopt`) costs an encoder
    on the CPU a third of its pace: its layers' arrays would be fresh pages every time.
    """
    trim = _malloc_trim()
    return trim is not None and bool(trim(0))


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """Its function; None where the C library has none: musl, macOS, Windows."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return trim
