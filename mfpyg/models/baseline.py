"""Baselines: energies and forces of a level that are added to those of the network, see :mod:`mfpyg.baselines`.

The network is trained on labels from which the baseline has been subtracted once
(:mod:`mfpyg.training.baselines`), and the potential that is loaded adds it to every prediction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.errors import MFPyGError
from mfpyg.graph import molecules_of
from mfpyg.models.prediction import Prediction


class Baseline(Protocol):
    """Energies and forces of molecules; created by ``factory(method)``.

    It may have an attribute ``neutral``: True if molecules with a total charge are to be refused.
    """

    def __call__(self, z: Tensor, pos: Tensor, batch: Tensor, n_graphs: int) -> tuple[Tensor, Tensor]:
        """Energies and forces.

        Args:
            z: atomic numbers, (n_atoms,) int64.
            pos: positions in Å, (n_atoms, 3) float64. If they require a gradient, so must the results, or Hessians are
                refused.
            batch: molecule of each atom, (n_atoms,) int64, ascending.
            n_graphs: number of molecules.

        Returns:
            Energies of the atoms in kcal/mol, (n_atoms,) float64, whose sum over a molecule is its energy (divide it
            equally if there is no other way); and forces −dE/dx in kcal/mol/Å, (n_atoms, 3) float64.
        """


def check_baseline(name: str, baseline: Baseline, pbc: Tensor | None, charge: Tensor | None) -> None:
    """Check that a baseline supports graphs.

    Args:
        name: fidelity.
        baseline: its baseline.
        pbc: periodic directions, (n_graphs, 3) bool.
        charge: total charges in e, (n_graphs,).

    Raises:
        MFPyGError: if a graph is periodic, or has a charge and the baseline is of neutral molecules.
    """
    if pbc is not None and pbc.any():
        raise MFPyGError(
            f"fidelity '{name}' has a baseline, which supports molecules only, but a graph is periodic; set pbc to "
            "False if it is a molecule in a box, or choose a fidelity without a baseline"
        )
    if getattr(baseline, "neutral", False) and charge is not None and charge.any():
        raise MFPyGError(
            f"fidelity '{name}' has the baseline {baseline}, which supports neutral molecules only, but a graph has a "
            f"total charge of {float(charge[charge != 0][0]):g}; leave it out, or choose a fidelity without a baseline"
        )


def add_baselines(
    predictions: Mapping[str, Prediction], baselines: Mapping[str, Baseline], data: Data
) -> dict[str, Prediction]:
    """Predictions with the baselines of their fidelities; one that several fidelities share is evaluated once.

    Raises:
        MFPyGError: as :func:`check_baseline`; if second derivatives are needed that the baseline does not have.
    """
    evaluated: dict[int, tuple[Tensor, Tensor]] = {}
    result = dict(predictions)
    for name, prediction in predictions.items():
        if name in baselines:
            key = id(baselines[name])
            if key not in evaluated:
                evaluated[key] = _evaluate(name, baselines[name], data)
            result[name] = _add(prediction, *evaluated[key], data)
    return result


def _evaluate(name: str, baseline: Baseline, data: Data) -> tuple[Tensor, Tensor]:
    """Energies of atoms and forces of the baseline of the fidelity ``name``."""
    check_baseline(name, baseline, getattr(data, "pbc", None), getattr(data, "charge", None))
    batch, n_graphs = molecules_of(data)
    with torch.inference_mode(False), torch.set_grad_enabled(torch.is_grad_enabled() and data.pos.requires_grad):
        atoms, forces = baseline(data.z, data.pos.double(), batch, n_graphs)
    if torch.is_grad_enabled() and data.pos.requires_grad and not forces.requires_grad:
        raise MFPyGError(f"the baseline of '{name}' has no second derivatives; leave Hessians and gradients out")
    return atoms, forces


def _add(prediction: Prediction, atoms: Tensor, forces: Tensor, data: Data) -> Prediction:
    """Prediction plus energies of atoms, (n_atoms,), and forces, (n_atoms, 3)."""
    batch, n_graphs = molecules_of(data)
    return dataclasses.replace(
        prediction,
        energy=prediction.energy + atoms.new_zeros(n_graphs).index_add(0, batch, atoms),
        atomic_energies=prediction.atomic_energies + atoms,
        forces=None if prediction.forces is None else prediction.forces + forces.to(prediction.forces.dtype),
    )
