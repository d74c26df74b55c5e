"""Predicting a file of bundled molecules, energies and forces, beside a loop over the ASE calculator.

Both read the same extended XYZ file and write the predictions to another one: ``predict_file``, which is what
``mfpyg-predict`` calls, and the loop that ASE's documentation shows, with ASE's reader and writer. The two take turns;
before that, their forces are compared. Resident memory is that of the process while the file is predicted.

    python benchmarks/predict.py [--model RUN --fidelity NAME] [--frames 20000] [--threads 1] [--json FILE]

Without a model, an untrained one of the preset ``small`` is measured: its time is the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import resident
import torch
from ase import Atoms

from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.frames import frames_of
from mfpyg.inference.ensemble import Ensemble
from mfpyg.inference.files import as_extxyz, output_of, predict_file
from mfpyg.inference.frames import predict_frames
from mfpyg.interop.ase import MFPyGCalculator
from mfpyg.models import Potential
from mfpyg.models.build import build_potential
from mfpyg.settings import defaults, from_dict

LOOP_FRAMES = 500
"""Frames of a turn of the loop, which takes some milliseconds each."""


def untrained() -> Potential:
    """A potential of the preset for the bundled data."""
    torch.manual_seed(0)
    settings = from_dict({**defaults("small", "hipnn"), "fidelities": ["dz:EF", "cc:E"]})
    return build_potential(settings, [1, 6, 7, 8], ["dz", "cc"]).eval()


def write_input(path: Path, n_frames: int) -> float:
    """The bundled molecules over and over; how many atoms they have on average."""
    dataset = MiniCHNO()
    items = [dataset[i] for i in range(len(dataset))]
    ase.io.write(path, [Atoms(item.z.numpy(), item.pos.double().numpy()) for item in items], format="extxyz")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    frames, first = [], 0
    for item in items:
        frames.append("".join(lines[first : first + 2 + len(item.z)]))
        first += 2 + len(item.z)
    path.write_text("".join(frames[i % len(frames)] for i in range(n_frames)), encoding="utf-8")
    return float(np.mean([len(items[i % len(items)].z) for i in range(n_frames)]))


def loop(calculator: MFPyGCalculator, source: Path, target: Path, n_frames: int) -> dict[str, float]:
    """Seconds a frame of ASE's loop, with reading and writing and in the calculator alone."""
    inside = 0.0
    start = time.perf_counter()
    with target.open("w", encoding="utf-8") as file:
        for atoms in ase.io.iread(source, f":{n_frames}"):
            atoms.calc = calculator
            before = time.perf_counter()
            atoms.get_potential_energy()
            atoms.get_forces()
            inside += time.perf_counter() - before
            ase.io.write(file, atoms, format="extxyz")
    return {"loop": (time.perf_counter() - start) / n_frames, "calculator": inside / n_frames}


def batched(ensemble: Ensemble, fidelity: str, source: Path, target: Path, batch_size: int) -> tuple[float, list[Any]]:
    """Seconds a frame of ``predict_file``, and resident memory in MiB as frames go by."""
    memory: list[tuple[int, float]] = []

    def watched(found: Iterator[Any]) -> Iterator[Any]:
        for number, one in enumerate(found):
            if number % 1000 == 0:
                memory.append((number, resident.now()))
            yield one

    start = time.perf_counter()
    n_frames = predict_file(ensemble, source, target, fidelity, batch_size=batch_size, track=watched)
    return (time.perf_counter() - start) / n_frames, memory


def parts(ensemble: Ensemble, fidelity: str, source: Path, target: Path, batch_size: int) -> dict[str, float]:
    """Seconds a frame of reading, predicting and writing, each for itself."""
    frames, read = _timed(lambda: list(frames_of(source)))
    found, predicted = _timed(lambda: list(predict_frames(ensemble, frames, fidelity, batch_size=batch_size)))
    output = output_of([fidelity], "eV")
    _, wrote = _timed(lambda: target.write_text("".join(as_extxyz(found, output)), encoding="utf-8"))
    times = {"reading": read, "predicting": predicted, "writing": wrote}
    return {name: seconds / len(frames) for name, seconds in times.items()}


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def check(one: Path, two: Path) -> float:
    """Largest difference of the forces of two files in eV/Å; the second may be longer."""
    images = ase.io.read(one, ":")
    others = ase.io.iread(two, f":{len(images)}")
    return max(float(np.abs(a.get_forces() - b.get_forces()).max()) for a, b in zip(images, others, strict=True))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures."""
    ensemble = Ensemble(options.model or untrained())
    fidelity = ensemble.fidelity(options.fidelity or ensemble.fidelities[-1])
    calculator = MFPyGCalculator(ensemble.members[0], fidelity)
    source, fast, slow = folder / "in.xyz", folder / "fast.xyz", folder / "slow.xyz"
    n_atoms = write_input(source, options.frames)
    n_loop = min(LOOP_FRAMES, options.frames)
    loop(calculator, source, slow, n_loop)  # warm
    batched(ensemble, fidelity, source, fast, options.batch_size)
    difference = check(slow, fast)
    if difference > 1e-4:
        raise SystemExit(f"forces differ by {difference:.1e} eV/Å")
    seconds: dict[str, list[float]] = {"loop": [], "calculator": [], "file": []}
    memory: list[Any] = []
    for _ in range(options.repeats):
        for name, value in loop(calculator, source, slow, n_loop).items():
            seconds[name].append(value)
        value, memory = batched(ensemble, fidelity, source, fast, options.batch_size)
        seconds["file"].append(value)
    after = [number for number, _ in memory if number >= options.frames // 5]
    slope = np.polyfit(after, [mib for number, mib in memory if number in set(after)], 1)[0] if len(after) > 1 else None
    return {
        "frames": options.frames,
        "atoms_a_frame": n_atoms,
        "batch_size": options.batch_size,
        "threads": options.threads,
        "largest_difference_ev_per_angstrom": difference,
        "ms_a_frame": {name: 1e3 * statistics.median(values) for name, values in seconds.items()},
        "raw_s_a_frame": seconds,
        "parts_ms_a_frame": {
            name: 1e3 * value for name, value in parts(ensemble, fidelity, source, fast, options.batch_size).items()
        },
        "mib_per_1000_frames": None if slope is None else 1000 * float(slope),
    }


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="run folder or checkpoint")
    parser.add_argument("--fidelity", help="of the model (default: its last)")
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where every figure goes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    ms, part = found["ms_a_frame"], found["parts_ms_a_frame"]
    print(f"{found['frames']:,} frames of {found['atoms_a_frame']:.1f} atoms, batch {found['batch_size']}")
    print(f"  mfpyg-predict   {ms['file']:.3f} ms a frame, {1e3 / ms['file']:,.0f} frames a second")
    print("                  " + ", ".join(f"{name} {value:.3f}" for name, value in part.items()))
    print(f"  ASE's loop      {ms['loop']:.3f} ms a frame, {ms['loop'] / ms['file']:.1f} times as long")
    print(f"    calculator    {ms['calculator']:.3f} ms a frame, {ms['calculator'] / ms['file']:.1f} times as long")
    print(f"  memory grows by {found['mib_per_1000_frames']:.3f} MiB in 1,000 frames")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
