"""The registry: what can be named, where options come from, and packages that add a backbone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import pytest

from mfpyg import backbones
from mfpyg import settings as s
from mfpyg.errors import MFPyGError
from mfpyg.options import setting


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones.registry, "known", dict(backbones.registry.known))


def network(species: Sequence[int], width: int = 8, cutoff: float = 5.0, act: str = "silu", deep: bool = False) -> Any:
    """A network.

    Args:
        species: atomic numbers.
        width (int): of the features,
            in all layers.
        cutoff: in Å.

    Returns:
        It.
    """
    return width


def test_options_come_from_the_signature_and_their_help_from_the_docstring() -> None:
    backbones.register("mine", network)
    settings = s.from_dict({"backbone": "mine", "model": {"width": 3}, "fidelities": ["dz:E"]})
    assert vars(settings.model) == {"width": 3, "cutoff": 5.0, "act": "silu", "deep": False}
    fields = settings.model.__dataclass_fields__
    assert fields["width"].metadata["help"] == "of the features, in all layers"
    assert fields["cutoff"].metadata["help"] == "in Å"
    settings.check()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"widht": 3}, "did you mean 'model.width'"),
        ({"width": "three"}, "expected a whole number"),
        ({"deep": 1}, "expected true or false"),
    ],
)
def test_options_are_validated(model: dict[str, Any], message: str) -> None:
    backbones.register("mine", network)
    with pytest.raises(MFPyGError, match=message):
        s.from_dict({"backbone": "mine", "model": model})


def test_options_may_be_a_dataclass_with_bounds() -> None:
    class Bounded:
        @dataclass
        class Options:
            width: int = setting(8, "of the features", low=1)
            plain: int = 3

            def check(self) -> None:
                if self.width == 7:
                    raise MFPyGError("model.width is 7")

    backbones.register("bounded", Bounded)
    for width, message in ((0, "expected a number of at least 1"), (7, "model.width is 7")):
        with pytest.raises(MFPyGError, match=message):
            s.from_dict({"backbone": "bounded", "model": {"width": width}}).check()


def test_a_name_is_taken_once() -> None:
    backbones.register("mine", network)
    backbones.register("mine", network)  # as where a module is imported twice
    for name in ("mine", "hipnn"):
        with pytest.raises(MFPyGError, match="already"):
            backbones.register(name, lambda species: None)


@pytest.mark.parametrize("name", ["", "a b", "-x", "a/b"])
def test_names_are_words(name: str) -> None:
    with pytest.raises(MFPyGError, match="cannot name a backbone"):
        backbones.register(name, network)


def _of_tensors(species: Sequence[int], weights: list[int] = [1]) -> None:  # noqa: B006
    pass


def _without_default(species: Sequence[int], width: int) -> None:
    pass


def _without_kind(species: Sequence[int], width=3) -> None:  # type: ignore[no-untyped-def]
    pass


def _of_any_number(species: Sequence[int], *sizes: int) -> None:
    pass


def _with_another_default(species: Sequence[int], width: int = 2.5) -> None:  # type: ignore[assignment]
    pass


def test_defaults_are_of_their_kind() -> None:
    with pytest.raises(MFPyGError, match=r"the default of 'width' is 2.5, expected a whole number"):
        backbones.register("mine", _with_another_default)


def test_both_ways_to_write_that_an_option_may_be_missing() -> None:
    def either(species: Sequence[int], a: int | None = None, b: Optional[int] = 3) -> None:  # noqa: UP045
        pass

    backbones.register("mine", either)
    settings = s.from_dict({"backbone": "mine", "model": {"a": 2, "b": None}})
    assert (settings.model.a, settings.model.b) == (2, None)
    with pytest.raises(MFPyGError, match="expected a whole number, or null"):
        s.from_dict({"backbone": "mine", "model": {"b": "x"}})


def test_options_that_are_no_plain_values_are_refused_in_a_dataclass_too() -> None:
    @dataclass
    class Options:
        sizes: tuple[int, ...] = (1,)

    @dataclass
    class Required:
        width: int

    for options in (Options, Required):
        with pytest.raises(MFPyGError, match="cannot be an option"):
            backbones.register("mine", type("Mine", (), {"Options": options}))


def _unresolved(species: Sequence[int], width: Nope = 3) -> None:  # type: ignore[name-defined]  # noqa: F821
    pass


@pytest.mark.parametrize("factory", [_unresolved, dict, lambda: None])
def test_factories_whose_options_can_not_be_told_are_refused(factory: Any) -> None:
    with pytest.raises(MFPyGError, match=r"backbone 'mine'"):
        backbones.register("mine", factory)


@pytest.mark.parametrize("factory", [_of_tensors, _without_default, _without_kind, _of_any_number])
def test_parameters_that_can_be_no_options_are_named(factory: Any) -> None:
    with pytest.raises(MFPyGError, match=r"parameter '.*' cannot be an option"):
        backbones.register("mine", factory)


def test_what_can_make_nothing_is_refused() -> None:
    with pytest.raises(MFPyGError, match="expected a class or a function"):
        backbones.register("mine", 3)  # type: ignore[arg-type]
    with pytest.raises(MFPyGError, match="expected a dataclass"):
        backbones.register("mine", type("Mine", (), {"Options": 3}))


def test_a_factory_that_complains_is_quoted() -> None:
    def picky(species: Sequence[int], width: int = 3) -> None:
        raise ValueError(f"width {width} is odd")

    backbones.register("picky", picky)
    with pytest.raises(MFPyGError, match=r"backbone 'picky' cannot be built .*width 3 is odd"):
        backbones.find("picky").make([1], {"width": 3})


def test_unknown_names_list_those_there_are() -> None:
    with pytest.raises(MFPyGError, match=r"unknown backbone 'shcnet' .*dimenet\+\+.*did you mean 'schnet'"):
        backbones.find("shcnet")


@pytest.mark.parametrize("name", backbones.names())
def test_presets_of_every_backbone_pass(name: str) -> None:
    for preset in s.PRESETS:
        settings = s.from_dict({**s.defaults(preset, name), "fidelities": ["dz:E"]})
        settings.check()
        assert settings.model.cutoff > 0


# A package that adds a backbone

_MODULE = '''
from mfpyg.models import HIPNN


class Wide(HIPNN):
    """HIP-NN of another width.

    Args:
        species: atomic numbers.
        breadth: of the features.
    """

    def __init__(self, species, breadth: int = 6, cutoff: float = 4.0):
        super().__init__(species, n_features=breadth, n_atom_layers=1, n_sensitivities=5, cutoff=cutoff, r_soft_max=3.5)
'''


class Package:
    """An installed package with an entry point, and commands that see it."""

    def __init__(self, folder: Path) -> None:
        self.site, self.folder = folder / "site", folder / "work"
        info = self.site / "wide_networks-1.2.dist-info"
        info.mkdir(parents=True)
        self.folder.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wide-networks\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text("[mfpyg.backbones]\nwide = wide_networks:Wide\n")
        (self.site / "wide_networks.py").write_text(_MODULE)

    def remove(self) -> None:
        shutil.rmtree(self.site)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(self.site), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *command], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300
        )

    def train(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "mfpyg.cli.train", *arguments)


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return Package(tmp_path)


def test_an_installed_package_is_named_and_its_options_shown(package: Package) -> None:
    shown = package.train("--backbone", "wide", "--help")
    assert "--model.breadth N" in shown.stdout
    assert "of the features" in shown.stdout
    wrong = package.train("--backbone", "wide", "--fidelities", "dz:E", "--model.bread", "3")
    assert "did you mean '--model.breadth'" in wrong.stderr
    assert wrong.returncode == 2


def test_names_are_listed_without_importing_a_package(package: Package) -> None:
    (package.site / "wide_networks.py").write_text("raise RuntimeError('imported')")
    assert package.train("--fidelities", "dz:E", "--backbone", "nonsense").stderr.count("\n") == 1
    assert "imported" not in package.train("--help").stdout
    broken = package.train("--backbone", "wide", "--fidelities", "dz:E")
    assert broken.returncode == 2
    assert "package wide-networks cannot be imported (RuntimeError: imported)" in broken.stderr
    assert broken.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_run_of_a_plug_in_from_training_to_a_missing_package(package: Package) -> None:
    arguments = ["--fidelities", "dz:EF", "cc:E", "--backbone", "wide", "--model.breadth", "5", "--epochs", "1"]
    done = package.train(*arguments, "--batch-size", "64", "--out", "run")
    assert done.returncode == 0, done.stderr
    loading = "import mfpyg; print(mfpyg.load('run').backbone.feature_sizes)"
    assert package.run("-c", loading).stdout.strip() == "(4, 5, 5)"
    package.remove()
    missing = package.run("-c", loading)
    assert missing.returncode
    assert "its backbone 'wide' comes from package wide-networks, which is not installed" in missing.stderr
    resumed = package.train("--resume", "run", "--epochs", "2")
    assert resumed.returncode == 2
    assert "its backbone 'wide' comes from package wide-networks, which is not installed" in resumed.stderr
    assert resumed.stderr.count("\n") == 1
