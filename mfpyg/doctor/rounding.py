"""Energies that went through float32 or were rounded to few decimals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mfpyg.doctor.findings import Finding
from mfpyg.doctor.view import View
from mfpyg.fidelity import LevelOfTheory
from mfpyg.units import ENERGY_UNITS

NAME = "rounded energies"
SUSPICIOUS, CERTAIN = 1e-3, 0.1
"""Steps between possible energies, kcal/mol, from which rounding is reported."""

_FEWEST = 8
_SHARE = 0.99  # of the energies are multiples
_EXACT = 8 * np.finfo(np.float64).eps  # relative error of a float64 that was converted to kcal/mol and back


def check(view: View) -> Iterator[Finding]:
    """Whether the energies are multiples of a power of two or of ten, in the unit of the file or another."""
    for column, _ in view.levels:
        for source, rows, level in view.parts(column):
            rows = view.sample(rows[view.energy_mask[rows, column]])
            energy = view.energy[rows, column]
            if len(np.unique(energy)) < _FEWEST:
                continue
            found = coarsest(energy, level)
            if found is None:
                continue
            step, words, example = found
            where = f" in {source}" if source else ""
            evidence = (
                f"energies are {words}, {step:.2g} kcal/mol (error up to {step / 2:.2g}); "
                f"{len(rows)} looked at{where}, as {view.where(int(rows[example]))}"
            )
            severity = "certain" if step >= CERTAIN else "suspect"
            fix = "write the file again with energies in float64 and all digits; what is lost cannot be mended"
            yield Finding(NAME, severity, level.name, evidence, fix, (rows[example],))


def coarsest(energy: np.ndarray, level: LevelOfTheory) -> tuple[float, str, int] | None:
    """The largest step that the energies are multiples of, where it is worth reporting.

    Powers of two are looked for among energies of like magnitude (the same binary exponent), as the step
    of float32 grows with it; powers of ten among all.

    Args:
        energy: (n,), kcal/mol.
        level: whose unit is tried first.

    Returns:
        The step in kcal/mol, a description, and the number of an example; ``None`` if there is none.
    """
    best: tuple[float, str, int] | None = None
    for unit in dict.fromkeys([level.energy_unit, "Hartree", "eV", "kcal/mol", "kJ/mol"]):
        factor = ENERGY_UNITS.get(unit, level.energy_factor)
        values = energy / factor
        exponent = np.frexp(values)[1]
        for power in np.unique(exponent):
            here = np.flatnonzero(exponent == power)
            if len(here) < _FEWEST:
                continue
            k = _largest(values[here], 2.0)
            if k is not None and (best is None or 2.0**k * factor > 1.01 * best[0]):
                best = 2.0**k * factor, f"multiples of 2^{k} {unit} at this magnitude, as float32 leaves them", here[0]
        k = _largest(values, 10.0)
        if k is not None and (best is None or 10.0**k * factor > 1.01 * best[0]):
            best = 10.0**k * factor, f"rounded to multiples of 10^{k} {unit}", 0
    return best if best is not None and best[0] > SUSPICIOUS else None


def _largest(values: np.ndarray, base: float) -> int | None:
    """The largest k for which nearly all values are multiples of base^k; ``None`` if float64 could not tell."""
    error = _EXACT * np.abs(values)
    finest = 100 * float(error.max())  # below, anything is a multiple
    distinct = len(np.unique(values))
    if finest == 0 or distinct < _FEWEST:
        return None
    top = int(np.floor(np.log(np.abs(values).max()) / np.log(base)))
    for k in range(top, int(np.ceil(np.log(finest) / np.log(base))), -1):
        step = base**k
        off = np.abs(values - step * np.rint(values / step))
        if (off <= error).mean() >= _SHARE:
            return k
    return None
