"""Geometries that make no sense: a clear error, or a finite answer, of every backbone of the package."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import pytest
import torch
from torch_geometric.data import Batch, Data

from mfpyg import backbones
from mfpyg.errors import MFPyGError
from mfpyg.models import DeltaPotential, MultiFidelityPotential

NAMES = ("hipnn", "schnet", "painn", "dimenet++", "visnet", "nequip", "mace")


@functools.cache
def potential_of(backbone: str) -> MultiFidelityPotential:
    kind = backbones.find(backbone)
    torch.manual_seed(0)
    options = {**dataclasses.asdict(kind.options()), **kind.small, "n_interactions": 1}
    if backbone == "dimenet++":
        options["n_radial"] = 2  # whose formulas take a third of the time; their powers of the distance are the same
    return MultiFidelityPotential(kind.make([1, 6, 8], options), ["cc"]).double().eval()


@pytest.fixture(params=NAMES)
def potential(request: pytest.FixtureRequest) -> MultiFidelityPotential:
    return potential_of(request.param)


def molecule(*pos: tuple[float, float, float], **more: Any) -> Data:
    z = torch.tensor([8, 1, 1, 6])[: len(pos)]
    return Data(z=z, pos=torch.tensor(pos, dtype=torch.float64).view(-1, 3), **more)


def finite(potential: MultiFidelityPotential, data: Data, **options: Any) -> bool:
    p = potential(data, fidelity="cc", **options)
    return all(bool(v.isfinite().all()) for v in (p.energy, p.forces, p.stress, p.atomic_energies) if v is not None)


def refusal(potential: MultiFidelityPotential, data: Data) -> str:
    """What is said against a molecule; nothing if it has an energy."""
    try:
        potential(data, fidelity="cc")
    except MFPyGError as error:
        return str(error)
    return ""


WATER = ((0.0, 0, 0), (0.96, 0, 0), (-0.24, 0.93, 0))


def test_atoms_at_the_same_place_are_named(potential: MultiFidelityPotential) -> None:
    good = molecule(*WATER)
    bad = molecule((0, 0, 0), (0.9, 0, 0), (0.9, 0, 0))
    with pytest.raises(MFPyGError, match=r"atoms 1 and 2 are at the same place in graph 1, .*; move them apart"):
        potential(Batch.from_data_list([good, bad]), fidelity="cc")
    assert finite(potential, good)


@pytest.mark.parametrize("distance", [1e-300, 1e-160, 1e-30, 1e-12, 1e-6, 1e-3, 0.1])
def test_atoms_nearly_at_the_same_place(potential: MultiFidelityPotential, distance: float) -> None:
    data = molecule((0, 0, 0), (0, 0, distance), (0.9, 0, 0))
    message = refusal(potential, data)
    assert "atoms 0 and 1 are" in message if message else finite(potential, data)
    assert not message or distance < 0.01


def test_atom_on_an_image_is_named(potential: MultiFidelityPotential) -> None:
    crystal = {"cell": 3 * torch.eye(3).unsqueeze(0), "pbc": torch.ones(1, 3, dtype=torch.bool)}
    with pytest.raises(MFPyGError, match=r"atoms 0 and 1 are (at the same place|.* Å apart) in graph 0"):
        potential(molecule((0, 0, 0), (3, 3, 0), (1.5, 1.5, 1.5), **crystal), fidelity="cc", stress=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_position_that_is_no_number_is_refused(potential: MultiFidelityPotential, value: float) -> None:
    with pytest.raises(MFPyGError, match="positions are NaN or infinite"):
        potential(molecule((0, 0, 0), (0, value, 0)), fidelity="cc")


def test_atoms_far_away_have_finite_energies(potential: MultiFidelityPotential) -> None:
    assert finite(potential, molecule((0, 0, 0), (1e30, 0, 0), (0, -1e30, 1e300)))


@pytest.mark.parametrize("forces", [True, False])
def test_no_atoms_have_no_energy(potential: MultiFidelityPotential, forces: bool) -> None:
    prediction = potential(molecule(), fidelity="cc", forces=forces)
    assert prediction.energy.tolist() == [0.0]
    assert prediction.forces is None or prediction.forces.shape == (0, 3)
    both = potential(Batch.from_data_list([molecule(), molecule(*WATER)]), fidelity="cc", forces=forces)
    alone = potential(molecule(*WATER), fidelity="cc", forces=forces)
    torch.testing.assert_close(both.energy, torch.cat([torch.zeros(1, dtype=torch.float64), alone.energy]))


@pytest.mark.parametrize(
    "cell", [torch.zeros(3, 3), torch.ones(3, 3), torch.tensor([[3.0, 0, 0], [0, 3, 0], [3, 3, 0]])]
)
def test_cell_without_a_volume_is_refused(potential: MultiFidelityPotential, cell: torch.Tensor) -> None:
    data = molecule(*WATER, cell=cell.unsqueeze(0), pbc=torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(MFPyGError, match="span no volume"):
        potential(data, fidelity="cc")


def test_overlap_is_named_in_single_precision_compiled_order_and_sums() -> None:
    """Where two float64 positions are one float32 position, atoms are reordered, or two potentials add up."""
    bad = molecule((5, 0, 0), (5 + 1e-9, 0, 0), (6, 0, 0))
    single = MultiFidelityPotential(backbones.find("hipnn").make([1, 6, 8], {"n_features": 8}), ["cc"]).eval()
    with pytest.raises(MFPyGError, match="atoms 0 and 1 are at the same place"):
        single(bad)
    base = MultiFidelityPotential(backbones.find("hipnn").make([1, 6, 8], {"n_features": 8}), ["dz"])
    with pytest.raises(MFPyGError, match="atoms 0 and 1 are at the same place"):
        DeltaPotential(base, single, "dz", "cc").eval()(bad, fidelity="cc")
    grid = torch.cartesian_prod(*[1.5 * torch.arange(12)] * 3)
    grid[1000] = grid[77]
    with pytest.raises(MFPyGError, match="atoms 77 and 1000 are at the same place"):
        single(Data(z=torch.ones(len(grid), dtype=torch.int64), pos=grid))


def test_distances_are_not_looked_at_where_all_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfpyg.models.system.find_overlap", None)
    assert finite(potential_of("hipnn"), molecule(*WATER))
