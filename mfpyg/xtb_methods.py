"""xTB methods of the package ``tblite``, for labels and baselines; importable without torch."""

from __future__ import annotations

from mfpyg.errors import unknown_name

METHODS = ("GFN2-xTB", "GFN1-xTB", "IPEA1-xTB")

ACCURACY = 0.01
"""Of the self-consistent charges, relative to tblite's default: forces are −dE/dx to 1e-5 eV/Å."""


def method_named(name: str) -> str:
    """Canonical name of a method, ignoring case.

    Raises:
        MFPyGError: for an unknown method.
    """
    known = {method.lower(): method for method in METHODS}
    if name.lower() not in known:
        raise unknown_name("method of tblite", name, METHODS)
    return known[name.lower()]
