"""Standard deviations of a potential as plain values, for checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from mfpyg.models.calibration import HeldOut
from mfpyg.models.delta import DeltaPotential
from mfpyg.models.interface import Potential
from mfpyg.models.last_layer import LastLayer
from mfpyg.models.potential import MultiFidelityPotential


def networks_of(potential: Potential) -> Iterator[MultiFidelityPotential]:
    """The potential itself or, of a Δ-learning potential, its base and its difference."""
    if isinstance(potential, DeltaPotential):
        yield from (potential.base, potential.difference)
    elif isinstance(potential, MultiFidelityPotential):
        yield potential


def drop_uncertainty(potential: Potential) -> None:
    """Remove standard deviations, which are those of other weights."""
    for network in networks_of(potential):
        network.uncertainty = torch.nn.ModuleDict()  # type: ignore[assignment]
    potential.held_out, potential.quantiles = None, {}


def uncertainty_state(potential: Potential) -> dict[str, Any] | None:
    """Standard deviations of a potential as tensors, strings and numbers; ``None`` if it has none."""
    layers = {name: layer for network in networks_of(potential) for name, layer in network.uncertainty.items()}
    if not layers or potential.held_out is None:
        return None
    held_out = {
        field.name: _as_tensors(getattr(potential.held_out, field.name)) for field in dataclasses.fields(HeldOut)
    }
    return {
        "levels": {name: {key: value.cpu() for key, value in of.named_buffers()} for name, of in layers.items()},
        "quantiles": _as_tensors(potential.quantiles),
        "held_out": held_out,
    }


def load_uncertainty(potential: Potential, state: Mapping[str, Any]) -> None:
    """Give a potential the standard deviations of :func:`uncertainty_state`."""
    for network in networks_of(potential):
        for name in network.fidelities:
            if name in state["levels"]:
                layer = LastLayer(**state["levels"][name]).to(next(network.parameters()))
                network.uncertainty[name] = layer  # type: ignore[index]
    potential.quantiles = {name: value.numpy() for name, value in state["quantiles"].items()}
    potential.held_out = HeldOut(**{name: _as_arrays(value) for name, value in state["held_out"].items()})


def _as_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_tensors(of) for name, of in value.items()}
    return value if isinstance(value, str | float) else torch.from_numpy(value)


def _as_arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_arrays(of) for name, of in value.items()}
    return value.numpy() if isinstance(value, torch.Tensor) else value
