"""Data of cc_forces.py: one split, files of its parts for all programs, and errors of their predictions.

Every program trains on the same conformations, ``train.xyz`` and ``val.xyz``, and predicts ``test.xyz``, which has no
labels. Energies and forces in files are in eV and eV/Å.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import ase
import ase.io
import numpy as np

from mfpyg.datasets.references import compositions, labelled_energies, species_of
from mfpyg.datasets.spec import open_dataset, parse_specs
from mfpyg.datasets.splits import make_splits
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.ensemble import Labels, labels_of, rmse_and_mae, sums_by_molecule
from mfpyg.fidelity import Fidelity
from mfpyg.inference.dataset import Labelled, Predictions
from mfpyg.settings import SplitSettings
from mfpyg.units import EV_TO_KCAL_MOL

QUANTITIES = ("energy", "conformers", "forces")
"""Energies, their differences within a molecule, and forces."""


class BenchmarkData:
    """Conformations and labels of a data set.

    Args:
        spec: data set as for ``mfpyg-train --dataset``.
        fidelities: levels to train on as for ``mfpyg-train --fidelities``; the last one is the target.
        split: method of the split.
        folder: folder for the files.
    """

    def __init__(self, spec: str, fidelities: Sequence[str], split: str, folder: Path) -> None:
        self.fidelities = [Fidelity.parse(text) for text in fidelities]
        self.target, self.folder = self.fidelities[-1].name, folder
        self.dataset = open_dataset(parse_specs([spec]), [f.name for f in self.fidelities])
        self.columns = {f.name: self.dataset.fidelities.index(f.name) for f in self.fidelities}
        splits = make_splits(self.dataset, SplitSettings(method=split), seed=0)
        self.parts = {name: splits[name] for name in ("train", "val")}
        tested = {name: self._labelled(splits[name], self.target) for name in ("test", "ood") if name in splits}
        self.tested = {name: rows for name, rows in tested.items() if len(rows)}
        if not self.tested:
            raise MFPyGError(f"no conformation of the test has an energy of {self.target}; choose another split")
        self.labels: dict[str, Labels] = {name: labels_of(self.dataset, rows) for name, rows in self.tested.items()}

    def _labelled(self, rows: np.ndarray, level: str, property: str = "energy") -> np.ndarray:
        mask = self.dataset._data[f"{property}_mask"][:, self.columns[level]].numpy()
        labelled: np.ndarray = rows[mask[rows]]
        return labelled

    @property
    def rows(self) -> np.ndarray:
        """Conformations of ``test.xyz``."""
        return np.concatenate(list(self.tested.values()))

    @property
    def reference_rows(self) -> np.ndarray:
        """Conformations of ``references.xyz``: those for training with a target energy."""
        return self._labelled(self.parts["train"], self.target)

    def path(self, name: str) -> Path:
        """Path of a file."""
        return self.folder / f"{name}.xyz"

    def spec(self, part: str, fidelities: Iterable[Fidelity]) -> str:
        """File of a part as a data set of mfpyg, with those of the levels that have labels in it."""
        levels = [
            f"{f.name}={f.name}_energy?{f',{f.name}_forces?' if 'F' in f.labels else ''}@eV"
            for f in fidelities
            if len(self._labelled(self.parts[part], f.name))
        ]
        return ":".join([str(self.path(part)), *levels])

    def write(self) -> None:
        """Write all files; those for training on a single level are named as in ``cc-train``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, rows in self.parts.items():
            self._write(name, rows, self.fidelities)
            for one in self.fidelities:
                self._write(f"{one.name}-{name}", self._labelled(rows, one.name), [one])
        self._write("test", self.rows, [])
        self._write("references", self.reference_rows, [])

    def _write(self, name: str, rows: np.ndarray, fidelities: Sequence[Fidelity]) -> None:
        with_energy = {f.name: set(self._labelled(rows, f.name).tolist()) for f in fidelities}
        with_forces = {
            f.name: set(self._labelled(rows, f.name, "forces").tolist()) for f in fidelities if "F" in f.labels
        }
        frames = []
        for row in rows.tolist():
            data = self.dataset[row]
            frame = ase.Atoms(data.z.numpy(), data.pos.double().numpy())
            if "cell" in data:
                frame.cell, frame.pbc = data.cell[0].double().numpy(), data.pbc[0].numpy()
            if "charge" in data:
                frame.info["charge"] = int(data.charge)
            for level, column in self.columns.items():
                if row in with_energy.get(level, ()):
                    frame.info[f"{level}_energy"] = float(data.energy[0, column]) / EV_TO_KCAL_MOL
                if row in with_forces.get(level, ()):
                    frame.arrays[f"{level}_forces"] = data.forces[:, column].double().numpy() / EV_TO_KCAL_MOL
            frames.append(frame)
        ase.io.write(self.path(name), frames, format="extxyz")

    def errors(self, found: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """RMSE by split and quantity, in kcal/mol and kcal/mol/Å.

        Args:
            found: ``energy`` (n,) and ``forces`` (n_atoms, 3) of the conformations of ``test.xyz``; if the zero of
                energy is not that of the labels, also ``reference_energy`` of those of ``references.xyz``, to which
                energies of the elements are fitted.
        """
        energy, forces = (found[name] * EV_TO_KCAL_MOL for name in ("energy", "forces"))
        if "reference_energy" in found:
            energy = energy + self._shift(found["reference_energy"] * EV_TO_KCAL_MOL)
        result: dict[str, dict[str, float]] = {}
        first = atom = 0
        for split, rows in self.tested.items():
            labels = self.labels[split]
            of_split = energy[first : first + len(rows)], forces[atom : atom + labels.n_atoms.sum()]
            first, atom = first + len(rows), atom + labels.n_atoms.sum()
            values = {(self.target, "energy"): Labelled(np.ones(len(rows), bool), of_split[0])}
            if (self.target, "forces") in labels.values:
                mask = labels.values[self.target, "forces"].mask
                chosen = of_split[1][np.repeat(mask, labels.n_atoms)]
                values[self.target, "forces"] = Labelled(mask, chosen)
            sums = sums_by_molecule(Predictions(rows, values, {}), labels, self.target)
            result[split] = {
                name: float(rmse_and_mae(sums[name].sum(axis=0))[0]) for name in QUANTITIES if name in sums
            }
        return result

    def _shift(self, reference_energy: np.ndarray) -> np.ndarray:
        """Energies to be added to those of the conformations of ``test.xyz``, (n,) in kcal/mol."""
        counts = compositions(self.dataset, species_of(self.dataset))
        labels = labelled_energies(self.dataset, self.target, self.reference_rows)
        of_elements = np.linalg.lstsq(counts[self.reference_rows], labels - reference_energy, rcond=None)[0]
        shift: np.ndarray = counts[self.rows] @ of_elements
        return shift
