"""MACE: symmetric products against their definition, and layers and energies against mace-torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from e3nn import o3
from torch import Tensor
from torch_geometric.data import Batch, Data

from mfpyg.errors import MFPyGError
from mfpyg.graph import build_graph
from mfpyg.models import MultiFidelityPotential
from mfpyg.models.by_element import by_element
from mfpyg.models.mace import MACE, Block, Linear, SelfConnection
from mfpyg.models.symmetric_contraction import SymmetricContraction, symmetric_basis
from mfpyg.settings import from_dict

REFERENCE = Path(__file__).with_name("mace_reference.npz")
SPECIES = [1, 6, 8]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# Symmetric products


@pytest.mark.parametrize("l_out", [0, 1, 2])
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_basis_is_symmetric_orthonormal_and_equivariant(degree: int, l_out: int) -> None:
    basis = symmetric_basis(2, degree, l_out)  # (n_paths, 2l + 1, 9, …)
    for order in itertools.permutations(range(2, degree + 2)):
        torch.testing.assert_close(basis.permute(0, 1, *order), basis, rtol=0, atol=1e-14)
    flat = basis.flatten(1)
    torch.testing.assert_close(flat @ flat.T, (2 * l_out + 1) * torch.eye(len(basis)).double(), rtol=0, atol=1e-12)
    matrix = o3.rand_matrix(dtype=torch.float64) * -1  # with the inversion
    before = o3.Irreps.spherical_harmonics(2).D_from_matrix(matrix)
    after = o3.Irrep(l_out, (-1) ** l_out).D_from_matrix(matrix)
    turned = basis
    for axis in range(2, degree + 2):
        turned = torch.tensordot(turned, before, ([axis], [1])).movedim(-1, axis)
    turned = torch.einsum("Nm,km...->kN...", after, turned)
    torch.testing.assert_close(turned, basis, rtol=0, atol=1e-6)  # D of e3nn is float32 inside


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("l_out", [0, 1])
def test_basis_is_complete(degree: int, l_out: int) -> None:
    """As many functions as the average over O(3) of the characters of the symmetric power and the result says."""
    angles = (torch.arange(2000).double() + 0.5) * math.pi / 2000
    density = 2 / math.pi * (angles / 2).sin().square() * (math.pi / 2000)  # Haar measure of rotation angles

    def character(ell: int, angle: Tensor, inversion: int) -> Tensor:
        return inversion**ell * (1 + 2 * sum((m * angle).cos() for m in range(1, ell + 1)))

    def of_features(power: int, inversion: int) -> Tensor:
        return sum(character(ell, power * angles, inversion**power) for ell in range(4))  # type: ignore[return-value]

    count = 0.0
    for inversion in (1, -1):
        p = [of_features(power, inversion) for power in (1, 2, 3)]
        powers = {1: p[0], 2: (p[0] ** 2 + p[1]) / 2, 3: (p[0] ** 3 + 3 * p[0] * p[1] + 2 * p[2]) / 6}
        count += float((density * powers[degree] * character(l_out, angles, inversion)).sum()) / 2
    assert len(symmetric_basis(3, degree, l_out)) == pytest.approx(count, abs=1e-6)


@pytest.mark.parametrize(("l_in", "l_out", "correlation"), [(2, 1, 3), (3, 0, 3), (1, 1, 2), (2, 2, 1)])
def test_contraction_is_its_definition(l_in: int, l_out: int, correlation: int) -> None:
    layer = SymmetricContraction(l_in, l_out, correlation, n_species=3, n_channels=4).double()
    x, counts = torch.randn((l_in + 1) ** 2, 4, 5, dtype=torch.float64), [3, 0, 2]
    weights = layer.weight[torch.tensor([0, 0, 0, 2, 2])]  # (n_atoms, C, n_functions)
    expected, place = torch.zeros(4, (l_out + 1) ** 2, 5).double(), 0
    for ell in range(l_out + 1):
        for degree in range(1, correlation + 1):
            basis = symmetric_basis(l_in, degree, ell)
            of_paths = weights[:, :, place : place + len(basis)]
            place += len(basis)
            factors = "abc"[:degree]
            formula = f"kM{factors}," + "".join(f"{m}cn," for m in "xyz"[:degree]).replace("c", "g")
            formula = formula.replace("x", "a").replace("y", "b").replace("z", "c") + "ngk->gMn"
            expected[:, ell**2 : (ell + 1) ** 2] += torch.einsum(formula, basis, *[x] * degree, of_paths)
    assert place == layer.weight.shape[2]
    torch.testing.assert_close(layer(x, counts), expected, rtol=1e-12, atol=1e-12)


def test_constants_keep_their_digits() -> None:
    before, after = MACE(SPECIES, n_features=2).double(), MACE(SPECIES, n_features=2).float().double()
    for (name, one), (_, two) in zip(before.named_buffers(), after.named_buffers(), strict=True):
        assert torch.equal(one, two), name


def test_degrees_of_features_above_those_of_sums_are_refused() -> None:
    with pytest.raises(MFPyGError, match=r"model\.l_hidden 3 is above model\.l_max 2"):
        from_dict({"backbone": "mace", "fidelities": ["dz:EF"], "model": {"l_max": 2, "l_hidden": 3}}).check()


def test_atoms_by_element() -> None:
    species = torch.tensor([2, 0, 2, 1, 0, 2])
    atoms = by_element(torch.nn.functional.one_hot(species, 4).float())
    assert species[atoms.order].tolist() == [0, 0, 1, 2, 2, 2]
    assert atoms.order[atoms.place].tolist() == list(range(6))
    assert atoms.counts == [2, 1, 3, 0]
    again = atoms.with_tensors(atoms.tensors())
    assert torch.equal(again.order, atoms.order)
    assert torch.equal(again.place, atoms.place)
    assert again.counts == atoms.counts


# Layers of mace-torch 0.3.16, see mace_reference.py


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    with np.load(REFERENCE) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def network(stored: dict[str, Tensor]) -> MACE:
    """Our network with the stored weights. e3nn's layers divide by the square root of the number of inputs."""
    backbone = MACE(
        SPECIES, n_features=3, l_max=2, n_radial=4, radial_width=5, radial_layers=1, n_neighbours=2.5, cutoff=3.0
    ).double()
    weights = {name.removeprefix("weights/"): value for name, value in stored.items()}
    with torch.no_grad():
        backbone.radial.freq.copy_(math.pi * torch.arange(1, 5).double())  # were rounded to float32
        backbone.embedding.weight.copy_(weights["node_embedding.linear.weight"].view(3, 3) / math.sqrt(3))
        for number, block in enumerate(backbone.blocks):
            assert isinstance(block, Block)
            of_sums = {n.removeprefix(f"interactions.{number}."): v for n, v in weights.items()}
            of_products = {n.removeprefix(f"products.{number}."): v for n, v in weights.items()}
            _set_convolution(block, of_sums, float(stored["silu"]))
            _set_products(block, of_products)
            _set_self_connection(block.self_connection, of_sums["skip_tp.weight"])
    return backbone


def _set_convolution(block: Block, weights: dict[str, Tensor], silu: float) -> None:
    convolution = block.convolution
    _set_linear(convolution.before, weights["linear_up.weight"])
    _set_linear(convolution.after, weights["linear.weight"])
    hidden = torch.nn.SiLU()
    layers = [weights[f"conv_tp_weights.layer{k}.weight"] for k in range(3)]
    scaled = [w.T / math.sqrt(len(w)) * (silu if k else 1.0) for k, w in enumerate(layers)]
    first, second, third = (Linear(w.shape[1], w.shape[0]).double() for w in scaled)
    for layer, weight in zip((first, second, third), scaled, strict=True):
        layer.weight.copy_(weight)
    convolution.radial = torch.nn.Sequential(first, hidden, second, hidden, third)


def _set_products(block: Block, weights: dict[str, Tensor]) -> None:
    """Their coefficients, made symmetric, are combinations of ours: map the weights by least squares."""
    found = []
    for ell in block.degrees:
        of_degree = f"symmetric_contractions.contractions.{ell}."
        for degree in (1, 2, 3):
            theirs = weights[f"{of_degree}U_matrix_{degree}"].movedim(-1, 0)  # (n_theirs, 2l + 1, 9, …)
            theirs = theirs if ell else theirs.unsqueeze(1)
            axes = itertools.permutations(range(2, degree + 2))
            theirs = torch.stack([theirs.permute(0, 1, *order) for order in axes]).mean(dim=0).flatten(1)
            ours = symmetric_basis(2, degree, ell).flatten(1)
            change = torch.linalg.lstsq(ours.T, theirs.T).solution  # (n_ours, n_theirs)
            torch.testing.assert_close(change.T @ ours, theirs, rtol=0, atol=1e-13)
            assert torch.linalg.matrix_rank(theirs) == len(ours)
            name = "weights_max" if degree == 3 else f"weights.{2 - degree}"
            found.append(weights[of_degree + name].transpose(1, 2) @ change.T)  # (n_species, C, n_ours)
    block.contraction.weight.copy_(torch.cat(found, dim=2))
    _set_linear(block.after, weights["linear.weight"])


def _set_linear(layers: torch.nn.ModuleList, flat: Tensor) -> None:
    parts = flat.split([layer.weight.numel() for layer in layers])
    for layer, part in zip(layers, parts, strict=True):
        n_out, n_in = layer.weight.shape
        layer.weight.copy_(part.view(n_in, n_out).T / math.sqrt(n_in))


def _set_self_connection(layer: SelfConnection, flat: Tensor) -> None:
    degrees, n_species, n, _ = layer.weight.shape
    layer.weight.copy_(flat.view(degrees, n, n_species, n).transpose(1, 2) / math.sqrt(n * n_species))


def _molecules(stored: dict[str, Tensor]) -> Batch:
    numbers = stored["batch"]
    return Batch.from_data_list(
        [Data(z=stored["z"][numbers == k], pos=stored["positions"][numbers == k]) for k in range(2)]
    )


def test_layers_are_those_of_mace(stored: dict[str, Tensor]) -> None:
    backbone, batch = network(stored), _molecules(stored)
    graph = build_graph(batch, 3.0)
    assert set(zip(*graph.edge_index.tolist(), strict=True)) == set(zip(*stored["edge_index"].tolist(), strict=True))
    # Their vectors point from source to target, ours the other way round.
    signs = torch.tensor([(-1.0) ** ell for ell in range(3) for _ in range(2 * ell + 1)], dtype=torch.float64)
    state = backbone.embed(graph)

    def assert_same(ours: Tensor, name: str) -> None:
        """Of (n_atoms, components, C) and their (n_atoms, C, 9), or the components of each degree side by side."""
        ours = ours[state.place] * signs[: ours.shape[1], None]
        theirs = stored[name]
        if theirs.dim() == 2:
            degrees = range(math.isqrt(ours.shape[1]))
            parts = theirs.split([3 * (2 * ell + 1) for ell in degrees], dim=1)
            theirs = torch.cat([part.view(len(part), 3, -1) for part in parts], dim=2)
        torch.testing.assert_close(ours, theirs.transpose(1, 2), rtol=1e-10, atol=1e-10)

    for number, block in enumerate(backbone.blocks):
        sums = block.convolution(state)
        assert_same(sums, f"sums/{number}")
        products = block.contraction(sums.permute(1, 2, 0), state.counts)
        assert_same(products.permute(2, 1, 0), f"products/{number}")
        state = block(state)
        assert_same(state.tensors, f"tensors/{number}")


@pytest.mark.parametrize("fidelity", ["dz", "cc"])
def test_energies_and_forces_are_those_of_mace(stored: dict[str, Tensor], fidelity: str) -> None:
    potential = MultiFidelityPotential(network(stored), ["dz", "cc"]).double()
    head, number = potential.head(fidelity), ["dz", "cc"].index(fidelity)
    with torch.no_grad():
        head.reference.copy_(stored["weights/atomic_energies_fn.atomic_energies"][number])
        for level, layer in enumerate(head.levels):
            theirs = stored[f"weights/readouts.{level}.linear.weight"].view(3, 2)[:, number]
            layer.weight.copy_(theirs / math.sqrt(3))
            layer.bias.zero_()
    prediction = potential.predict(_molecules(stored), {fidelity: "EF"})[fidelity]
    torch.testing.assert_close(prediction.energy, stored[f"energy/{fidelity}"], rtol=0, atol=1e-10)
    torch.testing.assert_close(prediction.forces, stored[f"forces/{fidelity}"], rtol=0, atol=1e-10)
