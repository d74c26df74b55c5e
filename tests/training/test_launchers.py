"""Which process this is under each launcher, and launchers that start another number than the settings say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

import pytest

from mfpyg.errors import MFPyGError
from mfpyg.settings import defaults, from_dict
from mfpyg.training.distributed import (
    RUN_ID,
    Process,
    check_processes,
    is_main_process,
    run_as_worker,
    this_process,
)

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
}  # fmt: skip
ALLOCATION = {
    "SLURM_JOB_ID": "17", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "interactive",
}  # fmt: skip
"""What a batch script and the shell of salloc see."""
SRUN = {
    **ALLOCATION, "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "6", "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
}  # fmt: skip
LAUNCHED = {
    "TORCHELASTIC_RUN_ID": "mfpyg-train",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
}


@pytest.mark.parametrize(
    ("environment", "process"),
    [
        ({}, Process()),
        ({"RANK": "3", "LOCAL_RANK": "3"}, Process()),  # of some other program's
        (TORCHRUN, Process("torchrun", 5, 8, 2)),
        (SRUN, Process("srun", 6, 8, 2)),
        (LAUNCHED, Process("mfpyg-train", 1, 2)),
        (ALLOCATION, Process()),
        ({**ALLOCATION, "SLURM_STEP_NUM_TASKS": "1"}, Process()),  # salloc's interactive step; a job of submitit
        ({**SRUN, "SLURM_JOB_NAME": "bash"}, Process()),  # srun --pty bash
        ({**SRUN, **TORCHRUN}, Process("torchrun", 5, 8, 2)),  # srun starts torchrun on each node
        ({**SRUN, **LAUNCHED}, Process("mfpyg-train", 1, 2)),  # in an allocation
    ],
)
def test_this_process(environment: dict[str, str], process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    assert this_process(environment) == process
    for name in {*TORCHRUN, *SRUN, *LAUNCHED}:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() == (process.rank == 0)


def _check(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, devices: int, nodes: int) -> None:
    for name in {*TORCHRUN, *SRUN, *LAUNCHED}:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_processes(from_dict({**defaults("small", "hipnn"), "devices": devices, "nodes": nodes, "batch_size": 64}))


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN])
def test_number_of_processes_that_fits(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    _check(environment, monkeypatch, 4, 2)


def test_one_node_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    _check({}, monkeypatch, 4, 1)
    _check(ALLOCATION, monkeypatch, 4, 1)


@pytest.mark.parametrize(
    ("environment", "devices", "nodes", "message"),
    [
        (
            {},
            4,
            2,
            "nodes is 2, but this process was started alone; start it with srun --nodes=2 --ntasks-per-node=4, or",
        ),
        (ALLOCATION, 4, 2, "nodes is 2, but this process was started alone"),
        (
            SRUN,
            1,
            1,
            "srun started 8 processes on 2 nodes, but devices 1 and nodes 1 make 1; give --devices 4 --nodes 2",
        ),
        (
            SRUN,
            8,
            1,
            "srun started 8 processes on 2 nodes, but devices 8 and nodes 1 make 8; give --devices 4 --nodes 2",
        ),
        (TORCHRUN, 2, 2, "torchrun started 8 processes on 2 nodes, but devices 2 and nodes 2 make 4; give --devices 4"),
        ({**TORCHRUN, "RANK": "x"}, 4, 2, "environment variable RANK is x, expected a number set by the launcher"),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "7"}, 4, 2, "started 7 processes on 2 nodes, .*; start as many on each node"),
    ],
)
def test_number_of_processes_that_does_not_fit(
    environment: dict[str, str], devices: int, nodes: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MFPyGError, match=message):
        _check(environment, monkeypatch, devices, nodes)


def test_each_process_needs_a_share_of_a_batch() -> None:
    settings = from_dict({**defaults("small", "hipnn"), "fidelities": ["cc:E"], "devices": 4, "nodes": 4})
    with pytest.raises(MFPyGError, match=r"batch_size 8 is less than .*, 16;"):
        settings.check()


def test_stopped_worker_leaves_no_half_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The launcher stops the other processes as soon as one has failed, maybe while they write why they failed."""

    def fail() -> None:
        raise RuntimeError("connection closed by peer")

    def stop_while_writing(_: object, file: TextIO) -> None:
        file.write('{"message"')
        raise KeyboardInterrupt

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with monkeypatch.context() as patch:
        patch.setattr(json, "dump", stop_while_writing)
        with pytest.raises(KeyboardInterrupt):
            run_as_worker(fail, Process(RUN_ID, 1, 2))
    assert not (tmp_path / "error.json").exists()
    with pytest.raises(SystemExit):
        run_as_worker(fail, Process(RUN_ID, 1, 2))
    assert "connection closed" in (tmp_path / "error.json").read_text(encoding="utf-8")
