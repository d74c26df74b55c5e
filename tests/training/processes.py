"""Real trainings in one or several processes, on a few conformations; what each did is written.

python processes.py FOLDER 1,2 CASE …
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from mfpyg.cli import train_options
from mfpyg.cli.common import quiet_frameworks
from mfpyg.datasets import MiniCHNO, batches
from mfpyg.training import fit, run
from mfpyg.training.check import check_settings
from mfpyg.training.data import open_training_data
from mfpyg.training.distributed import this_process
from mfpyg.training.fit import stages_of
from mfpyg.training.folder import RunFolder
from mfpyg.training.inputs import Inputs

TINY = ["--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--accelerator=cpu"]
STILL = [
    "--optim.lr=1e-12",
    "--transfer.lr=1e-12",
    "--meta.inner-lr=1e-12",
]  # weights stay, to the last digit or nearly
PLATEAU = ["--optim.schedule=plateau", "--optim.patience=0", "--optim.max-batch-size=10", "--optim.stop-after=3"]
# Errors of both signs cancel in the gradient of a fresh difference of two levels, so that in 32 bits the order of any
# sum shows in its sixth digit.
CASES = {
    # Train and validation sizes, and what else is said. Of tz a quarter has labels.
    "uneven": (41, 3, ["--fidelities", "dz:EF", "tz:EF", "cc:E", "--batch-size=7", "--epochs=9", *PLATEAU]),
    # The last step of an epoch has one batch of six or five.
    "accumulate": (
        41,
        3,
        [
            "--fidelities",
            "dz:EF",
            "tz:EF",
            "cc:E",
            "--batch-size=7",
            "--epochs=2",
            "--optim.accumulate=4",
            "--precision=64",
            "--optim.ema=0.5",
            "--optim.warmup=1",
        ],
    ),
    "fewer than processes": (5, 2, ["--fidelities", "dz:EF", "cc:E", "--batch-size=4", "--epochs=1"]),
    "double": (20, 4, ["--fidelities", "dz:EFHD", "tz:E", "--batch-size=7", "--epochs=1", "--precision=64"]),
    "tl": (20, 4, ["--fidelities", "dz:EF", "cc:E", "--batch-size=7", "--epochs=2", "--strategy=tl"]),
    "delta": (
        20,
        4,
        ["--fidelities", "dz:EF", "cc:E", "--batch-size=7", "--epochs=2", "--strategy=delta", "--precision=64"],
    ),
    "meta": (20, 4, ["--fidelities", "dz:EF", "cc:E", "--batch-size=7", "--epochs=2", "--strategy=meta"]),
}


class Record(Callback):
    """What each step and epoch came to, in this process."""

    def __init__(self, columns: dict[str, int]) -> None:
        self.columns = columns
        self.steps: list[dict[str, Any]] = []
        self.epochs: list[dict[str, Any]] = []
        self._gradient = torch.ones(1, dtype=torch.float64)

    def on_before_optimizer_step(self, trainer: Any, module: lightning.LightningModule, optimizer: Any) -> None:
        gradients = [p.grad for p in module.parameters() if p.requires_grad]
        flat = [g.flatten().double() for g in gradients if g is not None]
        self._gradient = torch.cat(flat).clone()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        labels = {name: int(batch.energy_mask[:, column].sum()) for name, column in self.columns.items()}
        self.steps.append({"loss": float(outputs["loss"]), "gradient": self._gradient, "labels": labels})

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.epochs.append({"metrics": metrics, "batch_size": trainer.datamodule.batch_size, "lr": lr})


def splits_file(folder: Path, n_train: int, n_val: int) -> Path:
    """Some conformations of the bundled data, of all elements and with labels of all levels."""
    mask = MiniCHNO()._data.energy_mask[:, MiniCHNO().fidelities.index("tz")].numpy()
    random = np.random.default_rng(3)
    with_tz, without = random.permutation(np.flatnonzero(mask)[:200]), random.permutation(np.flatnonzero(~mask)[:500])
    n_with = max(2, n_train // 4)
    train_rows = np.concatenate([with_tz[:n_with], without[: n_train - n_with]])
    val = np.concatenate([with_tz[n_with : n_with + 1], without[n_train : n_train + n_val - 1]])
    path = folder / f"splits-{fit.this_process().rank}-{n_train}.npz"
    np.savez(path, train=train_rows, val=val, test=without[-1:])
    return path


def record(folder: Path, name: str) -> dict[str, Any]:
    """Train a case without a run folder."""
    n_train, n_val, arguments = CASES[name]
    index = ["--split.method=index", f"--split.file={splits_file(folder, n_train, n_val)}"]
    strategy = {"tl": STILL[:2], "meta": [STILL[0], STILL[2]]}.get(name, STILL[:1])
    settings, _ = train_options.parse(
        [*arguments, *TINY, *strategy, *index, f"--devices={fit.this_process().world_size}", "--out", str(folder)]
    )
    fidelities, dataset = check_settings(settings), open_training_data(settings, check_settings(settings))
    splits = run.make_splits(dataset, settings.split, 0)
    torch.manual_seed(0)
    inputs = Inputs(settings, fidelities, dataset, splits)
    watch, read = Record({f.name: dataset.fidelities.index(f.name) for f in fidelities}), []
    original = batches.Assembler.__call__
    batches.Assembler.__call__ = lambda self, chosen: (read.extend(map(int, chosen)), original(self, chosen))[1]
    lightning.Trainer.save_checkpoint = lambda *_: None  # type: ignore[method-assign,assignment]
    fit.fit(inputs, *stages_of(inputs), RunFolder(folder), Console(quiet=True), torch.device("cpu"), more=[watch])
    batches.Assembler.__call__ = original
    return {"steps": watch.steps, "epochs": watch.epochs, "read": read}


def process_of(rank: int, number: int, port: int) -> None:
    """One of a number of processes."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if number > 1:
        os.environ.update(TORCHELASTIC_RUN_ID="none", WORLD_SIZE=str(number), LOCAL_WORLD_SIZE=str(number))
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    process = this_process()
    fit.this_process = lambda: process  # type: ignore[assignment]  # Lightning removes variables after each
    quiet_frameworks()
    found = {name: record(Path(sys.argv[1]), name) for name in sys.argv[3:]}
    torch.save(found, Path(sys.argv[1]) / f"{number}-{rank}.pt")


def main() -> None:
    torch.set_num_threads(1)
    for number in map(int, sys.argv[2].split(",")):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = [multiprocessing.Process(target=process_of, args=(rank, number, port)) for rank in range(number)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        if any(child.exitcode for child in children):
            sys.exit(1)


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    main()
