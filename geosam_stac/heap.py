"""What the C library does with memory that is freed: by default it keeps much of it for later.

Of blocks between 128 KiB and 32 MiB, which are all that a run asks for, glibc keeps freed ones in
a heap a thread, in holes between others: 250 MB and more after a few hundred chips. From the
system and back to it they cost a fault a page instead, 15 ms a chip.
"""

from __future__ import annotations

import ctypes
import os

# mallopt(3). Both are fixed by being set; by default they grow with what is freed.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MMAP_THRESHOLD_BYTES = 1 << 20
TRIM_THRESHOLD_BYTES = 16 << 20
# What a user has said of it: https://man7.org/linux/man-pages/man3/mallopt.3.html
SETTINGS = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def give_back_freed() -> bool:
    """Large blocks go back to the system when they are freed, from now on, in the whole process.

    For a program, not for a library within one. Nothing is done, and False returned, where the C
    library is not glibc or the environment has settings of its own.
    """
    if any(name in os.environ for name in SETTINGS) or not _is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)) and bool(
        mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
    )


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, OSError, ValueError):  # macOS, musl, Windows
        return False
