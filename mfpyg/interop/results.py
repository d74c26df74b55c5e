"""Predictions as results of ASE calculators."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from mfpyg.inference.ensemble import hessian_matrix
from mfpyg.models.prediction import Prediction, predicted_properties
from mfpyg.properties import ENERGY, PROPERTIES, Property

_FACTORS = {p.name: 1 / p.factor(p.default_unit.format("eV")) for p in PROPERTIES.values()}


def results_of(prediction: Prediction) -> dict[str, Any]:
    """Convert the prediction of a single graph to ASE's names, units and shapes.

    Returns:
        All predicted properties by name, in eV, Å and e, and ``energies`` of the atoms. The stress is (6,), xx, yy, zz,
        yz, xz, xy; the Hessian (3n, 3n), in the order of ``positions.ravel()``.
    """
    results: dict[str, Any] = {}
    if prediction.atomic_energies is not None:  # standard deviations of a single potential have none
        results["energies"] = _array(prediction.atomic_energies, ENERGY)
    for p in predicted_properties(prediction):
        values = _array(getattr(prediction, p.name), p)
        results[p.name] = values[0] if p.per == "graph" else values
    results["energy"] = float(results["energy"])
    if "stress" in results:
        results["stress"] = full_3x3_to_voigt_6_stress(results["stress"])
    if "hessian" in results:
        results["hessian"] = hessian_matrix(results["hessian"])
    return results


def _array(values: Tensor, p: Property) -> np.ndarray:
    return values.double().cpu().numpy() * _FACTORS[p.name]
