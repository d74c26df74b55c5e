"""The processes of one run: who goes first, who has died, and who says why the run has ended.

They talk through the key-value store at ``MASTER_ADDR`` and ``MASTER_PORT``, which torch's process group uses, too, but
from the beginning, before there is one: the first process reads, checks and processes the data while the others wait,
however long that takes. A thread of each says every few seconds that it is there, and looks for the others: one that is
killed, or whose machine is lost, ends the run even where the others wait in a collective that could go on for ever.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from mfpyg.errors import ERROR_STATUS, INTERRUPT_STATUS, MFPyGError
from mfpyg.training.folder import RunFolder
from mfpyg.training.processes import LOST_STATUS, MARK, Process, this_process

_COME_WITHIN = timedelta(minutes=10)
_LOOK, _BEAT, _SILENT, _GRACE = 0.5, 5.0, 40.0, 10.0
"""Seconds between two looks at the store, between two signs of life, without one of another process until it is given
up, and for this process to come to an end by itself before it is ended."""


def environment_of(process: Process) -> ClusterEnvironment:
    """What Lightning is told, instead of guessing it from variables that an allocation or a job array sets, too."""
    if process.launcher == "torchrun":
        return TorchElasticEnvironment()
    if process.launcher == "srun":
        # It wants this variable, which srun sets only where it was given as an option.
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(process.world_size // process.nodes))
        return SLURMEnvironment(auto_requeue=False)  # its checkpoint is none of ours; SIGTERM stops a run cleanly
    return LightningEnvironment()


class LostError(Exception):
    """Another process of the run is gone."""


class Company:
    """The other processes, as this one sees them.

    Args:
        process: this one.

    Raises:
        MFPyGError: if the first process can't be reached.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        environment = environment_of(process)
        self._address = environment.main_address, environment.main_port
        self._store, self._watched = self._connect(process.rank == 0), self._connect(False)
        self._store.set(f"beat/{process.rank}", "0")
        self._parent = os.getppid()
        self._may_go, self._over = threading.Event(), threading.Event()
        self.verdict: str | None = None
        """Why the run has to end, as soon as that is known."""
        self._told = False
        self.went_on = False
        """Whether this process has let others go on."""
        self.folder: RunFolder | None = None
        """Of the run, as soon as that is known."""
        threading.Thread(target=self._watch, daemon=True, name="company").start()

    def _connect(self, host: bool) -> dist.Store:
        # Shared with the process group that comes later; torchrun has one of its own.
        host = host and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        name, port = self._address
        try:
            store = dist.TCPStore(
                name, port, is_master=host, timeout=_COME_WITHIN, wait_for_workers=False, multi_tenant=True
            )
        except (RuntimeError, ValueError) as error:
            raise MFPyGError(
                f"process {self.process.rank} on {socket.gethostname()} can't reach the first one at {name}:{port}; "
                "set MASTER_ADDR and MASTER_PORT to a name and a free port that all nodes can reach"
            ) from error
        return dist.PrefixStore(f"mfpyg/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def wait(self) -> None:
        """Wait until those that go before have said that all is ready: the first process, then the first of a node.

        Raises:
            LostError: if they never will.
        """
        while self.process.rank != 0 and not self._may_go.wait(_LOOK):
            if self.verdict is not None:
                raise LostError

    def ready(self) -> None:
        """Let those that wait for this process go on."""
        self.went_on = True
        if self.process.rank == 0:
            self._store.set("go", "1")
        if self.process.local_rank == 0:
            self._store.set(_go(self.process.node), "1")

    def first_to_end(self) -> bool:
        """Whether no other process has ended with an error, so that this one has to say why the run ends."""
        mine = f"process {self.process.rank} of {self.process.world_size} on {socket.gethostname()}"
        if self._told:
            return False
        try:
            first = self._store.compare_set("ended", "", mine).decode() == mine
            if first and self.process.rank == 0:
                self._wait_until_heard()
            return first
        except RuntimeError:  # the store was in the first process
            return self.process.rank == 1

    def _wait_until_heard(self) -> None:
        """Let the others learn that something has been said, before the store is gone with this process."""
        others, end = range(1, self.process.world_size), time.monotonic() + _GRACE
        while time.monotonic() < end:
            if all(self._store.check([f"heard/{rank}"]) or self._store.check([f"left/{rank}"]) for rank in others):
                return
            time.sleep(_LOOK / 5)

    def to_go_on(self) -> str:
        """What to do when a process has died, for errors."""
        return "it had not begun" if self.folder is None else self.folder.to_go_on()

    def leave(self) -> None:
        """Say that this process is done. The first one, which has the store, waits until all others have said so."""
        others = [f"left/{rank}" for rank in range(1, self.process.world_size)]
        with suppress(RuntimeError):  # where the first process has gone before
            self._store.set(f"left/{self.process.rank}", "1")
            while self.process.rank == 0 and self.verdict is None and not self._store.check(others):
                time.sleep(_LOOK)

    def close(self) -> None:
        """No longer look for the others."""
        self._over.set()

    def _waits_for(self) -> str:
        """The key of those that may go before this one."""
        return "go" if self.process.local_rank == 0 else _go(self.process.node)

    def _watch(self) -> None:
        me, beat, last = self.process, 0, 0.0
        heard: dict[int, tuple[bytes, float]] = {}
        others = [rank for rank in range(me.world_size) if rank != me.rank] if me.rank == 0 else [0]
        try:
            while not self._over.wait(_LOOK) and self.verdict is None:
                if me.launcher == "mfpyg-train" and os.getppid() != self._parent:
                    self.verdict = "the command that started it is gone"
                if self._watched.check(["ended"]):
                    self._told, self.verdict = True, self._watched.get("ended").decode()
                    self._watched.set(f"heard/{me.rank}", "1")
                if not self._may_go.is_set() and self._watched.check([self._waits_for()]):
                    self._may_go.set()
                now = time.monotonic()
                if now - last >= _BEAT:
                    beat, last = beat + 1, now
                    self._watched.set(f"beat/{me.rank}", str(beat))
                    self.verdict = self.verdict or self._silent(others, heard, now)
        except RuntimeError:
            self.verdict = "the first process is gone"
        if self._over.wait(_GRACE) or self.verdict is None:
            return
        # In a collective that will never end, or in something else that can't be interrupted.
        self._end_now()

    def _silent(self, others: list[int], heard: dict[int, tuple[bytes, float]], now: float) -> str | None:
        for rank in others:
            if self._watched.check([f"left/{rank}"]):
                continue
            key = f"beat/{rank}"
            beat = self._watched.get(key) if self._watched.check([key]) else b""
            if rank not in heard or heard[rank][0] != beat:
                heard[rank] = beat, now
            elif now - heard[rank][1] > (_SILENT if beat else _COME_WITHIN.total_seconds()):
                never = "does not answer any more" if beat else f"has not come within {_COME_WITHIN}"
                return f"process {rank} of {self.process.world_size} {never}"
        return None

    def _end_now(self) -> None:
        if self.process.launcher != "mfpyg-train" and self.first_to_end():
            print(f"mfpyg-train: error: {self.verdict}; {self.to_go_on()}", file=sys.stderr, flush=True)
        os._exit(ERROR_STATUS)


def _go(node: int) -> str:
    return f"go/{node}"


def is_loss(error: BaseException) -> bool:
    """Whether an exception says that another process is gone: what gloo and NCCL raise then has no type of its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LostError | dist.DistError):
            return True
        if isinstance(cause, RuntimeError) and any(name in str(cause) for name in ("gloo", "NCCL", "Connection reset")):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


@contextmanager
def together() -> Iterator[Company | None]:
    """Run a command in several processes: each error is said once, by the first process that has one.

    Yields:
        The other processes; ``None`` where there are none.

    Raises:
        SystemExit: in processes that have nothing to say.
        MFPyGError: in the first one that has an error.
    """
    process = this_process()
    if process.world_size == 1:
        yield None
        return
    company = Company(process)
    try:
        company.wait()
        yield company
        company.leave()
    except SystemExit as end:
        if end.code and not company.went_on:  # the others wait for what will not come
            company.first_to_end()
        else:  # together with the others, or with nothing to do, as --help; they come to the same end
            company.ready()
            company.leave()
        raise
    except KeyboardInterrupt:
        company.first_to_end()  # so that the others end, too
        if process.rank == 0:
            raise
        raise SystemExit(INTERRUPT_STATUS) from None
    except Exception as error:
        lost = is_loss(error)
        # Of a process that has died mfpyg-train tells more itself, where it has started them.
        if lost and process.launcher == "mfpyg-train":
            _leave_word(process, company.verdict or " ".join(str(error).split())[:200])
            raise SystemExit(LOST_STATUS) from error
        if not company.first_to_end():
            raise SystemExit(ERROR_STATUS) from error
        if lost:
            why = company.verdict or "another process of the run has died"
            raise MFPyGError(f"{why}; {company.to_go_on()}") from error
        if isinstance(error, MFPyGError) and process.rank != 0:
            raise MFPyGError(f"process {process.rank} on {socket.gethostname()}: {error}") from error
        raise
    finally:
        company.close()


def _leave_word(process: Process, why: str) -> None:
    with suppress(OSError):  # the command that has started it may be gone
        Path(os.environ[MARK], str(process.rank)).write_text(why, encoding="utf-8")
