"""Checks of a data set for problems that ruin training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.doctor import coverage, dipoles, duplicates, energies, forces, geometry, hessians, outliers, slope, stresses
from mfpyg.doctor.view import SEVERITIES, Finding, View
from mfpyg.errors import MFPyGError

__all__ = ["CHECKS", "SEVERITIES", "Finding", "View", "diagnose", "examine"]

CHECKS: dict[str, Callable[[View], Iterator[Finding]]] = {
    "missing labels": coverage.check_missing,
    "elements": coverage.check_elements,
    "constant energies": energies.check_constant,
    "repeated energies": energies.check_repeated,
    "unit of energies": energies.check_unit,
    "rounded energies": energies.check_rounded,
    "energies against forces": slope.check,
    "forces": forces.check,
    "stresses": stresses.check,
    "Hessians": hessians.check,
    "total charges": dipoles.check_totals,
    "dipoles": dipoles.check_dipoles,
    "outlying energies": outliers.check_outliers,
    "energies of a molecule": outliers.check_molecules,
    "atoms too close": geometry.check_close,
    "positions in Å": geometry.check_far,
    "duplicates": duplicates.check,
    "labels and split": coverage.check_split,
    "reference energies": coverage.check_references,
    "periodic conformations": geometry.check_periodic,
}
"""Checks by name; each yields its findings in a view of a data set."""

NEED_SPLIT = ("duplicates", "labels and split", "reference energies")
"""Checks that need the split; left out if there are too few conformations to divide."""


def diagnose(
    dataset: ConformationDataset,
    fidelities: Sequence[str] | None = None,
    *,
    seed: int = 0,
    track: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> list[Finding]:
    """Check a data set for problems that ruin training.

    Time is linear in the number of atoms; columns are read a million atoms at a time, and a few numbers per
    conformation are kept.

    Args:
        dataset: data set to check.
        fidelities: fidelities whose labels are checked; all if not given.
        seed: seed of the split that training would make, and of samples.
        track: wraps the names of the checks to show progress.

    Returns:
        The findings, the most severe first.

    Raises:
        MFPyGError: for a fidelity that the data set does not have.

    Example:
        >>> from mfpyg.datasets import MiniCHNO
        >>> [finding for finding in diagnose(MiniCHNO()) if finding.severity == "certain"]   # doctest: +SKIP
        []
    """
    return examine(View(dataset, fidelities, seed), track)


def examine(view: View, track: Callable[[Sequence[str]], Iterable[str]] = iter) -> list[Finding]:
    """Run all checks on a view of a data set; see :func:`diagnose`."""
    found = list(_check_divisible(view))
    left_out = NEED_SPLIT if found else ()
    for name in track([name for name in CHECKS if name not in left_out]):
        found += CHECKS[name](view)
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _check_divisible(view: View) -> Iterator[Finding]:
    """Report a data set that cannot be split, which training would refuse."""
    try:
        _ = view.splits
    except MFPyGError as error:
        text = f"{error}; not checked: {', '.join(NEED_SPLIT)}"
        yield Finding("split", "certain", None, text, "add conformations, or choose other shares for training")
