"""The trained potential that a training begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mfpyg.checkpoint import checkpoint_file, epochs_done, potential_of, read_checkpoint, trained_labels
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import Fidelity
from mfpyg.files import sha256_of
from mfpyg.models import MultiFidelityPotential
from mfpyg.settings import from_dict, to_dict

NETWORK = ("backbone", "model", "head", "precision")
"""Settings of the network, which a training that goes on from its weights can't change."""


@dataclass(frozen=True)
class InitialModel:
    """What ``--init`` names.

    Attributes:
        path: as it was given.
        sha256: of the checkpoint file.
        checkpoint: its contents.
    """

    path: str
    sha256: str
    checkpoint: Mapping[str, Any]

    @property
    def described(self) -> Mapping[str, Any]:
        """What the checkpoint says of itself."""
        found: Mapping[str, Any] = self.checkpoint["mfpyg"]
        return found

    @property
    def fidelities(self) -> dict[str, Fidelity]:
        """Those that the potential has, by name, with the labels that they were trained on."""
        labels = trained_labels(self.described)
        return {name: Fidelity.parse(f"{name}:{labels[name]}") for name in self.described["fidelities"]}

    @property
    def network(self) -> dict[str, Any]:
        """The settings of its network, nested plain values."""
        values = to_dict(from_dict(self.described["config"]))
        return {name: values[name] for name in NETWORK}

    @property
    def splits(self) -> dict[str, np.ndarray]:
        """Conformations of each split of its training."""
        return {name: rows.numpy().astype(np.int64) for name, rows in self.described["splits"].items()}

    def potential(self) -> MultiFidelityPotential:
        """The potential, in evaluation mode.

        Raises:
            MFPyGError: if the weights do not fit what the checkpoint says of itself.
        """
        potential = potential_of(self.checkpoint, self.path)
        assert isinstance(potential, MultiFidelityPotential)
        return potential

    def is_of(self, dataset: ConformationDataset) -> bool:
        """Whether it was trained on the conformations of a data set, of whichever levels."""
        data = self.described["data"]
        if data["fingerprint"] == dataset.fingerprint:
            return True
        return "geometries" in data and data["geometries"] == dataset.geometries

    def __str__(self) -> str:
        return self.path

    def record(self) -> dict[str, Any]:
        """What is remembered of it in the checkpoints of the training: plain values, those of its own beginnings
        included."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "fidelities": [str(fidelity) for fidelity in self.fidelities.values()],
            "epochs": epochs_done(self.checkpoint),
            "data": self.described["data"],
            "init": self.described.get("init"),
        }


def read_initial(path: str) -> InitialModel:
    """The potential to begin with.

    Args:
        path: run folder, whose best epoch is meant, or a checkpoint.

    Raises:
        MFPyGError: if it can't be read, or is one of Δ-learning.
    """
    checkpoint = read_checkpoint(path)
    described = checkpoint["mfpyg"]
    if described.get("base_level") is not None:
        raise MFPyGError(
            f"{path}: a potential of strategy delta, the sum of two networks, can't be trained further; expected one "
            "of strategy mfl, tl or meta"
        )
    unknown = [name for name in described["fidelities"] if name not in trained_labels(described)]
    if unknown:
        raise MFPyGError(f"{path}: damaged, it does not say what '{unknown[0]}' was trained on")
    return InitialModel(path, sha256_of(checkpoint_file(Path(path))), checkpoint)
