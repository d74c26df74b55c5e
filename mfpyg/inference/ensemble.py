"""Ensembles of trained potentials: mean and standard deviation of their predictions."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.checkpoint import load
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.models import Potential
from mfpyg.models.hessian import hessian
from mfpyg.models.prediction import Prediction
from mfpyg.properties import HESSIAN, in_order
from mfpyg.torch_defaults import with_default_torch_settings

Model = str | os.PathLike[str] | Potential
"""A run folder, a checkpoint, or a potential."""


class Ensemble:
    """Potentials with common fidelities.

    Args:
        models: one potential, run folder or checkpoint, or several.
        device: device to move them to; default: their current device (the CPU for files).

    Attributes:
        members: the potentials, in evaluation mode.
        fidelities: fidelities that all members have, in the order of the first.

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
        for member in self.members:  # warn once, not once per member
            member._warned = self.members[0]._warned

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

    def predict(
        self, data: Data, wanted: Mapping[str, str]
    ) -> tuple[dict[str, Prediction], dict[str, Prediction] | None]:
        """Mean and standard deviation of the predictions of the members.

        Args:
            data, wanted: as in :meth:`mfpyg.models.Potential.predict`; Hessians are computed by
                :func:`mfpyg.models.hessian.hessian`.

        Returns:
            The means, and the sample standard deviations (n − 1), which are ``None`` for a single member.

        Raises:
            MFPyGError: as :meth:`mfpyg.models.Potential.predict` and :func:`mfpyg.models.hessian.hessian`.
        """
        predictions = [_predict(member, data, wanted) for member in self.members]
        if len(predictions) == 1:
            return predictions[0], None
        means = {name: _reduce([p[name] for p in predictions], lambda x: x.mean(dim=0)) for name in wanted}
        return means, {name: _reduce([p[name] for p in predictions], lambda x: x.std(dim=0)) for name in wanted}


def _predict(member: Potential, data: Data, wanted: Mapping[str, str]) -> dict[str, Prediction]:
    predictions = member.predict(data, _without_hessians(wanted))
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
