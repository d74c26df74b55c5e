"""Large graphs in the order of a curve through space: the same predictions as in the order given, to rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from torch_geometric.data import Batch, Data

from mfpyg.graph import RadiusGraph
from mfpyg.interop.ase import MFPyGCalculator
from mfpyg.locality import LARGE, in_order, spatial_order
from mfpyg.models import HIPNN, MultiFidelityPotential
from mfpyg.models.hessian import hessian

CUTOFF = 4.0
SIZES = {"n_features": 8, "n_sensitivities": 6, "n_atom_layers": 1, "cutoff": CUTOFF}
FIELDS = ("energy", "forces", "atomic_energies", "hierarchicality", "stress", "dipole", "charges")


def potential_of(isolated: str = "network") -> MultiFidelityPotential:
    torch.manual_seed(0)
    made = MultiFidelityPotential(HIPNN([1, 6, 7, 8], **SIZES), ["cc"], isolated=isolated, further={"cc": "D"})
    for level in [*made.heads[0].levels, *made.further_head("cc", "charges").levels]:
        torch.nn.init.normal_(level.weight)
    return made.double().eval()


def system(n: int, seed: int = 0, periodic: bool = False, charge: float = 0.0) -> Data:
    """n atoms on a jittered grid 1.6 Å wide, numbered at random; some beyond the cell, if there is one."""
    random = np.random.default_rng(seed)
    width = int(np.ceil(n ** (1 / 3)))
    grid = 1.6 * np.stack(np.meshgrid(*[np.arange(width)] * 3), axis=-1).reshape(-1, 3)
    pos = random.permutation(grid)[:n] + random.normal(0, 0.1, (n, 3))
    length = 1.6 * width
    if periodic:
        pos += length * random.integers(-1, 2, (n, 3))
    return Data(
        z=torch.from_numpy(random.choice([1, 6, 7, 8], n)),
        pos=torch.from_numpy(pos),
        cell=length * torch.eye(3, dtype=torch.float64).unsqueeze(0),
        pbc=torch.full((1, 3), periodic),
        charge=torch.tensor([charge], dtype=torch.float64),
    )


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """``limit(n)`` changes the number of atoms above which graphs are ordered."""
    return lambda n: monkeypatch.setattr("mfpyg.locality.LARGE", n)


CASES = {
    "molecule": lambda: system(90),
    "ion": lambda: system(90, charge=-1.0),
    "crystal": lambda: system(90, periodic=True),
    "batch": lambda: Batch.from_data_list([system(90, charge=1.0), system(5, seed=1), system(60, seed=2, charge=-2.0)]),
    "batch with crystals": lambda: Batch.from_data_list([system(60, periodic=True), system(5), system(27, 1, True)]),
    "lone atoms": lambda: Data(z=torch.tensor([8, 1, 6]), pos=torch.tensor([[30.0, 0, 0], [0, 0, 0], [0, 30, 0]])),
}


@pytest.mark.parametrize("stored", [False, True], ids=["searched", "stored"])
@pytest.mark.parametrize("isolated", ["network", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_predictions_do_not_depend_on_the_order(
    limit: Callable[[int], None], case: str, isolated: str, stored: bool
) -> None:
    potential, data = potential_of(isolated), CASES[case]()
    if stored:
        data = RadiusGraph(CUTOFF)(data)
    letters = "EFQ" + "S" * ("crystal" in case) + "D" * (case != "crystal")
    limit(10**9)
    assert spatial_order(data) is None
    expected = potential(data, properties=letters)
    limit(20 if "lone" not in case else 0)
    order = spatial_order(data)
    assert order is not None
    assert not torch.equal(order, torch.arange(len(order)))
    found = potential(data, properties=letters)
    for name in FIELDS:
        one, two = getattr(expected, name), getattr(found, name)
        assert (one is None) == (two is None)
        if one is not None:
            torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-10, equal_nan=True)


def test_graphs_above_the_limit(limit: Callable[[int], None]) -> None:
    """With the limit as it is: one graph above it, one below, and both; only the batch of both is worth it."""
    potential, large, small = potential_of(), system(1300), system(800, seed=1)
    assert spatial_order(large) is not None
    assert spatial_order(small) is None
    both = Batch.from_data_list([large, small])
    assert spatial_order(both) is not None
    found = potential(both)
    limit(10**9)
    expected = potential(both)
    torch.testing.assert_close(found.forces, expected.forces, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.energy, expected.energy, rtol=1e-12, atol=1e-10)


def test_batches_of_small_molecules_keep_their_order() -> None:
    batch = Batch.from_data_list([system(20, seed=i) for i in range(60)])
    assert len(batch.z) > LARGE
    assert spatial_order(batch) is None


def test_derivatives_in_training_and_hessians(limit: Callable[[int], None]) -> None:
    potential, data = potential_of(), system(30)
    weights, found = list(potential.parameters()), []
    for n in (10**9, 20):
        limit(n)
        moved = copy.copy(data)
        moved.pos = data.pos.clone().requires_grad_()
        forces = potential.train()(moved).forces
        loss = forces[:3].square().sum() + forces[5, 0]
        gradients = torch.autograd.grad(loss, [moved.pos, *weights], allow_unused=True, materialize_grads=True)
        found.append([*gradients, hessian(potential.eval(), data, "cc")])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-9)


def test_far_from_the_origin(limit: Callable[[int], None]) -> None:
    """Atoms many cells apart: single precision needs centering, which changes the shifts of stored edges."""
    potential, data = potential_of(), system(60, periodic=True)
    data.pos += 30 * data.cell[0, 0, 0] * torch.randint(-1, 2, (60, 3), generator=torch.Generator().manual_seed(0))
    limit(20)
    stored, ordered = RadiusGraph(CUTOFF)(copy.copy(data)), copy.copy(data)
    order = spatial_order(data)
    assert order is not None
    edges = RadiusGraph(CUTOFF)(in_order(data, order))
    ordered.edge_index, ordered.edge_shift, ordered.edge_cutoff = edges.edge_index, edges.edge_shift, edges.edge_cutoff
    ordered.edge_order = order
    expected, single = potential(data).forces, copy.deepcopy(potential).float()
    for one in (stored, ordered):
        torch.testing.assert_close(potential(one).forces, expected, rtol=1e-10, atol=1e-10)
    for one in (data, stored, ordered):
        torch.testing.assert_close(single(one).forces.double(), expected, rtol=1e-3, atol=1e-3)


def interleaved(cube: list[int]) -> int:
    """Place on the curve by its definition: bits of x, y and z in turn."""
    bits = [f"{number:016b}" for number in reversed(cube)]
    return int("".join(z + y + x for z, y, x in zip(*bits, strict=True)), 2)


@pytest.mark.parametrize("pbc", [False, True])
def test_order_is_that_of_the_curve(limit: Callable[[int], None], pbc: bool) -> None:
    cubes = torch.cartesian_prod(*[torch.arange(5)] * 3)[
        torch.randperm(125, generator=torch.Generator().manual_seed(0))
    ]
    pos = 2.0 * cubes + 0.5
    pos[0] += 10.0 * torch.tensor([1, -2, 0]) * pbc  # another image
    limit(0)
    data = Data(z=torch.ones_like(cubes[:, 0]), pos=pos, cell=10.0 * torch.eye(3)[None], pbc=torch.full((1, 3), pbc))
    keys = [interleaved(cube) for cube in cubes.tolist()]
    order = spatial_order(data)
    assert order is not None
    assert order.tolist() == np.argsort(keys, kind="stable").tolist()
    both = Batch.from_data_list([data, data])
    assert spatial_order(both).tolist() == [*order.tolist(), *(order + 125).tolist()]  # type: ignore[union-attr]


def test_edges_keep_their_vectors() -> None:
    data = RadiusGraph(CUTOFF)(system(40, periodic=True))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    moved = in_order(data, order)
    source, target = moved.edge_index
    vectors = moved.pos[source] - moved.pos[target] + moved.edge_shift.double() @ data.cell[0]
    assert vectors.norm(dim=1).max() <= CUTOFF
    assert torch.equal(order[moved.edge_index], data.edge_index)


@pytest.mark.parametrize("shift", [0.0, 5e3])
@pytest.mark.parametrize("periodic", [False, True])
def test_dynamics_keep_the_order_between_searches(limit: Callable[[int], None], periodic: bool, shift: float) -> None:
    """Steps of the ASE calculator against searches in the order given."""
    data, random = system(60, periodic=periodic), np.random.default_rng(0)
    potential = potential_of() if not shift else potential_of().float()
    atoms = Atoms(data.z.numpy(), data.pos.numpy() + shift, cell=data.cell[0].numpy(), pbc=data.pbc[0].numpy())
    calculator = MFPyGCalculator(potential, skin=0.8)
    orders = []
    for _ in range(12):
        atoms.positions += random.normal(0, 0.06, atoms.positions.shape)
        limit(20)
        forces, energies = calculator.get_forces(atoms), calculator.get_property("energies", atoms)
        orders.append(calculator.steps.neighbours._candidates.order)  # type: ignore[union-attr]
        limit(10**9)
        fresh = MFPyGCalculator(potential)
        tolerance = {"rtol": 1e-10, "atol": 1e-10} if not shift else {"rtol": 1e-3, "atol": 1e-3}
        np.testing.assert_allclose(forces, fresh.get_property("forces", atoms), **tolerance)
        np.testing.assert_allclose(energies, fresh.get_property("energies", atoms), **tolerance)
    assert len({id(order) for order in orders}) == calculator.steps.neighbours.searches
    assert 1 < calculator.steps.neighbours.searches < 12
    assert None not in orders
