"""The processes of a run on one machine: started, stopped together, and none left behind; importable without torch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from mfpyg.errors import ERROR_STATUS, INTERRUPT_STATUS, MFPyGError
from mfpyg.training.folder import RunFolder
from mfpyg.training.processes import LOST_STATUS, MARK

_STOPPING = (signal.SIGINT, signal.SIGTERM)
_PAUSE = 0.1
_SECONDS_TO_END = 20
"""For the other processes to end by themselves when one has; they notice within a second."""


def launch(arguments: Sequence[str], number: int, folder: RunFolder) -> int:
    """Run mfpyg-train in several processes on this machine, and wait for them.

    Ctrl-C and SIGTERM stop all of them; a second one kills them.

    Args:
        arguments: of the command.
        number: of processes.
        folder: of the run.

    Returns:
        The status to exit with; whatever went wrong, a process has said so.

    Raises:
        MFPyGError: if a process was killed or stopped, which could say nothing, or the processes have lost each other.
        KeyboardInterrupt: if they were stopped before the first one could say so.
    """
    group, reasons = _Group(), tempfile.TemporaryDirectory()
    before = {signal_number: signal.signal(signal_number, group.stop) for signal_number in _STOPPING}
    try:
        port = _free_port()
        for rank in range(number):
            group.processes.append(_start(arguments, rank, number, port, reasons.name))
        group.wait()
    finally:
        group.kill()
        said = [path.read_text(encoding="utf-8") for path in sorted(Path(reasons.name).iterdir())]
        reasons.cleanup()
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)
    statuses = [process.returncode for process in group.processes]
    if group.stopped and any(statuses):  # else it came when all was done
        if statuses[0] != INTERRUPT_STATUS:
            raise KeyboardInterrupt
        return INTERRUPT_STATUS
    for rank in group.failed_first:
        if statuses[rank] < 0:
            raise MFPyGError(
                f"process {rank} of {number} was ended by {signal.Signals(-statuses[rank]).name}, the others with it; "
                f"SIGKILL may mean that memory ran out; {folder.to_go_on()}"
            )
        if statuses[rank] == INTERRUPT_STATUS:
            raise MFPyGError(f"process {rank} of {number} was stopped, the others with it; {folder.to_go_on()}")
    status = max(statuses)
    if status == LOST_STATUS:
        if ERROR_STATUS in statuses:
            return ERROR_STATUS
        why = said[0] if said else "why is not known"
        raise MFPyGError(f"the processes have lost each other ({why}); {folder.to_go_on()}")
    return status


class _Group:
    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.stopped = 0
        self.failed_first: list[int] = []
        self._end = float("inf")

    def stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped += 1
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM if self.stopped == 1 else signal.SIGKILL)

    def wait(self) -> None:
        """Until all have ended; those that do not, some time after one has failed, are left.

        What was stopped takes the time that its step, or its validation, needs to be saved; a second signal kills it.
        """
        while any(process.poll() is None for process in self.processes) and time.monotonic() < self._end:
            failed = [rank for rank, process in enumerate(self.processes) if process.poll() not in (None, 0)]
            if failed and not self.failed_first:
                self.failed_first = failed
            if failed and not self.stopped:
                self._end = min(self._end, time.monotonic() + _SECONDS_TO_END)
            time.sleep(_PAUSE)
        if not self.failed_first:
            self.failed_first = [rank for rank, process in enumerate(self.processes) if process.poll() not in (None, 0)]

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def _start(arguments: Sequence[str], rank: int, number: int, port: int, reasons: str) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        MARK: reasons,
        **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(number)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    # Otherwise each takes all cores.
    environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // number, 1)))
    # A session of its own, as the terminal's Ctrl-C would come twice: from the terminal, and from here.
    command = [sys.executable, "-m", "mfpyg.cli.train", *arguments]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
