"""Large arrays without waiting for the system to clear their pages."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from typing import Any

from torch import Tensor

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of glibc's <malloc.h>
_TOP_PAD_BYTES = 64 << 20

_MADV_HUGEPAGE = 14  # of Linux's <sys/mman.h>
_PAGE = mmap.PAGESIZE
_LARGE = 8 << 20


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


def in_huge_pages(array: Tensor) -> None:
    """Ask the system to give a large array pages of megabytes.

    For arrays that were not written to yet, and on Linux; a page costs about as much whatever its size. Elsewhere,
    and where the system is set up never to do it, nothing happens.
    """
    n_bytes = array.numel() * array.element_size()
    if n_bytes >= _LARGE and array.device.type == "cpu" and (madvise := _madvise()) is not None:
        begin = -(-array.data_ptr() // _PAGE) * _PAGE
        madvise(ctypes.c_void_p(begin), ctypes.c_size_t(array.data_ptr() + n_bytes - begin), _MADV_HUGEPAGE)


@functools.lru_cache
def _madvise() -> Any:
    return getattr(ctypes.CDLL(None), "madvise", None) if sys.platform.startswith("linux") else None
