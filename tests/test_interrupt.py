"""Ctrl-C that Python would drop is raised again."""

from __future__ import annotations

import os
import signal
import threading
import weakref
from pathlib import Path

import pytest

from mfpyg import interrupt
from mfpyg.datasets import MiniCHNO


class Thing:
    """Something to refer to weakly."""


def interrupt_where_it_is_lost() -> None:
    """Ctrl-C while the callback of a weak reference runs."""
    thing = Thing()
    _reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
    del thing


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_lost_interrupt_is_raised_at_the_next_check() -> None:
    with interrupt.listening():
        interrupt.check()
        interrupt_where_it_is_lost()
        with interrupt.listening(), pytest.raises(KeyboardInterrupt):
            interrupt.check()
        interrupt.check()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupt_of_an_earlier_work_is_forgotten() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with interrupt.listening():
        interrupt_where_it_is_lost()
    assert signal.getsignal(signal.SIGINT) is handler
    interrupt.check()
    with interrupt.listening():
        interrupt.check()


def test_interrupt_comes_at_once_where_it_is_not_lost() -> None:
    with interrupt.listening(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_other_threads_and_ignored_interrupts_are_left_alone() -> None:
    handler = signal.getsignal(signal.SIGINT)
    seen = []

    def listen() -> None:
        with interrupt.listening():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        listen()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert seen == [handler, signal.SIG_IGN]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_processing_stops_at_an_interrupt_that_was_lost(tmp_path: Path) -> None:
    def track(names: list[str]) -> list[str]:
        interrupt_where_it_is_lost()
        return names

    with pytest.raises(KeyboardInterrupt), interrupt.listening():  # as in a command
        MiniCHNO(tmp_path, track=track)
    assert list((tmp_path / "processed").iterdir()) == []
