"""Large arrays without waiting for the system to clear their pages."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of glibc's <malloc.h>
_TOP_PAD_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Let glibc keep memory that is freed, for the next array of the process.

    By itself it gives arrays of megabytes back to the system at once, and the system clears the pages of the
    next ones: with batches of 256 molecules that is a tenth of a training step. The process stays as large as it
    once was. It concerns the whole process, so that commands call it and the library does not.

    Returns:
        Whether it was done; not with other C libraries than glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(
        mallopt(*option) for option in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, _TOP_PAD_BYTES))
    )
