"""Several processes have the losses, gradients and metrics of one."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


NUMBERS = [int(number) for number in os.environ.get("MFPYG_PROCESSES", "2").split()]
"""Of processes; ``MFPYG_PROCESSES="2 3 4"`` for a campaign."""


@pytest.mark.slow
def test_trainings_of_several_processes_are_those_of_one(tmp_path: Path) -> None:
    cases = ("uneven", "accumulate", "fewer than processes", "double", "tl", "delta", "meta")
    script = Path(__file__).with_name("processes.py")
    command = [sys.executable, str(script), str(tmp_path), ",".join(map(str, [1, *NUMBERS])), *cases]
    subprocess.run(command, check=True, timeout=300, env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"})

    def found_by(number: int) -> list[dict[str, Any]]:
        return [torch.load(tmp_path / f"{number}-{rank}.pt", weights_only=True) for rank in range(number)]

    (alone,) = found_by(1)
    for number in NUMBERS:
        found = found_by(number)
        for case in cases:
            check_case(case, alone[case], [of_rank[case] for of_rank in found])
            print(number, case, "gradient", worst(alone[case]["steps"], found[0][case]["steps"]))
        steps = list(zip(*(of_rank["uneven"]["steps"] for of_rank in found), strict=True))
        assert any(
            min(step["labels"]["tz"] for step in of_step) == 0 < max(step["labels"]["tz"] for step in of_step)
            for of_step in steps
        ), "no process was without labels of a level that another one had"
        small = [sum(step["labels"].values()) for of_rank in found for step in of_rank["fewer than processes"]["steps"]]
        assert (min(small) == 0) == (number > 2), "batches of 2 and 3"


def worst(one: list[dict[str, Any]], many: list[dict[str, Any]]) -> float:
    """Largest relative deviation of the gradients of steps."""
    norms = [((a["gradient"] - b["gradient"]).norm() / a["gradient"].norm()) for a, b in zip(one, many, strict=True)]
    return float(max(norms))


def check_case(name: str, one: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    """Same losses, gradients, metrics and schedule; nothing read but a process's own share."""
    loss, gradient = (1e-12, 1e-9) if name in ("double", "delta", "accumulate") else (1e-6, 1e-6)
    for of_rank in ranks:
        assert worst(one["steps"], of_rank["steps"]) < gradient, name
        assert [s["loss"] for s in of_rank["steps"]] == pytest.approx([s["loss"] for s in one["steps"]], rel=loss)
        assert of_rank["epochs"] == ranks[0]["epochs"], "early stopping, schedule and metrics are the same in all"
        for mine, alone in zip(of_rank["epochs"], one["epochs"], strict=True):
            assert (mine["batch_size"], mine["lr"]) == (alone["batch_size"], alone["lr"])
            assert mine["metrics"] == pytest.approx(alone["metrics"], rel=1e-6)
    read, alone = [Counter(of_rank["read"]) for of_rank in ranks], Counter(one["read"])
    more = sum(read, Counter()) - alone
    assert not alone - sum(read, Counter())
    assert len(more) <= 1, "the one that stands in where there is nothing"
    for counts in read:
        assert counts.total() <= alone.total() / len(ranks) + len(one["steps"]) + len(one["epochs"])


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(found: Callable[[], Any]) -> Any:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(0.02)
    raise AssertionError("it did not happen")


TINY = (
    "--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--batch-size=64",
    "--fidelities", "dz:EF", "cc:E", "--accelerator=cpu", "--compile=off",
)  # fmt: skip


@pytest.mark.slow
def test_two_devices_that_are_killed_and_stopped_end_as_one_device(forks: Any) -> None:
    options = [*TINY, "--strategy=tl", "--epochs=12", "--precision=64", "--optim.accumulate=4", "--optim.ema=0.7",
               "--optim.weight-decay=0.5", "--optim.warmup=1.5"]  # fmt: skip
    forks.whole(*options, "--out", "one")
    log = forks.folder / "two" / "metrics.csv"

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "mfpyg.cli.train", *arguments],
            cwd=forks.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    command = start(*options, "--devices=2", "--out", "two")
    workers = wait_for(lambda: (forks.folder / "two" / "last.ckpt").exists() and children(command.pid))
    os.kill(workers[1], signal.SIGKILL)
    begin = time.monotonic()
    output, _ = command.communicate(timeout=120)
    assert time.monotonic() - begin < 60
    assert command.returncode == 2, output
    (error,) = [line for line in output.splitlines() if "error" in line.lower()]
    assert error.startswith("mfpyg-train: error: process 1 of 2 was ended by SIGKILL")
    assert error.endswith("continue with: mfpyg-train --resume two")
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)

    done = log.read_text().count("\n")
    command = start("--resume", "two")
    wait_for(lambda: command.poll() is not None or log.read_text().count("\n") > done)
    command.send_signal(signal.SIGTERM)
    output, _ = command.communicate(timeout=120)
    assert (command.returncode, output.count("continue with: mfpyg-train --resume two")) == (130, 1), output

    command = start("--resume", "two")
    output, _ = command.communicate(timeout=120)
    assert (command.returncode, output.count("run folder:")) == (0, 1), output
    one, two = (list(csv.DictReader((forks.folder / run / "metrics.csv").open(newline=""))) for run in ("one", "two"))
    assert len(one) == len(two) == 12
    for row, of_two in zip(one, two, strict=True):
        for name in row:
            if name != "seconds":
                assert of_two[name] == row[name] or float(of_two[name]) == pytest.approx(float(row[name]), rel=2e-5)


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    """As a user starts it."""
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    arguments = [*TINY, "--epochs=1", "--devices=2", "--out=run"]
    done = subprocess.run(
        [sys.executable, *command, "-m", "mfpyg.cli.train", *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout.count("run folder:")) == (0, 1), done.stdout + done.stderr
