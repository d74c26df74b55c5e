"""Weak scaling: time of a training step of 1, 2, … processes, each with the same number of molecules.

    python benchmarks/scaling.py --processes 1 2 --batch 32

The published network, on the bundled data, through Lightning and DDP as ``mfpyg-train`` has them, without validation.
Then what it should take on GPUs, from the bytes and messages of a step and the numbers that ``--step-ms``,
``--bandwidth`` and ``--latency-us`` assume; nothing here was run on any.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

MESSAGES = 6
"""Collectives of a step that others wait for: error sums of the loss; gradients, in two buckets; which parameters were
used; the network's buffers; and Lightning's question whether to stop. Ours, every tenth step, is left out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=32, help="molecules of each process")
    parser.add_argument("--steps", type=int, default=20, help="after three that are not counted")
    parser.add_argument("--fidelities", nargs="+", default=["dz:EF", "cc:E"])
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64], help="numbers of GPUs to estimate")
    parser.add_argument("--step-ms", type=float, default=20.0, help="assumed step of a GPU with --batch molecules")
    parser.add_argument("--bandwidth", type=float, nargs=2, default=[150.0, 25.0], help="GB/s within and between nodes")
    parser.add_argument("--latency-us", type=float, nargs=2, default=[20.0, 60.0], help="of a collective, likewise")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        options.worker.write_text(json.dumps(measure(options)))
        return
    rows = [measured(options, number) for number in options.processes]
    print("| processes | molecules | step, ms | efficiency |\n| --- | --- | --- | --- |")
    for row in rows:
        efficiency = rows[0]["step_ms"] / row["step_ms"]
        print(f"| {row['processes']} | {row['molecules']} | {row['step_ms']:.1f} | {efficiency:.0%} |")
    gradient = 4 * rows[0]["parameters"]
    print(
        f"\n{rows[0]['parameters']:,} parameters, {gradient / 1e6:.2f} MB of gradients; assumed: "
        f"{options.step_ms:g} ms a step of {options.batch} molecules on one GPU, {options.bandwidth[0]:g} and "
        f"{options.bandwidth[1]:g} GB/s and "
        f"{options.latency_us[0]:g} and {options.latency_us[1]:g} µs within and between nodes of 8"
    )
    estimates = [estimated(options, gradient, number) for number in options.gpus]
    print("\n| GPUs | gradients, ms | messages, ms | step, ms | efficiency |\n| --- | --- | --- | --- | --- |")
    for e in estimates:
        print(
            f"| {e['gpus']} | {e['gradients_ms']:.2f} | {e['messages_ms']:.2f} | {e['step_ms']:.2f} | "
            f"{e['efficiency']:.0%} |"
        )
    if options.out is not None:
        options.out.write_text(json.dumps({"measured": rows, "estimated": estimates}, indent=2) + "\n")


def estimated(options: argparse.Namespace, gradient: int, gpus: int) -> dict[str, float]:
    """A step of several GPUs, nothing of which overlaps: a ring's 2 (p - 1)/p · bytes / bandwidth, and latencies."""
    between = int(gpus > 8)
    gradients = 2 * (gpus - 1) / gpus * gradient / (options.bandwidth[between] * 1e9) * 1e3
    messages = MESSAGES * options.latency_us[between] / 1e3
    step = options.step_ms + gradients + messages
    return {
        "gpus": gpus, "gradients_ms": gradients, "messages_ms": messages, "step_ms": step,
        "efficiency": options.step_ms / step,
    }  # fmt: skip


def measured(options: argparse.Namespace, number: int) -> dict[str, Any]:
    """Median step of so many processes, as the first one sees it."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        one.close()
        shared = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if number > 1:
            shared |= {"MFPYG_LAUNCHED": "1", "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
        started = [
            subprocess.Popen(
                [sys.executable, *sys.argv, "--worker", f"{folder}/{rank}.json"],
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "TORCH_CPP_LOG_LEVEL": "ERROR"},
            )
            for rank in range(number)
        ]
        statuses = [process.wait() for process in started]
        if any(statuses):
            sys.exit("a process failed")
        found: dict[str, Any] = json.loads(Path(folder, "0.json").read_text())
        return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train, as one of the processes."""
    import torch
    from lightning.pytorch.callbacks import Callback

    from mfpyg.cli import train_options
    from mfpyg.cli.common import quiet_frameworks
    from mfpyg.datasets.splits import make_splits
    from mfpyg.training.check import check_settings
    from mfpyg.training.data import ConformationData, open_training_data
    from mfpyg.training.distributed import environment_of, this_process
    from mfpyg.training.fit import stages_of, trainer_of
    from mfpyg.training.inputs import Inputs
    from mfpyg.training.module import MultiFidelityModule

    class Clock(Callback):
        times: list[float] = []  # noqa: RUF012

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self.times.append(time.perf_counter())
            trainer.should_stop = len(self.times) == options.steps + 4

    number = this_process().world_size
    quiet_frameworks()
    torch.set_num_threads(1)
    settings, _ = train_options.parse(
        ["--fidelities", *options.fidelities, "--preset=published", f"--devices={number}", "--accelerator=cpu",
         f"--batch-size={number * options.batch}", "--epochs=1000"]
    )  # fmt: skip
    fidelities = check_settings(settings)
    dataset = open_training_data(settings, fidelities)
    inputs = Inputs(settings, fidelities, dataset, make_splits(dataset, settings.split, 0))
    potential, (stage,) = stages_of(inputs)
    module, clock, environment = (
        MultiFidelityModule(stage.start(potential), stage),
        Clock(),
        environment_of(this_process()),
    )
    trainer = trainer_of(settings, stage.epochs, [clock], [], torch.device("cpu"), environment)
    trainer.limit_val_batches = 0
    trainer.save_checkpoint = lambda *_: None  # type: ignore[method-assign]  # Lightning's own, as there is no other
    trainer.fit(module, ConformationData(stage, settings.batch_size))
    steps = [after - before for before, after in zip(clock.times[3:], clock.times[4:], strict=False)]
    return {
        "processes": number,
        "molecules": number * options.batch,
        "step_ms": 1e3 * median(steps),
        "parameters": sum(p.numel() for p in potential.parameters()),
    }


if __name__ == "__main__":
    main()
