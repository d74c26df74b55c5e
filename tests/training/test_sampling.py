"""What batches are made of: amounts of labels, sizes, processes; and that every conformation has its turn."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch

from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.splits import make_splits
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import Fidelity
from mfpyg.inference.dataset import BATCH_SIZE
from mfpyg.settings import SamplingSettings, SplitSettings, TrainSettings
from mfpyg.training.check import check_minimum, check_settings
from mfpyg.training.data import ConformationData
from mfpyg.training.inputs import Inputs
from mfpyg.training.labels import labelled_rows
from mfpyg.training.sampling import Sampling
from mfpyg.training.strategies.joint import joint_stage, temperature_of


def rare_and_common(n_rare: int = 40, n_common: int = 400, seed: int = 0) -> Sampling:
    """Two fidelities: the first on all conformations, the second on few of them."""
    labelled = np.ones((n_rare + n_common, 2), bool)
    labelled[:, 1] = np.random.default_rng(seed).permutation(n_rare + n_common) < n_rare
    return Sampling(1000 + 7 * np.arange(n_rare + n_common), labelled, seed)


def some_labels(random: np.random.Generator, n: int, columns: int) -> np.ndarray:
    """Labels of very unequal amounts, at least one a row."""
    labelled = random.random((n, columns)) < random.choice([0.03, 0.3, 0.9], columns)
    labelled[np.arange(n), random.integers(0, columns, n)] = True
    return labelled


# Proportional


@pytest.mark.parametrize(("n", "batch_size"), [(1, 1), (10, 3), (604, 100), (604, 605), (12, 4)])
def test_proportional_epoch_is_one_permutation_in_nearly_equal_batches(n: int, batch_size: int) -> None:
    rows = np.random.default_rng(1).choice(10_000, n, replace=False)
    sampling = Sampling(rows, some_labels(np.random.default_rng(2), n, 3), seed=5)
    for epoch in range(3):
        batches = sampling.batches(epoch, batch_size)
        expected = np.array_split(np.random.default_rng((5, epoch)).permutation(rows), math.ceil(n / batch_size))
        assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in expected]
        assert sorted(np.concatenate(batches)) == sorted(rows)
        sizes = [len(batch) for batch in batches]
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("temperature", [2.0, math.inf])
def test_one_class_is_proportional_at_any_temperature(temperature: float) -> None:
    rows, labelled = np.arange(50), np.ones((50, 2), bool)
    hot, plain = Sampling(rows, labelled, 3, temperature), Sampling(rows, labelled, 3)
    assert len(hot.classes) == 1
    assert [b.tolist() for b in hot.batches(2, 8)] == [b.tolist() for b in plain.batches(2, 8)]


def test_conformation_is_of_the_class_of_its_rarest_fidelity() -> None:
    labelled = np.array([[1, 0, 0]] * 6 + [[1, 1, 0]] * 4 + [[1, 1, 1]] * 2 + [[0, 0, 1]], bool)
    sampling = Sampling(np.arange(13), labelled, 0)
    assert sorted(members.tolist() for members in sampling.classes) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9], [10, 11, 12]]


# Balanced, and between


@pytest.mark.parametrize("temperature", [1.0, 1.5, 2.0, 5.0, math.inf])
def test_shares_follow_the_temperature(temperature: float) -> None:
    for seed in range(10):
        random = np.random.default_rng(seed)
        n = int(random.integers(3, 500))
        sampling = Sampling(np.arange(n), some_labels(random, n, 3), seed, temperature)
        sizes = np.array([len(members) for members in sampling.classes], float)
        weights = sizes ** (0.0 if temperature == math.inf else 1 / temperature)
        exact = n * weights / weights.sum()
        shares = sampling.shares()
        assert shares.sum() == n
        assert (np.abs(shares - exact) < 1).all()
        if temperature == 1:
            assert shares.tolist() == sizes.tolist()


@pytest.mark.parametrize("temperature", [1.7, 4.0, math.inf])
def test_members_of_a_class_are_drawn_equally_often(temperature: float) -> None:
    sampling = dataclasses.replace(rare_and_common(), temperature=temperature)
    drawn: Counter[int] = Counter()
    for epoch in range(37):
        batches = sampling.batches(epoch, 64)
        assert sum(len(batch) for batch in batches) == 440
        here = Counter(np.concatenate(batches).tolist())
        for members, share in zip(sampling.classes, sampling.shares(), strict=True):
            counts = [here[row] for row in sampling.rows[members].tolist()]
            assert sum(counts) == share
            assert max(counts) - min(counts) <= 2  # the end of one order, and the beginning of the next
        drawn += here
        for members in sampling.classes:
            counts = [drawn[row] for row in sampling.rows[members].tolist()]
            assert max(counts) - min(counts) <= 1
    assert set(drawn) == set(sampling.rows.tolist())


def test_balanced_epoch_has_as_many_of_each_class() -> None:
    sampling = dataclasses.replace(rare_and_common(), temperature=math.inf)
    assert sampling.shares().tolist() == [220, 220]
    with_rare = [sampling.labelled[(batch - 1000) // 7, 1].mean() for batch in sampling.batches(0, 110)]
    assert np.mean(with_rare) == 0.5
    assert 0.3 < min(with_rare) < max(with_rare) < 0.7, "the classes are not mixed"


def test_epochs_follow_from_seed_and_number_alone() -> None:
    def epoch(seed: int, number: int, **options: Any) -> list[list[int]]:
        sampling = dataclasses.replace(rare_and_common(), seed=seed, temperature=3.0, **options)
        return [batch.tolist() for batch in sampling.batches(number, 50)]

    more = {"minimum": (1, 20), "n_atoms": np.arange(440) % 13, "window": 3}
    for options in ({}, more):
        used = dataclasses.replace(rare_and_common(), seed=1, temperature=3.0, **options)
        for number in (4, 0, 2):  # whatever has been drawn before
            assert [b.tolist() for b in used.batches(number, 50)] == epoch(1, number, **options)
        assert epoch(1, 0, **options) != epoch(1, 1, **options)
        assert epoch(1, 0, **options) != epoch(2, 0, **options)


# A minimum in each batch


@pytest.mark.parametrize("seed", range(12))
def test_every_batch_has_the_minimum_and_no_more_is_drawn_than_needed(seed: int) -> None:
    random = np.random.default_rng(seed)
    n, columns = int(random.integers(20, 300)), int(random.integers(1, 4))
    labelled, batch_size = some_labels(random, n, columns), int(random.integers(1, 60))
    fidelity = int(random.integers(columns))
    count = int(labelled[:, fidelity].sum())
    least = int(random.integers(1, min(batch_size, count) + 1))
    plain = Sampling(np.arange(n), labelled, seed, float(random.choice([1.0, 3.0, math.inf])))
    asked = dataclasses.replace(plain, minimum=(fidelity, least))
    for epoch in range(3):
        before, after = plain.batches(epoch, batch_size), asked.batches(epoch, batch_size)
        assert [len(batch) for batch in after] == [len(batch) for batch in before]
        needed = [min(least, len(batch)) for batch in before]
        for batch, enough in zip(after, needed, strict=True):
            assert labelled[batch, fidelity].sum() >= enough
        rows_before, rows_after = Counter(np.concatenate(before).tolist()), Counter(np.concatenate(after).tolist())
        there = int(labelled[np.concatenate(before), fidelity].sum())
        if there >= sum(needed):
            assert rows_after == rows_before
        else:  # as many again as were lacking, and all labelled
            added = rows_after - rows_before
            assert sum(added.values()) == sum(needed) - there
            assert all(labelled[row, fidelity] for row in added)
            assert not any(labelled[row, fidelity] for row in rows_before - rows_after)
        if all(labelled[b, fidelity].sum() >= k for b, k in zip(before, needed, strict=True)):
            assert [batch.tolist() for batch in after] == [batch.tolist() for batch in before]


@pytest.mark.parametrize("seed", range(5))
def test_minimum_puts_no_conformation_twice_into_a_batch(seed: int) -> None:
    plain = rare_and_common(n_rare=12, n_common=200, seed=seed)
    for epoch in range(5):
        for batch in dataclasses.replace(plain, minimum=(1, 12)).batches(epoch, 20):
            assert len(set(batch.tolist())) == len(batch)


def test_minimum_above_the_number_of_labels_is_refused() -> None:
    plain = rare_and_common(n_rare=5)
    with pytest.raises(MFPyGError, match=r"sampling\.minimum is 6 graphs a batch, but only 5 conformations"):
        dataclasses.replace(plain, minimum=(1, 6))
    dataclasses.replace(plain, minimum=(1, 5))


# Graphs of like size together


@pytest.mark.parametrize("window", [2, 4, 100])
@pytest.mark.parametrize("temperature", [1.0, math.inf])
def test_window_brings_like_sizes_together_and_changes_nothing_else(window: int, temperature: float) -> None:
    n_atoms = np.random.default_rng(3).integers(3, 30, 440)
    plain = dataclasses.replace(rare_and_common(), temperature=temperature)
    near = dataclasses.replace(plain, n_atoms=n_atoms, window=window)

    def spread(batches: list[np.ndarray]) -> float:
        return float(np.mean([n_atoms[(batch - 1000) // 7].var() for batch in batches]))

    for epoch in range(3):
        before, after = plain.batches(epoch, 20), near.batches(epoch, 20)
        assert sorted(np.concatenate(before)) == sorted(np.concatenate(after))
        assert sorted(map(len, before)) == sorted(map(len, after))
        assert spread(after) < {2: 0.4, 4: 0.15, 100: 0.02}[window] * spread(before)
        means = [float(n_atoms[(batch - 1000) // 7].mean()) for batch in after]
        assert means != sorted(means), "small graphs come first"


def test_minimum_holds_with_a_window() -> None:
    n_atoms = np.arange(440) % 17
    sampling = dataclasses.replace(rare_and_common(), minimum=(1, 2), n_atoms=n_atoms, window=5)
    for batch in sampling.batches(0, 40):
        assert sampling.labelled[(batch - 1000) // 7, 1].sum() >= 2


# Loaders


@pytest.fixture(scope="module")
def minichno() -> MiniCHNO:
    return MiniCHNO()


class Processes:
    """What the loaders ask of a trainer."""

    strategy = SimpleNamespace(root_device=torch.device("cpu"))

    def __init__(self, world_size: int, rank: int, epoch: int = 0) -> None:
        self.world_size, self.global_rank, self.current_epoch = world_size, rank, epoch


def data_of(
    dataset: MiniCHNO,
    texts: list[str],
    batch_size: int = 50,
    minimum: tuple[str, int] | None = None,
    splits: dict[str, np.ndarray] | None = None,
    **sampling: Any,
) -> ConformationData:
    splits = splits or make_splits(dataset, SplitSettings(), seed=0)
    fidelities = tuple(Fidelity.parse(text) for text in texts)
    wanted = SamplingSettings(**sampling, minimum=None if minimum is None else f"{minimum[0]}={minimum[1]}")
    settings = TrainSettings(fidelities=texts, sampling=wanted, batch_size=batch_size, seed=7)
    return ConformationData(joint_stage(Inputs(settings, fidelities, dataset, splits)), batch_size)


def energies(loader: Any) -> list[list[float]]:
    return [batch.energy[:, 0].tolist() for batch in loader]


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("options", [{}, {"strategy": "balanced", "window": 2, "minimum": ("tz", 5)}])
def test_shares_of_the_processes_make_up_the_whole_batch(
    minichno: MiniCHNO, processes: int, options: dict[str, Any]
) -> None:
    whole = data_of(minichno, ["dz:EF", "tz:E"], **options)
    parts = []
    for rank in range(processes):
        parts.append(data_of(minichno, ["dz:EF", "tz:E"], **options))
        parts[-1].trainer = Processes(processes, rank)  # type: ignore[assignment]
        parts[-1].setup("fit")
    for loaders in (
        [data.train_dataloader() for data in (whole, *parts)],
        [data.val_dataloader() for data in (whole, *parts)],
    ):
        expected, *shares = [list(loader) for loader in loaders]
        assert len(expected) == len(shares[0]) > 0
        for batch, *mine in zip(expected, *shares, strict=True):
            together = [energy for share in mine for energy in share.energy[:, 0].tolist()]
            assert sorted(together) == sorted(batch.energy[:, 0].tolist())
            graphs, atoms = [share.num_graphs for share in mine], [share.num_nodes for share in mine]
            assert max(graphs) - min(graphs) <= 1
            assert max(atoms) - min(atoms) <= int(batch.ptr.diff().max())


def test_loader_begins_with_the_trainers_epoch(minichno: MiniCHNO) -> None:
    data = data_of(minichno, ["dz:EF"])
    data.trainer = Processes(1, 0, epoch=4)  # type: ignore[assignment]
    column = minichno._data.energy[:, 0].numpy()
    expected = [column[batch].tolist() for batch in data.train.batches(4, 50)]
    assert energies(data.train_dataloader()) == expected
    data.batch_size = 120
    expected = [column[batch].tolist() for batch in data.train.batches(4, 120)]
    assert energies(data.train_dataloader()) == expected


def test_validation_is_every_conformation_once_in_order(minichno: MiniCHNO) -> None:
    splits = make_splits(minichno, SplitSettings(val=0.4), seed=0)
    data = data_of(minichno, ["dz:EF"], splits=splits)
    loader = data.val_dataloader()
    found = energies(loader)
    assert [e for batch in found for e in batch] == minichno._data.energy[splits["val"], 0].tolist()
    assert max(map(len, found)) <= BATCH_SIZE < len(splits["val"])
    assert energies(loader) == found


@pytest.mark.parametrize("texts", [["tz:E"], ["tz:EF"], ["tz:F"], ["cc:F"], ["tz:E", "cc:F"]])
def test_conformations_without_a_label_trained_on_are_left_out(minichno: MiniCHNO, texts: list[str]) -> None:
    splits = make_splits(minichno, SplitSettings(method="random"), seed=0)
    data = data_of(minichno, texts, splits=splits)
    column = {name: t for t, name in enumerate(minichno.fidelities)}
    for name, kept in (("train", data.train.rows), ("val", data.val)):
        having = np.zeros(len(splits[name]), bool)
        for text in texts:
            fidelity, labels = text.split(":")
            for letter, key in (("E", "energy_mask"), ("F", "forces_mask")):
                if letter in labels:
                    having |= minichno._data[key][splits[name], column[fidelity]].numpy()
        assert 0 < having.sum() < len(having)
        assert kept.tolist() == splits[name][having].tolist()


def test_labels_of_each_fidelity_are_those_trained_on(minichno: MiniCHNO) -> None:
    rows = np.arange(0, 788, 3)
    found = labelled_rows(minichno, rows, [Fidelity.parse("cc:F"), Fidelity.parse("tz:EF"), Fidelity.parse("dz:E")])
    masks = minichno._data
    assert found[:, 0].tolist() == masks.forces_mask[rows, 3].tolist()
    assert found[:, 1].tolist() == (masks.energy_mask | masks.forces_mask)[rows, 1].tolist()
    assert found[:, 2].all()


def test_process_without_a_share_of_a_batch_computes_on_what_has_no_labels(minichno: MiniCHNO) -> None:
    splits = {**make_splits(minichno, SplitSettings(), seed=0)}
    splits["train"] = splits["train"][:3]
    shares = []
    for rank in range(4):
        data = data_of(minichno, ["dz:E"], batch_size=3, splits=splits)
        data.trainer = Processes(4, rank)  # type: ignore[assignment]
        (batch,) = data.train_dataloader()
        shares.append((batch.num_graphs, data.on_before_batch_transfer(batch, 0)))
    assert sorted(n for n, _ in shares) == [0, 1, 1, 1]
    for n, batch in shares:
        assert batch.num_graphs == 1
        assert bool(batch.energy_mask.any()) == (n == 1)
        assert not (batch.forces_mask.any() and n == 0)


@pytest.mark.parametrize("name", ["proportional", "balanced", "temperature"])
def test_strategy_is_a_temperature(name: str) -> None:
    settings = SamplingSettings(strategy=name, temperature=3.5)
    assert temperature_of(settings) == {"proportional": 1, "balanced": math.inf, "temperature": 3.5}[name]


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_temperature_of_one_is_proportional(minichno: MiniCHNO, temperature: float) -> None:
    warm = data_of(minichno, ["dz:E", "tz:E"], strategy="temperature", temperature=temperature)
    plain = data_of(minichno, ["dz:E", "tz:E"])
    same = [b.tolist() for b in warm.train.batches(1, 50)] == [b.tolist() for b in plain.train.batches(1, 50)]
    assert same == (temperature == 1)


def test_minimum_counts_labels_trained_on_in_every_batch(minichno: MiniCHNO) -> None:
    data = data_of(minichno, ["dz:E", "tz:F"], batch_size=30, minimum=("tz", 9))
    assert min(int(batch.forces_mask[:, 1].sum()) for batch in data.train_dataloader()) >= 9
    plain = data_of(minichno, ["dz:E", "tz:F"], batch_size=30)
    assert min(int(batch.forces_mask[:, 1].sum()) for batch in plain.train_dataloader()) < 9


class Recorder(lightning.LightningModule):
    """Notes which conformations it is trained and validated on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[list[list[float]]]] = {"train": [], "val": []}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_train_epoch_start(self) -> None:
        self.seen["train"].append([])

    def on_validation_epoch_start(self) -> None:
        self.seen["val"].append([])

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        self.seen["train"][-1].append(batch.energy[:, 0].tolist())
        return self.weight * 0

    def validation_step(self, batch: Any, number: int) -> None:
        self.seen["val"][-1].append(batch.energy[:, 0].tolist())


@pytest.mark.parametrize("options", [{}, {"strategy": "balanced", "minimum": ("tz", 5)}])
def test_training_goes_through_the_batches_of_each_epochs_number(minichno: MiniCHNO, options: dict[str, Any]) -> None:
    data, module = data_of(minichno, ["dz:EF", "tz:E"], **options), Recorder()
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=4, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, data)
    energy = minichno._data.energy[:, 0].numpy()
    expected = [[energy[batch].tolist() for batch in data.train.batches(epoch, 50)] for epoch in range(4)]
    assert [len(epoch) for epoch in module.seen["train"]] == [13] * 4
    for epoch, (found, batches) in enumerate(zip(module.seen["train"], expected, strict=True)):
        others = [number for number in range(4) if found == expected[number]]
        assert found == batches, f"epoch {epoch} had the batches of {others}"
    for found in module.seen["val"]:
        assert [e for batch in found for e in batch] == energy[data.val].tolist()


# Settings


def settings(**sampling: Any) -> TrainSettings:
    return TrainSettings(
        fidelities=["dz:EF", "cc:E"], dataset=["minichno"], batch_size=32, sampling=SamplingSettings(**sampling)
    )


@pytest.mark.parametrize("text", ["cc", "cc=", "cc=0", "cc=-1", "cc=1.5", "cc=four", "cc=4=4", "", "cc:4", "cc= 4"])
def test_malformed_minimum_is_refused(text: str) -> None:
    with pytest.raises(MFPyGError) as refused:
        check_settings(settings(minimum=text))
    assert "sampling.minimum" in str(refused.value)
    assert text in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minimum": "=4"}, "unknown fidelity of sampling.minimum ''"),
        ({"minimum": "tz=4"}, "unknown fidelity of sampling.minimum 'tz' (known: dz, cc)"),
        ({"minimum": "CC=4"}, "unknown fidelity of sampling.minimum 'CC' (known: dz, cc)"),
        ({"minimum": "cc=33"}, "sampling.minimum cc=33 is more than batch_size 32"),
        ({"strategy": "balancd"}, "unknown sampling.strategy 'balancd'"),
        ({"temperature": 0.5}, "sampling.temperature is 0.5, expected a number of at least 1"),
        ({"temperature": math.nan}, "sampling.temperature is nan"),
        ({"window": -1}, "sampling.window is -1"),
    ],
)
def test_wrong_sampling_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MFPyGError) as refused:
        check_settings(settings(**options))
    assert message in str(refused.value)


@pytest.mark.parametrize("text", [None, "cc=1", "dz=32", "cc=4"])
def test_minimum_is_read(text: str | None) -> None:
    check_settings(settings(minimum=text))
    name, _, number = (text or "").partition("=")
    assert check_minimum(settings(minimum=text), ["dz", "cc"]) == (None if text is None else (name, int(number)))
