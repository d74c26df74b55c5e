"""Training in several processes; importable without torch.

On one machine ``mfpyg-train --devices N`` starts them through torch's elastic launcher, as ``torchrun`` does; on
several machines ``torchrun`` or ``srun`` starts them. The launcher ends all processes when one of them fails.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mfpyg.errors import ERROR_STATUS, INTERRUPT_STATUS, MFPyGError
from mfpyg.settings import TrainSettings
from mfpyg.training.folder import RunFolder

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

RUN_ID = "mfpyg-train"
"""Run ID of torch's launcher if ``mfpyg-train`` has started the processes itself."""


@dataclass(frozen=True)
class Process:
    """One of the processes of a training.

    Attributes:
        launcher: ``mfpyg-train``, ``torchrun`` or ``srun``; ``None`` for a single process.
        rank: rank among all processes.
        world_size: number of processes.
        nodes: number of machines.
    """

    launcher: str | None = None
    rank: int = 0
    world_size: int = 1
    nodes: int = 1


def this_process(environment: Mapping[str, str] = os.environ) -> Process:
    """Detect this process from the environment variables of launchers.

    The tasks of one ``srun`` step are the processes of one training. An allocation alone, by ``salloc`` or in a batch
    script, starts no processes, nor does ``srun --pty bash``.

    Raises:
        MFPyGError: if a launcher's variable is missing or not a number.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        launcher = RUN_ID if environment["TORCHELASTIC_RUN_ID"] == RUN_ID else "torchrun"
        world_size, here = (_number(environment, name) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        return Process(launcher, _number(environment, "RANK"), world_size, max(1, world_size // max(1, here)))
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS", 1)
    if tasks > 1 and environment.get("SLURM_JOB_NAME") != "bash":
        nodes = _number(environment, "SLURM_STEP_NUM_NODES", _number(environment, "SLURM_NNODES", 1))
        return Process("srun", _number(environment, "SLURM_PROCID"), tasks, nodes)
    return Process()


def is_main_process() -> bool:
    """True in a single process, and in the first one of several."""
    return this_process().rank == 0


def environment_of(process: Process) -> ClusterEnvironment:
    """Lightning's environment for a process, which Lightning would otherwise guess from the job's variables."""
    from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    if process.launcher is None:
        return LightningEnvironment()
    if process.launcher == "srun":
        return SLURMEnvironment(auto_requeue=False)  # it would write its own checkpoint; SIGTERM saves one
    return TorchElasticEnvironment()


def check_processes(settings: TrainSettings) -> None:
    """Check that the number of processes matches the settings, or that they can be started here.

    Raises:
        MFPyGError: with the number of processes and their launcher.
    """
    found = this_process()
    if found.launcher is None:
        if settings.nodes > 1:
            raise MFPyGError(
                f"nodes is {settings.nodes}, but this process was started alone; start it with srun "
                f"--nodes={settings.nodes} --ntasks-per-node={settings.devices}, or with torchrun on each node"
            )
        return
    if (found.world_size, found.nodes) != (settings.n_processes, settings.nodes):
        each, rest = divmod(found.world_size, found.nodes)
        advice = f"give --devices {each} --nodes {found.nodes}" if not rest else "start as many on each node"
        raise MFPyGError(
            f"{found.launcher} started {found.world_size} processes on {found.nodes} nodes, but devices "
            f"{settings.devices} and nodes {settings.nodes} make {settings.n_processes}; {advice}"
        )


def launch(arguments: Sequence[str], number: int, folder: RunFolder) -> int:
    """Run ``mfpyg-train`` in several processes on this machine, and wait for them.

    Ctrl-C and SIGTERM are passed on to all of them, which then save a checkpoint.

    Args:
        arguments: arguments of the command.
        number: number of processes.
        folder: run folder.

    Returns:
        The exit status.

    Raises:
        MFPyGError: the first error of a process, or the signal that killed it.
        KeyboardInterrupt: if they were stopped without a checkpoint.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("multiprocessing.api", "agent.server.api"):  # their reports are raised below
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory() as errors:
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=number,
                run_id=RUN_ID,
                rdzv_backend="c10d",
                rdzv_endpoint="127.0.0.1:0",
                local_addr="127.0.0.1",
                max_restarts=0,
                logs_specs=DefaultLogsSpecs(log_dir=errors),
            )
            elastic_launch(config, sys.executable)("-m", "mfpyg.cli.train", *arguments)
    except SignalException:
        if folder.last.is_file():
            return INTERRUPT_STATUS
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        killed = [rank for rank, failure in error.failures.items() if failure.exitcode < 0]
        rank = killed[0] if killed else error.get_first_failure()[0]
        return _status_of(error.failures[rank], f"process {rank} of {number}", folder.resume_hint())
    return 0


def _status_of(failure: ProcessFailure, process: str, advice: str) -> int:
    if failure.exitcode < 0:
        raise MFPyGError(
            f"{process} was ended by {failure.signal_name()}, and the others with it; SIGKILL may mean that memory ran "
            f"out; {advice}"
        )
    if failure.exitcode == INTERRUPT_STATUS:
        return INTERRUPT_STATUS
    report: Any = failure.message
    if not isinstance(report, dict):  # it ended without a report
        raise MFPyGError(f"{process} ended with status {failure.exitcode}; {advice}")
    kind, _, message = report["message"].partition(": ")
    if kind == MFPyGError.__name__:
        raise MFPyGError(message)
    print(report["extraInfo"]["py_callstack"], file=sys.stderr)
    return 1


def run_as_worker(command: Callable[[], None], process: Process) -> None:
    """Run a command as one of several processes; its error is recorded for the launcher.

    Raises:
        SystemExit: after an error that :func:`launch` reports.
        MFPyGError: with the rank of the process, if each process reports its own errors.
    """
    try:
        command()
    except KeyboardInterrupt:
        if process.rank or process.launcher == RUN_ID:
            raise SystemExit(INTERRUPT_STATUS) from None
        raise
    except Exception as error:
        known = isinstance(error, MFPyGError)
        reported = MFPyGError(f"process {process.rank}: {error}" if process.rank else str(error)) if known else error
        _record(reported)
        if process.launcher == RUN_ID:
            raise SystemExit(ERROR_STATUS if known else 1) from error
        raise reported from error


def _record(error: Exception) -> None:
    """Record an error for the launcher atomically, as it may stop this process while it writes."""
    from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is None:
        return

    class Handler(ErrorHandler):
        def _get_error_file_path(self) -> str:
            return f"{file}.part"

    Handler().record_exception(error)
    os.replace(f"{file}.part", file)


def _number(environment: Mapping[str, str], name: str, otherwise: int | None = None) -> int:
    text = environment.get(name)
    if text is None and otherwise is not None:
        return otherwise
    if text is None or not text.isdecimal():
        raise MFPyGError(f"environment variable {name} is {text or 'missing'}, expected a number set by the launcher")
    return int(text)
