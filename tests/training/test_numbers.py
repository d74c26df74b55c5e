"""Whatever stands where a label is masked, in whichever pattern, leaves no trace; nor do order and company of graphs.

``MFPYG_EXAMPLES`` is how many examples each property is tried on; a few, if it is not set.
"""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from mfpyg import backbones
from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.references import fit_references
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.metrics import MetricTable
from mfpyg.fidelity import Fidelity
from mfpyg.kernels.compilation import find_compiler
from mfpyg.models import MultiFidelityPotential
from mfpyg.models.delta import with_difference
from mfpyg.training.loss import MultiFidelityLoss
from mfpyg.training.module import MultiFidelityModule

from .conftest import stage_of

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
given = hypothesis.given

FIDELITIES = (Fidelity("dz", "EF"), Fidelity("cc", "EF"), Fidelity("tz", "F"))
COLUMNS = {"dz": 1, "cc": 0, "tz": 2}
NETWORKS = {
    "native": ("hipnn", {"kernel": "native"}),
    "padded": ("hipnn", {"kernel": "padded"}),
    "schnet": ("schnet", {}),
}
BROKEN = (math.nan, math.inf, -math.inf)


def few(share: float = 1.0) -> Any:
    """The same examples each time, so that what passes once passes always; no time limit on a busy machine."""
    n = max(1, round(int(os.environ.get("MFPYG_EXAMPLES", "12")) * share))
    return hypothesis.settings(derandomize=True, deadline=None, max_examples=n, database=None)


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> str:
    if request.param == "native" and find_compiler("CC", ("gcc", "cc", "clang")) is None:
        pytest.skip("the native kernel needs a C compiler")
    return str(request.param)


@functools.cache
def potential(network: str) -> MultiFidelityPotential:
    """A small one whose every part of the energy is of a size at which an error would show."""
    backbone, options = NETWORKS[network]
    kind = backbones.find(backbone)
    sizes = {"n_interactions": 2, "n_features": 8} | (
        {"n_atom_layers": 1, "n_sensitivities": 6} if backbone == "hipnn" else {}
    )
    torch.manual_seed(0)
    model = MultiFidelityPotential(kind.make([1, 6, 7, 8], {**kind.small, **sizes, **options}), list(COLUMNS))
    generator = torch.Generator().manual_seed(1)
    for head in model.heads:
        head.reference.copy_(torch.randn(4, generator=generator))
        for parameter in head.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return model.double()


def molecule(seed: int) -> Data:
    """A random molecule of 1 to 5 atoms with all labels."""
    generator = torch.Generator().manual_seed(seed)
    n = 1 + seed % 5
    grid = torch.cartesian_prod(*[1.2 * torch.arange(2.0)] * 3)[:n]
    return Data(
        z=torch.tensor([1, 6, 7, 8])[torch.randint(4, (n,), generator=generator)],
        pos=grid + 0.2 * torch.randn(n, 3, generator=generator),
        energy=10 * torch.randn(1, 3, dtype=torch.float64, generator=generator),
        energy_mask=torch.ones(1, 3, dtype=torch.bool),
        forces=10 * torch.randn(n, 3, 3, generator=generator),
        forces_mask=torch.ones(1, 3, dtype=torch.bool),
    )


def masked(seeds: list[int], energy: list[list[bool]], forces: list[list[bool]]) -> Batch:
    """A batch of molecules with these masks, and zeros where no label is."""
    batch = Batch.from_data_list([molecule(seed) for seed in seeds])
    batch.energy_mask, batch.forces_mask = torch.tensor(energy), torch.tensor(forces)
    batch.energy[~batch.energy_mask] = 0.0
    batch.forces[~batch.forces_mask[batch.batch]] = 0.0
    return batch


@st.composite
def masks(draw: Any, n: int) -> list[list[bool]]:
    """Of n graphs and three fidelities: all, none, one kind only, one kind missing, whole graphs missing, or any."""
    kind = draw(st.sampled_from(["all", "none", "one kind", "one kind missing", "whole graphs", "any"]))
    if kind in ("all", "none"):
        return [[kind == "all"] * 3] * n
    if kind == "whole graphs":
        return [[there] * 3 for there in draw(st.lists(st.booleans(), min_size=n, max_size=n))]
    if kind == "any":
        return draw(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=n, max_size=n))
    column = draw(st.integers(0, 2))
    return [[(number == column) == (kind == "one kind") for number in range(3)]] * n


@st.composite
def batches(draw: Any) -> tuple[list[int], list[list[bool]], list[list[bool]]]:
    """Seeds of some molecules, and the masks of their energies and forces."""
    seeds = draw(st.lists(st.integers(0, 200), min_size=1, max_size=4))
    return seeds, draw(masks(len(seeds))), draw(masks(len(seeds)))


def poisoned(batch: Batch, draw: Any) -> Batch:
    """The same with NaN and infinities, all over or here and there, where there is no label."""
    batch = batch.clone()
    everywhere = draw(st.booleans())
    seed = draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    for values, hidden in (
        (batch.energy, ~batch.energy_mask),
        (batch.forces, (~batch.forces_mask)[batch.batch].unsqueeze(-1).expand_as(batch.forces)),
    ):
        chosen = hidden & (torch.ones(()).bool() if everywhere else torch.rand(values.shape, generator=generator) < 0.4)
        which = torch.randint(len(BROKEN), values.shape, generator=generator)
        values[chosen] = torch.tensor(BROKEN, dtype=values.dtype)[which][chosen]
    return batch


def make_loss(hierarchicality: float = 1.0) -> MultiFidelityLoss:
    labels = [(f.name, p.name) for f in FIDELITIES for p in f.properties]
    weights = {label: 1.0 + 0.5 * number for number, label in enumerate(labels)}
    return MultiFidelityLoss(FIDELITIES, COLUMNS, weights, hierarchicality)


def loss_and_gradients(
    model: MultiFidelityPotential, batch: Batch, hierarchicality: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    loss = make_loss(hierarchicality)
    model.zero_grad()
    value, _ = loss(loss.predict(model.train(), batch), batch)
    value.backward()
    return value.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_what_is_masked_reaches_no_loss_and_no_gradient(network: str) -> None:
    @few()
    @given(batches(), st.sampled_from([0.0, 1.0]), st.data())
    def check(drawn: Any, hierarchicality: float, data: Any) -> None:
        batch = masked(*drawn)
        value, gradients = loss_and_gradients(potential(network), batch, hierarchicality)
        value2, gradients2 = loss_and_gradients(potential(network), poisoned(batch, data.draw), hierarchicality)
        assert torch.isfinite(value2)
        assert torch.equal(value, value2)
        assert gradients.keys() == gradients2.keys()
        for name, gradient in gradients.items():
            assert torch.isfinite(gradient).all(), name
            assert torch.equal(gradient, gradients2[name]), name

    check()


def test_what_is_masked_reaches_no_difference_of_two_levels(network: str) -> None:
    """As strategy delta makes labels: cc − dz where both are there."""
    loss = MultiFidelityLoss([Fidelity("dz", "EF")], {"dz": 3}, {("dz", "energy"): 1.0, ("dz", "forces"): 1.0}, 1.0)

    def gradients(batch: Batch) -> list[Tensor]:
        batch = batch.clone()
        graphs, mask = torch.arange(batch.num_graphs), batch.energy_mask
        batch.energy, batch.energy_mask = with_difference(batch.energy, mask, 0, 1, graphs)
        batch.forces, batch.forces_mask = with_difference(batch.forces, batch.forces_mask, 0, 1, batch.batch)
        model = potential(network).train()
        model.zero_grad()
        value, _ = loss(loss.predict(model, batch), batch)
        value.backward()
        assert torch.isfinite(value)
        return [value.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    @few(0.5)
    @given(batches(), st.data())
    def check(drawn: Any, data: Any) -> None:
        batch = masked(*drawn)
        for one, two in zip(gradients(batch), gradients(poisoned(batch, data.draw)), strict=True):
            assert torch.isfinite(one).all()
            assert torch.equal(one, two)

    check()


def test_what_is_masked_reaches_no_metric() -> None:
    """Neither those of the validation nor those of evaluation."""
    loss, model = make_loss(), potential("padded").eval()

    def metrics(batch: Batch, predictions: Any) -> tuple[Tensor, Any]:
        table = MetricTable(COLUMNS)
        assert table.add(predictions, batch)
        return loss.sums(predictions, batch), table.result()

    @few()
    @given(batches(), st.data())
    def check(drawn: Any, data: Any) -> None:
        batch = masked(*drawn)
        predictions = loss.predict(model.eval(), batch)
        (sums, table), (sums2, table2) = (metrics(b, predictions) for b in (batch, poisoned(batch, data.draw)))
        assert torch.isfinite(sums).all()
        assert torch.equal(sums, sums2)
        assert table == table2
        assert not any(math.isnan(x) for row in table.values() for of in row.values() for x in of.values())

    check()


def module_of(network: str, loss: MultiFidelityLoss) -> MultiFidelityModule:
    model = potential(network).train()
    model.zero_grad()
    return MultiFidelityModule(model, stage_of(loss))


def test_what_is_not_masked_is_named_before_there_is_a_gradient(network: str) -> None:
    @few()
    @given(st.lists(st.integers(0, 200), min_size=1, max_size=4), st.data())
    def check(seeds: list[int], data: Any) -> None:
        everything = [[True] * 3] * len(seeds)
        batch = masked(seeds, everything, everything)
        graph = data.draw(st.integers(0, len(seeds) - 1))
        value, column = data.draw(st.sampled_from(BROKEN)), data.draw(st.integers(0, 2))
        what = data.draw(st.sampled_from(["energy", "forces", "pos"]))
        atom = int(batch.ptr[graph]) + data.draw(st.integers(0, int(batch.ptr[graph + 1] - batch.ptr[graph]) - 1))
        if what == "energy":
            batch.energy[graph, column % 2] = value  # tz is trained on its forces alone
        elif what == "forces":
            batch.forces[atom, column, data.draw(st.integers(0, 2))] = value
        else:
            batch.pos[atom, column] = value
        module = module_of(network, make_loss())
        with pytest.raises(MFPyGError, match=f"graph {graph} of the batch, (is|are) NaN or infinite") as error:
            module.training_step(batch, 0)
        assert "\n" not in str(error.value)
        assert all(p.grad is None for p in module.potential.parameters())

    check()


def test_atoms_at_the_same_place_reach_no_weight_even_where_the_loss_is_finite(network: str) -> None:
    """Of energies alone, and where the molecule itself has no label."""
    loss = MultiFidelityLoss([Fidelity("cc")], COLUMNS, {("cc", "energy"): 1.0}, 1.0)
    for labelled in (True, False):
        batch = masked([3, 4], [[True] * 3, [labelled] * 3], [[False] * 3] * 2)
        batch.pos[int(batch.ptr[1]) + 2] = batch.pos[int(batch.ptr[1])]
        module = module_of(network, loss)
        message = ""
        try:
            module.training_step(batch, 0).backward()
            module.on_before_optimizer_step(None)  # type: ignore[arg-type]
        except MFPyGError as error:
            message = str(error)
        finite = all(torch.isfinite(p.grad).all() for p in module.potential.parameters() if p.grad is not None)
        assert finite or "atoms 0 and 2 are at the same place in graph 1 of the batch; take it out" in message


def reordered(batch: Batch, order: list[int], generator: torch.Generator) -> Batch:
    """Its graphs in this order, and the atoms of each in a random one."""
    items = batch.to_data_list()
    for item in items:
        atoms = torch.randperm(len(item.z), generator=generator)
        item.z, item.pos, item.forces = item.z[atoms], item.pos[atoms], item.forces[atoms]
    return Batch.from_data_list([items[i] for i in order])


def assert_same(one: tuple[Tensor, dict[str, Tensor]], two: tuple[Tensor, dict[str, Tensor]], tolerance: float) -> None:
    """The losses, and the gradients of each parameter relative to the largest of all."""
    torch.testing.assert_close(two[0], one[0], rtol=tolerance, atol=tolerance)
    largest = max(float(g.abs().max()) for g in one[1].values())
    for name, gradient in one[1].items():
        deviation = float((gradient - two[1][name]).abs().max())
        assert deviation <= tolerance * largest, (name, deviation, largest)


def test_order_and_unlabelled_company_change_nothing(network: str) -> None:
    @few(0.75)
    @given(batches(), st.lists(st.integers(0, 200), max_size=3), st.randoms(use_true_random=False))
    def check(drawn: Any, more: list[int], random: Any) -> None:
        seeds, energy, forces = drawn
        one = loss_and_gradients(potential(network), masked(*drawn))
        none = [[False] * 3] * len(more)
        union = masked(seeds + more, energy + none, forces + none)
        order = list(range(union.num_graphs))
        random.shuffle(order)
        union = reordered(union, order, torch.Generator().manual_seed(random.randrange(2**31)))
        assert_same(one, loss_and_gradients(potential(network), union), 1e-13)

    check()


@functools.cache
def as_trained(network: str) -> tuple[MiniCHNO, MultiFidelityPotential, MultiFidelityLoss]:
    """The bundled data, and a potential and a loss as a training on them begins with, in single precision."""
    dataset, backbone = MiniCHNO(), NETWORKS[network][0]
    kind = backbones.find(backbone)
    torch.manual_seed(0)
    model = MultiFidelityPotential(kind.make([1, 6, 7, 8], {**kind.small, **NETWORKS[network][1]}), ["dz", "tz", "cc"])
    fitted = fit_references(dataset, np.arange(len(dataset)), model.species, model.fidelities)
    for name, references in fitted.items():
        model.reference(name).copy_(torch.from_numpy(references.energies))
    labels = [Fidelity("dz", "EF"), Fidelity("tz", "EF"), Fidelity("cc")]
    weights = {(f.name, p.name): 1.0 for f in labels for p in f.properties}
    columns = {f.name: dataset.fidelities.index(f.name) for f in labels}
    # What SchNet gives at first is so small that the slope of the ratio, 1/E, makes anything of its rounding.
    return dataset, model, MultiFidelityLoss(labels, columns, weights, 0.0 if backbone == "schnet" else 0.1)


def test_order_and_unlabelled_company_change_nothing_in_single_precision(network: str) -> None:
    dataset, model, loss = as_trained(network)

    def gradients(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        value, _ = loss(loss.predict(model.train(), batch), batch)
        value.backward()
        return value.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    rows = st.lists(st.integers(0, len(dataset) - 1), min_size=1, max_size=8)

    @few(0.5)
    @given(rows, st.lists(st.integers(0, len(dataset) - 1), max_size=3), st.randoms(use_true_random=False))
    def check(chosen: list[int], more: list[int], random: Any) -> None:
        items = [dataset[i] for i in (*chosen, *more)]
        for item in items[len(chosen) :]:
            item.energy_mask, item.forces_mask = (torch.zeros_like(m) for m in (item.energy_mask, item.forces_mask))
        order = list(range(len(items)))
        random.shuffle(order)
        union = reordered(Batch.from_data_list(items), order, torch.Generator().manual_seed(random.randrange(2**31)))
        assert_same(gradients(Batch.from_data_list(items[: len(chosen)])), gradients(union), 1e-6)

    check()
