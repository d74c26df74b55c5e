"""Time from the import of torch to the first energy and forces of a checkpoint.

    python benchmarks/start.py [MODEL] [--backbone NAME] [--repeats N]

Each time is the median over fresh processes with one thread, of wall time and of CPU time; the latter is what to look
at on a machine with other work. MODEL is a run folder or a checkpoint; without one an untrained network of
``--preset small`` is used. Files are in the system's cache after a first process that does not count, which also
compiles the native kernel of ``hipnn`` (two seconds, once on a machine).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HEAVY = ("lightning", "e3nn", "matplotlib", "ase.io", "h5py", "jsonargparse", "rich")
"""Packages that an energy can do without, as far as the backbone itself does not need them."""


def timed(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result of a call, and its seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def start(model: str) -> dict[str, Any]:
    """Seconds of each step in this process, which must be fresh."""
    torch, of_torch = timed(lambda: __import__("torch"))
    mfpyg, of_package = timed(lambda: __import__("mfpyg.checkpoint"))
    potential, of_load = timed(lambda: mfpyg.load(model))
    # 12 atoms of the elements that it knows, 1.4 Å from their neighbours.
    z = torch.tensor(potential.species)[torch.arange(12) % len(potential.species)]
    pos = 1.4 * torch.cartesian_prod(torch.arange(3.0), torch.arange(2.0), torch.arange(2.0))

    def predict() -> Any:
        from torch_geometric.data import Data

        return potential(Data(z=z, pos=pos), fidelity=potential.fidelities[0])

    prediction, of_first = timed(predict)
    assert prediction.forces.isfinite().all()
    _, of_second = timed(predict)
    return {
        "import torch": of_torch,
        "import mfpyg and PyTorch Geometric": of_package,
        "load": of_load,
        "first energy and forces": of_first,
        "all but torch": {k: of_package[k] + of_load[k] + of_first[k] for k in of_load},
        "second energy and forces": of_second,
        "imported": [name for name in HEAVY if name in sys.modules],
    }


def write_untrained(path: Path, backbone: str) -> None:
    """A checkpoint of a network with fresh weights."""
    import torch

    from mfpyg.checkpoint import describe
    from mfpyg.models.build import build_potential
    from mfpyg.settings import defaults, from_dict

    settings = from_dict({**defaults("small", backbone), "fidelities": ["dz:EF", "cc:E"]})
    potential = build_potential(settings, [1, 6, 7, 8], ["dz", "cc"])
    weights = {f"potential.{name}": value for name, value in potential.state_dict().items()}
    data = {"name": ["minichno"], "fingerprint": "", "methods": {}}
    torch.save({"state_dict": weights, "mfpyg": describe(potential, settings, data, {})}, path)


def in_fresh_process(model: str) -> dict[str, Any]:
    """Result of :func:`start` in a process of its own."""
    command = [sys.executable, __file__, model, "--once"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def main() -> None:
    """Measure, print, one line a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="run folder or checkpoint (default: an untrained network)")
    parser.add_argument("--backbone", default="hipnn", help="of the untrained network")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--once", action="store_true", help="measure in this process, and print JSON")
    options = parser.parse_args()
    if options.once:
        print(json.dumps(start(options.model)))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if model is None:
            model = str(Path(folder) / "untrained.ckpt")
            write_untrained(Path(model), options.backbone)
        in_fresh_process(model)
        results = [in_fresh_process(model) for _ in range(options.repeats)]
    print(f"median of {options.repeats} processes, seconds   wall    CPU")
    for name in results[0]:
        if name != "imported":
            wall, cpu = (statistics.median(result[name][kind] for result in results) for kind in ("wall", "cpu"))
            print(f"{name:40s} {wall:6.3f} {cpu:6.3f}")
    print(f"imported of {', '.join(HEAVY)}: {', '.join(results[0]['imported']) or 'none'}")


if __name__ == "__main__":
    main()
