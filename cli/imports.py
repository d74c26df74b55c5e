"""How the commands import torch and what stands on it, which takes seconds, and how they end after it."""

from __future__ import annotations

import atexit
import gc
import logging
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

from mfpyg.errors import MFPyGWarning
from mfpyg.interrupt import unbroken

_is_a_command = False


@contextmanager
def slow_imports() -> Iterator[None]:
    """Import quickly and quietly.

    Ctrl-C waits, since a module that is written in C may abort the process when it meets one.
    """
    quiet_frameworks()
    with unbroken(), _no_search_for_garbage() if "torch" not in sys.modules else nullcontext():
        yield
    quiet_frameworks()  # which set the levels of their loggers when they are imported


@contextmanager
def _no_search_for_garbage() -> Iterator[None]:
    """There is next to none in modules, and looking for it takes a third of the time; nor is there later on.

    In the process of a command no later search looks at modules; in another program nothing is changed for good.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if _is_a_command:
            gc.freeze()
        if collected:
            gc.enable()


def end_quickly() -> None:
    """Prepare the end of a process that is a command's alone: what Python does there takes no second.

    With :func:`too_late` no signal changes the status of what has ended.
    """
    global _is_a_command
    _is_a_command = True
    atexit.register(gc.freeze)
    for number in (signal.SIGINT, signal.SIGTERM):
        atexit.register(signal.signal, number, signal.SIG_IGN)


def too_late(number: int, frame: FrameType | None) -> None:
    """A signal that comes when a command has ended stops nothing; a second one ends what hangs at the end."""
    signal.signal(number, signal.SIG_DFL)


def quiet_frameworks() -> None:
    """Keep tips, hardware notes and deprecation warnings of Lightning and others off the terminal."""
    for logger in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", module=r"(lightning|torch_geometric|torch)(\..*)?")
    warnings.filterwarnings("always", category=MFPyGWarning)
