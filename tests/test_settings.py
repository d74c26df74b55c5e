"""Settings: defaults, presets, bounds, plain values, and that they need no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from mfpyg import settings as s
from mfpyg.errors import MFPyGError


def published() -> s.TrainSettings:
    return s.from_dict(s.defaults("published", "hipnn"))


def test_published_preset_is_the_published_recipe() -> None:
    settings = published()
    model, optim = settings.model, settings.optim
    assert (model.n_interactions, model.n_atom_layers, model.n_features) == (2, 4, 120)
    assert (model.n_sensitivities, model.tensor_order, model.cusp) == (20, 2, 1e-6)
    assert (model.r_soft_min, model.r_soft_max, model.cutoff) == (0.75, 5.5, 6.5)
    assert (optim.lr, optim.schedule, optim.patience, optim.factor, optim.stop_after) == (1e-3, "plateau", 20, 0.5, 40)
    assert (settings.batch_size, settings.epochs, settings.split.val, settings.split.test) == (256, 2000, 0.1, 0.1)
    assert settings.weights == []


@pytest.mark.parametrize("preset", s.PRESETS)
def test_presets_pass_their_own_check(preset: str) -> None:
    settings = s.from_dict(s.defaults(preset, "hipnn"))
    settings.check()
    assert settings.preset == preset


def test_small_preset_is_smaller_and_leaves_the_rest() -> None:
    small, large = s.from_dict(s.defaults("small", "hipnn")), published()
    assert small.model.n_features < large.model.n_features
    assert small.epochs < large.epochs
    assert small.model.cutoff < large.model.cutoff
    assert small.split == large.split
    assert small.model.tensor_order == large.model.tensor_order


def test_small_preset_has_the_optimiser_of_the_backbone() -> None:
    hipnn = s.defaults("small", "hipnn")["optim"]
    assert hipnn["weight_decay"] == 0.01
    assert s.defaults("small", "mace")["optim"] == {**hipnn, "lr": 0.003, "weight_decay": 0.0}
    assert s.defaults("published", "mace")["optim"] == s.defaults("published", "hipnn")["optim"]


@pytest.mark.parametrize(
    ("dataset", "preset"),
    [("minichno", "small"), ("minichno:x.h5", "small"), ("ani1x", "published"), ("ani1ccx:y", "published")],
)
def test_preset_goes_with_the_data_set(dataset: str, preset: str) -> None:
    assert s.default_preset([dataset]) == preset


def test_defaults_are_fresh_each_time() -> None:
    s.defaults("small", "hipnn")["model"]["n_features"] = 1
    s.defaults("small", "hipnn")["fidelities"].append("dz:E")
    assert s.defaults("small", "hipnn")["model"]["n_features"] == 64
    assert s.defaults("small", "hipnn")["fidelities"] == []


def test_settings_survive_the_way_to_plain_values_and_back() -> None:
    settings = published()
    settings.fidelities, settings.weights, settings.model.n_features = ["dz:EF", "cc:E"], ["cc:E=2"], 7
    plain = json.loads(json.dumps(s.to_dict(settings)))
    assert s.from_dict(plain) == settings
    assert s.to_dict(s.from_dict(plain)) == plain


@pytest.mark.parametrize(
    ("values", "found", "meant"),
    [
        ({"epohcs": 1}, "'epohcs'", "'epochs'"),
        ({"model": {"n_featurs": 1}}, "'model.n_featurs'", "'model.n_features'"),
        ({"optim": {"patients": 1}}, "'optim.patients'", "'optim.patience'"),
        ({"split": {"vall": 0.1}}, "'split.vall'", "'split.val'"),
        ({"backbone": "hipn"}, "'hipn'", "'hipnn'"),
    ],
)
def test_unknown_name_offers_the_one_meant(values: dict[str, Any], found: str, meant: str) -> None:
    with pytest.raises(MFPyGError) as error:
        s.from_dict(values)
    assert found in str(error.value)
    assert f"did you mean {meant}?" in str(error.value)


def test_unknown_preset_or_backbone_is_refused() -> None:
    with pytest.raises(MFPyGError, match=r"unknown preset 'smal'.*did you mean 'small'"):
        s.defaults("smal", "hipnn")
    with pytest.raises(MFPyGError, match="unknown backbone 'x'"):
        s.defaults("small", "x")


def changed(name: str, value: Any) -> s.TrainSettings:
    settings = published()
    group, _, field = name.rpartition(".")
    setattr(getattr(settings, group) if group else settings, field, value)
    return settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", -1),
        ("seed", -1),
        ("devices", 0),
        ("hierarchicality", -0.1),
        ("hierarchicality", float("nan")),
        ("model.n_interactions", 0),
        ("model.n_atom_layers", -1),
        ("model.n_features", 0),
        ("model.n_sensitivities", 1),
        ("model.tensor_order", -1),
        ("model.tensor_order", 3),
        ("model.cutoff", 0.5),
        ("model.cutoff", float("inf")),
        ("model.r_soft_min", 0.0),
        ("model.r_soft_min", 6.0),
        ("model.r_soft_max", 7.0),
        ("model.cusp", -1e-6),
        ("optim.lr", -1e-3),
        ("optim.lr", 0.0),
        ("optim.lr", float("nan")),
        ("optim.lr", float("inf")),
        ("optim.patience", -1),
        ("optim.factor", 1.0),
        ("optim.factor", -0.5),
        ("optim.max_batch_size", 8),
        ("optim.stop_after", 0),
        ("optim.clip", -1.0),
        ("split.val", 0.0),
        ("split.val", 1.0),
        ("split.val", -0.1),
        ("split.test", 0.95),
    ],
)
def test_number_out_of_bounds_is_refused_by_its_name(name: str, value: float) -> None:
    with pytest.raises(MFPyGError) as error:
        changed(name, value).check()
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accelerator", "tpu"),
        ("precision", 16),
        ("engine", "numpy"),
        ("edges", "never"),
        ("preset", "large"),
        ("optim.schedule", "step"),
        ("split.method", "scaffold"),
    ],
)
def test_value_that_is_no_choice_is_refused_with_the_choices(name: str, value: str | int) -> None:
    with pytest.raises(MFPyGError, match=f"unknown {name} '{value}' \\(known: "):
        changed(name, value).check()


@pytest.mark.parametrize(
    ("name", "value"), [("optim.stop_after", None), ("optim.clip", None), ("optim.max_batch_size", 256)]
)
def test_what_may_be_left_open_may(name: str, value: int | None) -> None:
    assert changed(name, value).check() is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", "many"),
        ("epochs", None),
        ("epochs", 1.5),
        ("model.n_features", "wide"),
        ("fidelities", "dz:E"),
        ("out", 3),
    ],
)
def test_value_of_the_wrong_kind_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(MFPyGError, match=name):
        changed(name, value).check()


@pytest.mark.parametrize("group", ["model", "optim", "split"])
def test_group_that_is_no_mapping_is_refused(group: str) -> None:
    with pytest.raises(MFPyGError, match=group):
        s.from_dict({group: 3})


def test_options_are_checked_without_importing_torch() -> None:
    modules = ["settings", "fidelity", "datasets.levels", "cli.train", "cli.evaluate", "cli.preprocess"]
    code = "; ".join([f"import mfpyg.{module}" for module in modules])
    code += "; import sys; print([m for m in ('torch', 'torch_geometric', 'lightning', 'h5py') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"ema": 1.0}}, "optim.ema is 1.0, expected a number from 0 to 0.999999"),
        ({"optim": {"accumulate": 0}}, "optim.accumulate is 0, expected"),
        ({"optim": {"weight_decay": -0.1}}, "optim.weight_decay is -0.1, expected"),
        ({"optim": {"warmup": 4.5}, "epochs": 4}, "optim.warmup is 4.5 epochs, but there are only 4"),
        ({"optim": {"ema": 0.9}, "strategy": "meta"}, "optim.ema is 0.9, which strategy meta does not"),
        ({"optim": {"accumulate": 2}, "strategy": "meta"}, "optim.accumulate is 2, which strategy meta does not"),
        ({"logger": ["wanb"]}, "unknown logger 'wanb' (known: tensorboard, wandb, mlflow); did you mean 'wandb'?"),
    ],
)
def test_options_of_the_optimiser_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MFPyGError) as refused:
        s.from_dict({**changes, "fidelities": ["dz:EF", "cc:E"]}).check()
    assert message in str(refused.value)


def test_warm_up_fits_into_each_stage() -> None:
    from mfpyg.training.check import check_settings

    values = {"fidelities": ["dz:EF", "cc:E"], "strategy": "tl", "epochs": 6, "optim": {"warmup": 3}}
    check_settings(s.from_dict(values))
    with pytest.raises(MFPyGError, match="warmup is 3 epochs, but stage dz has only 2; shorten it"):
        check_settings(s.from_dict({**values, "transfer": {"share": ["cc=2"]}}))
