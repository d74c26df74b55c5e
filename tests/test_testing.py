"""``check_potential`` finds what is wrong with a network, and leaves the network alone."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from mfpyg.graph import Graph
from mfpyg.models import HIPNN, Backbone, MultiFidelityPotential
from mfpyg.models.heads import LinearHead
from mfpyg.testing import PotentialError, check_potential

SPECIES = (1, 6)


class Simple(Backbone):
    """One sum over neighbours, with a hook for what a test breaks."""

    def __init__(self, wrong: Callable[[Graph, Tensor], Tensor] | None = None, envelope: str = "cosine") -> None:
        super().__init__(SPECIES, 3.0)
        self.weight = nn.Linear(4, 5, bias=False)
        self.mix = nn.Linear(5, 5)
        self.wrong, self.envelope = wrong, envelope
        self.feature_sizes = (2, 5)

    def forward(self, graph: Graph) -> list[Tensor]:
        dist = graph.edge_dist.unsqueeze(1)
        radial = torch.exp(-(dist - torch.arange(4, dtype=dist.dtype)).square())
        if self.envelope == "cosine":
            radial = radial * torch.cos(0.5 * torch.pi / self.cutoff * dist).square()
        if self.envelope == "linear":
            radial = radial * (1 - dist / self.cutoff)
        one_hot = self.one_hot(graph)
        messages = self.weight(radial) * (1 + one_hot[graph.edge_index[0], :1])
        summed = messages.new_zeros(graph.n_atoms, 5).index_add(0, graph.edge_index[1], messages)
        features = torch.tanh(self.mix(summed))
        return [one_hot, features if self.wrong is None else self.wrong(graph, features)]


def _chiral(graph: Graph, x: Tensor) -> Tensor:
    """A triple product of vectors to neighbours."""
    vectors = [
        x.new_zeros(graph.n_atoms, 3).index_add(
            0, graph.edge_index[1], graph.edge_vec * (3 - graph.edge_dist[:, None]) ** k
        )
        for k in (2, 3, 4)
    ]
    return x + 0.1 * torch.linalg.det(torch.stack(vectors, dim=1)).unsqueeze(1)


def _directed(graph: Graph, x: Tensor) -> Tensor:
    """Prefers one axis."""
    along = graph.edge_vec[:, :1].square() * (3 - graph.edge_dist[:, None]) ** 2
    return x + x.new_zeros(graph.n_atoms, 1).index_add(0, graph.edge_index[1], along)


def _numbered(graph: Graph, x: Tensor) -> Tensor:
    return x * (1 + torch.arange(len(x), dtype=x.dtype).unsqueeze(1))


def _coupled(graph: Graph, x: Tensor) -> Tensor:
    """As a norm over all atoms there are."""
    return x - x.mean(dim=0)


def _cut_off_from_gradients(graph: Graph, x: Tensor) -> Tensor:
    return x + x.detach().square()


def _rounded(graph: Graph, x: Tensor) -> Tensor:
    return x.float().double()


def _random(graph: Graph, x: Tensor) -> Tensor:
    return x * (1 + 1e-13 * torch.randn((), dtype=x.dtype))


def _second_derivative_cut(graph: Graph, x: Tensor) -> Tensor:
    return _OnceDifferentiable.apply(x)


class _OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return 2 * ctx.saved_tensors[0].detach() * gradient


def _crowded(graph: Graph, x: Tensor) -> Tensor:
    """An atom alone depends on the number of atoms there are."""
    alone = torch.bincount(graph.edge_index[1], minlength=len(x)) == 0
    return x + (alone * float(graph.n_atoms)).unsqueeze(1)


@pytest.mark.parametrize(
    ("wrong", "law"),
    [
        (_chiral, "energy unchanged by reflection"),
        (_directed, "energy unchanged by rotation"),
        (_numbered, "energy unchanged by order of the atoms"),
        (_coupled, "energies in a batch are those of single graphs"),
        (_cut_off_from_gradients, "forces are the negative numerical gradient"),
        (_rounded, "forces are the negative numerical gradient"),
        (_random, "a prediction repeats to the last bit"),
        (_second_derivative_cut, "second derivatives by positions are the numerical ones"),
        (_crowded, "energy of an atom alone depends on its element only"),
    ],
)
def test_broken_laws_are_found(wrong: Callable[[Graph, Tensor], Tensor], law: str) -> None:
    with pytest.raises(PotentialError, match=law):
        check_potential(Simple(wrong))


@pytest.mark.parametrize(
    ("envelope", "law"), [("none", "energy continuous at the cutoff"), ("linear", "forces continuous at the cutoff")]
)
def test_steps_at_the_cutoff_are_found(envelope: str, law: str) -> None:
    with pytest.raises(PotentialError, match=law):
        check_potential(Simple(envelope=envelope))


def test_a_mirror_image_is_told_from_a_rotation() -> None:
    with pytest.raises(PotentialError) as broken:
        check_potential(Simple(_chiral))
    assert "rotation" not in str(broken.value)


class _Normed(Simple):
    """Batch norm, which couples graphs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)

    def forward(self, graph: Graph) -> list[Tensor]:
        one_hot, features = super().forward(graph)
        return [one_hot, self.norm(features)]


class _Nearest(Simple):
    """Sees its three nearest neighbours."""

    def forward(self, graph: Graph) -> list[Tensor]:
        order = torch.argsort(graph.edge_dist)
        order = order[torch.argsort(graph.edge_index[1, order], stable=True)]
        degree = torch.bincount(graph.edge_index[1], minlength=graph.n_atoms)
        first = (degree.cumsum(0) - degree)[graph.edge_index[1, order]]
        kept = order[torch.arange(len(order)) - first < 3]
        seen = dataclasses.replace(
            graph, edge_index=graph.edge_index[:, kept], edge_vec=graph.edge_vec[kept], edge_dist=graph.edge_dist[kept]
        )
        return super().forward(seen)


class _WithoutImages(Simple):
    """Takes an atom's own image for the atom itself."""

    def forward(self, graph: Graph) -> list[Tensor]:
        kept = graph.edge_index[0] != graph.edge_index[1]
        seen = dataclasses.replace(
            graph, edge_index=graph.edge_index[:, kept], edge_vec=graph.edge_vec[kept], edge_dist=graph.edge_dist[kept]
        )
        return super().forward(seen)


@pytest.mark.parametrize(
    ("network", "law"),
    [
        (_Normed, "energy in training independent of another graph"),
        (_Nearest, "energy continuous on a path through a crowd"),
        (_WithoutImages, "energy of a supercell is that of its cells"),
    ],
)
def test_broken_networks_are_found(network: type[Simple], law: str) -> None:
    with pytest.raises(PotentialError, match=law):
        check_potential(network())


def test_every_fidelity_is_checked() -> None:
    class Numbered(LinearHead):
        def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
            return [term * (1 + torch.arange(len(term))) for term in super().forward(features)]

    potential = MultiFidelityPotential(Simple(), ["a", "b"])
    potential.heads[1] = Numbered([2, 5])
    with pytest.raises(PotentialError, match=r"energy unchanged by order of the atoms \(b\)") as broken:
        check_potential(potential)
    assert "(a)" not in str(broken.value)


def test_fidelities_that_share_a_head_are_found() -> None:
    potential = MultiFidelityPotential(Simple(), ["a", "b"])
    potential.heads[1] = potential.heads[0]
    with pytest.raises(PotentialError, match="the loss of a fidelity leaves the parts of others alone"):
        check_potential(potential)


def test_references_are_asked_of_those_that_promise_them() -> None:
    potential = MultiFidelityPotential(Simple(), ["a"])
    assert "energy of an atom alone is its reference" not in [law.name for law in check_potential(potential)]
    potential = MultiFidelityPotential(Simple(), ["a"], isolated="reference")
    assert "energy of an atom alone is its reference" in [law.name for law in check_potential(potential)]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_right_passes_whatever_the_seed(seed: int) -> None:
    laws = check_potential(Simple(), seed=seed)
    assert len(laws) == len({law.name for law in laws}) > 20
    assert all(law.holds for law in laws)


def test_one_element_and_one_fidelity_are_enough() -> None:
    backbone = HIPNN([6], n_features=4, n_sensitivities=4, n_atom_layers=1, cutoff=4.0, r_soft_max=3.5)
    check_potential(MultiFidelityPotential(backbone, ["dz"]))


def test_nothing_is_changed() -> None:
    potential = MultiFidelityPotential(Simple(), ["a", "b"]).train()
    before, random = copy.deepcopy(potential.state_dict()), torch.get_rng_state()
    check_potential(potential)
    assert potential.training
    assert torch.equal(torch.get_rng_state(), random)
    after = potential.state_dict()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


def test_nan_breaks_a_law() -> None:
    with pytest.raises(PotentialError, match="nan"):
        check_potential(Simple(lambda graph, x: x * float("nan")))
