"""Dynamics of molecules at constant energy: whether bonds break, and how far the total energy drifts.

Takes SMILES, files of SMILES (``.smi``) and files of structures. Each molecule is relaxed with the potential, brought
to 300 K by Langevin dynamics of 1 ps, and then left alone (velocity Verlet, 0.5 fs, float64):

    python benchmarks/dynamics.py chno-1 cc held_out.smi --ps 100 --jobs 2 --out runs/dynamics

Two atoms are bonded up to 1.3 times the sum of their covalent radii. Bonds that differ from those of the start for
100 fs have changed, and the molecule is stopped there. The drift is the slope of a straight line through the total
energy.

A molecule's state is saved every picosecond; the same command continues after a stop, also with more ``--ps``.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.data import atomic_masses, chemical_symbols, covalent_radii
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary, ZeroRotation
from ase.optimize import BFGS
from torch_geometric.data import Batch

from mfpyg.checkpoint import checkpoint_file
from mfpyg.files import make_folder, read_npz, replace_file, sha256_of
from mfpyg.inference.ensemble import Ensemble
from mfpyg.interop.ase import MFPyGCalculator, data_of
from mfpyg.sampling.geometry import BONDED
from mfpyg.sampling.molecules import Molecule, conformers, read_molecules
from mfpyg.units import KCAL_MOL_TO_EV

TEMPERATURE, STEP = 300.0, 0.5  # K, fs
EQUILIBRATION, FRICTION = 1000.0, 0.01  # fs, fs⁻¹
STRIDE = 10
"""Steps between two looks at energy and bonds."""
SUSTAINED = 20
"""Looks in a row, 100 fs, after which bonds count as changed."""
HOT = 10 * TEMPERATURE
"""Temperature in K of what has exploded, and is stopped, too."""
SAVED = 200
"""Looks between two savings."""
GOAL = 1e-4  # eV/atom/ps


@dataclass
class State:
    """Trajectory of a molecule so far, in ASE's units.

    Attributes:
        z: atomic numbers, (n,).
        start: positions that the bonds are those of, (n, 3).
        pos, velocities: now, (n, 3).
        energies: total energy at each look, (m,).
        temperatures: kinetic temperature in K at each look, (m,).
        odd: number of the last looks in a row whose bonds are not those of the start.
    """

    z: np.ndarray
    start: np.ndarray
    pos: np.ndarray
    velocities: np.ndarray
    energies: np.ndarray
    temperatures: np.ndarray
    odd: np.ndarray

    @property
    def masses(self) -> np.ndarray:
        return atomic_masses[self.z][:, None]

    @property
    def ps(self) -> float:
        return (len(self.energies) - 1) * STRIDE * STEP / 1000

    @property
    def broken(self) -> bool:
        return int(self.odd) >= SUSTAINED or self.temperatures[-1] > HOT

    def look(self, potential_energy: float) -> None:
        """Record energy, temperature and bonds."""
        kinetic = float((0.5 * self.masses * self.velocities**2).sum())
        freedom = max(3 * len(self.z) - (5 if len(self.z) == 2 else 6), 1)
        self.energies = np.append(self.energies, potential_energy + kinetic)
        self.temperatures = np.append(self.temperatures, 2 * kinetic / (freedom * units.kB))
        same = (bonds_of(self.z, self.pos) == bonds_of(self.z, self.start)).all()
        self.odd = np.array(0 if same else int(self.odd) + 1)

    def save(self, path: Path) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        replace_file(path, lambda name: _save(name, values))


def _save(name: str, values: dict[str, np.ndarray]) -> None:
    with open(name, "wb") as file:  # numpy appends .npz to a name
        np.savez(file, **values)


def bonds_of(z: np.ndarray, pos: np.ndarray) -> np.ndarray:
    """Which pairs of atoms are bonded, (n, n) bool."""
    radii = covalent_radii[z]
    distances = np.linalg.norm(pos[:, None] - pos[None], axis=2)
    found: np.ndarray = distances <= BONDED * (radii[:, None] + radii[None])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run folder, checkpoint or shipped model")
    parser.add_argument("level", help="fidelity")
    parser.add_argument("molecules", nargs="+", help="SMILES, .smi files, or files of structures, the first of each")
    parser.add_argument("--ps", type=float, default=100.0, help="of each molecule")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--seed", type=int, default=0, help="of conformers and velocities")
    parser.add_argument("--out", type=Path, default=Path("runs/dynamics"))
    options = parser.parse_args()
    molecules = read_molecules(options.molecules, needs_spin=False)
    # Other weights are other trajectories.
    folder = options.out / f"{sha256_of(checkpoint_file(options.model))[:12]}-{options.level}-seed{options.seed}"
    make_folder(folder)
    shares = [molecules[number :: options.jobs] for number in range(min(options.jobs, len(molecules)))]
    work = (options.model, options.level, options.ps, options.seed, folder)
    with ProcessPoolExecutor(len(shares), multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(run, share, *work) for share in shares]:
            done.result()
    states = {molecule.name: load(path_of(folder, molecule)) for molecule in molecules}
    print(table(states))


def path_of(folder: Path, molecule: Molecule) -> Path:
    return folder / f"{hashlib.sha256(molecule.name.encode()).hexdigest()[:12]}.npz"


def load(path: Path) -> State:
    return State(**read_npz(path))


def run(molecules: Sequence[Molecule], model: str, level: str, ps: float, seed: int, folder: Path) -> None:
    """Start or continue molecules, all in one batch, until each has its time or has broken."""
    torch.set_num_threads(1)
    ensemble = Ensemble(model)
    ensemble.members[0].double()
    states = {}
    for molecule in molecules:
        path = path_of(folder, molecule)
        if not path.is_file():
            started(molecule, model, level, seed).save(path)
        states[path] = load(path)
    looks = 0
    while going := {path: state for path, state in states.items() if state.ps < ps - 1e-9 and not state.broken}:
        advance(list(going.values()), ensemble, level)
        looks += 1
        for path, state in going.items():
            if looks % SAVED == 0 or state.broken or state.ps >= ps - 1e-9:
                state.save(path)


def started(molecule: Molecule, model: str, level: str, seed: int) -> State:
    """A molecule relaxed, at 300 K, without translation and rotation."""
    atoms = molecule.structures[0].copy() if molecule.structures else conformers(molecule.smiles or "", 1, seed)[0]
    start = atoms.positions.copy()
    atoms.calc = MFPyGCalculator(model, level, dtype="float64")
    BFGS(atoms, logfile=None).run(fmax=0.05, steps=500)
    rng = np.random.default_rng(seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE, rng=rng)
    options = {"temperature_K": TEMPERATURE, "friction": FRICTION / units.fs, "fixcm": False, "rng": rng}
    Langevin(atoms, STEP * units.fs, **options).run(round(EQUILIBRATION / STEP))
    Stationary(atoms)
    ZeroRotation(atoms)
    nothing = np.zeros(0)
    state = State(atoms.numbers, start, atoms.positions, atoms.get_velocities(), nothing, nothing, np.array(0))
    state.look(atoms.get_potential_energy())
    return state


def advance(states: Sequence[State], ensemble: Ensemble, level: str) -> None:
    """Velocity Verlet of some molecules for one stride, and a look at each."""
    graph = Batch.from_data_list([data_of(Atoms(state.z, state.pos)) for state in states])
    ends = np.cumsum([len(state.z) for state in states])[:-1]
    pos = np.concatenate([state.pos for state in states])
    velocities = np.concatenate([state.velocities for state in states])
    masses, dt = np.concatenate([state.masses for state in states]), STEP * units.fs
    _, forces = predict(ensemble, graph, pos, level)
    for _ in range(STRIDE):
        velocities += 0.5 * dt * forces / masses
        pos += dt * velocities
        energies, forces = predict(ensemble, graph, pos, level)
        velocities += 0.5 * dt * forces / masses
    for state, x, v, energy in zip(states, np.split(pos, ends), np.split(velocities, ends), energies, strict=True):
        state.pos, state.velocities = x, v
        state.look(float(energy))


def predict(ensemble: Ensemble, graph: Batch, pos: np.ndarray, level: str) -> tuple[np.ndarray, np.ndarray]:
    """Energies in eV, (n_molecules,), and forces in eV/Å, (n_atoms, 3)."""
    here = graph.clone()
    here.pos = torch.from_numpy(pos.copy())
    found = ensemble.predict(here, {level: "EF"})[0][level]
    assert found.forces is not None
    return found.energy.numpy() * KCAL_MOL_TO_EV, found.forces.numpy() * KCAL_MOL_TO_EV


def drift_of(state: State) -> tuple[float, float]:
    """Drift in eV/atom/ps by a linear fit, and the root mean square deviation from it in eV/atom."""
    times = np.arange(len(state.energies)) * STRIDE * STEP / 1000
    energies = (state.energies - state.energies[0]) / len(state.z)
    slope, start = np.polyfit(times, energies, 1)
    return float(slope), float(np.std(energies - start - slope * times))


def bond_changes(state: State) -> str:
    """Bonds that are not those of the start, at the end of a molecule that has broken."""
    if not state.broken:
        return "none"
    before, now = bonds_of(state.z, state.start), bonds_of(state.z, state.pos)
    words = []
    for i, j in zip(*np.nonzero(np.triu(before != now)), strict=True):
        pair = "–".join(f"{chemical_symbols[state.z[k]]}{k}" for k in (i, j))
        words.append(f"{pair} {'broken' if before[i, j] else 'formed'}")
    if state.temperatures[-1] > HOT:
        words.append(f"{state.temperatures[-1]:,.0f} K")
    return f"{', '.join(words)} after {state.ps - (int(state.odd) - 1) * STRIDE * STEP / 1000:.2f} ps"


def table(states: dict[str, State]) -> str:
    """Markdown: a row a molecule, and how many are as they should be."""
    heads = ["molecule", "atoms", "ps", "mean T (K)", "changed bonds", "drift (eV/atom/ps)", "fluctuation (meV/atom)"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    good = 0
    for name, state in states.items():
        drift, fluctuation = drift_of(state)
        good += not state.broken and abs(drift) < GOAL
        cells = [name, str(len(state.z)), f"{state.ps:.2f}", f"{state.temperatures.mean():.0f}", bond_changes(state)]
        lines.append(f"| {' | '.join(cells)} | {drift:+.1e} | {1000 * fluctuation:.3f} |")
    return "\n".join([*lines, "", f"{good} of {len(states)} without changed bonds and with a drift below {GOAL:g}"])


if __name__ == "__main__":
    main()
