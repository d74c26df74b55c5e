"""Two processes have the losses and gradients of one on the same batch."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
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


@pytest.mark.slow
def test_training_on_two_devices_follows_that_on_one(trainer: Any) -> None:
    logs = []
    for devices in ("1", "2"):
        out = f"devices{devices}"
        output = trainer.run(
            *trainer.new(out, "--epochs=3", "--precision=64", f"--devices={devices}", "--accelerator=cpu")
        )
        assert output.count("run folder:") == 1, output
        with (trainer.folder / out / "metrics.csv").open(newline="") as file:
            logs.append(list(csv.DictReader(file)))
    assert len(logs[0]) == len(logs[1]) == 3
    for one, two in zip(*logs, strict=True):
        for name in one:
            if name != "seconds":
                assert float(two[name]) == pytest.approx(float(one[name]), rel=2e-5), name
