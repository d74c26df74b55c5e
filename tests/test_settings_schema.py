"""The JSON schema of the settings: it accepts what ``--print-config`` prints, and refuses mistakes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from mfpyg import backbones, strategies
from mfpyg import settings as s
from mfpyg.cli import train
from mfpyg.settings_schema import settings_schema

jsonschema = pytest.importorskip("jsonschema")


def errors(values: Any) -> list[str]:
    plain = json.loads(json.dumps(settings_schema()))
    jsonschema.Draft7Validator.check_schema(plain)
    return [error.message for error in jsonschema.Draft7Validator(plain).iter_errors(values)]


@pytest.mark.parametrize(
    "options",
    [
        *(["--backbone", backbone, "--preset", preset] for backbone in backbones.names() for preset in s.PRESETS),
        *(["--strategy", strategy] for strategy in strategies.names()),
        ["--split.files", "train=a.xyz:dz=energy@eV", "--optim.ema", "0.99", "--threads", "null", "--logger", "wandb"],
    ],
    ids=" ".join,
)
def test_printed_settings_are_valid(capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        train.main(["--fidelities", "dz:EF", "cc:E", *options, "--print-config"])
    assert stop.value.code == 0
    assert errors(yaml.safe_load(capsys.readouterr().out)) == []


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"dataset": "ani1x", "optim": None, "model": None},
        {"model": {"tensor_order": 2}},
        {"backbone": "nequip", "model": {"l_max": 2, "cutoff": 5}},
        {"backbone": "mace", "model": {"l_max": 2, "l_hidden": 2}},
        {"strategy": "tl", "transfer": {"frozen": 1}, "optim": {"clip": None, "lr": 1}},
    ],
)
def test_what_the_commands_accept_is_valid(values: dict[str, Any]) -> None:
    s.from_dict(values).check()
    assert errors(values) == []


@pytest.mark.parametrize(
    "values",
    [
        {"epohcs": 1},
        {"epochs": "many"},
        {"epochs": 0},
        {"epochs": True},
        {"fidelities": "dz:EF"},
        {"accelerator": "tpu"},
        {"precision": 16},
        {"backbone": "hipn"},
        {"optim": {"patients": 1}},
        {"optim": {"ema": 1.0}},
        {"optim": {"stop_after": 1.5}},
        {"model": {"n_gaussians": 3}},
        {"backbone": "schnet", "model": {"tensor_order": 2}},
        {"backbone": "schnet", "model": {"n_gaussians": 1}},
        {"model": {"tensor_order": 3}},
    ],
)
def test_mistakes_are_not(values: dict[str, Any]) -> None:
    assert len(errors(values)) == 1


def test_defaults_and_descriptions_are_those_of_the_small_preset() -> None:
    schema = settings_schema()
    assert schema["properties"]["epochs"]["default"] == 160
    assert "passes over the training data" in schema["properties"]["epochs"]["description"]
    assert schema["properties"]["optim"]["properties"]["schedule"]["default"] == "cosine"
    models = {branch["if"]["properties"]["backbone"]["const"]: branch["then"] for branch in schema["allOf"]}
    assert models.keys() == set(backbones.names())
    assert models["schnet"]["properties"]["model"]["properties"]["n_interactions"]["default"] == 3


def test_options_of_other_packages_are_included(monkeypatch: pytest.MonkeyPatch) -> None:
    def network(species: tuple[int, ...], width: int = 8, cutoff: float = 5.0) -> None: ...

    monkeypatch.setattr(backbones.registry, "known", dict(backbones.registry.known))
    backbones.register("mine", network)
    assert errors({"backbone": "mine", "model": {"width": 3}}) == []
    assert len(errors({"backbone": "mine", "model": {"widht": 3}})) == 1
