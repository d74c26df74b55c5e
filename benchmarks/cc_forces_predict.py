"""Predictions and their time of one model for cc_forces.py, in the Python of its program.

    python benchmarks/cc_forces_predict.py PROGRAM [--model MODEL] [--level LEVEL] [--references FILE] FRAMES OUT.npz

writes energies and forces of FRAMES in eV and eV/Å, and milliseconds of processor time: of energy and forces of one
molecule from the program's ASE calculator, and of a molecule of a batch, from ASE's atoms to the results, the atoms
having moved in both. Only what a program needs is imported.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms, units

BATCH = 128
"""Conformations of a batch."""

Found = Iterator[tuple[float, np.ndarray]]
"""Energies in eV and forces (n, 3) in eV/Å of one conformation after another."""


@dataclass
class Model:
    """A model.

    Attributes:
        calculator: ASE calculator.
        predict: predicts conformations in batches.
        n_parameters: number of trained parameters.
    """

    calculator: Any
    predict: Callable[[Sequence[Atoms]], Found]
    n_parameters: int = 0


def mfpyg_model(path: str, level: str) -> Model:
    from mfpyg.inference.ensemble import Ensemble
    from mfpyg.inference.frames import predict_frames
    from mfpyg.interop.ase import MFPyGCalculator

    ensemble = Ensemble(path)

    def predict(frames: Sequence[Atoms]) -> Found:
        for one in predict_frames(ensemble, frames, level, batch_size=BATCH):
            yield one.of[level].energy, one.of[level].forces

    n_parameters = sum(p.numel() for p in ensemble.members[0].parameters())
    return Model(MFPyGCalculator(path, level), predict, n_parameters)


def xtb_model(path: str, level: str) -> Model:
    """GFN2-xTB as ``mfpyg-label`` computes it."""
    from mfpyg.labeling.level import LabelLevel

    program: Any = LabelLevel.parse("xtb=tblite:GFN2-xTB:EF").open()

    def predict(frames: Sequence[Atoms]) -> Found:
        for frame in frames:
            found = program.compute(frame, frame.info.get("charge", 0), 1, "EF")
            yield found["E"], found["F"]

    return Model(program.make(0, 1), predict)


def mace_model(path: str, level: str) -> Model:
    import torch
    from mace import data
    from mace.calculators import MACECalculator
    from mace.tools import AtomicNumberTable, torch_geometric, torch_tools

    network = torch.load(path, map_location="cpu", weights_only=False)
    dtype = str(next(network.parameters()).dtype).removeprefix("torch.")
    calculator = MACECalculator(model_paths=path, device="cpu", default_dtype=dtype, head=level)
    network, table = calculator.models[0], AtomicNumberTable([int(z) for z in calculator.models[0].atomic_numbers])
    torch_tools.set_default_dtype(dtype)

    def predict(frames: Sequence[Atoms]) -> Found:
        graphs = [
            data.AtomicData.from_config(
                data.config_from_atoms(frame, head_name=level),
                z_table=table,
                cutoff=float(network.r_max),
                heads=network.heads,
            )
            for frame in frames
        ]
        for batch in torch_geometric.dataloader.DataLoader(graphs, batch_size=BATCH, shuffle=False, drop_last=False):
            found = network(batch.to_dict(), compute_stress=False)
            sizes = (batch.ptr[1:-1]).tolist()
            yield from zip(found["energy"].tolist(), np.split(found["forces"].detach().numpy(), sizes), strict=True)

    return Model(calculator, predict, sum(p.numel() for p in network.parameters()))


def ani_model(path: str, level: str) -> Model:
    import torch
    import torchani
    from torch.nn.utils.rnn import pad_sequence

    network = torchani.models.ANI1ccx(periodic_table_index=True)

    def predict(frames: Sequence[Atoms]) -> Found:
        for start in range(0, len(frames), BATCH):
            part = frames[start : start + BATCH]
            species = pad_sequence([torch.from_numpy(f.numbers).long() for f in part], True, -1)
            positions = pad_sequence([torch.from_numpy(f.positions).float() for f in part], True).requires_grad_()
            energies = network((species, positions)).energies
            forces = -torch.autograd.grad(energies.sum(), positions)[0].double().numpy() * units.Hartree
            values = (energies.detach().double() * units.Hartree).tolist()
            yield from ((energy, force[: len(f)]) for energy, force, f in zip(values, forces, part, strict=True))

    return Model(network.ase(), predict, sum(p.numel() for p in network.parameters()))


PROGRAMS = {
    "mfpyg": mfpyg_model,
    "xtb": xtb_model,
    "mace": mace_model,
    "ani": ani_model,
}


def processor_time(call: Callable[[], Any], seconds: float) -> float:
    """Median of the milliseconds of calls in some seconds, at least five, after two that do not count."""
    times: list[float] = []
    while len(times) < 7 or sum(times) < seconds:
        before = time.process_time()
        call()
        times.append(time.process_time() - before)
    return 1e3 * statistics.median(times[2:])


def time_of_one(model: Model, frames: Sequence[Atoms], seconds: float) -> float:
    """Milliseconds of energy and forces of a molecule of median size in a new geometry."""
    atoms = sorted(frames, key=len)[len(frames) // 2].copy()
    atoms.calc = model.calculator
    random = np.random.default_rng(0)

    def call() -> None:
        atoms.positions += random.normal(0.0, 0.001, atoms.positions.shape)
        atoms.get_potential_energy()
        atoms.get_forces()

    return processor_time(call, seconds)


def time_of_batch(model: Model, frames: Sequence[Atoms], seconds: float) -> float:
    """Milliseconds of energy and forces of a molecule of a batch in new geometries."""
    batch = [frame.copy() for frame in itertools.islice(itertools.cycle(frames), BATCH)]
    random = np.random.default_rng(0)

    def call() -> None:
        for atoms in batch:
            atoms.positions += random.normal(0.0, 0.001, atoms.positions.shape)
        list(model.predict(batch))

    return processor_time(call, seconds) / BATCH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--model", default="")
    parser.add_argument("--level", default="")
    parser.add_argument("--references", type=Path, help="frames whose energies are predicted, too")
    parser.add_argument("--seconds", type=float, default=2.0, help="processor time of each measurement")
    parser.add_argument("frames", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    model = PROGRAMS[options.program](options.model, options.level)
    frames = ase.io.read(options.frames, ":")
    energies, forces = zip(*model.predict(frames), strict=True)
    found = {
        "energy": np.array(energies),
        "forces": np.concatenate(forces),
        "n_parameters": np.array(model.n_parameters),
    }
    if options.references is not None:
        of_references = model.predict(ase.io.read(options.references, ":"))
        found["reference_energy"] = np.array([energy for energy, _ in of_references])
    found["one_ms"] = np.array(time_of_one(model, frames, options.seconds))
    found["batch_ms"] = np.array(time_of_batch(model, frames, options.seconds))
    np.savez(options.out, **found)


if __name__ == "__main__":
    main()
