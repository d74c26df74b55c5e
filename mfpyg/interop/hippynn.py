"""Trained models of hippynn as potentials, and back; hippynn itself is not needed.

The networks agree number for number: HIP-NN-TS with softplus and the cosine cutoff, which are hippynn's defaults. A
file of hippynn holds weights and nothing else. The rest has to be said, and is checked as far as the weights tell.
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
"""Cusp constant of hippynn before it was stored."""


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
    """The potential that hippynn has trained: a Hipnn, HipnnVec or HipnnQuad with an ``HEnergyNode`` for each fidelity.

    What was subtracted from energies before training is neither in the file nor in the potential, and what a graph
    computes without weights of its own, such as a sum of two energies, does not show in the file.

    Args:
        path: ``best_model.pt`` or ``best_checkpoint.pt`` of a training, in which no code is run; or a graph's state
            dictionary.
        cutoff: hippynn's ``dist_hard_max``.
        fidelities: a name for each head, in the order of the file, which is the alphabetical one of the nodes' names in
            hippynn; or ``{name: node}``, as ``{"cc": "node22"}``, to leave out others. Charges look like energies and
            have to be left out. A name may say what was trained on, as ``"cc:E"``; energies and forces if not.
        energy_unit: of the energies that hippynn gives, see :mod:`mfpyg.units`.
        sign: −1 if those are negated, as binding energies that count positive.
        length_unit: of ``cutoff``, and of the positions that hippynn takes.
        species: atomic numbers in hippynn's order, its ``possible_species``, for files that do not hold them.

    Returns:
        The potential in evaluation mode and in the precision of the file, in kcal/mol and Å, for :func:`mfpyg.save`.

    Raises:
        MFPyGError: for a file that is damaged or none of hippynn, a network that :class:`mfpyg.models.HIPNN` cannot be,
            or arguments that do not fit the file.

    Warns:
        MFPyGWarning: for nodes that are ignored, and arguments that are not likely to be those of the file.

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
    with torch.random.fork_rng(devices=[]):  # the initial weights drawn here are replaced at once
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
            f"{state.source}: ignored {listed}; an energy that depends on them, such as one of charges, comes without",
            MFPyGWarning,
            stacklevel=3,
        )
    return potential.eval()


def _elements(state: GraphState, species: Sequence[int] | None) -> tuple[int, ...]:
    """Atomic numbers in the order of the columns, from the file or else from the user."""
    n_species = state.weights["blocks.0.0.base_layer.int_weights"].shape[2]
    given = None if species is None else tuple(number for number in species if number)  # 0 is hippynn's padding
    elements = given if state.elements is None else state.elements
    if elements is None:
        raise MFPyGError(
            f"{state.source}: does not say which {n_species} elements it knows; give possible_species as species"
        )
    if given is not None and given != elements:
        raise MFPyGError(f"species are {list(given)}, but {state.source} has {list(elements)}")
    known = set(range(1, len(chemical_symbols)))
    if len(elements) != n_species or len(set(elements)) < len(elements) or not known.issuperset(elements):
        raise MFPyGError(
            f"{state.source}: its network is for {n_species} elements, but species are {list(elements)}; expected as "
            "many, different atomic numbers"
        )
    width = state.weights["blocks.0.0.base_layer.int_weights"].shape[1]
    if list(elements) != sorted(elements) and n_species == width:
        raise MFPyGError(
            f"{state.source}: elements {list(elements)} are not in ascending order, in a network that is no wider than "
            "their number and adds to them unchanged; mfpyg has it in that order alone"
        )
    return elements


def _settings(state: GraphState, fidelities: Sequence[Fidelity], cutoff: float, length: float) -> TrainSettings:
    """Settings that give the file's network, as far as its shapes tell them."""
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
        "r_soft_min": centres.min().item(),  # where they are now; where they began is not known
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
    """The constant c of the tensor norms, which all interactions must have in common; order 0 has none."""
    found = {
        float(state.weights.get(f"blocks.{block}.0.base_layer.{EXTRA_STATE}", {"cusp_reg": OLD_CUSP})["cusp_reg"])
        for block in range(state.n_levels - 1)
    }
    if len(found) > 1:
        listed = ", ".join(f"{cusp:g}" for cusp in sorted(found))
        raise MFPyGError(f"{state.source}: interactions with different cusp constants {listed}; expected one for all")
    return found.pop() if order else HIPNNOptions.cusp


def _fill_network(potential: MultiFidelityPotential, state: GraphState, columns: Tensor, length: float) -> None:
    """Give the backbone the weights of the file.

    Raises:
        MFPyGError: if it has others, as for layers of different widths.
    """
    expected, weights = potential.backbone.state_dict(), {}
    for name, value in state.weights.items():
        if name.endswith(EXTRA_STATE):
            continue
        if ".sensitivity." in name:
            value = (value.double() * length).reshape(-1).to(value.dtype)
        whole = is_by_species(name) and value.shape[-1:] == (len(columns),)  # others are refused below
        weights[our_name(name)] = value[..., columns] if whole else value
    theirs = {our_name(name): name for name in state.weights}
    for name in sorted(expected.keys() | weights.keys()):
        wanted, found = (tuple(w[name].shape) if name in w else "none" for w in (expected, weights))
        if wanted != found:
            raise MFPyGError(
                f"{state.source}: weight '{theirs.get(name, name)}' has shape {found}, expected {wanted}, as mfpyg has "
                "all layers in one width and all blocks alike"
            )
    potential.backbone.load_state_dict(weights)


def _fill_head(head: Head, state: GraphState, node: str, columns: Tensor, energy: float) -> None:
    """Give a head the weights of a node, times a factor.

    Raises:
        MFPyGError: if they are for features of other widths.
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
    """Check a cutoff against the centres μ of the sensitivities, which start below it and hardly move in training.

    Args:
        state: of the graph.
        cutoff: in the file's unit of length, as the centres.

    Raises:
        MFPyGError: if it is no positive number, or a sensitivity is centred beyond it by a fifth.

    Warns:
        MFPyGWarning: if a sensitivity is centred beyond it at all, or all of them within half of it.
    """
    if isinstance(cutoff, bool) or not isinstance(cutoff, int | float) or not 0 < cutoff < math.inf:
        raise MFPyGError(f"cutoff is {cutoff!r}, expected hippynn's dist_hard_max, a number above 0")
    centres = torch.cat([v.flatten() for name, v in state.weights.items() if name.endswith("sensitivity.mu")])
    largest = centres.max().item()
    found = f"{state.source}: the outermost sensitivity is centred at {largest:.3g}"
    if largest > 1.2 * cutoff:
        raise MFPyGError(f"{found}, which cutoff {cutoff:g} cuts off; give the dist_hard_max that it was trained with")
    if largest > cutoff:
        _warn(f"{found}, beyond cutoff {cutoff:g}; make sure that this is the dist_hard_max that it was trained with")
    elif cutoff > 2 * largest:
        _warn(f"{found}, but cutoff is {cutoff:g}; make sure that this is the dist_hard_max that it was trained with")


def _check_energies(fidelity: str, species: Sequence[int], reference: Tensor, energy_unit: str) -> None:
    """Check size and sign of reference energies.

    Total energies are known well enough to tell units apart; others, as of atomisation, only show their sign.

    Args:
        fidelity: whose they are.
        species: atomic numbers.
        reference: of each element, in kcal/mol, (n_species,).
        energy_unit: that the user says the file has.

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
            f"reference energies of '{fidelity}' are {listed} kcal/mol, but those of bound atoms are negative; if the "
            "file's energies count binding positive, give the other sign"
        )
    if total and abs(math.log(sizes.mean().item())) > math.log(1.5):
        size = energy_factor(energy_unit) / sizes.mean().item()  # of the file's unit, in kcal/mol
        unit = min(ENERGY_UNITS, key=lambda name: abs(math.log(ENERGY_UNITS[name] / size)))
        _warn(
            f"reference energies of '{fidelity}' are {listed} kcal/mol, as of total energies if the file had them in "
            f"{unit} instead of {energy_unit}; make sure of energy_unit"
        )


def _warn(message: str) -> None:
    warnings.warn(message, MFPyGWarning, stacklevel=4)
