"""Handling of Ctrl-C and SIGTERM: interrupts that are never lost, and interrupts that are postponed.

Python drops a KeyboardInterrupt raised in a destructor or a weak reference callback, and reading HDF5 runs many of
these. Here each interrupt is remembered, and raised again at the next :func:`check`. SIGTERM, sent by queues and the
system, is treated as Ctrl-C.
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

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_listening = False
_pending = False


@contextmanager
def listening() -> Iterator[None]:
    """Remember Ctrl-C and SIGTERM within the context, in the main thread and unless they are ignored.

    For commands; a library should leave signals to the program.
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
        for number in _SIGNALS:
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
    """Raise KeyboardInterrupt if one was lost since :func:`listening` began."""
    global _pending
    if _listening and _pending:
        _pending = False
        raise KeyboardInterrupt


class Postponed:
    """Postpones Ctrl-C and SIGTERM for work that can stop only at certain points; a second one interrupts at once.

    Args:
        message: printed to standard error on the first signal.

    Attributes:
        asked: whether a signal was received.
    """

    def __init__(self, message: str = "") -> None:
        self.message, self.asked = message, False
        self._before: dict[signal.Signals, Any] = {}

    def begin(self) -> None:
        """Install the handlers; only within :func:`listening`, and for signals that are not ignored."""
        if not _listening or threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
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
        """Restore the previous handlers; a second call has no effect."""
        while self._before:  # SIGINT last, as it may raise from then on
            signal.signal(*self._before.popitem())


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Postpone Ctrl-C and SIGTERM to the end of the context, which must be short; a second one interrupts at once.

    Raises:
        KeyboardInterrupt: at the end, if a signal was received.
    """
    postponed = Postponed()
    try:
        postponed.begin()
        yield
    finally:
        postponed.end()
    if postponed.asked:
        raise KeyboardInterrupt
