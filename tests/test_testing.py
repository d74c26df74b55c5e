"""``check_potential`` finds what is wrong with a network, and leaves the network alone."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from mfpyg.graph import Graph, molecules_of
from mfpyg.models import HIPNN, Backbone, MultiFidelityPotential, Prediction
from mfpyg.models.charges import ChargeHead
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


def _normalized(graph: Graph, x: Tensor) -> Tensor:
    return x / x.norm()


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


def _broken(module: nn.Module) -> str:
    with pytest.raises(PotentialError) as broken:
        check_potential(module)
    return str(broken.value)


@pytest.mark.parametrize(
    ("wrong", "laws"),
    [
        (_chiral, ["energy unchanged by reflection"]),
        (
            _directed,
            [
                "energy unchanged by rotation",
                "charges unchanged by rotation",
                "dipole equivariant under rotation",
                "stress of a crystal equivariant under rotation",
                "Hessian equivariant under rotation",
            ],
        ),
        (_numbered, ["energy unchanged by order of the atoms", "charges equivariant under order of the atoms"]),
        (_coupled, ["energies in a batch are those of single graphs"]),
        (
            _normalized,
            [
                *(f"{names} in a batch are those of single graphs" for names in ("energies", "charges", "dipoles")),
                *(f"{name} independent of another graph" for name in ("energy", "charges", "dipole")),
            ],
        ),
        (
            _cut_off_from_gradients,
            ["forces are the negative numerical gradient", "stress is the numerical derivative by strain"],
        ),
        (
            _rounded,
            ["forces are the negative numerical gradient", "stress is the numerical derivative by strain"],
        ),
        (_random, ["a prediction repeats to the last bit"]),
        (_second_derivative_cut, ["Hessian is minus the numerical derivative of forces", "derivative of a loss"]),
        (_crowded, ["energy of an atom alone depends on its element only"]),
    ],
)
def test_broken_laws_are_found(wrong: Callable[[Graph, Tensor], Tensor], laws: list[str]) -> None:
    found = _broken(Simple(wrong))
    assert [law for law in laws if law not in found] == []


@pytest.mark.parametrize(
    ("envelope", "laws"),
    [
        ("none", [f"{name} continuous at the cutoff" for name in ("energy", "charges", "dipole")]),
        ("linear", ["forces continuous at the cutoff"]),
    ],
)
def test_steps_at_the_cutoff_are_found(envelope: str, laws: list[str]) -> None:
    found = _broken(Simple(envelope=envelope))
    assert [law for law in laws if law not in found] == []


class _Changed(MultiFidelityPotential):
    """Changes each prediction."""

    def __init__(self, change: Callable[[Data, Prediction], None]) -> None:
        super().__init__(Simple(), ["a"], further={"a": "Q"})
        self.change = change

    def predict(self, data: Data, wanted: Mapping[str, str]) -> dict[str, Prediction]:
        predictions = super().predict(data, wanted)
        for prediction in predictions.values():
            self.change(data, prediction)
        return predictions


def _with_more_charge(data: Data, p: Prediction) -> None:
    if p.charges is not None:
        p.charges = p.charges + 1e-6


def _stretched(data: Data, p: Prediction) -> None:
    if p.dipole is not None:
        p.dipole = p.dipole * (1 + 1e-6)


def _from_the_origin(data: Data, p: Prediction) -> None:
    """Of ions, it depends on the origin."""
    if p.dipole is not None and p.charges is not None:
        batch = molecules_of(data)[0]
        p.dipole = torch.zeros_like(p.dipole).index_add(0, batch, p.charges[:, None] * data.pos)


def _pinned(data: Data, p: Prediction) -> None:
    """Springs to the origin, with correct derivatives."""
    p.energy = p.energy.index_add(0, molecules_of(data)[0], data.pos.square().sum(dim=1) / 2)
    if p.forces is not None:
        p.forces = p.forces - data.pos


def _sheared(data: Data, p: Prediction) -> None:
    if p.stress is not None:
        p.stress = p.stress * (2 - torch.eye(3, dtype=p.stress.dtype))


@pytest.mark.parametrize(
    ("change", "laws"),
    [
        (_with_more_charge, ["charges of a neutral molecule add up to zero", "charges of ions add up to their charge"]),
        (_stretched, ["dipole of a neutral molecule is the sum of q x"]),
        (_from_the_origin, ["dipole unchanged by translation"]),
        (_pinned, ["energy unchanged by translation", "rows of the Hessian add up to zero over atoms"]),
        (_sheared, ["stress is the numerical derivative by strain"]),
    ],
)
def test_broken_predictions_are_found(change: Callable[[Data, Prediction], None], laws: list[str]) -> None:
    found = _broken(_Changed(change))
    assert [law for law in laws if law not in found] == []


def test_a_mirror_image_is_told_from_a_rotation() -> None:
    assert "rotation" not in _broken(Simple(_chiral))


class _Normed(Simple):
    """Batch norm, which couples graphs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)

    def forward(self, graph: Graph) -> list[Tensor]:
        one_hot, features = super().forward(graph)
        return [one_hot, self.norm(features)]


class _Lossy(Simple):
    """Computes distances in single precision."""

    def forward(self, graph: Graph) -> list[Tensor]:
        return super().forward(dataclasses.replace(graph, edge_dist=graph.edge_vec.float().norm(dim=1).double()))


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
    ("network", "laws"),
    [
        (_Normed, [f"{name} in training independent of another graph" for name in ("energy", "charges", "dipole")]),
        (
            _Lossy,
            [
                "charges unchanged by rotation",
                "dipole equivariant under rotation",
                "forces are the negative numerical gradient",
                "stress is the numerical derivative by strain",
                "Hessian is minus the numerical derivative of forces",
            ],
        ),
        (_Nearest, ["energy continuous on a path through a crowd"]),
        (_WithoutImages, [f"{name} of a supercell as of its cells" for name in ("energy", "stress")]),
    ],
)
def test_broken_networks_are_found(network: type[Simple], laws: list[str]) -> None:
    found = _broken(network())
    assert [law for law in laws if law not in found] == []


def test_every_fidelity_is_checked() -> None:
    class Numbered(LinearHead):
        def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
            return [term * (1 + torch.arange(len(term))) for term in super().forward(features)]

    potential = MultiFidelityPotential(Simple(), ["a", "b"])
    potential.heads[1] = Numbered([2, 5])
    found = _broken(potential)
    assert "energy unchanged by order of the atoms (b)" in found
    assert "(a)" not in found


def test_charge_heads_are_checked() -> None:
    class Numbered(ChargeHead):
        def forward(self, features: Sequence[Tensor]) -> Tensor:
            charges = super().forward(features)
            return charges * (1 + torch.arange(len(charges)))

    potential = MultiFidelityPotential(Simple(), ["a", "b"], further={"a": "Q", "b": "Q"})
    potential.further_heads[1]["charges"] = Numbered([2, 5])
    found = _broken(potential)
    assert "charges equivariant under order of the atoms (b)" in found
    assert not re.search(r"\(a\)|energy|forces", found)


def test_charges_are_asked_of_those_that_have_them_and_of_every_backbone() -> None:
    potential = MultiFidelityPotential(Simple(), ["a", "b"], further={"b": "D"})
    for checked, names in ((potential, ["b"]), (Simple(), ["a", "b"])):
        asked = [law.name for law in check_potential(checked) if re.search("charges|dipole", law.name)]
        assert {name[-2] for name in asked} == set(names)
        assert len(asked) > 15 * len(names)


@pytest.mark.parametrize("parts", ["heads", "further_heads"])
def test_fidelities_that_share_a_head_are_found(parts: str) -> None:
    potential = MultiFidelityPotential(Simple(), ["a", "b"], further={"a": "Q", "b": "Q"})
    getattr(potential, parts)[1] = getattr(potential, parts)[0]
    assert "the loss of a fidelity leaves the parts of others alone" in _broken(potential)


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
