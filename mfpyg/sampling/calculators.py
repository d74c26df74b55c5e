"""ASE calculators by name: xTB, trained potentials, and others that a YAML file describes."""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

from ase import Atoms

from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.files import sha256_of
from mfpyg.strict_yaml import read_yaml

EXPECTED = "expected tblite:GFN2-xTB, mfpyg:RUN@FIDELITY or ase:FILE.yaml"
EXAMPLE = "'calculator: ase.calculators.emt.EMT'"
TBLITE_METHODS = ("GFN2-xTB", "GFN1-xTB", "IPEA1-xTB")


def calculator(spec: str, charge: int = 0, multiplicity: int = 1) -> Any:
    """ASE calculator of a molecule.

    Args:
        spec: ``tblite:METHOD``, ``mfpyg:RUN@FIDELITY``, or ``ase:FILE.yaml``, a file with the class under
            ``calculator``, as ``ase.calculators.emt.EMT``, and the values of its arguments.
        charge: total charge in e.
        multiplicity: 2S + 1. Calculators of YAML files find charge and spin in the initial charges and magnetic moments
            of :func:`with_electrons`.

    Raises:
        MFPyGError: for an unknown or unusable calculator, and a package that is not installed.
    """
    program, _, what = spec.partition(":")
    if not what:
        raise MFPyGError(f"calculator '{spec}', {EXPECTED}")
    if program == "tblite":
        return _tblite(what, charge, multiplicity)
    if program == "mfpyg":
        return _mfpyg(what)
    if program == "ase":
        return _from_yaml(Path(what))
    raise MFPyGError(f"calculator '{spec}' of unknown program '{program}', {EXPECTED}")


def with_electrons(atoms: Atoms, charge: int, multiplicity: int) -> Atoms:
    """The atoms, with charge and spin where ASE's calculators look for them."""
    if charge or multiplicity > 1:
        atoms.info["charge"] = charge
        atoms.set_initial_charges([charge, *[0] * (len(atoms) - 1)])
        atoms.set_initial_magnetic_moments([multiplicity - 1, *[0] * (len(atoms) - 1)])
    return atoms


def described(spec: str) -> dict[str, Any]:
    """What a recipe says about a calculator: its name, and the checksum of a checkpoint or the contents of a YAML file.

    Raises:
        MFPyGError: for a file that cannot be read.
    """
    program, _, what = spec.partition(":")
    found: dict[str, Any] = {"name": spec}
    if program == "ase":
        found["file"] = read_yaml(Path(what), "a calculator", EXAMPLE)
    elif program == "mfpyg":
        from mfpyg.checkpoint import checkpoint_file

        found["sha256"] = sha256_of(checkpoint_file(_run_and_fidelity(what)[0]))
    return found


def version_of(package: str) -> str | None:
    """Version of an installed package, else ``None``."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tblite(method: str, charge: int, multiplicity: int) -> Any:
    if method not in TBLITE_METHODS:
        raise unknown_name("method of tblite", method, TBLITE_METHODS)
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise MFPyGError(f"tblite is not installed ({error}): pip install 'mfpyg[label]'") from error
    return TBLite(method=method, charge=charge, multiplicity=multiplicity, verbosity=0)


def _mfpyg(what: str) -> Any:
    from mfpyg.interop.ase import MFPyGCalculator

    run, fidelity = _run_and_fidelity(what)
    return MFPyGCalculator(run, fidelity=fidelity, device="cpu")


def _run_and_fidelity(what: str) -> tuple[str, str | None]:
    run, _, fidelity = what.rpartition("@")
    return (run, fidelity) if run else (fidelity, None)


def _from_yaml(path: Path) -> Any:
    arguments = read_yaml(path, "a calculator", EXAMPLE)
    name = arguments.pop("calculator", None)
    module, _, attribute = str(name).rpartition(".")
    if not module:
        raise MFPyGError(f"{path}: calculator is {name!r}, expected module and class, as in {EXAMPLE}")
    try:
        return getattr(importlib.import_module(module), attribute)(**arguments)
    except ImportError as error:
        raise MFPyGError(f"{path}: {name} cannot be imported ({error}); install its package") from error
    except Exception as error:  # a calculator's own checks raise anything
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise MFPyGError(f"{path}: {name} cannot be made with these arguments ({reason})") from error
