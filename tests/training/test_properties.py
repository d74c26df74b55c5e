"""The loss of all properties against its formula written out, and random directions for Hessians."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from mfpyg.evaluation.diagnosis import fault_of_data, fault_of_predictions
from mfpyg.evaluation.metrics import hessian_rows, label_errors, product_errors
from mfpyg.fidelity import Fidelity
from mfpyg.models import HIPNN, MultiFidelityPotential
from mfpyg.models.hessian import hessian
from mfpyg.models.prediction import Products
from mfpyg.properties import CHARGES, DIPOLE, ENERGY, FORCES, HESSIAN, PROPERTIES, STRESS
from mfpyg.training.directions import random_directions
from mfpyg.training.loss import MultiFidelityLoss
from mfpyg.training.optimizer import skip_unlabelled
from mfpyg.training.strategies.delta import with_pair_difference

LEVELS = ("cc", "dz", "tz")
FIDELITIES = (Fidelity("dz", "EFSHDQ"), Fidelity("cc", "EH"), Fidelity("tz", "D"))
WEIGHTS = {(f.name, p.name): 0.1 + 0.3 * i for i, f in enumerate(FIDELITIES) for p in f.properties}
T = len(LEVELS)


def graph(seed: int, labels: dict[str, str], crystal: bool = False) -> Data:
    """A random molecule or crystal with labels of some letters at each level; missing ones are NaN."""
    generator = torch.Generator().manual_seed(seed)
    n = 2 + seed % 3
    data = Data(
        z=torch.tensor([1, 6, 7, 8][:n]),
        pos=torch.rand(n, 3, generator=generator, dtype=torch.float64)
        + 1.3 * torch.eye(4, dtype=torch.float64)[:n, :3],
        cell=(3.0 * torch.eye(3, dtype=torch.float64) if crystal else torch.zeros(3, 3, dtype=torch.float64))[None],
        pbc=torch.full((1, 3), crystal),
        source=torch.tensor([0]),
        molecule=torch.tensor([seed]),
        conformation=torch.tensor([2 * seed]),
    )
    for letter, p in PROPERTIES.items():
        mask = torch.tensor([[letter in labels.get(name, "") for name in LEVELS]])
        data[p.mask] = mask
        if p.per == "pair":
            values = torch.randn(int(mask.sum()), n, 3, n, 3, generator=generator, dtype=torch.float64)
            values = values + values.permute(0, 3, 4, 1, 2)
            data[p.name] = values.permute(0, 1, 3, 2, 4).reshape(-1, 3, 3)
            continue
        rows = 1 if p.per == "graph" else n
        values = torch.randn(rows, T, *p.shape, generator=generator, dtype=torch.float64)
        values[:, ~mask[0]] = torch.nan
        data[p.name] = values
    return data


GRAPHS = [
    graph(3, {"dz": "EFHDQ", "cc": "EH"}),
    graph(1, {"dz": "EFS"}, crystal=True),
    graph(5, {"cc": "E", "tz": "D"}),
    graph(4, {"dz": "HQ", "tz": "DH"}),
]


def potential() -> MultiFidelityPotential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = HIPNN([1, 6, 7, 8], 2, 1, 6, 5, cutoff=2.8)
        made = MultiFidelityPotential(backbone, ["dz", "cc", "tz"], further={"dz": "DQ", "tz": "D"}).double()
        for head in (*made.heads, *(head for of in made.further_heads for head in of.values())):
            for level in head.levels:
                level.reset_parameters()
    return made.train()


def loss_of(directions: int = 1, hierarchicality: float = 1.0, seed: int = 0) -> MultiFidelityLoss:
    columns = {name: LEVELS.index(name) for name in LEVELS}
    return MultiFidelityLoss(FIDELITIES, columns, WEIGHTS, hierarchicality, directions, seed)


def whole_label(data: Data, level: str) -> Tensor:
    """Label of a Hessian as a matrix, (3n, 3n)."""
    n = len(data.z)
    number = int(data.hessian_mask[0, : LEVELS.index(level)].sum())
    rows = data.hessian[number * n * n : (number + 1) * n * n]
    return rows.view(n, n, 3, 3).permute(0, 2, 1, 3).reshape(3 * n, 3 * n)


def written_out(model: MultiFidelityPotential, directions: Tensor) -> float:
    """The loss, one graph at a time."""
    errors: dict[tuple[str, str], list[float]] = {label: [] for label in WEIGHTS}
    regulariser: dict[str, list[float]] = {f.name: [] for f in FIDELITIES}
    first = 0
    for data in GRAPHS:
        n = len(data.z)
        for fidelity in FIDELITIES:
            column = LEVELS.index(fidelity.name)
            there = [p for p in fidelity.properties if data[p.mask][0, column]]
            if any(p in (ENERGY, FORCES, STRESS, HESSIAN) for p in there):
                regulariser[fidelity.name].append(model(data, fidelity.name).hierarchicality.item())
            for p in there:
                if p is HESSIAN:
                    matrix = hessian(model, data, fidelity.name).permute(0, 2, 1, 3).reshape(3 * n, 3 * n)
                    missed = matrix - whole_label(data, fidelity.name)
                    of = directions[:, first : first + n].double().flatten(1) @ missed / (3 * n) ** 0.5
                else:
                    prediction = model(data, fidelity.name, properties=p.letter)
                    predicted = getattr(prediction, p.name)
                    of = predicted - data[p.name][:, column]
                errors[fidelity.name, p.name] += of.flatten().tolist()
        first += n
    total = sum(sum(values) / len(values) for values in regulariser.values() if values)
    for label, values in errors.items():
        e = torch.tensor(values, dtype=torch.float64)
        total += WEIGHTS[label] * float(e.square().mean().sqrt() + e.abs().mean())
    return total


@pytest.mark.parametrize("directions", [1, 3])
def test_loss_is_that_of_every_property_written_out(directions: int) -> None:
    model, batch, loss = potential(), Batch.from_data_list(GRAPHS), loss_of(directions)
    value, sums = loss(loss.predict(model, batch, 4, 2), batch)
    assert value.item() == pytest.approx(written_out(model, random_directions(batch, directions, 0, 4, 2)), rel=1e-5)
    counts = dict(zip(WEIGHTS, sums[:, 0].int().tolist(), strict=True))
    assert counts["dz", "hessian"] == 3 * directions * (2 + 3)
    assert counts["dz", "stress"] == 9
    assert counts["tz", "dipole"] == 6


def test_labels_that_are_masked_leave_no_trace() -> None:
    """Also those of whole graphs: a graph without labels changes neither the loss nor a gradient."""
    model, loss = potential(), loss_of()
    empty = graph(0, {})
    gradients = []
    for graphs in (GRAPHS, [*GRAPHS[:2], empty, *GRAPHS[2:]]):
        batch = Batch.from_data_list(graphs)
        value, _ = loss(loss.predict(model, batch), batch)
        gradients.append([value, *torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)])
    for one, other in zip(*gradients, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_batch_without_labels_of_a_property_does_not_need_it() -> None:
    """Molecules have no stress, crystals no dipole; neither is predicted where nothing is compared."""
    model, loss = potential(), loss_of()
    for batch in (Batch.from_data_list([GRAPHS[2]]), Batch.from_data_list([GRAPHS[1]])):
        value, _ = loss(loss.predict(model, batch), batch)
        assert value.isfinite()
    prediction = loss.predict(model, Batch.from_data_list([GRAPHS[2]]))
    assert prediction["dz"].stress is prediction["dz"].hessian is prediction["dz"].charges is None
    assert prediction["tz"].dipole is not None


def test_heads_without_labels_in_a_batch_get_no_gradient() -> None:
    model, loss = potential(), loss_of()

    def moved(*graphs: Data) -> set[str]:
        batch = Batch.from_data_list(list(graphs))
        model.zero_grad()
        value, sums = loss(loss.predict(model, batch), batch)
        value.backward()
        skip_unlabelled(model, loss.labelled(sums))
        parts = {"backbone": model.backbone, **{f"{n} energy": model.head(n) for n in model.fidelities}}
        parts |= {f"{n} charges": model.further_head(n, "charges") for n in model.further}
        return {n for n, part in parts.items() if any(p.grad is not None and p.grad.any() for p in part.parameters())}

    assert moved(GRAPHS[0]) == {"backbone", "dz energy", "dz charges", "cc energy"}
    assert moved(GRAPHS[1]) == {"backbone", "dz energy"}
    assert moved(graph(3, {"tz": "D"})) == {"backbone", "tz charges"}
    assert moved(graph(3, {"cc": "H"})) == {"backbone", "cc energy"}
    assert moved(graph(3, {"tz": "E"})) == set()


def test_errors_of_products_estimate_those_of_all_elements() -> None:
    batch, columns = Batch.from_data_list([GRAPHS[0], GRAPHS[3]]), [LEVELS.index(name) for name in ("dz", "tz")]
    for column, graphs in zip(columns, ([GRAPHS[0], GRAPHS[3]], [GRAPHS[3]]), strict=True):
        labels = [whole_label(data, LEVELS[column]) for data in graphs]
        v = random_directions(batch, 4000, 1).double()
        atoms = torch.arange(len(batch.z))
        products = Products(atoms, v, torch.zeros_like(v))  # errors are those of the labels
        errors = product_errors(products, batch, column)
        assert len(errors) == 4000 * sum(3 * len(data.z) for data in graphs)
        expected = sum(float(h.square().sum()) / len(h) for h in labels) / sum(len(h) for h in labels)
        assert float(errors.square().mean()) == pytest.approx(expected, rel=0.05)


def test_rows_of_hessians_are_those_of_the_level() -> None:
    batch = Batch.from_data_list(GRAPHS)
    rows, first, second = hessian_rows(batch, LEVELS.index("dz"))
    expected = torch.cat([whole_label(data, "dz").flatten() for data in (GRAPHS[0], GRAPHS[3])])
    parts = zip((2, 3), batch.hessian[rows].split([4, 9]), strict=True)
    found = [h.view(n, n, 3, 3).permute(0, 2, 1, 3).flatten() for n, h in parts]
    assert torch.equal(torch.cat(found), expected)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [
        *itertools.product([0, 1], repeat=2), *itertools.product([len(batch.z) - 3 + i for i in range(3)], repeat=2)
    ]  # fmt: skip


def test_directions_depend_on_the_conformation_and_the_moment_only() -> None:
    one, other = Batch.from_data_list(GRAPHS), Batch.from_data_list(GRAPHS[::-1])
    v, w = random_directions(one, 2, 7, 0, 3), random_directions(other, 2, 7, 0, 3)
    assert v.shape == (2, len(one.z), 3)
    sizes = [len(data.z) for data in GRAPHS]
    assert torch.equal(torch.cat(w.split(sizes[::-1], dim=1)[::-1], dim=1), v)
    assert torch.equal(v.abs(), torch.ones_like(v))
    for key in ((7, 0, 4), (7, 1, 3), (8, 0, 3)):
        assert not torch.equal(random_directions(one, 2, *key), v)
    assert not torch.equal(v[0], v[1])


def test_directions_are_independent_with_unit_variance() -> None:
    batch = Batch.from_data_list(GRAPHS[:2])
    drawn = torch.stack([random_directions(batch, 1, 0, step)[0].flatten() for step in range(4000)]).double()
    covariance = drawn.T @ drawn / len(drawn)
    assert (covariance - torch.eye(len(covariance))).abs().max() < 5 / 4000**0.5
    assert drawn.mean(dim=0).abs().max() < 5 / 4000**0.5
    both = torch.stack([random_directions(batch, 2, 0, step).flatten(1) for step in range(1000)]).double()
    assert (both[:, 0].T @ both[:, 1] / 1000).abs().max() < 5 / 1000**0.5


def test_charges_of_a_crystal_and_a_molecule_in_one_batch() -> None:
    """The properties that only some graphs of a batch have are those that are compared."""
    model, batch = potential(), Batch.from_data_list(GRAPHS)
    prediction = model.predict(batch, {"dz": "ESDQ"})["dz"]
    assert prediction.stress.isfinite().all(dim=(1, 2)).tolist() == [False, True, False, False]
    assert prediction.dipole.isfinite().all(dim=1).tolist() == [True, False, True, True]
    for p in (STRESS, DIPOLE, CHARGES):
        assert label_errors(p, prediction, batch, LEVELS.index("dz")).isfinite().all()
    without = copy.copy(prediction)
    without.dipole = None
    with pytest.raises(AssertionError):
        label_errors(DIPOLE, without, batch, LEVELS.index("dz"))


def test_differences_of_hessians_follow_the_labels_of_each_graph() -> None:
    """The pairs of graphs with both labels, as another level; all others stay as they are."""
    batch, both = Batch.from_data_list([*GRAPHS, graph(2, {"dz": "H", "tz": "H", "cc": "H"})]), [3, 4]
    before = {name: batch.hessian[hessian_rows(batch, LEVELS.index(name))[0]] for name in LEVELS}
    batch.hessian, batch.hessian_mask = with_pair_difference(batch, LEVELS.index("tz"), LEVELS.index("dz"))
    assert batch.hessian_mask[:, T].nonzero().flatten().tolist() == both
    for name in LEVELS:
        assert torch.equal(batch.hessian[hessian_rows(batch, LEVELS.index(name))[0]], before[name])
    graphs = (GRAPHS[3], graph(2, {"dz": "H", "tz": "H", "cc": "H"}))
    expected = [whole_label(data, "tz") - whole_label(data, "dz") for data in graphs]
    found = batch.hessian[hessian_rows(batch, T)[0]].split([9, 16])
    for n, rows, matrix in zip((3, 4), found, expected, strict=True):
        assert torch.equal(rows.view(n, n, 3, 3).permute(0, 2, 1, 3).reshape(3 * n, 3 * n), matrix)


def test_faults_of_hessians_are_found_in_their_graph() -> None:
    """Also of the products that training compares; a stress of a molecule, or a dipole of a crystal, is no fault."""
    names, network = [f"m{number}" for number in range(6)], potential()
    loss = MultiFidelityLoss(FIDELITIES, {f.name: LEVELS.index(f.name) for f in FIDELITIES}, WEIGHTS, 0.0)
    batch = Batch.from_data_list([copy.copy(data) for data in GRAPHS])
    predictions = loss.predict(network, batch, 0)
    assert fault_of_data(network, batch, loss.labels, names) is None
    assert fault_of_predictions(predictions, batch, names) is None
    products = predictions["dz"].hessian
    assert isinstance(products, Products)
    products.values = products.values.detach().clone()
    products.values[0, -1, 2] = torch.inf  # of the last graph
    found = fault_of_predictions(predictions, batch, names)
    assert found == "the predicted dz hessian of m4, conformation 8, is not finite (1 of 4 in the batch)"
    rows, _, _ = hessian_rows(batch, LEVELS.index("dz"))
    batch.hessian = batch.hessian.clone()
    batch.hessian[rows[0], 1, 1] = torch.nan  # of the first graph
    found = fault_of_data(network, batch, loss.labels, names)
    assert found is not None
    assert found.startswith("the dz hessian label of m3, conformation 6, is NaN or infinite")
