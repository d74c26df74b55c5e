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
from torch_geometric.data import Data

from mfpyg.datasets.frames import frame_of_atoms, total_charge
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.inference.ensemble import Ensemble, Model
from mfpyg.interop.results import results_of
from mfpyg.interop.steps import Steps
from mfpyg.models import Potential
from mfpyg.properties import BY_NAME, ENERGY, FORCES, HEADS, HESSIAN, PROPERTIES, STRESS, heads_of, in_order
from mfpyg.torch_defaults import default_torch_settings, with_default_torch_settings

PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
_CHANGEABLE = ("fidelity", "skin")
_OF_HEADS = [p.name for p in PROPERTIES.values() if p.head in HEADS]
"""Properties that depend on the total charge, and that only some fidelities have."""
_DEFINED = {"crystals": "True in all three directions, with a cell", "molecules": "False in all three directions"}


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
    """Energies, forces, stresses, dipoles and charges of one fidelity, in eV, eV/Å, eV/Å³, e·Å and e.

    Only requested properties are computed: forces double the time, and the stress comes with the forces. Properties
    requested at one geometry are computed together at the next.

    Dipoles and charges are those of fidelities with a charge head. The total charge of the atoms is
    ``atoms.info["charge"]``, or the sum of the initial charges, or 0 without either.

    ``get_property("energy_std", atoms)`` and ``get_property("forces_std", atoms)``, (n, 3), return the standard
    deviations of a fidelity that has them, see :mod:`mfpyg.models.last_layer`. Several models form an ensemble: results
    are means, and all have standard deviations, ``energies_std`` and so on, see :mod:`mfpyg.inference.ensemble`.

    ``get_property("hessian", atoms)`` returns the Hessian in eV/Å², (3n, 3n), in the order of ``positions.ravel()``.

    Threads that share a calculator are serialized, and methods return the properties of the given ``atoms``, while
    ``results`` are those of the last calculation in any thread.

    Args:
        models: a potential, run folder, checkpoint or shipped model, such as ``"chno-1"``, or several; potentials are
            copied.
        fidelity: level of theory; optional if there is only one.
        skin: skin of the neighbour list in Å; see :class:`mfpyg.interop.verlet.VerletList`.
        device: device such as ``"cuda"``; default: that of the potential, the CPU for files.
        dtype: ``"float32"`` or ``"float64"``; default: as trained. Energies are always float64.
        compiled: whether to use ``torch.compile``, and on a GPU CUDA graphs, see :mod:`mfpyg.models.compiled`; the
            first calculations then take a minute or more.
        atoms: atoms to attach the calculator to.

    Raises:
        MFPyGError: for files that cannot be read, an unknown fidelity, device or precision, and a negative skin; when
            computing, for no atoms, invalid positions, cells or total charges, unknown elements, and overlapping atoms.
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
        self.parameters.update(
            models=[type(one).__name__ if isinstance(one, Potential) else str(one) for one in _as_list(models)],
            fidelity=self.ensemble.fidelity(fidelity),
            skin=float(skin),
            device=str(self.ensemble.device),
            dtype=str(self.ensemble.members[0].dtype).removeprefix("torch."),
            compiled=bool(compiled),
        )
        self.implemented_properties = self._implemented()
        self.steps = Steps(self.ensemble, self.parameters["skin"])
        self._requested: set[str] = set()
        self._requested_before: set[str] = set()

    def _implemented(self) -> list[str]:
        names = list(type(self).implemented_properties)
        having = self.ensemble.letters(self.parameters["fidelity"])
        names += [name for name in _OF_HEADS if BY_NAME[name].letter in having]
        of_one = [ENERGY.name, FORCES.name] if self.ensemble.has_std(self.parameters["fidelity"]) else []
        with_std = names if len(self.ensemble.members) > 1 else of_one
        return names + [f"{name}_std" for name in with_std if name != "free_energy"]

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
                self.steps = Steps(self.ensemble, self.parameters["skin"])
            if changed:
                self.implemented_properties = self._implemented()
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
        changes = [name for name, (a, b) in pairs.items() if _differ(a, b, tol)]
        if not self.results.keys().isdisjoint(_OF_HEADS) and _charge_of(old) != _charge_of(new):
            changes.append("initial_charges")
        return changes

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
            PropertyNotImplementedError: for the stress of atoms that are not periodic in all three directions, and the
                dipole of those that are periodic in any.
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
        if heads_of(letters):
            data.charge = torch.tensor([_charge_of(self.atoms)], dtype=torch.float64)
        std = any(name.endswith("_std") for name in {*properties, *self._requested_before})
        mean, spread = self.steps.predict(data, {fidelity: letters}, std)
        self.results.update(results_of(mean[fidelity]))
        self.results["free_energy"] = self.results["energy"]
        if spread is not None and fidelity in spread:
            self.results.update({f"{name}_std": value for name, value in results_of(spread[fidelity]).items()})

    def _letters(self, properties: Sequence[str], pbc: np.ndarray) -> str:
        """Letters of the properties to compute."""
        wanted, before = (
            {name.removesuffix("_std") for name in names} for names in (properties, self._requested_before)
        )
        again = [p.name for p in PROPERTIES.values() if p is not HESSIAN and p.is_defined(pbc.tolist())]
        wanted |= before.intersection(again, self.implemented_properties)
        letters = {ENERGY.letter}
        for p in (BY_NAME[name] for name in wanted & BY_NAME.keys()):
            if not p.is_defined(pbc.tolist()):
                found = f"{p.name} is not defined: pbc is {pbc.tolist()}"
                raise PropertyNotImplementedError(f"{found}, expected {_DEFINED[p.systems]}")
            letters |= {p.letter, FORCES.letter} if p is STRESS else {p.letter}
        return in_order(letters)


def _charge_of(atoms: Atoms) -> float:
    return total_charge(frame_of_atoms(atoms))


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
