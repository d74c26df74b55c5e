"""Ensembles of trained potentials: mean and standard deviation of their predictions.

The sample standard deviation of the members (n − 1) underestimates the error, as members share a part of it. If all
members have the same held-out conformations, those of energies and forces are scaled to the errors there, see
:mod:`mfpyg.models.calibration`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.checkpoint import load
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.models import Potential
from mfpyg.models.calibration import Calibration, HeldOut, calibrate
from mfpyg.models.hessian import hessian
from mfpyg.models.prediction import Prediction
from mfpyg.models.uncertainty import predict_with_std
from mfpyg.properties import ENERGY, FORCES, HESSIAN, in_order
from mfpyg.torch_defaults import with_default_torch_settings

Model = str | os.PathLike[str] | Potential
"""A run folder, a checkpoint, the name of a shipped model, or a potential."""


class Ensemble:
    """Potentials with common fidelities.

    Args:
        models: one potential, run folder, checkpoint or name of a shipped model, or several.
        device: device to move them to; default: their current device (the CPU for files).

    Attributes:
        members: the potentials, in evaluation mode.
        fidelities: fidelities that all members have, in the order of the first.
        calibrations: calibrations of the standard deviations of several members, by fidelity; empty if they have
            different held-out conformations.

    Raises:
        MFPyGError: for no model, a file that cannot be read, or members without a common fidelity.
    """

    @with_default_torch_settings
    def __init__(self, models: Model | Sequence[Model], device: torch.device | str | None = None) -> None:
        listed = [models] if isinstance(models, str | os.PathLike | Potential) else list(models)
        if not listed:
            raise MFPyGError("no model given; expected a run folder, a checkpoint or a potential, or several")
        self.members = [one.eval() if isinstance(one, Potential) else load(one) for one in listed]
        if device is not None:
            self.members = [member.to(device) for member in self.members]
        common = [name for name in self.members[0].fidelities if all(name in m.fidelities for m in self.members)]
        if not common:
            known = "; ".join(", ".join(member.fidelities) for member in self.members)
            raise MFPyGError(f"the models have no fidelity in common ({known}); expected members of one ensemble")
        self.fidelities = tuple(common)
        self.calibrations = _calibrations(self.members) if len(self.members) > 1 else {}
        for member in self.members:  # warn once, not once per member
            member._warned = self.members[0]._warned

    def compile(self) -> None:
        """Predict with copies of all members through ``torch.compile``, see :mod:`mfpyg.models.compiled`."""
        self.members = copy.deepcopy(self.members)  # potentials of the user are not changed
        for member in self.members:
            member.compiled = True

    @property
    def device(self) -> torch.device:
        """Device of the first member."""
        return next(self.members[0].parameters()).device

    def letters(self, fidelity: str) -> str:
        """Letters of the properties that all members predict for a fidelity."""
        return in_order(set.intersection(*(set(member.letters(fidelity)) for member in self.members)))

    def fidelity(self, name: str | None) -> str:
        """Check the name of a fidelity; ``None`` stands for the only one.

        Raises:
            MFPyGError: for an unknown fidelity, or ``None`` if there are several.
        """
        if name is None:
            if len(self.fidelities) > 1:
                known = ", ".join(self.fidelities)
                raise MFPyGError(f"no fidelity given: this potential has several ({known}); name one")
            return self.fidelities[0]
        if name not in self.fidelities:
            raise unknown_name("fidelity", name, self.fidelities)
        return name

    def check_wanted(self, wanted: Mapping[str, str]) -> None:
        """Check that all members have the fidelities in ``{fidelity: letters}``, and heads for them.

        Raises:
            MFPyGError: as :meth:`mfpyg.models.Potential.check_wanted`.
        """
        for member in self.members:
            member.check_wanted(_without_hessians(wanted))

    def has_std(self, fidelity: str) -> bool:
        """True if there are standard deviations: of several members, or of a single one that has its own."""
        return len(self.members) > 1 or self.members[0].has_std(fidelity)

    def letters_with_std(self, fidelities: Iterable[str], letters: str) -> str:
        """Those of the letters whose properties have standard deviations, of any of the fidelities."""
        if len(self.members) > 1:
            return letters
        of_one = {ENERGY.letter, FORCES.letter} if any(self.has_std(name) for name in fidelities) else set()
        return in_order(of_one.intersection(letters))

    def quantiles(self, fidelity: str) -> np.ndarray | None:
        r"""Quantiles of \|error\| over the standard deviation, see :attr:`mfpyg.models.Potential.quantiles`.

        ``None`` if the standard deviations are not calibrated.
        """
        if len(self.members) == 1:
            return self.members[0].quantiles.get(fidelity)
        return self.calibrations[fidelity].quantiles if fidelity in self.calibrations else None

    def predict(
        self, data: Data | Sequence[Any], wanted: Mapping[str, str], std: bool = False
    ) -> tuple[dict[str, Prediction], dict[str, Prediction] | None]:
        """Mean and standard deviation of the predictions of the members.

        Args:
            data: as in :meth:`mfpyg.models.Potential.predict`; or those prepared by each member, see
                :meth:`mfpyg.models.Potential.prepare`.
            wanted: as in :meth:`mfpyg.models.Potential.predict`; Hessians, of data that are not prepared, are computed
                by :func:`mfpyg.models.hessian.hessian`.
            std: whether to predict the standard deviations of a single member, see
                :mod:`mfpyg.models.last_layer`; those of several cost nothing.

        Returns:
            The means, and the standard deviations of the fidelities with :meth:`has_std`: of several members those of
            all properties, of a single one those of energies and of forces, or ``None`` without ``std``.

        Raises:
            MFPyGError: as :meth:`mfpyg.models.Potential.predict` and :func:`mfpyg.models.hessian.hessian`.
        """
        of_each = [data] * len(self.members) if isinstance(data, Data) else list(data)
        if len(self.members) == 1:
            found = _predict(self.members[0], of_each[0], wanted, std)
            return found, {n: _of_one(found[n], wanted[n]) for n in wanted if self.has_std(n)} if std else None
        predictions = [_predict(*one, wanted) for one in zip(self.members, of_each, strict=True)]
        means = {name: _reduce([p[name] for p in predictions], lambda x: x.mean(dim=0)) for name in wanted}
        spread = {name: _reduce([p[name] for p in predictions], lambda x: x.std(dim=0)) for name in wanted}
        for name in wanted.keys() & self.calibrations.keys():
            spread[name].energy *= self.calibrations[name].energy_scale
            if (forces := spread[name].forces) is not None:
                forces *= self.calibrations[name].forces_scale
        return means, spread


def _of_one(prediction: Prediction, letters: str) -> Prediction:
    """Standard deviations of a single potential in the place of its predictions."""
    forces = prediction.forces_std if FORCES.letter in letters else None
    assert prediction.energy_std is not None
    return Prediction(prediction.energy_std, forces, None, prediction.hierarchicality)  # type: ignore[arg-type]


def _calibrations(members: Sequence[Potential]) -> dict[str, Calibration]:
    """Calibrations of the mean and the sample standard deviation of the members."""
    held_out = [member.held_out for member in members if member.held_out is not None]
    first = held_out[0] if held_out else None
    same = [first is not None and one.data == first.data and np.array_equal(one.rows, first.rows) for one in held_out]
    if first is None or len(held_out) < len(members) or not all(same):
        return {}
    names = [name for name in members[0].fidelities if all(name in one.energy for one in held_out)]
    energy = {name: np.stack([one.energy[name] for one in held_out]) for name in names}  # (n_members, 2, n)
    forces = {name: np.stack([one.forces[name] for one in held_out]) for name in names}  # (n_members, 2, N, 3)
    kappas = {name: [one.force_per_energy[name] for one in held_out if name in one.force_per_energy] for name in names}
    mean = HeldOut(
        *(first.data, first.rows, first.n_atoms),
        {name: _mean(energy[name]) for name in names},
        {name: _mean(forces[name]) for name in names},
        {name: float(np.mean(of_level)) for name, of_level in kappas.items() if of_level},
        *(first.pairs, first.pair_scale),
    )
    of_energy = {name: energy[name][:, 1].std(axis=0, ddof=1) for name in names}
    return calibrate(mean, of_energy, {name: forces[name][:, 1].std(axis=0, ddof=1) for name in names})


def _mean(members: np.ndarray) -> np.ndarray:
    """Labels that any member has, and mean of the predictions; (n_members, 2, …) -> (2, …)."""
    return np.stack([np.fmax.reduce(members[:, 0]), members[:, 1].mean(axis=0)])


def _predict(member: Potential, data: Any, wanted: Mapping[str, str], std: bool = False) -> dict[str, Prediction]:
    without = _without_hessians(wanted)
    predictions = predict_with_std(member, data, without) if std else member.predict(data, without)
    for name, letters in wanted.items():
        if HESSIAN.letter in letters:
            predictions[name].hessian = hessian(member, data, name).reshape(-1, *HESSIAN.shape)  # (Σ n², 3, 3)
    return predictions


def _without_hessians(wanted: Mapping[str, str]) -> dict[str, str]:
    return {name: letters.replace(HESSIAN.letter, "") for name, letters in wanted.items()}


def _reduce(predictions: Sequence[Prediction], reduction: Callable[[Tensor], Tensor]) -> Prediction:
    """Reduce every field over the members."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Prediction):
        members = [getattr(prediction, field.name) for prediction in predictions]
        values[field.name] = None if members[0] is None else reduction(torch.stack(members))
    return Prediction(**values)


def hessian_matrix(pairs: np.ndarray) -> np.ndarray:
    """Hessian of a graph by pairs of its n atoms, (n², 3, 3), as a matrix (3n, 3n) in the order of ``pos.ravel()``."""
    n = math.isqrt(len(pairs))
    return pairs.reshape(n, n, 3, 3).swapaxes(1, 2).reshape(3 * n, 3 * n)
