"""Two processes have the losses and gradients of one on the same batch."""

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

WORKER = '''
"""Loss and gradients of this process's share of a batch, under DDP; written by the first."""
import os, sys
import torch, torch.distributed as dist
from torch_geometric.data import Batch
from mfpyg.datasets import MiniCHNO
from mfpyg.fidelity import Fidelity
from mfpyg.models import HIPNN, MultiFidelityPotential
from mfpyg.training.loss import MultiFidelityLoss

out, kinds = sys.argv[1], sys.argv[2]
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
dataset = MiniCHNO()
has_tz = dataset._data.energy_mask[:, dataset.fidelities.index("tz")]
with_tz, without = (torch.nonzero(mask).flatten().tolist() for mask in (has_tz, ~has_tz))
# Dealt out in turn: of the second kind, two processes get all and none of the tz labels.
rows = with_tz[:3] + without[:4] if kinds == "uneven" else [with_tz[0], without[0], with_tz[40], without[40]]
torch.manual_seed(0)
model = MultiFidelityPotential(HIPNN([1, 6, 7, 8], 2, 1, 8, 6), ["tz", "cc"]).double()
for head, name in zip(model.heads, ["tz", "cc"]):
    head.reference.copy_(torch.tensor([-370.0, -23880.0, -34340.0, -47090.0]))
columns = {n: dataset.fidelities.index(n) for n in ("tz", "cc")}
weights = {("tz", "energy"): 1.0, ("tz", "forces"): 1.0, ("cc", "energy"): 0.5}
loss = MultiFidelityLoss([Fidelity("tz", True, True), Fidelity("cc")], columns, weights, 1.0)

class Step(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model
    def forward(self, batch):
        return loss(self.model.predict(batch, loss.wanted), batch)[0]

step = torch.nn.parallel.DistributedDataParallel(Step())
batch = Batch.from_data_list([dataset[i] for i in rows[rank::world]])
if kinds != "uneven" and world == 2:
    assert bool(batch.energy_mask[:, columns["tz"]].any()) == (rank == 0)
value = step(batch)
value.backward()
if rank == 0:
    torch.save({"loss": value.detach(), "gradients": {n: p.grad for n, p in model.named_parameters()}}, out)
dist.barrier()
del step
dist.destroy_process_group()
# The result is written. torch's own threads can abort, rarely, while the interpreter takes itself apart.
sys.stdout.flush()
os._exit(0)
'''


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def gradients(folder: Path, processes: int, kinds: str) -> dict[str, Any]:
    script, out = folder / "worker.py", folder / f"{processes}-{kinds}.pt"
    script.write_text(WORKER)
    shared = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    started = [
        subprocess.Popen([sys.executable, str(script), str(out), kinds], env={**shared, "RANK": str(rank)})
        for rank in range(processes)
    ]
    assert [process.wait(timeout=120) for process in started] == [0] * processes
    return torch.load(out, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", ["uneven", "one process without tz labels"])
def test_gradients_of_two_processes_are_those_of_one(tmp_path: Path, kinds: str) -> None:
    one, two = (gradients(tmp_path, processes, kinds) for processes in (1, 2))
    torch.testing.assert_close(two["loss"], one["loss"], rtol=1e-12, atol=0)
    assert one["loss"] > 0
    for name, gradient in one["gradients"].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=1e-9, atol=1e-11 * max(scale, 1.0))


def processes(folder: Path, number: int, *cases: str) -> list[dict[str, Any]]:
    """What each of so many processes recorded of the cases of processes.py."""
    shared = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }  # fmt: skip
    if number > 1:
        shared |= {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    command = [sys.executable, str(Path(__file__).with_name("processes.py")), str(folder), *cases]
    started = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(number)
    ]
    assert [process.wait(timeout=300) for process in started] == [0] * number
    return [torch.load(folder / f"{number}-{rank}.pt", weights_only=True) for rank in range(number)]


NUMBERS = [int(number) for number in os.environ.get("MFPYG_PROCESSES", "2").split()]
"""Of processes; ``MFPYG_PROCESSES="2 3 4"`` for a campaign."""


@pytest.mark.slow
def test_trainings_of_several_processes_are_those_of_one(tmp_path: Path) -> None:
    cases = ("uneven", "accumulate", "fewer than processes", "double", "tl", "delta", "meta")
    (alone,) = processes(tmp_path, 1, *cases)
    for number in NUMBERS:
        found = processes(tmp_path, number, *cases)
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


@pytest.mark.slow
def test_killed_process_ends_the_run_which_goes_on(trainer: Any) -> None:
    arguments = ["--epochs=6", "--devices=2", "--accelerator=cpu", "--model.kernel=padded"]
    trainer.run(*trainer.new("whole", *arguments))
    command = trainer.start(*trainer.new("killed", *arguments))
    workers = wait_for(lambda: (trainer.folder / "killed" / "last.ckpt").exists() and children(command.pid))
    os.kill(workers[1], signal.SIGKILL)
    begin = time.monotonic()
    output, _ = command.communicate(timeout=120)
    assert time.monotonic() - begin < 60
    assert command.returncode == 2, output
    assert [line for line in output.splitlines() if "error" in line.lower()] == [
        "mfpyg-train: error: process 1 of 2 was ended by SIGKILL, and the others with it; SIGKILL may mean that memory "
        "ran out; continue with: mfpyg-train --resume killed"
    ]
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    trainer.run("--resume", "killed")
    whole, killed = (torch.load(trainer.folder / run / "last.ckpt", weights_only=True) for run in ("whole", "killed"))
    assert whole["epoch"] == killed["epoch"]
    for name, value in whole["state_dict"].items():
        assert torch.equal(killed["state_dict"][name], value), name


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(found: Callable[[], Any]) -> Any:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(0.02)
    raise AssertionError("it did not happen")


@pytest.mark.slow
@pytest.mark.parametrize(
    "tuned",
    [[], ["--optim.accumulate=4", "--optim.ema=0.7", "--optim.weight-decay=0.5", "--optim.warmup=1.5"]],
    ids=["plain", "tuned"],
)
def test_training_on_two_devices_follows_that_on_one(trainer: Any, tuned: list[str]) -> None:
    logs = []
    for devices in ("1", "2"):
        out = f"devices{devices}"
        output = trainer.run(
            *trainer.new(out, "--epochs=3", "--precision=64", f"--devices={devices}", "--accelerator=cpu", *tuned)
        )
        assert output.count("run folder:") == 1, output
        with (trainer.folder / out / "metrics.csv").open(newline="") as file:
            logs.append(list(csv.DictReader(file)))
    assert len(logs[0]) == len(logs[1]) == 3
    for one, two in zip(*logs, strict=True):
        for name in one:
            if name != "seconds":
                assert float(two[name]) == pytest.approx(float(one[name]), rel=2e-5), name


@pytest.mark.slow
def test_several_processes_stop_together_and_a_finished_run_is_finished_again(trainer: Any) -> None:
    run = trainer.start(*trainer.new("two", "--devices=2", "--accelerator=cpu", "--strategy=tl", "--epochs=20"))
    log = trainer.folder / "two" / "metrics.csv"
    wait_for(lambda: run.poll() is not None or (log.is_file() and log.read_text().count("\n") > 2))
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=120)
    assert (run.returncode, output.count("continue with: mfpyg-train --resume two")) == (130, 1), output
    for left in (True, False):
        output = trainer.run("--resume", "two")
        assert output.count("run folder:") == 1, output
        assert output.count("nothing left to train") == (not left), output


@pytest.mark.slow
def test_torchrun(trainer: Any) -> None:
    """As a user starts it; a wrong number of devices, and what needs no training, end all processes too."""

    def started(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
        return subprocess.run(
            [sys.executable, *command, "-m", "mfpyg.cli.train", *arguments],
            cwd=trainer.folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    options = trainer.new("run", "--accelerator=cpu", "--epochs=1")
    done = started(*options, "--devices=2")
    assert (done.returncode, done.stdout.count("run folder:")) == (0, 1), done.stdout + done.stderr
    done = started(*options, "--devices=2")
    assert done.returncode
    assert "mfpyg-train: error: run exists; continue it" in done.stderr
    done = started(*options, "--devices=3")
    assert done.returncode
    assert "torchrun started 2 processes on 1 nodes, but devices 3 and nodes 1 make 3" in done.stderr
    assert started("--help").returncode == 0
