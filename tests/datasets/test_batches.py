"""Batches by tensor indexing are those of PyTorch Geometric, key for key; loaders go on where they stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data, InMemoryDataset
from torch_geometric.loader import DataLoader

from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.batches import Assembler, BatchLoader, by_size, in_batches, rows_of
from mfpyg.graph import RadiusGraph


class Tagged:
    """A pre_transform that adds a text, a list, a number and a tensor with a name that PyG offsets."""

    def __call__(self, data: Data) -> Data:
        data.tag = f"molecule {int(data.molecule)}"
        data.charges = [float(z) for z in data.z]
        data.count = len(data.z)
        data.heavy_index = torch.nonzero(data.z > 1).flatten()
        return data

    def __repr__(self) -> str:
        return "Tagged()"


class Indexed:
    """A pre_transform that adds only tensors, of names that PyG treats in ways of their own."""

    def __call__(self, data: Data) -> Data:
        data.heavy_index = torch.nonzero(data.z > 1).flatten()
        data.edge_attr = data.pos.norm(dim=1)
        return data

    def __repr__(self) -> str:
        return "Indexed()"


class Paired:
    """A pre_transform that adds a (2, n) or (3, n) tensor, which PyG joins along its last dimension."""

    def __init__(self, key: str, rows: int) -> None:
        self.key, self.rows = key, rows

    def __call__(self, data: Data) -> Data:
        data[self.key] = torch.arange(self.rows * (len(data.z) + 1)).reshape(self.rows, -1) % len(data.z)
        return data

    def __repr__(self) -> str:
        return f"Paired({self.key!r}, {self.rows})"


def shifted(data: Data) -> Data:
    data.pos = data.pos + 1
    return data


def with_list_added(data: Data) -> Data:
    data.extra_index = torch.arange(len(data.z))
    return data


MAKERS: dict[str, Callable[[], InMemoryDataset]] = {
    "whole": MiniCHNO,
    "slice": lambda: MiniCHNO()[100:700:3],
    "list": lambda: MiniCHNO()[[700, 3, 3, 0, 512, 9, -1]],
    "mask": lambda: MiniCHNO()[torch.arange(788) % 5 == 2],
    "part of a part": lambda: MiniCHNO()[100:700:3][[5, 1, 100]],
    "shuffled": lambda: MiniCHNO().shuffle(),
    "copy of a part": lambda: MiniCHNO().copy(slice(50, 90)),
    "stored edges": lambda: MiniCHNO(pre_transform=RadiusGraph(4.0)),
    "part with stored edges": lambda: MiniCHNO(pre_transform=RadiusGraph(4.0))[40:60],
    "no edge at all": lambda: MiniCHNO(pre_transform=RadiusGraph(0.1)),
    "transform": lambda: MiniCHNO(transform=shifted),
    "transform that adds": lambda: MiniCHNO(transform=with_list_added)[::-1],
    "texts and lists": lambda: MiniCHNO(pre_transform=Tagged()),
    "indices": lambda: MiniCHNO(pre_transform=Indexed()),
}


@pytest.fixture(scope="module", params=MAKERS)
def dataset(request: pytest.FixtureRequest) -> InMemoryDataset:
    return MAKERS[request.param]()


@pytest.fixture(scope="module")
def minichno() -> MiniCHNO:
    return MiniCHNO()


def assert_same_value(found: Any, expected: Any, key: str) -> None:
    assert type(found) is type(expected), key
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype, key
        assert found.shape == expected.shape, key
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True, msg=key)
    else:
        assert found == expected, key


def assert_same_data(found: Data, expected: Data) -> None:
    assert list(found.keys()) == list(expected.keys())
    for key in expected.keys():  # noqa: SIM118
        assert_same_value(found[key], expected[key], key)


def assert_same_batch(found: Batch, expected: Batch) -> None:
    """Everything that can be seen of a batch, and what it needs to be taken apart again."""
    assert type(found) is type(expected)
    assert_same_data(found, expected)
    assert found.num_graphs == expected.num_graphs
    assert found.num_nodes == expected.num_nodes
    assert found.num_edges == expected.num_edges
    assert_same_value(found.batch, expected.batch, "batch")
    assert_same_value(found.ptr, expected.ptr, "ptr")
    for name in ("_slice_dict", "_inc_dict"):
        one, other = getattr(found, name), getattr(expected, name)
        assert list(one) == list(other), name
        for key in other:
            assert_same_value(one[key], other[key], f"{name}[{key}]")
    for one, other in zip(found.to_data_list(), expected.to_data_list(), strict=True):
        assert type(one) is type(other)
        assert_same_data(one, other)
    assert_same_data(found[found.num_graphs - 1], expected[expected.num_graphs - 1])
    some = slice(0, None, 2)
    for one, other in zip(found.index_select(some), expected.index_select(some), strict=True):
        assert_same_data(one, other)


def assert_same_batches(found: Iterable[Batch], expected: Iterable[Batch]) -> None:
    found, expected = list(found), list(expected)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert_same_batch(one, other)


def of_pyg(dataset: InMemoryDataset, rows: Iterable[int]) -> Batch:
    return Batch.from_data_list([dataset[int(row)] for row in rows])


# As PyTorch Geometric's


@pytest.mark.parametrize("batch_size", [7, 60])
def test_loader_gives_the_batches_of_pyg(dataset: InMemoryDataset, batch_size: int) -> None:
    part = dataset if len(dataset) < 100 else dataset[:100]
    assert_same_batches(BatchLoader(part, batch_size), DataLoader(part, batch_size))


def test_batch_of_any_conformations_is_that_of_pyg(dataset: InMemoryDataset) -> None:
    assemble, random = Assembler(dataset), np.random.default_rng(0)
    on_device = Assembler(dataset, torch.device("cpu"))
    for n in (1, 2, 30):
        rows = random.integers(0, len(dataset), n)
        rows[-1] = rows[0]  # one stands there twice
        for given in (rows, rows.tolist(), torch.from_numpy(rows)):
            assert_same_batch(assemble(given), of_pyg(dataset, rows))
        assert_same_batch(on_device(rows), of_pyg(dataset, rows))


def test_batch_on_a_device_is_assembled_without_reading_from_it(dataset: InMemoryDataset) -> None:
    """On ``meta``, there is nothing to read; all sizes are those on the CPU."""
    rows = np.arange(0, len(dataset), 3)
    found, expected = Assembler(dataset, torch.device("meta"))(rows), Assembler(dataset)(rows)
    assert list(found.keys()) == list(expected.keys())
    if not Assembler(dataset)._by_indexing:
        pytest.skip("assembled by PyG's collate, on the CPU")
    for key in expected.keys():  # noqa: SIM118
        assert found[key].is_meta, key
        assert found[key].shape == expected[key].shape, key
        assert found[key].dtype == expected[key].dtype, key


def test_each_conformation_alone_is_a_batch(minichno: MiniCHNO) -> None:
    part = minichno[::40]
    assert_same_batches(BatchLoader(part), DataLoader(part))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stored edges", "texts and lists"])
def test_workers_give_the_same_batches(name: str) -> None:
    part = MAKERS[name]()[:60]
    assert_same_batches(BatchLoader(part, 16, num_workers=2), DataLoader(part, 16))


@pytest.mark.parametrize(("key", "rows"), [("face", 3), ("pair_index", 2)])
def test_pairs_and_faces_that_a_transform_adds_are_stored_and_joined(key: str, rows: int) -> None:
    part = MiniCHNO(pre_transform=Paired(key, rows))[::13]
    assert part[0][key].shape == (rows, len(part[0].z) + 1)
    assert_same_batches(BatchLoader(part, 30), DataLoader(part, 30))
    assert_same_data(part.copy()._data, InMemoryDataset.copy(part)._data)


def test_batch_shares_nothing_with_the_data_set_or_another_batch(minichno: MiniCHNO) -> None:
    assemble = Assembler(minichno)
    first, second = assemble([3, 4]), assemble([3, 4])
    before = minichno[3].pos.clone()
    for key in first.keys():  # noqa: SIM118
        first[key].zero_()
    first.new_key = 1
    assert_same_batch(second, of_pyg(minichno, [3, 4]))
    assert torch.equal(minichno[3].pos, before)
    assert "new_key" not in assemble([3, 4])


@pytest.mark.parametrize("rows", [[788], [-789], [0, 10000]])
def test_number_of_no_conformation_is_refused(minichno: MiniCHNO, rows: list[int]) -> None:
    with pytest.raises((IndexError, RuntimeError)):
        Assembler(minichno)(rows)


def test_rows_are_those_between_the_slices() -> None:
    slices = torch.tensor([0, 3, 3, 7, 8])
    rows, new, owner = rows_of(slices, torch.tensor([2, 0, 1, 2]))
    assert rows.tolist() == [3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6]
    assert new.tolist() == [0, 4, 7, 7, 11]
    assert owner.tolist() == [0, 0, 0, 0, 1, 1, 1, 3, 3, 3, 3]
    rows, new, owner = rows_of(slices, torch.tensor([], dtype=torch.int64))
    assert (rows.tolist(), new.tolist(), owner.tolist()) == ([], [0], [])


# Order and epochs


def numbers(loader: Iterable[Batch]) -> list[list[int]]:
    """Which conformations each batch has: their energies are all different."""
    return [batch.energy[:, 0].tolist() for batch in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


def test_every_epoch_has_every_conformation_once_in_an_order_of_its_own(minichno: MiniCHNO) -> None:
    part = minichno[::8]
    loader = BatchLoader(part, 10, shuffle=True, seed=5)
    epochs = [numbers(loader) for _ in range(3)]
    every = part._data.energy[list(part.indices()), 0].tolist()
    assert len(set(every)) == len(every)
    for number, epoch in enumerate(epochs):
        assert sorted(flat(epoch)) == sorted(every)
        assert [len(batch) for batch in epoch] == [10] * 9 + [9]
        order = np.random.default_rng((5, number)).permutation(len(part))
        assert flat(epoch) == [every[i] for i in order]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != [every[i : i + 10] for i in range(0, len(every), 10)]


def test_seed_alone_decides_the_order(minichno: MiniCHNO) -> None:
    part = minichno[:60]

    def two_epochs(seed: int) -> list[list[list[int]]]:
        loader = BatchLoader(part, 8, shuffle=True, seed=seed)
        return [numbers(loader), numbers(loader)]

    first = two_epochs(1)
    torch.manual_seed(99)
    np.random.seed(99)
    assert two_epochs(1) == first
    assert two_epochs(2) != first
    assert numbers(BatchLoader(part, 8, shuffle=True, seed=1, epoch=1)) == first[1]


def test_without_shuffling_every_epoch_is_in_order(minichno: MiniCHNO) -> None:
    loader = BatchLoader(minichno[:20], 6)
    expected = minichno._data.energy[:20, 0].tolist()
    assert flat(numbers(loader)) == flat(numbers(loader)) == expected
    assert len(loader) == 4


@pytest.mark.parametrize(("done", "workers"), [(0, 0), (1, 0), (4, 0), (7, 0), (8, 0), (0, 2), (5, 2)])
def test_loader_with_the_state_of_another_goes_on_with_the_rest(minichno: MiniCHNO, done: int, workers: int) -> None:
    part = minichno[:64]

    def new() -> BatchLoader:
        return BatchLoader(part, 8, shuffle=True, seed=3, num_workers=workers)

    whole = new()
    epochs = [numbers(whole) for _ in range(4)]
    stopped = new()
    numbers(stopped)  # the state is one of the second epoch
    batches = iter(stopped)
    for _ in range(done):
        next(batches)
    state = stopped.state_dict()
    assert state == {"epoch": 1, "batch": done}
    resumed = new()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert numbers(resumed) == epochs[1][done:]
    assert resumed.state_dict() == {"epoch": 1, "batch": 8}
    assert numbers(resumed) == epochs[2]
    assert numbers(resumed) == epochs[3]


def test_pass_after_a_broken_off_one_starts_at_the_beginning(minichno: MiniCHNO) -> None:
    part = minichno[:64]
    whole, broken = (BatchLoader(part, 8, shuffle=True, seed=3) for _ in range(2))
    epochs = [numbers(whole) for _ in range(2)]
    for _ in zip(range(3), broken, strict=False):
        pass
    assert numbers(broken) == epochs[1]
    resumed = BatchLoader(part, 8, shuffle=True, seed=3)
    resumed.load_state_dict({"epoch": 0, "batch": 5})
    for _ in zip(range(1), resumed, strict=False):
        pass
    assert numbers(resumed) == epochs[1]


def test_state_before_the_first_pass_is_the_beginning(minichno: MiniCHNO) -> None:
    loader = BatchLoader(minichno[:10], 4, shuffle=True, epoch=6)
    assert loader.state_dict() == {"epoch": 6, "batch": 0}


def test_plan_says_what_the_batches_are(minichno: MiniCHNO) -> None:
    def plan(epoch: int) -> list[np.ndarray]:
        return [np.array([epoch, 5]), np.array([7])]

    loader = BatchLoader(minichno, plan=plan, epoch=2)
    energy = minichno._data.energy[:, 0].tolist()
    assert numbers(loader) == [[energy[2], energy[5]], [energy[7]]]
    assert numbers(loader) == [[energy[3], energy[5]], [energy[7]]]
    assert len(loader) == 2


@pytest.mark.parametrize("n", [1, 9, 10, 11])
def test_batches_in_order_are_full_but_the_last(n: int) -> None:
    rows = np.arange(n) * 3
    batches = in_batches(rows, 5)(0)
    assert np.concatenate(batches).tolist() == rows.tolist()
    assert all(len(batch) == 5 for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= 5


# By size


@pytest.mark.parametrize("seed", range(8))
def test_batches_by_size_keep_their_bounds(seed: int) -> None:
    random = np.random.default_rng(seed)
    n_atoms = random.integers(1, 40, 300)
    rows = random.permutation(300)[: random.integers(1, 300)]
    most_graphs, most_atoms = int(random.integers(1, 30)), int(random.integers(40, 400))
    batches = by_size(rows, n_atoms, most_graphs, most_atoms)(0)
    assert sorted(np.concatenate(batches)) == sorted(rows)
    for batch in batches:
        assert 1 <= len(batch) <= most_graphs
        assert n_atoms[batch].sum() <= most_atoms
    sizes = n_atoms[np.concatenate(batches)]
    assert (np.diff(sizes) >= 0).all()
    # No batch could have taken the first conformation of the next.
    for one, other in pairwise(batches):
        assert len(one) == most_graphs or n_atoms[one].sum() + n_atoms[other[0]] > most_atoms


@pytest.mark.parametrize("n_atoms", [[3, 900, 4, 5], [900], [900, 901, 902], [3, 3, 900]])
def test_conformation_above_the_bound_is_alone(n_atoms: list[int]) -> None:
    sizes = np.array(n_atoms)
    batches = by_size(np.arange(len(sizes)), sizes, 10, 100)(0)
    large = [batch.tolist() for batch in batches if (sizes[batch] > 100).any()]
    assert large == [[i] for i in np.argsort(sizes, kind="stable").tolist() if sizes[i] > 100]
    assert sorted(np.concatenate(batches)) == list(range(len(sizes)))


def test_no_conformations_are_no_batches(minichno: MiniCHNO) -> None:
    nothing = np.empty(0, np.int64)
    assert list(by_size(nothing, np.array([3]), 10, 100)(0)) == []
    assert list(in_batches(nothing, 10)(0)) == []
    assert list(BatchLoader(minichno[[]], 10)) == list(DataLoader(minichno[[]], 10)) == []


# Copies

CHOICES = {
    "None": None,
    "slice": slice(10, 200, 7),
    "list": [700, 3, 3, 0, -1],
    "tuple": (4, 2),
    "mask": torch.arange(788) % 5 == 2,
    "tensor": torch.tensor([5, 1, 5]),
    "array": np.array([5, 1, 5]),
    "array mask": np.arange(788) % 9 == 0,
    "range": range(3, 30, 4),
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("name", ["whole", "stored edges", "texts and lists", "indices"])
def test_copy_is_that_of_pyg(name: str, choice: str) -> None:
    dataset, idx = MAKERS[name](), CHOICES[choice]
    found, expected = dataset.copy(idx), InMemoryDataset.copy(dataset, idx)
    assert type(found) is type(expected)
    assert len(found) == len(expected)
    assert found._indices is None
    assert_same_data(found._data, expected._data)
    assert list(found.slices) == list(expected.slices)
    for key, value in expected.slices.items():
        assert_same_value(found.slices[key], value, key)
    assert found.fidelities == dataset.fidelities
    assert_same_data(found[len(found) - 1], expected[len(expected) - 1])


@pytest.mark.parametrize("choice", ["None", "slice", "list"])
def test_copy_of_a_part_is_that_of_pyg(minichno: MiniCHNO, choice: str) -> None:
    part = minichno[::-2]
    idx = {"None": None, "slice": slice(3, 9), "list": [7, 0, 0, -1]}[choice]
    found, expected = part.copy(idx), InMemoryDataset.copy(part, idx)
    assert_same_data(found._data, expected._data)
    assert len(found) == len(expected)


@pytest.mark.parametrize("choice", ["None", "slice", "tensor"])
def test_change_of_a_copy_or_of_the_original_stays_there(choice: str) -> None:
    original = MiniCHNO()
    before = {key: value.clone() for key, value in original._data.to_dict().items()}
    slices_before = {key: value.clone() for key, value in original.slices.items()}
    copied = original.copy(CHOICES[choice])
    copied_before = {key: value.clone() for key, value in copied._data.to_dict().items()}
    for value in [*copied._data.to_dict().values(), *copied.slices.values()]:
        value.zero_()
    for key, value in before.items():
        assert_same_value(original._data[key], value, key)
    for key, value in slices_before.items():
        assert_same_value(original.slices[key], value, key)
    assert any(bool(value.nan_to_num().any()) for value in copied_before.values())
    copied = original.copy(CHOICES[choice])
    for value in original._data.to_dict().values():
        value.zero_()
    for key, value in copied_before.items():
        assert_same_value(copied._data[key], value, key)
