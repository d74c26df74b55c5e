"""Ctrl-C that is not lost.

Python drops a KeyboardInterrupt that is raised in a destructor or in the callback of a weak reference,
of which reading HDF5 has many. Here each is remembered, and raised again at the next :func:`check`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_listening = False
_pending = False


@contextmanager
def listening() -> Iterator[None]:
    """Remember every Ctrl-C within; in the main thread, and where Ctrl-C is not ignored."""
    global _listening, _pending
    before = signal.getsignal(signal.SIGINT)
    if _listening or not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def remember(number: int, frame: FrameType | None) -> None:
        global _pending
        _pending = True
        before(number, frame)

    _listening, _pending = True, False
    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _listening = False


def check() -> None:
    """Raise the KeyboardInterrupt that was lost since :func:`listening` began, if any was."""
    global _pending
    if _listening and _pending:
        _pending = False
        raise KeyboardInterrupt
