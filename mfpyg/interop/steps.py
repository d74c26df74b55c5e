"""Predictions in dynamics and relaxations, where atoms move little from step to step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.inference.ensemble import Ensemble
from mfpyg.interop.verlet import VerletList
from mfpyg.models.prediction import Prediction
from mfpyg.properties import HESSIAN
from mfpyg.torch_defaults import without_inference_tensors

Result = tuple[dict[str, Prediction], dict[str, Prediction] | None]


@dataclass
class _Kept:
    """Prepared data of a step.

    Attributes:
        edge_index: edges that they have.
        of: properties that they are for, and the total charges.
        prepared: result of the ``prepare`` of each member.
    """

    edge_index: Tensor
    of: Any
    prepared: list[Any]


class Steps:
    """Predictions of an ensemble that keep the neighbour list and, while edges are the same, all that depends on them.

    On a GPU no step waits for it, in slow motion and between searches for neighbours: see
    :class:`mfpyg.interop.verlet.VerletList`.

    Args:
        ensemble: potentials.
        skin: skin of the neighbour list in Å.

    Attributes:
        neighbours: neighbour list.

    Raises:
        MFPyGError: for a skin that is negative or not finite.
    """

    def __init__(self, ensemble: Ensemble, skin: float) -> None:
        self.ensemble = ensemble
        self.neighbours = self._make_list(skin)
        self._kept: _Kept | None = None

    def _make_list(self, skin: float) -> VerletList:
        first, device = self.ensemble.members[0], self.ensemble.device
        vanish = all(member.vanishes_beyond_cutoff for member in self.ensemble.members)
        return VerletList(first.cutoff, skin, first.dtype, first.engine, device, may_be_longer=vanish)

    def predict(self, data: Data, wanted: Mapping[str, str], std: bool = False) -> Result:
        """Predict as :meth:`mfpyg.inference.ensemble.Ensemble.predict`.

        Args:
            data: one system, or several with ``batch``, with ``cell`` and ``pbc``, on any device; its positions are
                changed as by :meth:`mfpyg.interop.verlet.VerletList.add_edges`.
            wanted, std: see :meth:`mfpyg.inference.ensemble.Ensemble.predict`.

        Returns:
            See there. Energies and forces are NaN in a step that is not known in time to need new neighbours, see
            :class:`mfpyg.interop.slack.Slack`.

        Raises:
            MFPyGError: see both.
        """
        device, neighbours = self.ensemble.device, self.neighbours
        if (neighbours.dtype, neighbours.device) != (self.ensemble.members[0].dtype, device):  # weights were moved
            neighbours = self.neighbours = self._make_list(neighbours.skin)
        charge = getattr(data, "charge", None)
        of = tuple(wanted.items()), None if charge is None else tuple(charge.tolist())
        sufficient = neighbours.add_edges(data)
        data = data.to(device)
        if std or not self._can_prepare(data, wanted):
            return _masked(self.ensemble.predict(data, wanted, std), sufficient)
        prepared = self._prepared(data, wanted, of)
        result = self.ensemble.predict(prepared, wanted)
        if sufficient is None and not _is_finite(result[0]):
            return self.ensemble.predict(data, wanted)  # finds overlapping atoms
        return _masked(result, sufficient)

    def _can_prepare(self, data: Data, wanted: Mapping[str, str]) -> bool:
        if data.pos.requires_grad or data.cell.requires_grad:
            return False
        baselines = any(name in member.baselines for name in wanted for member in self.ensemble.members)
        return not baselines and not any(HESSIAN.letter in letters for letters in wanted.values())

    def _prepared(self, data: Data, wanted: Mapping[str, str], of: Any) -> list[Any]:
        """Those of the last step at new positions, or new ones."""
        kept = self._kept
        if kept is not None and kept.edge_index is data.edge_index and kept.of == of:
            data = without_inference_tensors(data)
            moved = [one.moved(data) if hasattr(one, "moved") else None for one in kept.prepared]
            if all(one is not None for one in moved):
                return moved
        prepared = [member.prepare(data, wanted) for member in self.ensemble.members]
        self._kept = _Kept(data.edge_index, of, prepared)
        return prepared


def _is_finite(predictions: Mapping[str, Prediction]) -> bool:
    sums = [value.sum().double() for p in predictions.values() for value in (p.energy, p.forces) if value is not None]
    return math.isfinite(torch.stack(sums).sum().item())


def _masked(result: Result, sufficient: Tensor | None) -> Result:
    """NaN for energies and forces if the edges were not sufficient."""
    if sufficient is not None:
        for prediction in result[0].values():
            for name in ("energy", "forces", "stress"):
                if (values := getattr(prediction, name)) is not None:
                    setattr(prediction, name, torch.where(sufficient, values, torch.nan))
    return result
