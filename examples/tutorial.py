"""From labels to molecular dynamics at the coupled-cluster level, without training on coupled-cluster forces.

    python examples/tutorial.py

Run it as a whole, or cell by cell in an editor that supports ``# %%``. It takes about five minutes on a laptop and
writes a model, a trajectory and a figure to ``tutorial/``; see ``--help`` for options that make it shorter.
"""

# %% Options
from __future__ import annotations

import argparse
import sys
from pathlib import Path

options = argparse.ArgumentParser(description=__doc__)
options.add_argument("--epochs", type=int, default=160, help="training epochs")
options.add_argument("--steps", type=int, default=8000, help="steps of dynamics, half a femtosecond each")
options.add_argument("--molecule", default="CH3OH", help="a small molecule of ASE's collection g2")
options.add_argument("--out", default="tutorial", help="output folder")
wanted = options.parse_args([] if "ipykernel" in sys.modules else None)
out = Path(wanted.out)

# %% The data: 788 conformations of small molecules. Every one has energies and forces of a cheap density functional
# (dz) and the coupled-cluster energy (cc). A few have coupled-cluster forces, which are only used for testing.
from mfpyg.datasets import MiniCHNO

dataset = MiniCHNO()
print(dataset)
for level in dataset.label_counts():
    print(f"{level['name']:7}{level['method']:32}{level['energies']:5} energies {level['forces']:5} with forces")

# %% Training: one network with an output layer for each level. The same as
# mfpyg-train --fidelities dz:EF cc:E --out tutorial/model
from mfpyg.cli.train import main as train

model = out / "model"
if not (model / "metrics.json").is_file():
    train(["--fidelities", "dz:EF", "cc:E", "--epochs", str(wanted.epochs), "--out", str(model)])

# %% How good are the forces it was never trained on? Coupled-cluster forces of the test split against those of the
# network, and of the density functional, which would be the alternative.
import numpy as np
import torch

import mfpyg
from mfpyg.datasets import BatchLoader

potential = mfpyg.load(model)
test = next(iter(BatchLoader(dataset[np.flatnonzero(dataset.given_split() == 1)], batch_size=1000)))
dz, cc = (dataset.fidelities.index(name) for name in ("dz", "cc"))
labelled = test.forces_mask[test.batch, cc]
label = test.forces[labelled, cc]
learned = potential(test, fidelity="cc").forces[labelled]
cheap = test.forces[labelled, dz]


def rmse(forces: torch.Tensor) -> float:
    return float((forces - label).square().mean().sqrt())


print(f"cc forces are off by {rmse(learned):.1f} kcal/mol/Å; those of the functional by {rmse(cheap):.1f}")

# %% The potential as an ASE calculator: everything that ASE can do, at the coupled-cluster level.
from ase.build import molecule
from ase.optimize import BFGS
from ase.vibrations import Vibrations

from mfpyg.interop.ase import MFPyGCalculator

atoms = molecule(wanted.molecule)
atoms.calc = MFPyGCalculator(model, fidelity="cc")
BFGS(atoms, logfile=None).run(fmax=0.001, steps=500)
# The network's norms are nearly kinked where an atom's neighbours balance each other, as at a minimum: use
# displacements of the size of the thermal motion, as smaller ones see the kink.
vibrations = Vibrations(atoms, name=str(out / "vibrations"), delta=0.05)
vibrations.clean()
vibrations.run()
harmonic = vibrations.get_frequencies().real
print("harmonic frequencies in cm⁻¹:", " ".join(f"{frequency:.0f}" for frequency in harmonic[harmonic > 50]))

# %% Dynamics at constant energy, half a femtosecond a step.
from ase import units
from ase.io import Trajectory
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet

STEP = 0.5  # fs
MaxwellBoltzmannDistribution(
    atoms, temperature_K=600, rng=np.random.default_rng(0)
)  # half of it becomes potential energy
Stationary(atoms)
ZeroRotation(atoms)
dynamics = VelocityVerlet(atoms, STEP * units.fs)
energies, temperatures, velocities = [], [], []


def record() -> None:
    energies.append(atoms.get_total_energy())
    temperatures.append(atoms.get_temperature())
    velocities.append(atoms.get_velocities())


dynamics.attach(record)
with Trajectory(str(out / "dynamics.traj"), "w", atoms) as trajectory:
    dynamics.attach(trajectory, interval=10)
    dynamics.run(wanted.steps)
time = np.arange(len(energies)) * STEP / 1000  # ps
total = (np.array(energies) - energies[0]) * units.mol / units.kcal / len(atoms)  # kcal/mol/atom
drift = np.polyfit(time, total, 1)[0]
print(f"{wanted.steps} steps at {np.mean(temperatures):.0f} K; total energy drifts by {drift:.4f} kcal/mol/atom/ps")

# %% The vibrational spectrum of the motion, from the mass-weighted velocities.
weighted = np.array(velocities) * np.sqrt(atoms.get_masses())[:, None]
window = np.hanning(len(weighted))[:, None, None]
spectrum = (np.abs(np.fft.rfft(weighted * window, axis=0)) ** 2).sum(axis=(1, 2))
wavenumber = np.fft.rfftfreq(len(weighted), STEP * 1e-15) / 2.99792458e10  # cm⁻¹

# %% A figure of all results.
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

figure, (parity, energy, motion) = plt.subplots(1, 3, figsize=(13, 4))
limits = [float(label.min()), float(label.max())]
parity.plot(limits, limits, color="0.6", linewidth=1)
parity.plot(label.flatten(), cheap.flatten(), ".", markersize=3, alpha=0.5, label=f"functional, RMSE {rmse(cheap):.1f}")
parity.plot(
    label.flatten(), learned.flatten(), ".", markersize=3, alpha=0.5, label=f"network, RMSE {rmse(learned):.1f}"
)
parity.set(xlabel="CCSD(T) forces, never trained on (kcal/mol/Å)", ylabel="forces (kcal/mol/Å)")
parity.legend()
energy.plot(time, total, linewidth=0.8)
energy.set(xlabel="time (ps)", ylabel="total energy (kcal/mol/atom)", title=f"drift {drift:.1e} kcal/mol/atom/ps")
shown = wavenumber < 4500
motion.plot(
    wavenumber[shown],
    spectrum[shown] / spectrum[shown].max(),
    linewidth=0.8,
    label=f"dynamics at {np.mean(temperatures):.0f} K",
)
motion.vlines(harmonic[harmonic > 50], -0.08, -0.02, color="C1", label="harmonic")
motion.set(xlabel="wavenumber (cm⁻¹)", ylabel="motion (arbitrary units)", title=f"{wanted.molecule}, cc")
motion.legend()
figure.tight_layout()
figure.savefig(out / "tutorial.png", dpi=120)
print(f"written: {out / 'tutorial.png'}")
