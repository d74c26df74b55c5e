"""ASE calculator for trained potentials."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    CalculatorSetupError,
    PropertyNotImplementedError,
    all_changes,
)
from ase.outputs import Properties, all_outputs
from ase.stress import full_3x3_to_voigt_6_stress
from torch_geometric.data import Data

from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.inference.ensemble import Ensemble, Model
from mfpyg.interop.verlet import VerletList
from mfpyg.models import Potential
from mfpyg.models.prediction import Prediction
from mfpyg.torch_defaults import default_torch_settings, with_default_torch_settings
from mfpyg.units import KCAL_MOL_TO_EV

PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
_CHANGEABLE = ("fidelity", "skin")


class _CopyableLock:
    """Reentrant lock that can be copied and pickled; each copy is a new lock."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


class MFPyGCalculator(Calculator):
    """Energies, forces and stresses of one fidelity, in eV, eV/Å and eV/Å³.

    Only requested properties are computed: forces double the time, and the stress comes with the forces. Properties
    requested at one geometry are computed together at the next.

    Several models form an ensemble. The results are then means, and the sample standard deviations (n − 1) of the
    members are in ``energy_std``, ``energies_std``, ``forces_std`` (per component) and ``stress_std``.

    ``get_property("hessian", atoms)`` returns the Hessian in eV/Å², (3n, 3n), in the order of ``positions.ravel()``.

    Threads that share a calculator are serialized, and methods return the properties of the given ``atoms``, while
    ``results`` are those of the last calculation in any thread.

    Args:
        models: a potential, run folder or checkpoint, or several; potentials are copied.
        fidelity: level of theory; optional if there is only one.
        skin: skin of the neighbour list in Å; see :class:`mfpyg.interop.verlet.VerletList`.
        device: device such as ``"cuda"``; default: that of the potential, the CPU for files.
        dtype: ``"float32"`` or ``"float64"``; default: as trained. Energies are always float64.
        compiled: whether to use ``torch.compile``, see :mod:`mfpyg.models.compiled`; the first calculation then takes a
            minute or more.
        atoms: atoms to attach the calculator to.

    Raises:
        MFPyGError: for files that cannot be read, an unknown fidelity, device or precision, and a negative skin; when
            computing, for no atoms, invalid positions or cells, unknown elements, and overlapping atoms.
        CalculatorSetupError: for a property requested without atoms, if there were none before.

    Example:
        >>> atoms.calc = MFPyGCalculator("runs/example", fidelity="cc")       # doctest: +SKIP
        >>> atoms.get_potential_energy(), atoms.get_forces()                  # doctest: +SKIP
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress", "hessian"]  # noqa: RUF012  (as in ASE)

    def __init__(
        self,
        models: Model | Sequence[Model],
        fidelity: str | None = None,
        *,
        skin: float = 1.0,
        device: str | torch.device | None = None,
        dtype: str | None = None,
        compiled: bool = False,
        atoms: Atoms | None = None,
    ) -> None:
        self._lock = _CopyableLock()
        super().__init__(atoms=atoms)
        self.ensemble = _make_ensemble(models, device, dtype, compiled)
        members = self.ensemble.members
        if len(members) > 1:
            spread = [f"{name}_std" for name in self.implemented_properties if name != "free_energy"]
            self.implemented_properties = [*self.implemented_properties, *spread]
        self.parameters.update(
            models=[type(one).__name__ if isinstance(one, Potential) else str(one) for one in _as_list(models)],
            fidelity=self.ensemble.fidelity(fidelity),
            skin=float(skin),
            device=str(self.ensemble.device),
            dtype=str(members[0].dtype).removeprefix("torch."),
            compiled=bool(compiled),
        )
        self.neighbours = self._make_list()
        self._requested: set[str] = set()
        self._requested_before: set[str] = set()

    def _make_list(self) -> VerletList:
        first = self.ensemble.members[0]
        return VerletList(first.cutoff, self.parameters["skin"], first.dtype, first.engine)

    def set(self, **changes: Any) -> dict[str, Any]:
        """Change ``fidelity`` or ``skin``, and discard the results.

        Raises:
            MFPyGError: for other parameters.
        """
        for name in changes:
            if name not in _CHANGEABLE:
                raise MFPyGError(f"'{name}' cannot be set (only {', '.join(_CHANGEABLE)}); create a new calculator")
        if "fidelity" in changes:
            changes["fidelity"] = self.ensemble.fidelity(changes["fidelity"])
        with self._lock:
            changed = super().set(**changes)
            if "skin" in changed:
                self.neighbours = self._make_list()
            if changed:
                self.reset()
        return changed

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Changes that affect a potential; like ASE's method, but ten times faster."""
        old, new = self.atoms, atoms
        if old is None:
            return list(all_changes)
        pairs = {
            "positions": (old.positions, new.positions),
            "numbers": (old.numbers, new.numbers),
            "cell": (old.cell.array, new.cell.array),
            "pbc": (old.pbc, new.pbc),
        }
        return [name for name, (a, b) in pairs.items() if _differ(a, b, tol)]

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """See ASE. Without ``atoms``, the property of the last atoms."""
        with self._lock:
            value = super().get_property(name, atoms, allow_calculation)
            if allow_calculation:
                self._requested.add(name)
        return value

    def calculate_properties(self, atoms: Atoms, properties: Sequence[str]) -> Properties:
        """See ASE."""
        with self._lock:
            return super().calculate_properties(atoms, properties)

    def export_properties(self) -> Properties:
        """Results that have a name in ASE."""
        return Properties({name: value for name, value in self.results.items() if name in all_outputs})

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill ``results``; called by ASE.

        Raises:
            PropertyNotImplementedError: for the stress of atoms that are not periodic in all three directions.
            CalculatorSetupError: without atoms, if there were none before.
            MFPyGError: see the class.
        """
        with self._lock, default_torch_settings():
            self._calculate(atoms, properties, system_changes)

    def _calculate(self, atoms: Atoms | None, properties: Sequence[str], system_changes: Sequence[str]) -> None:
        super().calculate(atoms, properties, system_changes)
        if self.atoms is None:
            raise CalculatorSetupError(
                "no atoms yet; pass them, as in get_potential_energy(atoms), or set atoms.calc and use methods of atoms"
            )
        if system_changes:
            self.results, self._requested_before, self._requested = {}, self._requested, set()
        letters = self._letters(properties, self.atoms.pbc)
        data, fidelity = data_of(self.atoms), self.parameters["fidelity"]
        if self.parameters["device"] != "cpu":
            data = data.to(self.parameters["device"])
        self.neighbours.add_edges(data)
        mean, spread = self.ensemble.predict(data, {fidelity: letters})
        self.results.update(_results(mean[fidelity]))
        self.results["free_energy"] = self.results["energy"]
        if spread is not None:
            self.results.update({f"{name}_std": value for name, value in _results(spread[fidelity]).items()})
        if {"hessian", "hessian_std"} & set(properties):
            for name, values in zip(("hessian", "hessian_std"), self.ensemble.hessian(data, fidelity), strict=True):
                if values is not None:  # (n, n, 3, 3)
                    self.results[name] = _array(values.transpose(1, 2).flatten(2, 3).flatten(0, 1))

    def _letters(self, properties: Sequence[str], pbc: np.ndarray) -> str:
        """Letters of the properties to compute."""
        wanted, before = (
            {name.removesuffix("_std") for name in names} for names in (properties, self._requested_before)
        )
        if "stress" in wanted and not pbc.all():
            raise PropertyNotImplementedError(
                f"stress is not defined: pbc is {pbc.tolist()}, expected True in all three directions, with a cell"
            )
        stress = bool("stress" in wanted or ("stress" in before and pbc.all()))
        forces = stress or "forces" in wanted | before
        return "E" + "F" * forces + "S" * stress


def _differ(a: np.ndarray, b: np.ndarray, tol: float) -> bool:
    if a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes():  # five times faster
        return False
    with np.errstate(invalid="ignore"):  # ∞ − ∞ is NaN, which counts as a change
        return a.shape != b.shape or not (abs(a - b.astype(float)) <= tol).all()


def _as_list(models: Model | Sequence[Model]) -> list[Model]:
    return [models] if isinstance(models, str | os.PathLike | Potential) else list(models)


@with_default_torch_settings
def _make_ensemble(
    models: Model | Sequence[Model], device: str | torch.device | None, dtype: str | None, compiled: bool
) -> Ensemble:
    """Create the ensemble from copies of the potentials."""
    if dtype is not None and dtype not in PRECISIONS:
        raise unknown_name("dtype", str(dtype), PRECISIONS)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MFPyGError(f"device '{device}' cannot be used ({str(error).splitlines()[0]}); try 'cpu'") from error
    ensemble = Ensemble([copy.deepcopy(one) if isinstance(one, Potential) else one for one in _as_list(models)], device)
    for member in ensemble.members:
        member.requires_grad_(False)
        member.compiled = compiled
        if dtype is not None:
            member.to(PRECISIONS[dtype])
    return ensemble


def _results(prediction: Prediction) -> dict[str, Any]:
    """Results with ASE's names and units."""
    results: dict[str, Any] = {
        "energy": float(prediction.energy) * KCAL_MOL_TO_EV,
        "energies": _array(prediction.atomic_energies),
    }
    if prediction.forces is not None:
        results["forces"] = _array(prediction.forces)
    if prediction.stress is not None:
        results["stress"] = full_3x3_to_voigt_6_stress(_array(prediction.stress)[0])
    return results


def _array(values: torch.Tensor) -> np.ndarray:
    return values.double().cpu().numpy() * KCAL_MOL_TO_EV


def data_of(atoms: Atoms) -> Data:
    """Convert atoms to a graph without edges.

    Args:
        atoms: a molecule or a periodic system; constraints and calculators are ignored.

    Returns:
        ``Data`` with ``z`` (n,) int64 and ``pos`` (n, 3) float64 in Å, and ``cell`` (1, 3, 3) float64 in Å and
        ``pbc`` (1, 3) bool, all False for a molecule.

    Raises:
        MFPyGError: for no atoms, or positions that are not finite.
    """
    if not len(atoms):
        raise MFPyGError("no atoms; expected at least one")
    if not np.isfinite(atoms.positions).all():
        number = int(np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))[0])
        raise MFPyGError(f"position of atom {number} is NaN or infinite; expected finite positions in Å")
    return Data(
        z=torch.from_numpy(atoms.numbers.astype(np.int64)),
        pos=torch.from_numpy(np.array(atoms.positions, dtype=np.float64)),
        cell=torch.from_numpy(np.array(atoms.cell.array, dtype=np.float64)).unsqueeze(0),
        pbc=torch.from_numpy(np.array(atoms.pbc, dtype=bool)).unsqueeze(0),
    )
