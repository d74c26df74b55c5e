"""Sampling of one molecule: starting structures, normal modes, dynamics, pairs."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from ase import Atoms
from ase.optimize import BFGS

from mfpyg.errors import MFPyGError
from mfpyg.labeling.level import open_program
from mfpyg.sampling.dynamics import trajectory
from mfpyg.sampling.geometry import Bonds, Distinct, too_close
from mfpyg.sampling.modes import Modes, normal_modes
from mfpyg.sampling.molecules import Molecule, conformers
from mfpyg.sampling.pairs import partner
from mfpyg.sampling.settings import SampleSettings

CONFORMER, MODES, DYNAMICS, PARTNER = "conformer", "modes", "dynamics", "partner"
"""Origins of geometries; given structures are conformers, and partners are near the geometry before them."""

DUPLICATE, CLOSE, CHANGED = "duplicate", "atoms too close", "bonds changed"
FAILED, UNRELAXED = "calculator failed", "not relaxed"
"""Reasons to drop geometries."""

FMAX = 0.01
"""Largest force in eV/Å on an atom of a relaxed structure."""

SAME_MINIMUM = 0.03
"""Deviation in Å of relaxed structures that count as the same, see :class:`mfpyg.sampling.geometry.Distinct`.

Different conformers of butanol and ethylene glycol (GFN2-xTB) deviate by 0.05 Å or more, equal ones by less
than 0.001 Å.
"""

_EMBEDDED = 4  # conformers of RDKit per requested one, as many are the same
_DRAWS = 20  # displacements per requested one

_FAILURES = (RuntimeError, ArithmeticError, np.linalg.LinAlgError, MFPyGError)
"""Exceptions of calculators at geometries that they cannot compute; ASE's are runtime errors."""


@dataclass(frozen=True)
class Geometry:
    """A sampled geometry.

    Attributes:
        atoms: the geometry, without a calculator.
        origin: :data:`CONFORMER`, :data:`MODES`, :data:`DYNAMICS` or :data:`PARTNER`.
        temperature: temperature in K; ``None`` of conformers.
        pair: identifier that a geometry and its partner share, unique for seed and molecule.
    """

    atoms: Atoms
    origin: str
    temperature: float | None = None
    pair: str | None = None


@dataclass
class Sampled:
    """Geometries of a molecule.

    Attributes:
        geometries: conformers, then those along modes, then those of dynamics; partners follow theirs.
        dropped: number of geometries that were refused, by reason.
    """

    geometries: list[Geometry] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def in_words(dropped: Counter[str]) -> str:
    """Reasons and numbers, as in "duplicate 3, bonds changed 1"."""
    return ", ".join(f"{reason} {number:,}" for reason, number in dropped.most_common() if number)


def sample(molecule: Molecule, settings: SampleSettings, calc: Any = None) -> Sampled:
    """Sample geometries of a molecule.

    Random numbers depend on the seed and the molecule alone, and are independent for conformers, modes, dynamics and
    pairs.

    Args:
        molecule: molecule to sample.
        settings: what to sample.
        calc: ASE calculator; default: that of the settings.

    Raises:
        MFPyGError: if there is no structure to start from, or the calculator fails at the first one.
    """
    if calc is not None:
        return _Sampler(molecule, settings, calc).run()
    with open_program(settings.calculator).calculator(molecule.charge, molecule.multiplicity) as calc:
        return _Sampler(molecule, settings, calc).run()


class _Sampler:
    def __init__(self, molecule: Molecule, settings: SampleSettings, calc: Any) -> None:
        self.molecule, self.settings, self.calc = molecule, settings, calc
        identity = f"{molecule.name} {molecule.charge} {molecule.multiplicity}".encode()
        words = np.frombuffer(hashlib.sha256(identity).digest(), np.uint32).tolist()
        seeds = np.random.SeedSequence([settings.seed, *words]).spawn(4)
        self.embedding, self.of_modes, self.of_dynamics, self.of_pairs = map(np.random.default_rng, seeds)
        self.known = Distinct(settings.tolerance)
        self.result = Sampled()

    def run(self) -> Sampled:
        starts = self._starts()
        for start in starts:
            self.known.add(start)
            self._keep(start, CONFORMER)
        if len(starts[0]) > 1:
            if self.settings.modes:
                self._along_modes(starts)
            if self.settings.dynamics:
                self._of_dynamics(starts)
            self._pair()
        return self.result

    def _starts(self) -> list[Atoms]:
        """Relaxed structures that differ."""
        candidates = list(self.molecule.structures)
        wanted = max(len(candidates), self.settings.conformers * (not candidates))
        if not candidates:
            assert self.molecule.smiles is not None
            seed = int(self.embedding.integers(2**31 - 1))
            candidates = conformers(self.molecule.smiles, _EMBEDDED * wanted, seed)
        before, relaxed = Distinct(SAME_MINIMUM if self.molecule.smiles else 0.0), Distinct(SAME_MINIMUM)
        starts: list[Atoms] = []
        for number, given in enumerate(candidates):
            if len(starts) == wanted:
                break
            start = given.copy()
            start.info["charge"] = self.molecule.charge  # which trained potentials read
            start.calc = self.calc
            if too_close(start):
                self.result.dropped[CLOSE] += 1
            elif before.add(start) and self._relax(start, first=number == 0):
                if self.settings.no_relax or relaxed.add(start):
                    starts.append(start)
                else:
                    self.result.dropped[DUPLICATE] += 1
        if not starts:
            raise MFPyGError(f"no structure to start from: {in_words(self.result.dropped)}; {self._advice()}")
        return starts

    def _advice(self) -> str:
        if self.result.dropped[UNRELAXED]:
            return f"raise --relax-steps (now {self.settings.relax_steps}), or pass --no-relax"
        if self.result.dropped[CHANGED]:
            return "the calculator turns it into another molecule: give a structure of that, or pass --reactive"
        return "give other structures"

    def _relax(self, atoms: Atoms, first: bool) -> bool:
        """Relax in place; False, and counted, if that fails or changes the bonds."""
        bonds = Bonds(atoms)
        try:
            atoms.get_forces()
        except _FAILURES as error:
            if first:
                raise self._failure(atoms, error) from error
            self.result.dropped[FAILED] += 1
            return False
        if self.settings.no_relax or len(atoms) == 1:
            return True
        try:
            with BFGS(atoms, logfile=None) as optimizer:
                converged = optimizer.run(fmax=FMAX, steps=self.settings.relax_steps)
        except _FAILURES:
            self.result.dropped[FAILED] += 1
            return False
        if not converged:
            self.result.dropped[UNRELAXED] += 1
        elif not self.settings.reactive and bonds.changed(atoms):
            self.result.dropped[CHANGED] += 1
            return False
        return bool(converged)

    def _along_modes(self, starts: list[Atoms]) -> None:
        """Displacements at all temperatures and structures in turn."""
        temperatures, modes, bonds = self.settings.temperature, dict[int, Modes](), [Bonds(start) for start in starts]
        kept = 0
        for _ in range(_DRAWS * self.settings.modes):
            if kept == self.settings.modes:
                break
            which = (kept // len(temperatures)) % len(starts)
            temperature = temperatures[kept % len(temperatures)]
            if which not in modes:
                try:
                    modes[which] = normal_modes(starts[which])
                except _FAILURES as error:
                    raise self._failure(starts[which], error) from error
            atoms = starts[which].copy()
            atoms.positions += modes[which].displacement(temperature, self.of_modes, self.settings.quantum)
            kept += self._offer(atoms, MODES, temperature, bonds[which]) is None

    def _of_dynamics(self, starts: list[Atoms]) -> None:
        """One trajectory per temperature, from the structures in turn; it ends where bonds change."""
        temperatures = self.settings.temperature
        for number, temperature in enumerate(temperatures):
            share = len(range(number, self.settings.dynamics, len(temperatures)))
            moving = starts[number % len(starts)].copy()
            bonds = Bonds(moving)
            moving.calc = self.calc
            steps = trajectory(
                moving,
                temperature,
                self.of_dynamics,
                timestep=self.settings.timestep,
                equilibration=self.settings.equilibration,
                stride=self.settings.stride,
            )
            done = 0
            try:
                for positions in islice(steps, share):
                    atoms = moving.copy()
                    atoms.positions = positions
                    done += 1
                    if self._offer(atoms, DYNAMICS, temperature, bonds) == CHANGED:
                        self.result.dropped[CHANGED] += share - done
                        break
            except _FAILURES:
                self.result.dropped[FAILED] += share - done

    def _offer(self, atoms: Atoms, origin: str, temperature: float, bonds: Bonds) -> str | None:
        """Keep a geometry, or count it and return the reason why not."""
        reason = None
        if too_close(atoms):
            reason = CLOSE
        elif not self.settings.reactive and bonds.changed(atoms):
            reason = CHANGED
        elif not self.known.add(atoms):
            reason = DUPLICATE
        if reason is None:
            self._keep(atoms, origin, temperature)
        else:
            self.result.dropped[reason] += 1
        return reason

    def _keep(self, atoms: Atoms, origin: str, temperature: float | None = None) -> None:
        plain = Atoms(atoms.numbers, atoms.positions.round(8), cell=atoms.cell, pbc=atoms.pbc)
        self.result.geometries.append(Geometry(plain, origin, temperature))

    def _pair(self) -> None:
        """Give random geometries partners, conformers only if there are not enough others."""
        geometries = self.result.geometries
        order = self.of_pairs.permutation(len(geometries)).tolist()
        order.sort(key=lambda row: geometries[row].origin == CONFORMER)
        for number, row in enumerate(sorted(order[: self.settings.pairs])):
            at = row + number  # earlier partners have moved it
            one = replace(geometries[at], pair=f"{self.molecule.name}/{self.settings.seed}/{number}")
            atoms = one.atoms.copy()
            atoms.positions = partner(atoms, self.settings.step, self.of_pairs).round(8)
            geometries[at : at + 1] = [one, replace(one, atoms=atoms, origin=PARTNER)]

    def _failure(self, atoms: Atoms, error: Exception) -> MFPyGError:
        elements = ", ".join(sorted(set(atoms.get_chemical_symbols())))
        state = f"elements {elements}, charge {self.molecule.charge}, multiplicity {self.molecule.multiplicity}"
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return MFPyGError(f"{self.settings.calculator} fails at the first structure ({state}): {reason}")
