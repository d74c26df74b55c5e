"""A trained potential with the data that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mfpyg.checkpoint import potential_of, read_checkpoint, trained_labels
from mfpyg.datasets.chunks import Track
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.spec import open_dataset, parse_specs, recorded_specs
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import Fidelity, further_letters, parse_fidelities
from mfpyg.models import Potential
from mfpyg.settings import TrainSettings, from_dict
from mfpyg.training.baselines import without_baselines
from mfpyg.training.folder import RunFolder
from mfpyg.training.labels import labelled_rows, with_labels_kept


@dataclass(frozen=True)
class Trained:
    """A trained potential with its data.

    Attributes:
        settings: settings of the training.
        potential: potential in evaluation mode.
        letters: letters of the labels that each of its levels was trained on.
        dataset: data with the labels that were there in training.
        train, held_out: numbers of the conformations for training and validation, (n,) int64.
    """

    settings: TrainSettings
    potential: Potential
    letters: Mapping[str, str]
    dataset: ConformationDataset
    train: np.ndarray
    held_out: np.ndarray

    def without_baselines(self, rows: np.ndarray) -> ConformationDataset:
        """Data with what baselines leave of the labels of conformations, (n,) int64: what the network learnt."""
        return without_baselines(self.settings, self.dataset, rows)

    def with_label(self, fidelity: str) -> np.ndarray:
        """Numbers of the conformations of the training with a label of a level; all of them if none has one."""
        if fidelity not in self.dataset.fidelities:
            return self.train
        there = labelled_rows(self.dataset, self.train, (Fidelity(fidelity, "EF"),))[:, 0]
        return self.train[there] if there.any() else self.train


def open_trained(path: Path, moved: Sequence[str] | None = None, track: Track = iter) -> Trained:
    """Open a run and its data.

    Args:
        path: run folder, or checkpoint.
        moved: data of the run, if they are not where they were in training.
        track: shows the progress of processing.

    Raises:
        MFPyGError: if the run or its data cannot be opened, or the data are not those of the training.
    """
    checkpoint = read_checkpoint(path)
    described = checkpoint["mfpyg"]
    if not described["splits"]:
        raise MFPyGError(
            f"{path}: its training data are not known; expected a run of mfpyg-train (or choose with --method random)"
        )
    settings = from_dict(described["config"])
    fidelities = parse_fidelities(settings.fidelities)
    folder = path if path.is_dir() else path.parent
    recorded = RunFolder(folder).recorded_data(described)
    specs = parse_specs(moved) if moved else recorded_specs(recorded, f"mfpyg-select {path} --dataset NEW")
    names = [fidelity.name for fidelity in fidelities]
    dataset = open_dataset(specs, names, track=track, properties=further_letters(fidelities))
    if dataset.fingerprint != described["data"]["fingerprint"]:
        raise MFPyGError(
            f"{' + '.join(map(str, specs))} has other conformations or labels than {path} was trained on; give the "
            "same data with --dataset, and further ones with --labelled"
        )
    splits = {name: rows.numpy().astype(np.int64) for name, rows in described["splits"].items()}
    kept = with_labels_kept(settings, fidelities, dataset, splits)
    potential = potential_of(checkpoint, str(path))
    return Trained(settings, potential, trained_labels(described), kept, splits["train"], splits["val"])
