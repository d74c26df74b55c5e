"""Which process of a run this is, and what started it; importable without torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from mfpyg.errors import MFPyGError
from mfpyg.settings import TrainSettings

MARK = "MFPYG_LAUNCHED"
"""Environment variable of processes that mfpyg-train itself has started: the folder where they say why they have lost
the others."""

LOST_STATUS = 3
"""Of such a process that has lost the others, and leaves it to mfpyg-train to say whether one was killed."""


@dataclass(frozen=True)
class Process:
    """One of the processes of a run.

    Attributes:
        launcher: ``mfpyg-train``, ``torchrun`` or ``srun``; ``None`` for a command that somebody has started alone.
        rank, world_size: number among all processes, and how many there are.
        local_rank: number among those of its node.
        node, nodes: number of the node, and how many there are.
    """

    launcher: str | None = None
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    node: int = 0
    nodes: int = 1


def this_process(environment: Mapping[str, str] = os.environ) -> Process:
    """What the environment says of this process.

    Several tasks of one step of ``srun`` are the processes of one run. An allocation alone, as of ``salloc`` and in a
    batch script, has started nothing, however many tasks it has room for; nor has the shell of ``srun --pty bash``.

    Raises:
        MFPyGError: if a launcher's variables are missing or no numbers.
    """
    name = _rank_name(environment)
    if name == "RANK":
        return _of_torch("mfpyg-train" if MARK in environment else "torchrun", environment)
    if name == "SLURM_PROCID":
        return Process(
            launcher="srun",
            rank=_number(environment, "SLURM_PROCID"),
            world_size=_number(environment, "SLURM_STEP_NUM_TASKS"),
            local_rank=_number(environment, "SLURM_LOCALID"),
            node=_number(environment, "SLURM_NODEID"),
            nodes=_number(environment, "SLURM_STEP_NUM_NODES", _number(environment, "SLURM_NNODES", 1)),
        )
    return Process()


def is_main_process() -> bool:
    """Whether this is the process that a user started, or the first of those that a launcher did."""
    name = _rank_name(os.environ)  # Lightning removes other variables when it is done
    return name is None or _number(os.environ, name) == 0


def end_at_once(status: int) -> None:
    """End this process, if it is one of several, without taking the interpreter apart.

    Threads of torch's process groups, which wait for messages of processes that are gone, can abort while that is done,
    and a run that has succeeded would look as if it had not.
    """
    if _rank_name(os.environ) is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def check_processes(settings: TrainSettings) -> None:
    """Check that as many processes were started as the settings say, or can be started here.

    Raises:
        MFPyGError: saying how many there are, and by what.
    """
    found = this_process()
    if found.launcher is None:
        if settings.nodes > 1:
            raise MFPyGError(
                f"nodes is {settings.nodes}, but nothing has started this command on several nodes; start it with srun "
                f"--nodes={settings.nodes} --ntasks-per-node={settings.devices}, or with torchrun on each node"
            )
        return
    if (found.world_size, found.nodes) != (settings.n_processes, settings.nodes):
        each, rest = divmod(found.world_size, found.nodes)
        right = f"give --devices {each} --nodes {found.nodes}" if not rest else "start as many on each node"
        raise MFPyGError(
            f"{found.launcher} started {found.world_size} {_plural('process', found.world_size)} on {found.nodes} "
            f"{_plural('node', found.nodes)}, but devices {settings.devices} and nodes {settings.nodes} make "
            f"{settings.n_processes}; {right}"
        )


def _rank_name(environment: Mapping[str, str]) -> str | None:
    """The variable that numbers the processes of a run; ``None`` where nothing has started several."""
    if MARK in environment or "TORCHELASTIC_RUN_ID" in environment:
        return "RANK"
    several = _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1
    return "SLURM_PROCID" if several and environment.get("SLURM_JOB_NAME") != "bash" else None


def _of_torch(launcher: str, environment: Mapping[str, str]) -> Process:
    rank, world_size, local_rank, here = (
        _number(environment, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    node = _number(environment, "GROUP_RANK", 0)
    return Process(launcher, rank, world_size, local_rank, node, max(1, world_size // max(1, here)))


def _number(environment: Mapping[str, str], name: str, otherwise: int | None = None) -> int:
    text = environment.get(name)
    if text is None and otherwise is not None:
        return otherwise
    if text is None or not text.isdecimal():
        raise MFPyGError(
            f"environment variable {name} is {text or 'missing'}, expected the number that a launcher sets"
        )
    return int(text)


def _plural(word: str, number: int) -> str:
    return word if number == 1 else f"{word}es" if word.endswith("s") else f"{word}s"
