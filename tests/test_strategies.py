"""The registry of strategies: names, options, and packages that add one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import mfpyg
from mfpyg import settings as s
from mfpyg import strategies
from mfpyg.errors import MFPyGError
from mfpyg.training.fit import stages_of


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies.registry, "known", dict(strategies.registry.known))


def strategy(inputs: Any, share: float = 0.5, level: str = "dz", repeats: int = 1, keep: bool = False) -> Any:
    """A strategy that gives back what it got."""
    return share, level, repeats, keep


def settings_of(*options: str, name: str = "mine") -> s.TrainSettings:
    return s.from_dict({"strategy": name, "strategy_options": list(options), "fidelities": ["dz:E", "cc:E"]})


def test_options_are_typed_texts() -> None:
    strategies.register("mine", strategy)
    settings = settings_of("share=0.25", "level=1", "keep=true")
    settings.check()
    assert strategies.find("mine").make(None, settings.strategy_options) == (0.25, "1", 1, True)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("shrae=1", "did you mean 'strategy_options.share'"),
        ("repeats=many", "expected a whole number"),
        ("share", "expected each option once, as name=value"),
        ("keep=3", "expected true or false"),
    ],
)
def test_wrong_options_are_refused(option: str, message: str) -> None:
    strategies.register("mine", strategy)
    with pytest.raises(MFPyGError, match=message):
        settings_of(option).check()


def test_a_strategy_without_stages_is_refused() -> None:
    strategies.register("mine", lambda inputs: (None, []))
    inputs: Any = SimpleNamespace(settings=settings_of(), start=None)
    with pytest.raises(MFPyGError, match=r"strategy mine .* no stages"):
        stages_of(inputs)


def test_strategies_of_the_package_take_none_and_keep_their_names() -> None:
    with pytest.raises(MFPyGError, match="strategy tl"):
        settings_of("share=1", name="tl").check()
    with pytest.raises(MFPyGError, match="already"):
        strategies.register("tl", strategy)
    with pytest.raises(MFPyGError, match=r"unknown strategy 'dleta' \(known: mfl, tl, delta, meta\)"):
        settings_of(name="dleta").check()


_MODULE = """
from mfpyg.training.strategies import joint


def stages(inputs, factor: float = 1.0):
    potential, (stage,) = joint.stages(inputs)
    stage.lr *= factor
    return potential, [stage]
"""


@pytest.mark.slow
def test_installed_package_trains_and_is_not_needed_to_predict(forks: Any) -> None:
    site = forks.folder / "site"
    info = site / "slow_training-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-training\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[mfpyg.strategies]\nslow = slow_training:stages\n")
    (site / "slow_training.py").write_text(_MODULE)
    options = ["--fidelities", "dz:EF", "cc:E", "--epochs=1", "--batch-size=64", "--model.n-features=6", "--out=run"]
    output = forks.whole(*options, "--strategy=slow", "--strategy-options", "factor=0.5", site=str(site))
    assert "strategy slow, epochs of 10 steps: slow 1" in output
    assert mfpyg.load(forks.folder / "run").fidelities == ("dz", "cc")
