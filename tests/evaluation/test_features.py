"""Last features: energies are linear in them, and forces in their derivatives with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from mfpyg import backbones
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.features import last_features_of
from mfpyg.models import DeltaPotential, MultiFidelityPotential
from tests.models.test_backbones import NAMES, SMALL

OPTIONS: list[dict[str, Any]] = [
    {"head": "linear"},
    {"head": "nonlinear", "head_width": 5, "private_blocks": 1},
    {"head": "nonlinear", "isolated": "reference"},
    {"head": "linear", "isolated": "reference", "private_blocks": 1},
]


def make(name: str, fidelities: Sequence[str], seed: int = 0, **options: Any) -> MultiFidelityPotential:
    """A small float64 potential whose energies of all levels are of a size."""
    torch.manual_seed(seed)
    backbone = backbones.find(name).make([1, 6, 7, 8], SMALL[name])
    potential = MultiFidelityPotential(backbone, fidelities, **options).double().eval()
    for head in potential.heads:
        head.reference.copy_(torch.randn(4))
        for level in head.levels:
            last = head.last(level)
            torch.nn.init.normal_(last.weight)
            torch.nn.init.normal_(last.bias)
    return potential


def weights_of(potential: MultiFidelityPotential, fidelity: str) -> Tensor:
    """Weights of the last features: of the one-hot species the reference energy and all biases, then of each level."""
    head = potential.head(fidelity)
    last = [head.last(level) for level in head.levels]
    of_species = head.reference + sum(layer.bias for layer in last)
    return torch.cat([of_species, *(layer.weight[0] for layer in last)]).detach()


@pytest.mark.parametrize("options", OPTIONS, ids=lambda of: "-".join(map(str, of.values())))
@pytest.mark.parametrize("name", NAMES)
def test_energies_and_forces_are_linear_in_them(
    name: str, options: dict[str, Any], make_batch: Callable[..., Batch]
) -> None:
    potential, batch = make(name, ["dz", "cc"], **options), make_batch([5, 1, 4])
    prediction = potential(batch, "cc")
    found, weights = last_features_of(potential, batch, "cc", jacobian=True), weights_of(potential, "cc")
    reference = 0.0
    if options.get("isolated") == "reference":  # features are relative to those of isolated atoms
        reference = potential.reference("cc")[potential.species_number(batch.z)]
    torch.testing.assert_close(found.atoms @ weights + reference, prediction.atomic_energies)
    reference = 0.0 if isinstance(reference, float) else potential.reference_energy(batch, "cc")
    torch.testing.assert_close(found.graphs @ weights + reference, prediction.energy)
    assert found.jacobian is not None
    torch.testing.assert_close(found.jacobian @ weights, prediction.forces)
    assert prediction.forces.abs().max() > 0.01
    plain = last_features_of(potential, batch, "cc")
    assert torch.equal(plain.atoms, found.atoms)
    assert plain.jacobian is None
    assert not plain.atoms.requires_grad


def test_a_difference_has_those_of_both_networks(make_batch: Callable[..., Batch]) -> None:
    base, difference = make("hipnn", ["dz", "tz"]), make("hipnn", ["cc-tz"], seed=1)
    delta, batch = DeltaPotential(base, difference, "tz", "cc").eval(), make_batch([5, 4])
    weights = torch.cat([weights_of(base, "tz"), weights_of(difference, "cc-tz")])
    found, prediction = last_features_of(delta, batch, "cc", jacobian=True), delta(batch, "cc")
    torch.testing.assert_close(found.graphs @ weights, prediction.energy)
    torch.testing.assert_close(found.jacobian @ weights, prediction.forces)  # type: ignore[operator]
    of_base = last_features_of(delta, batch, "dz", jacobian=True)
    torch.testing.assert_close(of_base.graphs @ weights_of(base, "dz"), delta(batch, "dz").energy)
    assert of_base.jacobian.shape == (9, 3, len(weights) // 2)  # type: ignore[union-attr]


def test_features_of_a_crystal(make_molecule: Callable[..., Data]) -> None:
    molecule, potential = make_molecule(5), make("hipnn", ["dz"])
    cell = 5 * torch.eye(3, dtype=torch.float64)[None]
    crystal = Data(z=molecule.z, pos=molecule.pos + 1000, cell=cell, pbc=torch.ones(1, 3, dtype=torch.bool))
    found, prediction = last_features_of(potential, crystal, "dz", jacobian=True), potential(crystal)
    torch.testing.assert_close(found.graphs @ weights_of(potential, "dz"), prediction.energy)
    torch.testing.assert_close(found.jacobian @ weights_of(potential, "dz"), prediction.forces)  # type: ignore[operator]


def test_unknown_fidelities_and_elements_are_refused(make_molecule: Callable[..., Data]) -> None:
    data, potential = make_molecule(3), make("hipnn", ["dz"])
    with pytest.raises(MFPyGError, match=r"unknown fidelity 'd'.*did you mean 'dz'"):
        last_features_of(potential, data, "d")
    data.z[0] = 9
    with pytest.raises(MFPyGError, match="F"):
        last_features_of(potential, data, "dz")
