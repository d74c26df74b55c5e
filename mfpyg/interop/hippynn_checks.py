"""Whether what a file of hippynn does not hold, and its user has to say, agrees with its weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from ase.data import chemical_symbols
from torch import Tensor

from mfpyg.errors import MFPyGError, MFPyGWarning
from mfpyg.interop.hippynn_state import GraphState
from mfpyg.units import ENERGY_UNITS, HARTREE_TO_KCAL_MOL, energy_factor


def check_cutoff(state: GraphState, cutoff: float) -> None:
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
    if (centres <= 0).any():
        raise MFPyGError(f"{state.source}: its sensitivities are damaged, expected centres μ above 0")
    largest = centres.max().item()
    found = f"{state.source}: the outermost sensitivity is centred at {largest:.3g}"
    if largest > 1.2 * cutoff:
        raise MFPyGError(f"{found}, which cutoff {cutoff:g} cuts off; give the dist_hard_max that it was trained with")
    if largest > cutoff:
        _warn(f"{found}, beyond cutoff {cutoff:g}; make sure that this is the dist_hard_max that it was trained with")
    elif cutoff > 2 * largest:
        _warn(f"{found}, but cutoff is {cutoff:g}; make sure that this is the dist_hard_max that it was trained with")


def check_energies(fidelity: str, species: Sequence[int], reference: Tensor, energy_unit: str) -> None:
    """See whether reference energies have the size and the sign that energies have.

    Total energies are known well enough to tell units apart. Other energies, such as those of atomisation, only show
    their sign: atoms attract each other.

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
    ratio = reference / reference.new_tensor([total_energy(number) for number in species])
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


def total_energy(number: int) -> float:
    """Total energy of an atom in kcal/mol, within some 8 %: the statistical atom with its corrections.

    (Schwinger, Phys. Rev. A 24, 2353 (1981).)
    """
    hartree = -0.7687 * number ** (7 / 3) + 0.5 * number**2 - 0.2699 * number ** (5 / 3)
    return hartree * HARTREE_TO_KCAL_MOL


def _warn(message: str) -> None:
    warnings.warn(message, MFPyGWarning, stacklevel=4)
