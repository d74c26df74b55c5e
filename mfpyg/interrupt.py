"""Ctrl-C that is not lost, or that waits until work can stop.

Python drops a KeyboardInterrupt that is raised in a destructor or in the callback of a weak reference,
of which reading HDF5 has many. Here each is remembered, and raised again at the next :func:`check`.
SIGTERM, with which queues and the system end a process, is taken for a Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_STOPS = (signal.SIGINT, signal.SIGTERM)

_listening = False
_pending = False


@contextmanager
def listening() -> Iterator[None]:
    """Remember every Ctrl-C within, SIGTERM being one, too; in the main thread, and where it is not ignored.

    For commands: a library leaves the handling of signals to the program.
    """
    global _listening, _pending
    if _listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {}

    def remember(number: int, frame: FrameType | None) -> None:
        global _pending
        _pending = True
        handler = before[signal.Signals(number)]
        (handler if callable(handler) else signal.default_int_handler)(number, frame)

    _listening, _pending = True, False
    try:
        for number in _STOPS:
            handler = signal.getsignal(number)
            if callable(handler) or (number == signal.SIGTERM and handler == signal.SIG_DFL):
                before[number] = handler
                signal.signal(number, remember)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _listening = False


def check() -> None:
    """Raise the KeyboardInterrupt that was lost since :func:`listening` began, if any was."""
    global _pending
    if _listening and _pending:
        _pending = False
        raise KeyboardInterrupt


class Postponed:
    """Ctrl-C and SIGTERM as a wish, for work that can stop at some moments only; a second one comes at once.

    Args:
        message: printed to the standard error when the first one comes.

    Attributes:
        asked: whether one has come.
    """

    def __init__(self, message: str = "") -> None:
        self.message, self.asked = message, False
        self._before: dict[signal.Signals, Any] = {}

    def begin(self) -> None:
        """From now on; in commands, see :func:`listening`, and where they are not ignored."""
        if not _listening or threading.current_thread() is not threading.main_thread():
            return
        for number in _STOPS:
            handler = signal.getsignal(number)
            if callable(handler):
                self._before[number] = handler
                signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self.message:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{self.message}\n".encode())

    def end(self) -> None:
        """Restore the handlers from before; nothing if it has ended already."""
        while self._before:  # SIGINT last, from when on it may raise
            signal.signal(*self._before.popitem())


@contextmanager
def unbroken() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the end of what is within, which must be short; a second one does not.

    Raises:
        KeyboardInterrupt: at the end, if one has come.
    """
    postponed = Postponed()
    try:
        postponed.begin()
        yield
    finally:
        postponed.end()
    if postponed.asked:
        raise KeyboardInterrupt
