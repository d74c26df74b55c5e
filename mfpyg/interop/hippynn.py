"""Conversion of trained hippynn models to potentials, and back; hippynn need not be installed.

The networks are identical: HIP-NN-TS with softplus and the cosine cutoff, which are hippynn's defaults. A file of
hippynn holds only weights; other parameters must be given, and are checked as far as the weights allow.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor

from mfpyg.backbone_options import HIPNNOptions
from mfpyg.errors import MFPyGError, MFPyGWarning
from mfpyg.fidelity import Fidelity
from mfpyg.interop.hippynn_export import export_hippynn
from mfpyg.interop.hippynn_state import (
    EXTRA_STATE,
    GraphState,
    check_numbers,
    choose_heads,
    has_references,
    is_by_species,
    our_name,
    read_state,
    understand,
)
from mfpyg.models import MultiFidelityPotential
from mfpyg.models.build import build_potential
from mfpyg.models.heads import Head
from mfpyg.settings import TrainSettings, from_dict
from mfpyg.torch_defaults import with_default_torch_settings
from mfpyg.units import ENERGY_UNITS, atomic_estimate, energy_factor, length_factor

__all__ = ["export_hippynn", "load_hippynn"]

OLD_CUSP = 1e-30
"""Cusp constant of versions of hippynn that do not store it."""


@with_default_torch_settings
def load_hippynn(
    path: str | os.PathLike[str] | Mapping[str, Any],
    *,
    cutoff: float,
    fidelities: Sequence[str] | Mapping[str, str],
    energy_unit: str,
    sign: int = 1,
    length_unit: str = "Å",
    species: Sequence[int] | None = None,
) -> MultiFidelityPotential:
    """Load a trained hippynn model: a Hipnn, HipnnVec or HipnnQuad with an ``HEnergyNode`` for each fidelity.

    Energies subtracted before training, and nodes without weights, such as a sum of energies, are not in the file.

    Args:
        path: ``best_model.pt`` or ``best_checkpoint.pt``, loaded without running code from it; or the state dictionary
            of a graph.
        cutoff: hippynn's ``dist_hard_max``.
        fidelities: a name for each head, in the order of the file, which is the alphabetical order of the nodes' names
            in hippynn; or ``{name: node}``, as ``{"cc": "node22"}``, for some of them. Heads of charges look like those
            of energies and must be left out. A name may include the trained labels, as ``"cc:E"``; default: ``EF``.
        energy_unit: unit of hippynn's energies, see :mod:`mfpyg.units`.
        sign: −1 if hippynn's energies are negated, as positive binding energies.
        length_unit: unit of ``cutoff`` and of hippynn's positions.
        species: atomic numbers in hippynn's order, its ``possible_species``; for files that do not contain them.

    Returns:
        The potential in evaluation mode and in the precision of the file, in kcal/mol and Å, for :func:`mfpyg.save`.

    Raises:
        MFPyGError: for a file that is damaged or not from hippynn, a network that :class:`mfpyg.models.HIPNN` does not
            support, or arguments that do not match the file.

    Warns:
        MFPyGWarning: for nodes that are ignored, and arguments that are unlikely to match the file.

    Example:
        >>> potential = load_hippynn(                                # doctest: +SKIP
        ...     "best_model.pt", cutoff=6.5, fidelities=["cc:E", "dz:EF"], energy_unit="kcal/mol"
        ... )
        >>> mfpyg.save(potential, "model.ckpt")                      # doctest: +SKIP
    """
    if isinstance(path, Mapping):
        state = understand(path, "this state dictionary")
    else:
        state = understand(read_state(path), str(path))
    if sign not in (1, -1):
        raise MFPyGError(f"sign is {sign!r}, expected 1, or -1 for energies that are negated")
    energy, length = sign * energy_factor(energy_unit), length_factor(length_unit)
    heads = choose_heads(state, fidelities)
    elements = _elements(state, species)
    check_numbers(state, heads.values())
    _check_cutoff(state, cutoff)
    settings = _settings(state, list(heads), cutoff * length, length)
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced below
        potential = build_potential(settings, elements, [fidelity.name for fidelity in heads])
    potential.double() if settings.precision == 64 else potential.float()
    columns = torch.tensor([elements.index(number) for number in potential.species])
    _fill_network(potential, state, columns, length)
    for fidelity, node in heads.items():
        _fill_head(potential.head(fidelity.name), state, node, columns, energy)
        if has_references(state, node):
            _check_energies(fidelity.name, potential.species, potential.reference(fidelity.name), energy_unit)
    if state.others:
        listed = ", ".join(state.others[:8]) + (" …" if len(state.others) > 8 else "")
        warnings.warn(
            f"{state.source}: ignored {listed}; energies lack contributions that depend on them, such as charges",
            MFPyGWarning,
            stacklevel=3,
        )
    return potential.eval()


def _elements(state: GraphState, species: Sequence[int] | None) -> tuple[int, ...]:
    """Atomic numbers in the order of the columns, from the file or from ``species``."""
    n_species = state.weights["blocks.0.0.base_layer.int_weights"].shape[2]
    given = None if species is None else tuple(number for number in species if number)  # 0 is hippynn's padding
    elements = given if state.elements is None else state.elements
    if elements is None:
        raise MFPyGError(
            f"{state.source}: does not say which {n_species} elements it knows; give possible_species as species"
        )
    if given is not None and given != elements:
        raise MFPyGError(f"species are {list(given)}, but {state.source} has {list(elements)}")
    known = range(1, len(chemical_symbols))
    if len(elements) != n_species or len(set(elements)) < len(elements) or not set(known).issuperset(elements):
        raise MFPyGError(
            f"{state.source}: its network is for {n_species} elements, but species are {list(elements)}; expected "
            f"{n_species} different atomic numbers"
        )
    width = state.weights["blocks.0.0.base_layer.int_weights"].shape[1]
    if list(elements) != sorted(elements) and n_species == width:
        raise MFPyGError(
            f"{state.source}: elements {list(elements)} are not in ascending order; mfpyg requires that if n_features "
            "is the number of elements"
        )
    return elements


def _settings(state: GraphState, fidelities: Sequence[Fidelity], cutoff: float, length: float) -> TrainSettings:
    """Settings of the file's network, as far as they follow from the shapes of its weights."""
    weights = state.weights
    first = weights["blocks.0.0.base_layer.int_weights"]
    order = sum(f"blocks.0.0.base_layer.{scales}" in weights for scales in ("vecscales", "quadscales"))
    layers_of_first = {name.split(".")[2] for name in weights if name.startswith("blocks.0.")}
    centres = (
        torch.cat([value.flatten() for name, value in weights.items() if name.endswith("sensitivity.mu")]) * length
    )
    model = {
        "n_interactions": state.n_levels - 1,
        "n_atom_layers": len(layers_of_first) - 1,
        "n_features": first.shape[1],
        "n_sensitivities": first.shape[0],
        "tensor_order": order,
        "cutoff": cutoff,
        "r_soft_min": centres.min().item(),  # the trained values, as the initial ones are not stored
        "r_soft_max": min(centres.max().item(), cutoff),
        "cusp": _cusp(state, order),
    }
    settings = from_dict(
        {
            "fidelities": [str(fidelity) for fidelity in fidelities],
            "dataset": [],
            "precision": torch.finfo(first.dtype).bits,
            "model": model,
        }
    )
    settings.check()
    return settings


def _cusp(state: GraphState, order: int) -> float:
    """Cusp constant c, which must be the same in all interactions; order 0 has none."""
    found = {
        float(state.weights.get(f"blocks.{block}.0.base_layer.{EXTRA_STATE}", {"cusp_reg": OLD_CUSP})["cusp_reg"])
        for block in range(state.n_levels - 1)
    }
    if len(found) > 1:
        listed = ", ".join(f"{cusp:g}" for cusp in sorted(found))
        raise MFPyGError(f"{state.source}: interactions with different cusp constants {listed}; expected one for all")
    return found.pop() if order else HIPNNOptions.cusp


def _fill_network(potential: MultiFidelityPotential, state: GraphState, columns: Tensor, length: float) -> None:
    """Copy the weights of the file into the backbone.

    Raises:
        MFPyGError: if their names or shapes differ, as for layers of different widths.
    """
    expected, weights = potential.backbone.state_dict(), {}
    for name, value in state.weights.items():
        if name.endswith(EXTRA_STATE):
            continue
        if ".sensitivity." in name:
            value = (value.double() * length).reshape(-1).to(value.dtype)
        reorder = is_by_species(name) and value.shape[-1:] == (len(columns),)  # other shapes are refused below
        weights[our_name(name)] = value[..., columns] if reorder else value
    theirs = {our_name(name): name for name in state.weights}
    for name in sorted(expected.keys() | weights.keys()):
        wanted, found = (tuple(w[name].shape) if name in w else "none" for w in (expected, weights))
        if wanted != found:
            raise MFPyGError(
                f"{state.source}: weight '{theirs.get(name, name)}' has shape {found}, expected {wanted}, as in mfpyg "
                "all layers have the same width and all blocks are alike"
            )
    potential.backbone.load_state_dict(weights)


def _fill_head(head: Head, state: GraphState, node: str, columns: Tensor, energy: float) -> None:
    """Copy the weights of a node, times the factor ``energy``, into a head.

    Raises:
        MFPyGError: if their shapes do not match.
    """
    values = {name: value.double() * energy for name, value in state.heads[node].items()}
    first = 0 if has_references(state, node) else 1
    with torch.no_grad():
        for level, layer in enumerate([head.reference, *head.levels][first:]):
            weight, bias = values[f"layers.{level}.weight"], values.get(f"layers.{level}.bias", torch.zeros(1))
            width = len(layer) if isinstance(layer, Tensor) else layer.in_features
            if weight.shape != (1, width) or bias.shape != (1,):
                found = tuple(weight.shape)
                raise MFPyGError(f"{state.source}: '{node}.layers.{level}' has shape {found}, expected (1, {width})")
            if isinstance(layer, Tensor):
                layer.copy_(weight[0, columns] + bias)
            else:
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)


def _check_cutoff(state: GraphState, cutoff: float) -> None:
    """Check the cutoff against the centres μ of the sensitivities, which start below it and change little in training.

    Args:
        state: state of the graph.
        cutoff: cutoff in the file's unit of length, like the centres.

    Raises:
        MFPyGError: if it is not a positive number, or a centre exceeds it by more than a fifth.

    Warns:
        MFPyGWarning: if a centre exceeds it, or all are below half of it.
    """
    if isinstance(cutoff, bool) or not isinstance(cutoff, int | float) or not 0 < cutoff < math.inf:
        raise MFPyGError(f"cutoff is {cutoff!r}, expected hippynn's dist_hard_max, a number above 0")
    centres = torch.cat([v.flatten() for name, v in state.weights.items() if name.endswith("sensitivity.mu")])
    largest = centres.max().item()
    found = f"{state.source}: the outermost sensitivity is centred at {largest:.3g}"
    if largest > 1.2 * cutoff:
        raise MFPyGError(f"{found}, far beyond cutoff {cutoff:g}; give the dist_hard_max that it was trained with")
    if largest > cutoff:
        _warn(f"{found}, beyond cutoff {cutoff:g}; make sure that this is the dist_hard_max that it was trained with")
    elif cutoff > 2 * largest:
        _warn(f"{found}, but cutoff is {cutoff:g}; make sure that this is the dist_hard_max that it was trained with")


def _check_energies(fidelity: str, species: Sequence[int], reference: Tensor, energy_unit: str) -> None:
    """Check size and sign of reference energies.

    Total energies are known well enough to recognize their unit; for others, such as atomization energies, only the
    sign is checked.

    Args:
        fidelity: name of the fidelity.
        species: atomic numbers.
        reference: reference energies in kcal/mol, (n_species,).
        energy_unit: unit of the file as given by the user.

    Warns:
        MFPyGWarning: if they look like total energies in another unit, or negated.
    """
    symbols = [chemical_symbols[number] for number in species]
    listed = ", ".join(f"{s} {e:.4g}" for s, e in zip(symbols, reference.tolist(), strict=True))
    ratio = reference / reference.new_tensor(atomic_estimate(species))
    sizes = ratio.abs()
    total = len(species) > 1 and ratio.sign().unique().numel() == 1 and bool(sizes.max() < 1.3 * sizes.min())
    if (reference > 1).all():
        _warn(
            f"reference energies of '{fidelity}' are {listed} kcal/mol, but those of bound atoms are negative; if "
            "binding energies are positive in the file, give the other sign"
        )
    if total and abs(math.log(sizes.mean().item())) > math.log(1.5):
        size = energy_factor(energy_unit) / sizes.mean().item()  # of the file's unit, in kcal/mol
        unit = min(ENERGY_UNITS, key=lambda name: abs(math.log(ENERGY_UNITS[name] / size)))
        _warn(
            f"reference energies of '{fidelity}' are {listed} kcal/mol, which are typical of total energies in {unit} "
            f"instead of {energy_unit}; check energy_unit"
        )


def _warn(message: str) -> None:
    warnings.warn(message, MFPyGWarning, stacklevel=4)
