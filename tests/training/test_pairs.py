"""Training on pairs of near geometries: their term of the loss, and that their members stay together."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from torch_geometric.data import Batch

from mfpyg.cli import train
from mfpyg.datasets import ExtXYZ
from mfpyg.datasets.batches import Assembler
from mfpyg.datasets.splits import make_splits
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.metrics import pair_errors, pair_members
from mfpyg.fidelity import parse_fidelities
from mfpyg.models.delta import with_difference
from mfpyg.sampling.pairs import partner
from mfpyg.settings import SplitSettings, TrainSettings
from mfpyg.training.check import check_settings
from mfpyg.training.data import ConformationData
from mfpyg.training.inputs import Inputs
from mfpyg.training.loss import MultiFidelityLoss
from mfpyg.training.pairs import Units, groups_of_pairs, pair_numbers, with_pairs
from mfpyg.training.sampling import Sampling
from mfpyg.training.strategies.joint import joint_stage

LEVELS = ("a=a_energy@kcal/mol", "b=b_energy?@kcal/mol")
TINY = ("--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--compile=off")


def frames(n: int, seed: int = 0) -> list[Atoms]:
    """Geometries of two molecules, two of three of which have a near partner, with energies of two levels."""
    made, rng = [], np.random.default_rng(seed)
    for number in range(n):
        atoms = molecule(("CH3OH", "H2CO")[number % 2])
        atoms.rattle(0.08, rng=rng)
        near = [Atoms(atoms.numbers, partner(atoms, 0.01, rng))] if number % 3 else []
        made += [atoms, *near]
    made = [made[i] for i in rng.permutation(len(made))]
    for number, atoms in enumerate(made):
        distance = atoms.get_all_distances()[np.triu_indices(len(atoms), 1)]
        atoms.info["a_energy"] = float(100 * ((distance - 1.5) ** 2).sum())
        if number % 8:
            atoms.info["b_energy"] = float(110 * ((distance - 1.4) ** 2).sum())
    return made


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "all.xyz"
    ase.io.write(path, frames(60), format="extxyz")
    return path


@pytest.fixture(scope="module")
def dataset(path: Path) -> ExtXYZ:
    return ExtXYZ(path, list(LEVELS), root=path.parent)


FIDELITIES = parse_fidelities(["a:E", "b:E"])


@pytest.fixture(scope="module")
def splits(dataset: ExtXYZ) -> dict[str, np.ndarray]:
    return make_splits(dataset, SplitSettings(), 0, groups_of_pairs(dataset))


@pytest.fixture(scope="module")
def marked(dataset: ExtXYZ, splits: dict[str, np.ndarray]) -> ExtXYZ:
    found, line = with_pairs(dataset, splits, FIDELITIES)
    assert "pair" not in dataset.slices
    assert line.startswith("pairs of near geometries: ")
    assert isinstance(found, ExtXYZ)
    return found


def loss_of(weight: float = 1.0) -> MultiFidelityLoss:
    weights = {("a", "energy"): 1.0, ("b", "energy"): 0.5, ("a", "directional_force"): weight}
    weights["b", "directional_force"] = weight
    return MultiFidelityLoss(FIDELITIES, {"a": 0, "b": 1}, weights, 0.0)


# The loss


def slow_errors(potential: Any, dataset: ExtXYZ, rows: list[int], fidelity: str, column: int) -> list[float]:
    """Errors of the directional forces of all pairs among some conformations, one pair after the other."""
    errors = []
    pair = dataset._data.pair[rows].tolist()
    for number in [number for number in pair if number > 0 and -number in pair]:
        one, two = (dataset[rows[pair.index(signed)]] for signed in (number, -number))
        if one.energy_mask[0, column] and two.energy_mask[0, column]:
            change = (potential(two, fidelity=fidelity).energy - potential(one, fidelity=fidelity).energy).item()
            label = (two.energy - one.energy)[0, column].item()
            errors.append((label - change) / (two.pos.double() - one.pos.double()).norm().item())
    return errors


def test_loss_is_the_formula_over_the_pairs(
    marked: ExtXYZ, splits: dict[str, np.ndarray], make_potential: Callable[..., Any]
) -> None:
    """Members apart from each other, and without a label of the level, are no pairs."""
    potential, rows = make_potential(fidelities=["a", "b"]).train(), splits["train"][5:45].tolist()
    batch, loss = Assembler(marked)(rows), loss_of(2.0)
    value, sums = loss(loss.predict(potential, batch), batch)
    plain, _ = loss_of(0.0)(loss.predict(potential, batch), batch)
    expected, counts = float(plain), []
    potential.eval()
    for column, name in enumerate("ab"):
        errors = np.array(slow_errors(potential, marked, rows, name, column))
        assert sums[2 + column].tolist() == pytest.approx([len(errors), np.abs(errors).sum(), (errors**2).sum()])
        expected += 2 * (np.sqrt((errors**2).mean()) + np.abs(errors).mean())
        counts.append(len(errors))
    assert float(value) == pytest.approx(expected, rel=1e-10)
    assert 0 < counts[1] < counts[0] < int((marked._data.pair[rows] > 0).sum()), "the batch divides pairs"


def test_gradient_of_the_loss(
    marked: ExtXYZ, splits: dict[str, np.ndarray], make_potential: Callable[..., Any]
) -> None:
    potential, batch, loss = make_potential(fidelities=["a", "b"]).train(), None, loss_of()
    batch = Assembler(marked)(splits["train"][:30])

    def value() -> torch.Tensor:
        return loss(loss.predict(potential, batch), batch)[0]

    value().backward()
    for weight in (potential.head("b").levels[1].weight, next(potential.backbone.parameters())):
        place, step = weight.grad.abs().argmax(), 1e-5
        with torch.no_grad():
            found = []
            for sign in (1, -1):
                weight.view(-1)[place] += sign * step
                found.append(value().item())
                weight.view(-1)[place] -= sign * step
        assert weight.grad.view(-1)[place].item() == pytest.approx((found[0] - found[1]) / (2 * step), rel=1e-5)


def test_exact_differences_have_no_error_and_a_finite_gradient(
    marked: ExtXYZ, splits: dict[str, np.ndarray], make_potential: Callable[..., Any]
) -> None:
    """Whatever the energies themselves are off by."""
    potential = make_potential(fidelities=["a", "b"]).train()
    batch, loss = Assembler(marked)(splits["train"][:30]), loss_of()
    predictions = loss.predict(potential, batch)
    batch.energy = torch.stack([predictions[name].energy.detach() for name in "ab"], dim=1)
    n_atoms = torch.bincount(batch.batch)
    batch.energy += 7.0 * n_atoms[:, None]
    value, sums = loss(predictions, batch)
    assert sums[2:, 1].max() < 1e-9 < sums[:2, 1].min()
    value.backward()
    assert all(torch.isfinite(p.grad).all() for p in potential.parameters() if p.grad is not None)


def test_members_are_matched_with_their_own() -> None:
    pair = torch.tensor([0, 3, -1, 2, -3, 1, 0, -5, 3, -3])
    first, second = pair_members(pair)
    assert pair[first].tolist() == (-pair[second]).tolist() == [1, 3, 3]
    assert sorted(first.tolist()) == [1, 5, 8]
    assert sorted(second.tolist()) == [2, 4, 9]
    assert [of.tolist() for of in pair_members(torch.zeros(4, dtype=torch.int64))] == [[], []]


def test_pairs_of_a_difference_need_both_levels(
    marked: ExtXYZ, splits: dict[str, np.ndarray], make_potential: Callable[..., Any]
) -> None:
    """Strategy delta adds a column b − a, of which pairs are as of any level."""
    potential = make_potential(fidelities=["b-a"]).eval()
    rows = splits["train"].tolist()
    batch = Assembler(marked)(rows)
    graphs = torch.arange(batch.num_graphs)
    batch.energy, batch.energy_mask = with_difference(batch.energy, batch.energy_mask, 1, 0, graphs)
    errors = pair_errors(potential.predict(batch, {"b-a": "E"})["b-a"], batch, 2)
    of_levels = [len(slow_errors(make_potential(fidelities=["b"]).eval(), marked, rows, "b", 1)), len(errors)]
    assert of_levels[0] == of_levels[1] > 0


# Splits and batches


def test_random_splits_do_not_divide_groups(dataset: ExtXYZ) -> None:
    group = groups_of_pairs(dataset)
    assert Counter(Counter(group.tolist()).values()) == {1: 20, 2: 40}
    for seed in range(5):
        plain, kept = (make_splits(dataset, SplitSettings(), seed, of) for of in (None, group))
        assert np.concatenate(list(kept.values())).tolist() != np.concatenate(list(plain.values())).tolist()
        assert sorted(np.concatenate(list(kept.values())).tolist()) == list(range(100))
        of_row = np.zeros(100, int)
        for number, rows in enumerate(kept.values()):
            of_row[rows] = number
        assert (of_row == of_row[group]).all()
        assert all(len(rows) - len(plain[name]) in (-2, -1, 0, 1) for name, rows in kept.items())
        alone = make_splits(dataset, SplitSettings(), seed, np.arange(100))
        assert all((rows == alone[name]).all() for name, rows in plain.items())


def some_pairs(random: np.random.Generator, n: int, n_pairs: int) -> np.ndarray:
    """Numbers of pairs of n conformations, and of a few whose partners are elsewhere."""
    pair, rows = np.zeros(n, np.int64), random.permutation(n)
    pair[rows[:n_pairs]], pair[rows[n_pairs : 2 * n_pairs]] = np.arange(1, n_pairs + 1), -np.arange(1, n_pairs + 1)
    pair[rows[2 * n_pairs : 2 * n_pairs + 2]] = n_pairs + 1, -n_pairs - 2
    return pair


@pytest.mark.parametrize("seed", range(20))
def test_batches_do_not_divide_pairs(seed: int) -> None:
    """With all options of sampling: every conformation as often as without, in batches of nearly the same sizes."""
    random = np.random.default_rng(seed)
    n = int(random.integers(3, 120))
    pair = some_pairs(random, n, int(random.integers(0, n // 2 + 1)))
    labelled = random.random((n, 2)) < [[0.3, 0.8]]
    labelled[:, 0] |= ~labelled.any(axis=1)
    batch_size = int(random.integers(2, 20))
    options: dict[str, Any] = {
        "temperature": float(random.choice([1.0, 2.0, math.inf])),
        "window": int(random.integers(0, 3)), "n_atoms": random.integers(3, 9, n), "pair": pair,
    }  # fmt: skip
    if seed % 3 == 0:
        options |= {"budget": int(random.integers(1, 3 * n)), "temperature": 1.0}
    rows = 10 * np.arange(n)
    sampling = Sampling(rows, labelled, seed, **options)
    n_batches = math.ceil((options.get("budget") or n) / batch_size)
    drawn: Counter[int] = Counter()
    for epoch in range(3):
        batches = sampling.batches(epoch, batch_size)
        assert len(batches) == n_batches
        assert all(0 < len(batch) <= batch_size + 1 for batch in batches)
        for batch in batches:
            signed = Counter(pair[batch // 10].tolist())
            assert all(signed[-number] == signed[number] for number in signed if abs(number) <= pair.max() - 1)
        drawn.update(np.concatenate(batches).tolist())
    if "budget" not in options and (options["temperature"] == 1 or len(sampling.classes) == 1):
        assert set(drawn.values()) == {3}
        assert len(drawn) == n
        sizes = [len(batch) for batch in sampling.batches(0, batch_size)]
        assert max(sizes) - min(sizes) <= 3


def test_units_without_pairs_are_the_conformations() -> None:
    units = Units(7, np.array([1, 0, 0, -2, 0, 3, 0]))
    assert len(units) == 7
    assert units.members(np.array([4, 2])).tolist() == [4, 2]
    assert [part.tolist() for part in units.split(np.arange(7), 3)] == [[0, 1, 2], [3, 4], [5, 6]]


def data_of(marked: ExtXYZ, splits: dict[str, np.ndarray], batch_size: int) -> ConformationData:
    settings = TrainSettings(fidelities=["a:E", "b:E"], batch_size=batch_size, pair_weight=1.0)
    return ConformationData(joint_stage(Inputs(settings, FIDELITIES, marked, splits)), batch_size)


class Processes:
    """What the loaders ask of a trainer."""

    strategy = SimpleNamespace(root_device=torch.device("cpu"))

    current_epoch = 0

    def __init__(self, world_size: int, rank: int) -> None:
        self.world_size, self.global_rank = world_size, rank


@pytest.mark.parametrize("processes", [2, 3])
def test_shares_of_processes_do_not_divide_pairs(
    marked: ExtXYZ, splits: dict[str, np.ndarray], processes: int, make_potential: Callable[..., Any]
) -> None:
    """Their error sums add up to those of the whole batch."""
    whole, loss = data_of(marked, splits, 9), loss_of()
    potential = make_potential(fidelities=["a", "b"]).eval()
    shares = [data_of(marked, splits, 9) for _ in range(processes)]
    for rank, data in enumerate(shares):
        data.trainer = Processes(processes, rank)  # type: ignore[assignment]

    def sums(batch: Batch) -> torch.Tensor:
        return loss.sums(loss.predict(potential, batch), batch)

    n_pairs = 0
    for kind in ("train_dataloader", "val_dataloader"):
        of_batches = zip(getattr(whole, kind)(), *(getattr(data, kind)() for data in shares), strict=True)
        for batch, *parts in of_batches:
            parts = [data.on_before_batch_transfer(part, 0) for data, part in zip(shares, parts, strict=True)]
            torch.testing.assert_close(sum(map(sums, parts)), sums(batch), rtol=1e-9, atol=1e-9)
            n_pairs += int(sums(batch)[2, 0])
    pair = [pair_numbers(marked, splits[name]) for name in ("train", "val")]
    assert n_pairs == sum(int((of > 0).sum()) for of in pair if of is not None) > 30


def test_validation_has_every_pair_and_conformation_once(
    marked: ExtXYZ, splits: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mfpyg.training.data.BATCH_SIZE", 5)
    swapped = {**splits, "val": splits["train"], "train": splits["val"]}
    batches = list(data_of(marked, swapped, 4).val_dataloader())
    found = [e for batch in batches for e in batch.energy[:, 0].tolist()]
    assert sorted(found) == sorted(marked._data.energy[splits["train"], 0].tolist())
    assert len(batches) == math.ceil(len(found) / 5)
    assert sum(len(pair_members(batch.pair)[0]) for batch in batches) == len(
        pair_members(marked._data.pair[splits["train"]])[0]
    )


# Runs


def row(folder: Path, number: int = -1) -> dict[str, str]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))[number]


def spec(path: Path) -> str:
    return f"{path}:a=a_energy@kcal/mol:b=b_energy?@kcal/mol"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["mfl", "tl", "delta", "meta"])
def test_run(path: Path, strategy: str, forks: Any) -> None:
    arguments = ("--fidelities", "a:E", "b:E", "--dataset", spec(path), *TINY, "--preset=small", "--batch-size=16")
    output = forks.whole(*arguments, "--pair-weight=1", f"--strategy={strategy}", "--epochs=4", "--out=run")
    assert "pairs of near geometries: " in output
    assert "directional forces of near pairs in kcal/mol/Å" in (forks.folder / "run" / "metrics.txt").read_text()
    last = row(forks.folder / "run")
    level = "b-a" if strategy == "delta" else "b"
    assert int(last[f"train/{level}/directional_force_labels"]) > 5
    assert float(last["val/b/directional_force_rmse"]) > 0
    assert float(last[f"train/{level}/directional_force_mae"]) > 0


@pytest.mark.slow
def test_resumed_run_is_the_same(path: Path, forks: Any) -> None:
    arguments = (
        "--fidelities", "a:E", "b:E", "--dataset", spec(path), *TINY, "--preset=small", "--batch-size=16",
        "--pair-weight=0.5", "--optim.schedule=constant", "--seed=3",
    )  # fmt: skip
    forks.whole(*arguments, "--epochs=5", "--out=whole")
    forks.whole(*arguments, "--epochs=2", "--out=part")
    forks.whole("--resume", "part", "--epochs=5")
    one, two = (
        torch.load(forks.folder / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("whole", "part")
    )
    assert all(torch.equal(one[key], two[key]) for key in one)
    left_out = {"seconds"}
    for number in range(5):
        a, b = (row(forks.folder / name, number) for name in ("whole", "part"))
        assert {k: v for k, v in a.items() if k not in left_out} == {k: v for k, v in b.items() if k not in left_out}
    forks.whole(*arguments[:-2], "--pair-weight=0", "--epochs=1", "--out=none")
    assert not any("directional" in name for name in row(forks.folder / "none"))


def test_training_without_pairs_is_refused(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    single = [frames(2, seed)[0] for seed in range(20)]
    ase.io.write(tmp_path / "single.xyz", single)
    monkeypatch.chdir(tmp_path)
    arguments = ["--fidelities", "a:E", "--dataset", "single.xyz:a=a_energy@kcal/mol", "--pair-weight=1", *TINY]
    with pytest.raises(SystemExit) as end:
        train.main([*arguments, "--out=run"])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no two of 16 conformations in train with energies of a are near (0.001 to 0.03 Å RMS); make pairs" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fidelities": ["dz:F"]}, "pair_weight is 1, which has no effect without energies; train on some, as dz:EF"),
        ({"batch_size": 1}, "pair_weight is 1, but batch_size is 1, expected at least 2"),
        ({"pair_weight": -1.0}, "pair_weight is -1.0, expected a number of at least 0"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MFPyGError, match=message):
        check_settings(TrainSettings(**{"fidelities": ["dz:EF"], "pair_weight": 1.0, **changes}))
