"""A lock in an object that can be copied."""

from __future__ import annotations

import threading
from typing import Any


class Lock:
    """For one thread at a time, which may take it again; a copy of it, pickled or not, is a lock of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()
