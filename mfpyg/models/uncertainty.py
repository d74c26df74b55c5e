"""Standard deviations of a potential: where there are any, and as plain values for checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch_geometric.data import Data

from mfpyg.models.calibration import HeldOut
from mfpyg.models.delta import DeltaPotential
from mfpyg.models.interface import Potential
from mfpyg.models.last_layer import LastLayer, LastLayers
from mfpyg.models.potential import MultiFidelityPotential
from mfpyg.models.prediction import Prediction


def networks_of(potential: Potential) -> Iterator[MultiFidelityPotential]:
    """The potential itself or, of a Δ-learning potential, its base and its difference."""
    if isinstance(potential, DeltaPotential):
        yield from (potential.base, potential.difference)
    elif isinstance(potential, MultiFidelityPotential):
        yield potential


def predict_with_std(potential: Potential, data: Data, wanted: Mapping[str, str]) -> dict[str, Prediction]:
    """Predictions, with standard deviations of the fidelities that have them, see :meth:`Potential.has_std`.

    Args:
        potential: potential in evaluation mode.
        data, wanted: as in :meth:`mfpyg.models.Potential.predict`.
    """
    there = {name: letters for name, letters in wanted.items() if potential.has_std(name)}
    found = potential.predict(data, there, std=True) if there else {}
    if len(there) == len(wanted):
        return found
    others = potential.predict(data, {name: letters for name, letters in wanted.items() if name not in there})
    return {name: found[name] if name in found else others[name] for name in wanted}


def drop_uncertainty(potential: Potential) -> None:
    """Remove standard deviations, which are those of other weights."""
    for network in networks_of(potential):
        network.uncertainty = LastLayers()  # type: ignore[assignment]
    if isinstance(potential, DeltaPotential):
        potential.std_scale.fill_(1)
    potential.held_out, potential.quantiles = None, {}


def uncertainty_state(potential: Potential) -> dict[str, Any] | None:
    """Standard deviations of a potential as tensors, strings and numbers; ``None`` if it has none."""
    layers = {name: layer for network in networks_of(potential) for name, layer in network.uncertainty.items()}
    if not layers:
        return None
    held_out = potential.held_out
    return {
        "levels": {name: {key: value.cpu() for key, value in of.named_buffers()} for name, of in layers.items()},
        "target_scale": potential.std_scale.cpu() if isinstance(potential, DeltaPotential) else None,
        "quantiles": _as_tensors(potential.quantiles),
        "held_out": None if held_out is None else _as_tensors(vars(held_out)),
    }


def load_uncertainty(potential: Potential, state: Mapping[str, Any]) -> None:
    """Give a potential the standard deviations of :func:`uncertainty_state`."""
    for network in networks_of(potential):
        for name in network.fidelities:
            if name in state["levels"]:
                layer = LastLayer(**state["levels"][name]).to(next(network.parameters()))
                network.uncertainty[name] = layer  # type: ignore[index]
    if isinstance(potential, DeltaPotential) and state["target_scale"] is not None:
        potential.std_scale.copy_(state["target_scale"])
    potential.quantiles = {name: value.numpy() for name, value in state["quantiles"].items()}
    if state["held_out"] is not None:
        potential.held_out = HeldOut(**_as_arrays(state["held_out"]))


def _as_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_tensors(of) for name, of in value.items()}
    return value if isinstance(value, str | float) else torch.from_numpy(value)


def _as_arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_arrays(of) for name, of in value.items()}
    return value.numpy() if isinstance(value, torch.Tensor) else value
