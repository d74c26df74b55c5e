"""Sampling of one molecule with calculators that need no other package."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from mfpyg.errors import MFPyGError
from mfpyg.sampling.geometry import Bonds, too_close
from mfpyg.sampling.molecules import Molecule
from mfpyg.sampling.sampler import CHANGED, CLOSE, DUPLICATE, FAILED, Sampled, sample
from mfpyg.sampling.settings import SampleSettings

from .springs import Springs

SHORT = {"equilibration": 20.0, "stride": 10.0, "temperature": (300.0, 600.0)}


def run(structures: Any, calc: Any, **options: Any) -> Sampled:
    settings = SampleSettings(**{**SHORT, "modes": 0, "dynamics": 0, **options})
    settings.check()
    return sample(Molecule("methanol", structures=tuple(structures)), settings, calc)


def test_geometries_of_each_kind(methanol: Atoms) -> None:
    start = methanol.copy()
    start.rattle(0.05, seed=0)
    found = run([start], Springs(methanol), modes=6, dynamics=5, pairs=3)
    kinds = Counter((g.origin, g.temperature) for g in found.geometries if g.origin != "partner")
    assert kinds == {
        ("conformer", None): 1,
        ("modes", 300): 3,
        ("modes", 600): 3,
        ("dynamics", 300): 3,
        ("dynamics", 600): 2,
    }
    assert np.abs(Springs(methanol).get_forces(found.geometries[0].atoms)).max() < 0.01
    bonds = Bonds(methanol)
    assert not any(too_close(g.atoms) or bonds.changed(g.atoms) for g in found.geometries)
    pairs = [g for g in found.geometries if g.pair]
    assert [g.pair for g in pairs] == [f"methanol/0/{n}" for n in (0, 0, 1, 1, 2, 2)]
    for one, other in zip(pairs[::2], pairs[1::2], strict=True):
        assert other.origin == "partner"
        assert other.temperature == one.temperature
        moved = other.atoms.positions - one.atoms.positions
        assert np.sqrt((moved**2).sum(axis=1).mean()) == pytest.approx(0.01, rel=1e-4)
    assert not found.dropped.total()


def test_seeds_and_independence(methanol: Atoms) -> None:
    """One seed gives the same geometries; those of the modes do not depend on what else is sampled."""

    def positions(**options: Any) -> dict[str, np.ndarray]:
        found = run([methanol], Springs(methanol), **options).geometries
        return {
            kind: np.array([g.atoms.positions for g in found if g.origin == kind]) for kind in ("modes", "dynamics")
        }

    one, again, other = (positions(modes=3, dynamics=2, seed=seed) for seed in (0, 0, 1))
    assert all((one[kind] == again[kind]).all() for kind in one)
    assert all((one[kind] != other[kind]).any() for kind in one)
    assert (positions(modes=3)["modes"] == one["modes"]).all()
    assert (positions(dynamics=2)["dynamics"] == one["dynamics"]).all()


def test_duplicates_are_dropped(methanol: Atoms) -> None:
    turned = methanol.copy()
    turned.rotate(40, (1, 1, 0))
    found = run([methanol, turned], Springs(methanol))
    assert len(found.geometries) == 1
    assert found.dropped == {DUPLICATE: 1}
    found = run([methanol], Springs(methanol), modes=5, tolerance=1.0)
    assert len(found.geometries) == 1
    assert found.dropped[DUPLICATE] == 20 * 5


def test_structures_are_taken_as_they_are(methanol: Atoms) -> None:
    start = methanol.copy()
    start.rattle(0.05, seed=0)
    (geometry,) = run([start], Springs(methanol), no_relax=True).geometries
    np.testing.assert_allclose(geometry.atoms.positions, start.positions, atol=1e-8)


def test_close_atoms_and_a_calculator_that_fails(methanol: Atoms) -> None:
    close, failing = methanol.copy(), methanol.copy()
    close.positions[1] = close.positions[0] + [0.3, 0, 0]
    failing.rattle(0.02, seed=3)

    class Failing(Springs):
        def calculate(self, atoms: Any = None, *rest: Any, **more: Any) -> None:
            if np.allclose(atoms.positions, failing.positions):
                raise RuntimeError("no convergence\nat all")
            super().calculate(atoms, *rest, **more)

    found = run([close, methanol, failing], Failing(methanol))
    assert len(found.geometries) == 1
    assert found.dropped == {CLOSE: 1, FAILED: 1}
    with pytest.raises(MFPyGError, match=r"fails at the first structure .*C, H, O, charge 0.*: no convergence at all"):
        run([failing], Failing(methanol))


def test_a_trajectory_ends_where_bonds_change() -> None:
    """Weak springs let go at 5,000 K."""
    water = molecule("H2O")
    weak = {"stiffness": 1.0}
    found = run([water], Springs(water, **weak), dynamics=6, temperature=(5000.0,), seed=1)
    assert len(found.geometries) + found.dropped.total() == 7
    assert found.dropped[CHANGED] > 0
    reactive = run([water], Springs(water, **weak), dynamics=6, temperature=(5000.0,), seed=1, reactive=True)
    assert not reactive.dropped[CHANGED]


def test_no_structure_to_start_from(methanol: Atoms) -> None:
    start = methanol.copy()
    start.rattle(0.1, seed=0)
    with pytest.raises(MFPyGError, match=r"not relaxed 1; raise --relax-steps \(now 2\), or pass --no-relax"):
        run([start], Springs(methanol), relax_steps=2)
    apart = methanol.copy()
    apart.positions[-1] += apart.positions[-1] - apart.positions[0]
    with pytest.raises(MFPyGError, match="bonds changed 1; the calculator turns it into another molecule"):
        run([methanol], Springs(apart))


def test_atoms_have_neither_modes_nor_dynamics() -> None:
    helium = Atoms("He")
    assert len(run([helium], Springs(helium), modes=5, dynamics=5, pairs=1).geometries) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": -1}, "modes is -1, expected a number of at least 0"),
        ({"temperature": (300.0, 0.0)}, "temperature is 0.0, expected numbers above 0"),
        ({"temperature": ()}, "no temperature is given"),
        ({"temperature": 300.0}, "temperature is 300.0"),
        ({"step": 1.0}, "step is 1.0, expected a number from 0.0001 to 0.1"),
        ({"seed": 0.5}, "seed is 0.5, expected a whole number"),
    ],
)
def test_settings_are_checked(options: Any, message: str) -> None:
    with pytest.raises(MFPyGError, match=message):
        SampleSettings(**options).check()
