"""Transfer learning, Δ-learning and Reptile: what is trained when, on what, and with which budget."""

from __future__ import annotations

import copy
import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

import mfpyg
from mfpyg import backbones
from mfpyg import settings as s
from mfpyg.cli import evaluate, train, train_options
from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.splits import make_splits
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import parse_fidelities
from mfpyg.models import DeltaPotential, MultiFidelityPotential, Potential
from mfpyg.training import fit
from mfpyg.training.callbacks import RunCheckpoint
from mfpyg.training.check import check_settings
from mfpyg.training.fit import stages_of
from mfpyg.training.folder import RunFolder
from mfpyg.training.inputs import Inputs
from mfpyg.training.loggers import Loggers
from mfpyg.training.module import MultiFidelityModule
from mfpyg.training.sampling import Interleaved, Sampling
from mfpyg.training.stage import Stage, Step
from mfpyg.training.strategies.meta import outer_step
from mfpyg.training.strategies.outline import divided, outline_of
from mfpyg.training.strategies.transfer import frozen_parameters

STRATEGIES = ("tl", "delta", "meta")
TINY = [
    "--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--batch-size=64",
]  # fmt: skip


@pytest.fixture(scope="module")
def dipoles() -> MiniCHNO:
    return MiniCHNO(properties="EFD")


def settings_of(strategy: str, *fidelities: str, **changes: Any) -> s.TrainSettings:
    """Settings of a small network with a plain loss."""
    values = s.defaults("small", "hipnn")
    values.update(weights=[], difference_weight=0.0)
    values["optim"]["weight_decay"] = 0.0
    values.update(strategy=strategy, fidelities=list(fidelities or ("dz:EF", "cc:E")), batch_size=64)
    values["model"].update(n_features=6, n_atom_layers=1, n_sensitivities=5)
    for name, value in changes.items():
        if isinstance(value, dict):
            values[name].update(value)
        else:
            values[name] = value
    return s.from_dict(values)


@pytest.fixture(scope="module")
def minichno() -> MiniCHNO:
    return MiniCHNO()


def staged(dataset: MiniCHNO, settings: s.TrainSettings, seed: int = 0) -> tuple[Potential, list[Any]]:
    torch.manual_seed(seed)
    splits = make_splits(dataset, settings.split, settings.seed)
    return stages_of(Inputs(settings, check_settings(settings), dataset, splits))


# Stages and budgets


@pytest.mark.parametrize(
    ("epochs", "shares", "expected"),
    [
        (10, [1, 1], [5, 5]),
        (11, [1, 1], [6, 5]),
        (10, [3, 1], [8, 2]),
        (7, [1, 1, 1], [3, 2, 2]),
        (3, [1, 1000, 1], [1, 1, 1]),
        (100, [0.001, 1], [1, 99]),
    ],
)
def test_epochs_are_divided_by_shares_and_none_is_lost(epochs: int, shares: list[float], expected: list[int]) -> None:
    assert divided(epochs, shares) == expected


def test_more_stages_than_epochs_are_refused() -> None:
    with pytest.raises(MFPyGError, match="epochs is 1, expected at least one for each of the 2 stages"):
        check_settings(settings_of("tl", epochs=1))


def test_levels_come_in_the_order_given_and_the_target_last() -> None:
    def stages(*fidelities: str, **changes: Any) -> list[tuple[str, list[str], int]]:
        settings = settings_of(changes.pop("strategy", "tl"), *fidelities, epochs=12, **changes)
        plan = outline_of(settings, parse_fidelities(settings.fidelities))
        return [(stage.name, [f.name for f in stage.fidelities], stage.epochs) for stage in plan.stages]

    three = ("dz:EF", "tz:E", "cc:E")
    assert stages(*three) == [("dz", ["dz"], 4), ("tz", ["tz"], 4), ("cc", ["cc"], 4)]
    assert stages(*three, target="dz") == [("tz", ["tz"], 4), ("cc", ["cc"], 4), ("dz", ["dz"], 4)]
    assert [n for *_, n in stages(*three, transfer={"share": ["dz=4"]})] == [8, 2, 2]
    assert stages(*three, strategy="delta", delta={"share": 0.25}) == [
        ("base", ["dz", "tz"], 3),
        ("difference", ["cc"], 9),
    ]
    assert stages(*three, strategy="meta", target="tz", meta={"share": 0.75}) == [
        ("meta", ["dz", "cc", "tz"], 9),
        ("adaptation", ["tz"], 3),
    ]


def test_base_is_the_last_lower_level_unless_another_is_named() -> None:
    settings = settings_of("delta", "dz:EF", "tz:E", "cc:E")
    assert outline_of(settings, parse_fidelities(settings.fidelities)).base.name == "tz"
    settings.delta.base = "dz"
    assert outline_of(settings, parse_fidelities(settings.fidelities)).base.name == "dz"


@pytest.mark.parametrize(
    ("strategy", "fidelities", "changes", "message"),
    [
        ("tll", (), {}, r"unknown strategy 'tll' \(known: mfl, tl, delta, meta\); did you mean 'tl'"),
        ("tl", ("cc:E",), {}, "strategy tl needs several fidelities, but there is only cc"),
        ("tl", (), {"target": "ccc"}, r"unknown target 'ccc' \(known: dz, cc\); did you mean 'cc'"),
        ("tl", (), {"weights": ["cc:E=0"]}, "cc has weight 0 in the loss"),
        ("tl", (), {"transfer": {"share": ["dz"]}}, "transfer.share is 'dz', expected a fidelity and a number"),
        ("tl", (), {"transfer": {"share": ["tz=1"]}}, "unknown fidelity of transfer.share 'tz'"),
        ("tl", (), {"transfer": {"share": ["dz=0"]}}, "transfer.share of dz is 0, expected a number above 0"),
        ("tl", (), {"transfer": {"share": ["dz=inf"]}}, "transfer.share of dz is inf"),
        ("tl", (), {"transfer": {"share": ["dz=1", "dz=2"]}}, "transfer.share names 'dz' twice"),
        ("tl", (), {"transfer": {"frozen": "backbon"}}, "did you mean 'backbone'"),
        ("tl", (), {"transfer": {"frozen": -1}}, "transfer.frozen is -1"),
        ("tl", (), {"transfer": {"lr": 0.0}}, "transfer.lr is 0.0"),
        ("tl", (), {"head": {"private_blocks": 1}}, "head.private_blocks has no effect with strategy tl"),
        ("delta", (), {"head": {"private_blocks": 1}}, "head.private_blocks has no effect with strategy delta"),
        ("delta", (), {"delta": {"base": "cc"}}, r"unknown delta.base 'cc' \(known: dz\)"),
        ("delta", (), {"delta": {"share": 1.0}}, "delta.share is 1.0"),
        ("delta", ("dz:E", "tz:EF"), {}, "learns tz:EF from differences to dz:E, which lacks forces; give dz those"),
        ("delta", ("dz:F", "cc:E"), {}, "learns cc:E from differences to dz:F, which lacks energies"),
        ("meta", (), {"meta": {"rate": 0.0}}, "meta.rate is 0.0"),
        ("meta", (), {"meta": {"rate": 1.5}}, "meta.rate is 1.5"),
        ("meta", (), {"meta": {"inner_steps": 0}}, "meta.inner_steps is 0"),
        ("meta", (), {"meta": {"optimiser": "sdg"}}, "did you mean 'sgd'"),
        ("mfl", (), {"target": "cc"}, "target is given, but strategy mfl has none"),
        ("mfl", (), {"transfer": {"frozen": 1}}, "transfer.frozen is given, but strategy is mfl; set strategy to tl"),
        ("tl", (), {"meta": {"rate": 0.1}}, "meta.rate is given, but strategy is tl; set strategy to meta"),
        ("meta", (), {"delta": {"base": "dz"}}, "delta.base is given, but strategy is meta; set strategy to delta"),
        ("tl", (), {"monitor": "cc"}, "monitor is cc, which works only with strategy mfl"),
        ("tl", (), {"sampling": {"strategy": "balanced"}}, "sampling.strategy is balanced, which works only with"),
        ("delta", (), {"sampling": {"minimum": "cc=2"}}, "sampling.minimum is cc=2, which works only with"),
    ],
)
def test_wrong_settings_are_refused(
    strategy: str, fidelities: tuple[str, ...], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(MFPyGError, match=message) as error:
        check_settings(settings_of(strategy, *fidelities, **changes))
    assert "\n" not in str(error.value)


def test_settings_of_older_runs_are_those_of_training_on_all_levels() -> None:
    old = s.to_dict(settings_of("mfl"))
    for name in ("strategy", "target", "label_fraction", "transfer", "delta", "meta"):
        del old[name]
    assert s.from_dict(old) == settings_of("mfl")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("batch_size", [1, 64, 100, 5000])
def test_every_stage_has_the_steps_of_training_on_all_levels(
    minichno: MiniCHNO, strategy: str, batch_size: int
) -> None:
    levels = ("dz:EF", "tz:E")
    (plain,) = staged(minichno, settings_of("mfl", *levels))[1]
    n_steps = len(plain.train.batches(0, batch_size))
    for stage in staged(minichno, settings_of(strategy, *levels))[1]:
        for epoch in (0, 3):
            batches = stage.train.batches(epoch, batch_size)
            assert len(batches) == n_steps
            assert all(0 < len(batch) <= batch_size for batch in batches)


# Sampling


@pytest.mark.parametrize(("n", "budget", "batch_size"), [(7, 100, 8), (40, 100, 8), (99, 100, 100), (1, 50, 8)])
def test_fewer_conformations_are_gone_through_again_and_again(n: int, budget: int, batch_size: int) -> None:
    rows = 3 * np.arange(n)
    sampling = Sampling(rows, np.ones((n, 1), bool), seed=3, budget=budget)
    drawn = []
    for epoch in range(5):
        batches = sampling.batches(epoch, batch_size)
        assert len(batches) == math.ceil(budget / batch_size)
        assert max(map(len, batches)) <= min(n, batch_size)
        assert [b.tolist() for b in batches] == [b.tolist() for b in sampling.batches(epoch, batch_size)]
        drawn += np.concatenate(batches).tolist()
    counts = np.bincount(np.array(drawn) // 3, minlength=n)
    assert counts.max() - counts.min() <= 1
    assert counts.sum() == 5 * min(budget, math.ceil(budget / batch_size) * n)


def test_a_budget_of_its_own_size_changes_nothing() -> None:
    plain, same = (Sampling(np.arange(30), np.ones((30, 1), bool), 1, budget=budget) for budget in (None, 30))
    assert [b.tolist() for b in plain.batches(4, 8)] == [b.tolist() for b in same.batches(4, 8)]


@pytest.mark.parametrize(("n_levels", "length", "budget"), [(2, 5, 76), (3, 4, 40), (2, 100, 30), (2, 1, 8)])
def test_levels_take_turns(n_levels: int, length: int, budget: int) -> None:
    levels = [Sampling(1000 * i + np.arange(9), np.ones((9, 1), bool), i, budget=budget) for i in range(n_levels)]
    mixed, runs = Interleaved(levels, length), []
    for epoch in range(6):
        batches = mixed.batches(epoch, 2)
        n_steps = len(batches)
        assert n_steps == budget // 2
        run: list[int] = []
        for step, batch in enumerate(batches):
            (level,) = set((batch // 1000).tolist())
            assert level == mixed.which(epoch, step, n_steps)
            run.append(level)
            if mixed.ends(step, n_steps):
                assert len(set(run)) == 1
                assert len(run) == length or step == n_steps - 1
                runs.append(run[0])
                run = []
        assert not run, "an epoch ends within a run"
    assert runs == [number % n_levels for number in range(len(runs))]


# What is frozen


@pytest.mark.parametrize("name", backbones.names())
def test_frozen_blocks_and_what_comes_before_them(name: str) -> None:
    backbone = backbones.find(name).make([1, 6], {**backbones.find(name).small})
    every = {id(p) for p in backbone.parameters()}
    n_blocks = len(backbone.blocks)
    sizes = []
    for frozen in range(n_blocks + 1):
        held = {id(p) for p in frozen_parameters(backbone, frozen)}
        free = {id(p) for block in backbone.blocks[frozen:] for p in block.parameters()}
        if frozen:
            assert held | free == every
            assert not held & free
        sizes.append(len(held))
    assert sizes[0] == 0
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == len(every) == len(frozen_parameters(backbone, "backbone"))
    assert frozen_parameters(backbone, "none") == []
    with pytest.raises(MFPyGError, match=f"transfer.frozen is {n_blocks + 1}, expected at most the backbone's"):
        frozen_parameters(backbone, n_blocks + 1)


def test_blocks_of_a_backbone_without_any_cannot_be_frozen() -> None:
    plain = torch.nn.Linear(2, 2)
    assert len(frozen_parameters(plain, "backbone")) == 2
    with pytest.raises(MFPyGError, match="its blocks are unknown; use none or backbone"):
        frozen_parameters(plain, 1)


# Reptile


def test_outer_step_is_the_formula() -> None:
    weights, before = [torch.tensor([3.0, -1.0]), torch.tensor([[2.0]])], [torch.tensor([1.0, 1.0]), torch.zeros(1, 1)]
    outer_step(weights, before, 0.25)
    assert [w.tolist() for w in weights] == [[1.5, 0.5], [[0.5]]]  # 1 + (3 - 1)/4, 1 + (-1 - 1)/4, 2/4
    assert [w.tolist() for w in before] == [[1.0, 1.0], [[0.0]]]


def test_shared_weights_move_by_the_formula_and_heads_do_not(minichno: MiniCHNO) -> None:
    """Two runs of two plain SGD steps, made by hand, are what the module does."""
    meta = {"inner_steps": 2, "rate": 0.3, "optimiser": "sgd", "inner_lr": 1e-3}
    settings = settings_of("meta", meta=meta, batch_size=151)  # four steps
    begun, (stage, _) = staged(minichno, settings)
    module = MultiFidelityModule(stage.start(begun), stage)
    batches = staged_batches(stage, minichno, 151)
    assert len(batches) == 4
    _steps(module, batches)

    potential, (by_hand, _) = staged(minichno, settings)
    potential, start = by_hand.start(potential), {}
    for step, batch in enumerate(batches):
        level = step // 2
        if step % 2 == 0:
            start = {name: p.detach().clone() for name, p in potential.named_parameters()}
        loss = by_hand.of_level[level]
        value, _ = loss(loss.predict(potential.train(), batch), batch)
        named = dict(potential.named_parameters())
        gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True)
        with torch.no_grad():
            for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
                if gradient is not None:
                    assert name.startswith((f"heads.{level}.", "backbone."))
                    parameter -= 1e-3 * gradient
            if step % 2:
                for name, parameter in named.items():
                    if name.startswith("backbone."):
                        parameter.copy_(start[name] + 0.3 * (parameter - start[name]))
    for (name, one), two in zip(module.potential.named_parameters(), potential.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7, msg=name)
    fresh = dict(staged(minichno, settings)[0].named_parameters())
    assert not any(torch.equal(p, fresh[name]) for name, p in potential.named_parameters() if "heads" in name)


def staged_batches(stage: Stage, dataset: MiniCHNO, batch_size: int) -> list[Any]:
    from mfpyg.datasets.batches import BatchLoader

    return list(BatchLoader(dataset, plan=lambda epoch: stage.train.batches(epoch, batch_size)))


def _steps(module: MultiFidelityModule, batches: list[Any]) -> None:
    """An epoch by Lightning's trainer."""
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]


# Δ-learning


def test_the_difference_is_trained_on_conformations_with_both_labels(minichno: MiniCHNO) -> None:
    settings = settings_of("delta", "dz:EF", "tz:EF")
    _, (base, difference) = staged(minichno, settings)
    both = minichno._data.energy_mask[:, 0] & minichno._data.energy_mask[:, minichno.fidelities.index("tz")]
    train_rows = make_splits(minichno, settings.split, settings.seed)["train"]
    assert difference.train.rows.tolist() == train_rows[both.numpy()[train_rows]].tolist()
    assert base.train.rows.tolist() == train_rows.tolist()
    assert 0 < len(difference.train.rows) < len(train_rows)


def test_levels_without_a_common_conformation_are_refused(minichno: MiniCHNO) -> None:
    import copy

    apart = copy.copy(minichno)
    apart._data = copy.copy(minichno._data)
    mask = minichno._data.energy_mask.clone()
    mask[:, minichno.fidelities.index("dz")] &= ~mask[:, minichno.fidelities.index("tz")]
    apart._data.energy_mask = mask
    with pytest.raises(MFPyGError, match="no conformation of the training split has energies of both 'tz' and 'dz'"):
        staged(apart, settings_of("delta", "dz:EF", "tz:E"))


def test_loss_of_the_difference_is_of_the_differences_of_the_labels(minichno: MiniCHNO) -> None:
    potential, (base, stage) = staged(minichno, settings_of("delta", "dz:EF", "tz:EF", hierarchicality=0.0))
    potential = stage.start(base.start(potential))
    module = MultiFidelityModule(potential, stage)
    (batch,) = map(stage.with_labels, staged_batches(stage, minichno, 10_000))
    assert isinstance(potential, DeltaPotential)
    value, sums = module.compare(*stage.compared(potential, batch, Step(0, 0, 1)), 0)
    low, high = minichno.fidelities.index("dz"), minichno.fidelities.index("tz")
    prediction = potential.difference.predict(batch, {"tz-dz": "EF"})["tz-dz"]
    expected = 0.0
    for predicted, label in (
        (prediction.energy, batch.energy[:, high] - batch.energy[:, low]),
        (prediction.forces, batch.forces[:, high] - batch.forces[:, low]),
    ):
        error = (predicted - label).double()
        assert torch.isfinite(error).all()
        expected += float((error.abs().mean() + error.square().mean().sqrt()).detach())
    assert float(value) == pytest.approx(expected, rel=1e-6)
    assert sums[:, 0].tolist() == [batch.num_graphs, 3 * batch.num_nodes]
    # Its references are a fit of the differences, of some kcal/mol an atom, not of total energies.
    assert 1 < potential.difference.reference("tz-dz").abs().max() < 1e3
    assert potential.reference("tz").abs().min() > 300


# Whole trainings


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(run: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return torch.load(run / name, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short training with each strategy."""
    folder, made = tmp_path_factory.mktemp("runs"), {}
    for strategy in ("mfl", *STRATEGIES):
        made[strategy] = folder / strategy
        arguments = ["--fidelities", "dz:EF", "cc:E", *TINY, "--epochs=5", "--optim.lr=0.01"]
        train.main([*arguments, "--strategy", strategy, "--out", str(made[strategy])])
    return made


def test_levels_of_transfer_learning_have_the_heads_of_their_own_labels(dipoles: MiniCHNO) -> None:
    """A head that a level has no labels for is dropped, a new one is drawn by the seed."""
    rows = np.arange(0, 788, 20)

    def started(*fidelities: str) -> list[MultiFidelityPotential]:
        settings = settings_of("tl", *fidelities)
        inputs = Inputs(settings, parse_fidelities(fidelities), dipoles, {"train": rows, "val": rows})
        potential, stages = stages_of(inputs)
        found = []
        for stage in stages:
            potential = stage.start(potential)
            assert set(map(id, stage.trained(potential))) == set(map(id, potential.parameters()))
            assert isinstance(potential, MultiFidelityPotential)
            found.append(copy.deepcopy(potential))
        return found

    first, second, third = started("dz:EFD", "tz:ED", "cc:E")
    assert [p.further for p in (first, second, third)] == [{"dz": "DQ"}, {"tz": "DQ"}, {}]
    kept = zip(first.further_heads.parameters(), second.further_heads.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in kept)
    one, other = (started("cc:E", "dz:EFD")[1] for _ in range(2))
    assert one.further == {"dz": "DQ"}
    drawn = list(zip(one.further_heads.parameters(), other.further_heads.parameters(), strict=True))
    assert drawn
    assert all(torch.equal(a, b) for a, b in drawn)


@pytest.mark.slow
def test_strategies_have_the_same_splits_and_steps(runs: dict[str, Path]) -> None:
    for run in runs.values():
        last = torch.load(run / "last.ckpt", weights_only=True)
        assert last["global_step"] == 5 * 10
        assert [int(row["epoch"]) for row in rows(run)] == list(range(5))
        splits, expected = (np.load(r / "splits.npz") for r in (run, runs["mfl"]))
        assert all((splits[name] == expected[name]).all() for name in expected.files)


@pytest.mark.slow
def test_run_folders_say_which_levels_can_be_predicted(runs: dict[str, Path], tmp_path: Path) -> None:
    expected = {"mfl": ("dz", "cc"), "tl": ("cc",), "delta": ("dz", "cc"), "meta": ("cc",)}
    for strategy, levels in expected.items():
        run = runs[strategy]
        names = {"config.yaml", "versions.json", "splits.npz", "metrics.csv", "best.ckpt", "last.ckpt"}
        assert names | {"metrics.json", "metrics.txt"} <= {path.name for path in run.iterdir()}
        potential = mfpyg.load(run)
        assert potential.fidelities == levels
        assert isinstance(potential, DeltaPotential) == (strategy == "delta")
        metrics = json.loads((run / "metrics.json").read_text())
        assert {name: tuple(rows) for name, rows in metrics.items()}["test"] == levels
        out = tmp_path / f"{strategy}.json"
        evaluate.main([str(run), "--json", str(out), "--plot"])
        assert json.loads(out.read_text()) == metrics
        assert (tmp_path / f"{strategy}-test.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_best_epoch_is_that_of_the_targets_validation(runs: dict[str, Path]) -> None:
    dataset = MiniCHNO()
    column = dataset.fidelities.index("cc")
    for strategy in STRATEGIES:
        run = runs[strategy]
        last_stage = [row for row in rows(run) if row["stage"] == rows(run)[-1]["stage"]]
        best = min(last_stage, key=lambda row: float(row["val/loss"]))
        assert torch.load(run / "best.ckpt", weights_only=True)["epoch"] == int(best["epoch"])
        potential = mfpyg.load(run)
        val = np.load(run / "splits.npz")["val"]
        errors = torch.stack(
            [potential(dataset[int(i)], "cc", forces=False).energy[0] - dataset._data.energy[i, column] for i in val]
        )
        assert float(best["val/cc/energy_rmse"]) == pytest.approx(float(errors.square().mean().sqrt()), rel=1e-4)


@pytest.mark.slow
def test_metrics_name_what_each_stage_is_trained_on(runs: dict[str, Path]) -> None:
    def labels(strategy: str) -> list[tuple[str, set[str]]]:
        found = []
        for row in rows(runs[strategy]):
            seen = {name.split("/")[1] for name, value in row.items() if name.endswith("_labels") and value != ""}
            found.append((row["stage"], seen))
        return found

    assert labels("tl") == [("dz", {"dz"})] * 3 + [("cc", {"cc"})] * 2
    assert labels("delta") == [("base", {"dz"})] * 3 + [("difference", {"cc-dz"})] * 2
    assert labels("meta") == [("meta", {"dz", "cc"})] * 3 + [("adaptation", {"cc"})] * 2
    assert "stage" not in rows(runs["mfl"])[0]
    # What an earlier stage has logged does not stand in the rows of a later one.
    assert [row["val/dz/energy_rmse"] != "" for row in rows(runs["tl"])] == [True] * 3 + [False] * 2
    assert [row["val/cc/energy_rmse"] != "" for row in rows(runs["delta"])] == [False] * 3 + [True] * 2


@pytest.mark.slow
def test_loaded_sum_is_base_and_difference(runs: dict[str, Path]) -> None:
    potential, data = mfpyg.load(runs["delta"]), MiniCHNO()[100]
    assert isinstance(potential, DeltaPotential)
    both = potential(data, ["cc", "dz"])
    base = potential.base(data, "dz")
    change = potential.difference(data)
    assert torch.equal(both["cc"].energy, base.energy + change.energy)
    assert torch.equal(both["cc"].forces, base.forces + change.forces)
    assert torch.equal(both["dz"].energy, base.energy)
    assert change.forces.abs().max() > 0
    without = potential.predict(data, {"dz": "E", "cc": "EF"})
    assert without["dz"].forces is None
    assert torch.equal(without["cc"].forces, both["cc"].forces)


@pytest.mark.slow
def test_checkpoints_of_older_versions_load_and_resume(runs: dict[str, Path], tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(runs["mfl"], old)
    new = {"strategy", "target", "label_fraction", "transfer", "delta", "meta"}
    for name in ("best.ckpt", "last.ckpt"):
        checkpoint = torch.load(old / name, weights_only=True)
        del checkpoint["mfpyg"]["base_level"]
        for key in new:
            del checkpoint["mfpyg"]["config"][key]
        torch.save(checkpoint, old / name)
    config = yaml.safe_load((old / "config.yaml").read_text())
    (old / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in config.items() if k not in new}))
    data = MiniCHNO()[0]
    assert torch.equal(mfpyg.load(old)(data, "cc").energy, mfpyg.load(runs["mfl"])(data, "cc").energy)
    train.main(["--resume", str(old), "--epochs=6"])
    assert len(rows(old)) == 6


def test_runs_of_different_strategies_and_labels_have_different_folders() -> None:
    def name(*options: str) -> str:
        return train_options.default_out(train_options.parse(["--fidelities", "dz:EF", "cc:E", *options])[0])

    assert name() == "runs/minichno-dz_EF-cc_E-seed0"
    assert name("--strategy=tl") == "runs/minichno-tl-dz_EF-cc_E-seed0"
    assert name("--label-fraction", "cc=0.1") == "runs/minichno-dz_EF-cc_E-cc=0.1-seed0"


class Boundary:
    """Potentials and weights on both sides of the way from one stage to the next."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.before: dict[str, torch.Tensor] = {}
        self.after: dict[str, torch.Tensor] = {}
        self.epochs: list[dict[str, torch.Tensor]] = []
        started, end = fit._start, RunCheckpoint.on_train_epoch_end

        def spy(stage: Stage, potential: Potential, settings: s.TrainSettings) -> Potential:
            self.before = _copied(potential)
            potential = started(stage, potential, settings)
            self.after = _copied(potential)
            return potential

        def epoch_end(callback: RunCheckpoint, trainer: Any, module: MultiFidelityModule) -> None:
            self.epochs.append(_copied(module.potential))
            end(callback, trainer, module)

        patch.setattr(fit, "_start", spy)
        patch.setattr(RunCheckpoint, "on_train_epoch_end", epoch_end)


def _copied(potential: Potential) -> dict[str, torch.Tensor]:
    return {f"potential.{name}": value.clone() for name, value in potential.state_dict().items()}


@pytest.fixture
def boundary(monkeypatch: pytest.MonkeyPatch) -> Boundary:
    return Boundary(monkeypatch)


def run_one(folder: Path, *arguments: str) -> Path:
    out = folder / "run"
    train.main([*TINY, "--epochs=4", "--optim.lr=0.01", "--out", str(out), "--fidelities", "dz:EF", "cc:E", *arguments])
    return out


@pytest.mark.slow
@pytest.mark.parametrize("frozen", ["none", "1", "backbone"])
def test_what_is_frozen_stays_as_the_first_level_left_it(tmp_path: Path, boundary: Boundary, frozen: str) -> None:
    run = run_one(tmp_path, "--strategy=tl", "--transfer.frozen", frozen)
    prefixes = {"none": (), "1": ("potential.backbone.blocks.0.",), "backbone": ("potential.backbone.",)}[frozen]
    compared = 0
    for name, value in weights(run).items():
        if name.endswith("reference"):
            continue
        assert torch.equal(value, boundary.before[name]) == name.startswith(prefixes), name
        compared += 1
    assert compared > 10
    assert set(weights(run)) == set(boundary.before)


@pytest.mark.slow
def test_the_next_level_begins_with_the_head_of_the_last_and_references_of_its_own(
    tmp_path: Path, boundary: Boundary
) -> None:
    run_one(tmp_path, "--strategy=tl")
    references = [name for name in boundary.before if name.endswith("reference")]
    assert len(references) == 1
    for name, value in boundary.before.items():
        assert torch.equal(value, boundary.after[name]) == (name not in references), name
    plain = mfpyg.load(tmp_path / "run")
    splits = dict(np.load(tmp_path / "run" / "splits.npz"))
    from mfpyg.datasets.references import fit_references

    dataset = MiniCHNO()
    fitted = fit_references(dataset, splits["train"], plain.species, ["dz", "cc"])
    assert boundary.before[references[0]].tolist() == fitted["dz"].energies.tolist()
    assert boundary.after[references[0]].tolist() == fitted["cc"].energies.tolist()


@pytest.mark.slow
def test_base_model_is_left_alone_by_the_difference(tmp_path: Path, boundary: Boundary) -> None:
    run = run_one(tmp_path, "--strategy=delta")
    last = weights(run)
    for name, value in boundary.before.items():
        assert torch.equal(value, last[name.replace("potential.", "potential.base.")]), name
    changed = [n for n in last if n.startswith("potential.difference.") and not n.endswith("reference")]
    assert changed
    assert not any(torch.equal(last[name], boundary.after[name]) for name in changed)


@pytest.mark.slow
def test_other_heads_are_dropped_before_the_adaptation(tmp_path: Path, boundary: Boundary) -> None:
    run_one(tmp_path, "--strategy=meta")
    for name, value in boundary.after.items():
        assert torch.equal(value, boundary.before[name.replace("heads.0.", "heads.1.")]), name
    assert not any(name.startswith("potential.heads.1.") for name in boundary.after)


@pytest.mark.slow
def test_a_stage_that_stops_early_hands_on_its_best_epoch(tmp_path: Path, boundary: Boundary) -> None:
    # Steps this large make things worse before long.
    options = ["--optim.lr=0.3", "--optim.stop-after=2", "--epochs=60", "--optim.schedule=constant"]
    run = run_one(tmp_path, "--strategy=tl", *options)
    log = rows(run)
    first = [float(row["val/loss"]) for row in log if row["stage"] == "dz"]
    best = int(np.argmin(first))
    assert best + 3 == len(first) < 30, "the stage did not stop two epochs after its best one"
    for name, value in boundary.epochs[best].items():
        assert torch.equal(value, boundary.before[name]), name
    assert not all(torch.equal(value, boundary.before[name]) for name, value in boundary.epochs[len(first) - 1].items())
    second = [float(row["val/loss"]) for row in log if row["stage"] == "cc"]
    assert len(second) == min(int(np.argmin(second)) + 3, 30)
    train.main(["--resume", str(run)])
    assert rows(run) == log, "there was nothing left to train"


@pytest.mark.slow
def test_last_stage_gets_no_more_than_its_epochs_after_an_early_stop(tmp_path: Path) -> None:
    options = ["--optim.lr=0.3", "--optim.stop-after=2", "--epochs=60", "--optim.schedule=constant"]
    run = run_one(tmp_path, "--strategy=tl", *options, "--transfer.share", "dz=29")
    stages = [row["stage"] for row in rows(run)]
    assert stages.count("dz") < 58, "the first stage did not stop early"
    assert stages.count("cc") == 2
    before = weights(run)
    train.main(["--resume", str(run)])
    assert all(torch.equal(value, before[name]) for name, value in weights(run).items())


@pytest.mark.slow
def test_schedule_begins_anew_with_each_stage(tmp_path: Path) -> None:
    run = run_one(tmp_path, "--strategy=tl", "--epochs=8", "--transfer.lr=0.002")
    rates = [float(row["lr"]) for row in rows(run)]
    shape = [rate / 0.01 for rate in rates[:4]]
    assert shape == sorted(shape, reverse=True)
    assert [rate / 0.002 for rate in rates[4:]] == pytest.approx(shape, rel=1e-4)
    plateau = ["--optim.schedule=plateau", "--optim.patience=0", "--optim.max-batch-size=604", "--optim.stop-after=50"]
    plateau += ["--optim.weight-decay=0"]
    run = run_one(tmp_path / "other", "--strategy=tl", "--epochs=12", "--optim.lr=1.0", *plateau)
    sizes = [int(row["batch_size"]) for row in rows(run)]
    assert max(sizes[:6]) > 64, "the schedule never acted"
    assert sizes[6] == sizes[0] == 64
    assert float(rows(run)[6]["lr"]) == 1.0


@pytest.mark.slow
def test_loggers_count_on_from_stage_to_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[str, list[tuple[int, int]]] = {}
    for strategy in ("mfl", "tl"):
        logger = CSVLogger(tmp_path, strategy, "")

        def init(self: Loggers, settings: s.TrainSettings, folder: RunFolder, logger: CSVLogger = logger) -> None:
            self.folder, self.of = folder, {"csv": logger}

        monkeypatch.setattr(Loggers, "__init__", init)
        run_one(tmp_path / f"run-{strategy}", "--strategy", strategy)
        with (tmp_path / strategy / "metrics.csv").open(newline="") as file:
            logged[strategy] = [(int(row["step"]), round(float(row["epoch"]))) for row in csv.DictReader(file)]
    assert logged["tl"] == logged["mfl"]
    assert [epoch for _, epoch in logged["tl"]] == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [name for name in backbones.names() if name != "hipnn"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_any_backbone(tmp_path: Path, strategy: str, backbone: str) -> None:
    out = tmp_path / "run"
    options = ["--backbone", backbone, "--strategy", strategy, "--epochs=2", "--batch-size=302", "--compile=off"]
    options += ["--label-fraction", "dz=0.05", "cc=0.05"]
    options += ["--transfer.frozen=1"] if strategy == "tl" else []
    train.main(["--fidelities", "dz:E", "cc:E", *options, "--out", str(out)])
    potential = mfpyg.load(out)
    assert torch.isfinite(potential(MiniCHNO()[0], "cc").forces).all()


# Going on after a stop


BRIEF = (*TINY, "--epochs=4", "--checkpoint-minutes=0", "--optim.lr=0.01", "--fidelities", "dz:EF", "cc:E")
"""Four epochs of ten steps, the second stage from step 20 on."""


@pytest.mark.slow
def test_resumed_run_keeps_strategy_labels_and_epochs(
    forks: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(forks.folder)
    forks.killed("last.ckpt", 19, *BRIEF, "--strategy=tl", "--label-fraction", "cc=0.5", "--out=run")
    for option, message in (
        (["--epochs=9"], "epochs was 4, now 9"),
        (["--strategy=meta"], "strategy was tl, now meta"),
        (["--label-fraction", "cc=0.4"], "label_fraction was ['cc=0.5'], now ['cc=0.4']"),
        (["--transfer.frozen=1"], "transfer.frozen was none, now 1"),
    ):
        with pytest.raises(SystemExit) as stop:
            train.main(["--resume", "run", *option])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_several_heads_are_never_renamed_and_an_unknown_one_never_kept() -> None:
    from mfpyg.models import HIPNN

    potential = MultiFidelityPotential(HIPNN([1, 6], 1, 1, 4, 4), ["dz", "cc"])
    with pytest.raises(MFPyGError, match="expected a single one"):
        potential.rename("tz")
    with pytest.raises(MFPyGError, match="unknown fidelity 'tz'"):
        potential.keep_only("tz")
