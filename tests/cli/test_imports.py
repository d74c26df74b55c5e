"""How the commands import what is slow, and how they end."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys

import pytest

from mfpyg.cli.imports import slow_imports


def ended(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


LATE = """
import atexit, os, signal, sys
from mfpyg.cli.common import run

number, status, moment = getattr(signal, sys.argv[1]), int(sys.argv[2]), sys.argv[3]

class Late:
    def __del__(self, kill=os.kill, me=os.getpid(), number=number):
        kill(me, number)

def command(arguments):
    if moment == "exit function":
        atexit.register(signal.raise_signal, number)
    sys.exit(status)

late = Late() if moment == "modules taken apart" else None
try:
    run("late", command, None)
finally:
    if moment == "return":
        signal.raise_signal(number)
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("status", [0, 1])
@pytest.mark.parametrize("moment", ["return", "exit function", "modules taken apart"])
def test_signal_at_the_very_end_does_not_change_the_status(number: str, status: int, moment: str) -> None:
    end = ended(LATE, number, str(status), moment)
    assert (end.returncode, end.stdout, end.stderr) == (status, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_what_hangs_at_the_end(number: signal.Signals) -> None:
    twice = f"""
import signal
from mfpyg.cli.common import run
run("late", lambda arguments: None, None)
signal.raise_signal({int(number)})
signal.raise_signal({int(number)})
"""
    assert ended(twice).returncode == -number


FIRST = """
import gc, sys
from mfpyg.cli.imports import end_quickly, slow_imports
own = sys.argv[1] == "command"
if own:
    end_quickly()
with slow_imports():
    assert not gc.isenabled()
    import torch
assert gc.isenabled()
first = gc.get_freeze_count()
assert first > 100_000 if own else first == 0
with slow_imports():
    assert gc.isenabled()
    import torch_geometric
assert gc.get_freeze_count() <= first  # what lives by now may become garbage
"""


@pytest.mark.parametrize("process", ["command", "program"])
def test_garbage_is_not_looked_for_in_imports(process: str) -> None:
    end = ended(FIRST, process)
    assert (end.returncode, end.stderr) == (0, "")


def test_signal_waits_until_imports_are_through() -> None:
    through = []
    with pytest.raises(KeyboardInterrupt), slow_imports():
        through = [signal.raise_signal(signal.SIGINT)]
    assert through == [None]
    assert gc.isenabled()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
