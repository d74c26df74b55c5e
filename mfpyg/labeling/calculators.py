"""Programs that are ASE calculators: tblite, any other by name, and trained potentials."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from mfpyg import __version__
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.labeling.program import LabelError, Program, about_centre_of_mass, hessian_of, settings_from
from mfpyg.properties import PROPERTIES, in_order
from mfpyg.strict_yaml import read_yaml
from mfpyg.xtb_methods import ACCURACY, method_named

_ORDER = "FSEDQ"
"""Order in which properties are requested: with the forces, most programs compute the rest."""


class CalculatorProgram(Program):
    """Labels from an ASE calculator."""

    def make(self, charge: int, multiplicity: int) -> Any:
        raise NotImplementedError

    def compute(self, atoms: Atoms, charge: int, multiplicity: int, letters: str) -> dict[str, Any]:
        atoms = atoms.copy()
        with self.calculator(charge, multiplicity) as calculator:
            return self._results(calculator, atoms, charge, letters)

    def _results(self, calculator: Any, atoms: Atoms, charge: int, letters: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for letter in sorted(set(letters) - {"H"}, key=_ORDER.index):
            value = calculator.get_property(PROPERTIES[letter].name, atoms)
            if letter == "E":  # forces are derivatives of the free energy, if there is a smearing
                value = calculator.results.get("free_energy", value)
            elif letter == "S":
                value = voigt_6_to_full_3x3_stress(value)
            elif letter == "D":
                value = self.dipole(np.asarray(value), atoms, charge)
            found[letter] = value
        if "H" in letters:
            found["H"] = hessian_of(calculator, atoms)
        return found

    def dipole(self, dipole: np.ndarray, atoms: Atoms, charge: int) -> np.ndarray:
        """Dipole (3,) in e·Å as defined by :meth:`Program.compute`, from that of the calculator."""
        if charge:
            raise LabelError("dipole of an ion, whose origin ASE does not define; leave D out")
        return dipole


@dataclass(frozen=True)
class _TBLiteSettings:
    accuracy: float = ACCURACY
    electronic_temperature: float = 300.0
    max_iterations: int = 250


class TBLite(CalculatorProgram):
    """xTB methods of tblite. At the default ``accuracy`` of 0.01, forces are −dE/dx to 1e-5 eV/Å.

    Periodic systems are computed at the Γ point only. Charges are Mulliken's.
    """

    letters = "EFSHDQ"

    def __init__(self, method: str, settings: Mapping[str, Any]) -> None:
        super().__init__(method, settings)
        try:
            from tblite.ase import TBLite as calculator
        except ImportError as error:
            raise MFPyGError("tblite is not installed; pip install 'mfpyg[label]'") from error
        self._class = calculator
        self.version = importlib.metadata.version("tblite")

    @classmethod
    def parse(cls, method: str, given: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
        return method_named(method), settings_from(_TBLiteSettings, given, method)

    def make(self, charge: int, multiplicity: int) -> Any:
        return self._class(method=self.method, charge=charge, multiplicity=multiplicity, verbosity=0, **self.settings)

    def dipole(self, dipole: np.ndarray, atoms: Atoms, charge: int) -> np.ndarray:
        return about_centre_of_mass(dipole, atoms, charge)


class ASECalculator(CalculatorProgram):
    """Any calculator of ASE, or of a third party as ``module:Class``, with a YAML file of its arguments."""

    KEYS = ("calculator", "arguments", "charge", "multiplicity")

    def __init__(self, method: str, settings: Mapping[str, Any]) -> None:
        super().__init__(method, settings)
        self.needs_spin = "multiplicity" in settings
        self._class = _class_named(method)
        self.version = _version_of(self._class.__module__)
        calculator = self.make(0, 1)
        names = set(calculator.implemented_properties)
        names |= {"hessian"} if "forces" in names else set()
        self.letters = in_order(letter for letter, p in PROPERTIES.items() if p.name in names)

    @classmethod
    def parse(cls, method: str, given: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
        if given:
            raise MFPyGError(f"settings of an ASE calculator are in a YAML file, as in ase:orca.yaml, not {method}")
        if not method.endswith((".yaml", ".yml")):
            return method, {}
        path = Path(method)
        settings = read_yaml(path, "a calculator and its arguments", "'calculator: orca'")
        for name in settings:
            if name not in cls.KEYS:
                raise unknown_name(f"key of {path}", str(name), cls.KEYS)
        name = settings.pop("calculator", None)
        if not isinstance(name, str):
            raise MFPyGError(f"{path}: calculator is {name}, expected a name of ASE such as orca, or module:Class")
        if not isinstance(settings.get("arguments", {}), dict):
            raise MFPyGError(f"{path}: arguments are {settings['arguments']!r}, expected names and values")
        if json.loads(json.dumps(settings, default=str)) != settings:  # as which they reach other processes
            raise MFPyGError(f"{path}: arguments have values or keys other than text, numbers, truth values and lists")
        for key in ("charge", "multiplicity"):
            if not isinstance(settings.get(key, ""), str):
                raise MFPyGError(f"{path}: {key} is {settings[key]!r}, expected the name of the argument that takes it")
        return name, settings

    def make(self, charge: int, multiplicity: int) -> Any:
        arguments = dict(self.settings.get("arguments") or {})
        usual = {"charge": charge == 0, "multiplicity": multiplicity <= 2}
        for name, value in (("charge", charge), ("multiplicity", multiplicity)):
            if name in self.settings:
                arguments[self.settings[name]] = value
            elif not usual[name]:
                raise LabelError(
                    f"{name} is {value}, but no YAML file says which argument of {self.method} takes it, as in "
                    f"'{name}: {name}'"
                )
        try:
            return self._class(**arguments)
        except Exception as error:  # calculators raise anything on wrong arguments, or a missing program
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise MFPyGError(f"calculator {self.method} cannot be created ({reason})") from error


def _class_named(name: str) -> Any:
    """Class of a calculator by ASE's name for it, or as ``module:Class``."""
    from ase.calculators.calculator import get_calculator_class, names

    module, colon, attribute = name.partition(":")
    try:
        if colon:
            return getattr(importlib.import_module(module), attribute)
        if name.lower() not in names:
            raise unknown_name("calculator of ASE", name, names)
        return get_calculator_class(name.lower())
    except (ImportError, AttributeError) as error:
        raise MFPyGError(f"calculator {name} cannot be imported ({error}); install its package") from error


def _version_of(module: str) -> str:
    package = module.partition(".")[0]
    if package == "ase":
        return str(ase.__version__)
    for distribution in importlib.metadata.packages_distributions().get(package, []):
        return f"{distribution} {importlib.metadata.version(distribution)}"
    return "unknown"


class TrainedPotential(CalculatorProgram):
    """A level of a potential trained by mfpyg: ``RUN@FIDELITY``, or ``RUN`` if it has only one."""

    needs_spin = False

    def __init__(self, method: str, settings: Mapping[str, Any]) -> None:
        super().__init__(method, settings)
        from mfpyg.checkpoint import checkpoint_file
        from mfpyg.files import sha256_of
        from mfpyg.interop.ase import MFPyGCalculator

        path, _, fidelity = method.partition("@")
        self.version = f"{__version__}, checkpoint {sha256_of(checkpoint_file(path))[:16]}"
        self._calculator = MFPyGCalculator(path, fidelity or None, device="cpu")
        names = self._calculator.implemented_properties
        self.letters = in_order(letter for letter, p in PROPERTIES.items() if p.name in names)

    @classmethod
    def parse(cls, method: str, given: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
        if given:
            raise MFPyGError(f"a trained potential has no settings, found {', '.join(given)}")
        return method, {}

    def make(self, charge: int, multiplicity: int) -> Any:
        self._calculator.reset()
        return self._calculator

    def compute(self, atoms: Atoms, charge: int, multiplicity: int, letters: str) -> dict[str, Any]:
        atoms = atoms.copy()
        atoms.info["charge"] = charge
        return super().compute(atoms, charge, multiplicity, letters)

    def dipole(self, dipole: np.ndarray, atoms: Atoms, charge: int) -> np.ndarray:
        return dipole
