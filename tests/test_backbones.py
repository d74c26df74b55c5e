"""The registry: what can be named, where options come from, and packages that add a backbone."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
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

    def __init__(self, forks: Any) -> None:
        self.site, self.folder, self._forks = forks.folder / "site", forks.folder, forks
        info = self.site / "wide_networks-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wide-networks\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text("[mfpyg.backbones]\nwide = wide_networks:Wide\n")
        (self.site / "wide_networks.py").write_text(_MODULE)

    def run(self, command: str, *arguments: str) -> Any:
        return self._forks.run(*arguments, command=command, site=str(self.site))


@pytest.fixture
def package(forks: Any) -> Package:
    return Package(forks)


@pytest.mark.slow
def test_options_of_an_installed_package_are_shown(package: Package) -> None:
    shown = package.run("train", "--backbone", "wide", "--help").output
    assert "--model.breadth N" in shown
    assert "of the features" in shown
    wrong = package.run("train", "--backbone", "wide", "--fidelities", "dz:E", "--model.bread", "3")
    assert wrong.status == 2
    assert "did you mean '--model.breadth'" in wrong.output


@pytest.mark.slow
def test_names_are_listed_without_importing_a_package(package: Package) -> None:
    (package.site / "wide_networks.py").write_text("raise RuntimeError('imported')")
    unknown = package.run("train", "--fidelities", "dz:E", "--backbone", "nonsense").output
    assert unknown.count("\n") == 1
    assert "wide" in unknown
    assert "imported" not in package.run("train", "--help").output
    broken = package.run("train", "--backbone", "wide", "--fidelities", "dz:E")
    assert broken.status == 2
    assert "wide-networks" in broken.output
    assert "RuntimeError: imported" in broken.output
    assert broken.output.count("\n") == 1


@pytest.mark.slow
def test_run_of_an_installed_package_from_training_to_its_absence(package: Package) -> None:
    arguments = ["--fidelities", "dz:EF", "cc:E", "--backbone", "wide", "--model.breadth", "5", "--epochs", "1"]
    done = package.run("train", *arguments, "--batch-size", "64", "--out", "run")
    assert done.status == 0, done.output
    (package.folder / "load.py").write_text("import mfpyg; print(mfpyg.load('run').backbone.feature_sizes)")
    assert package.run("load.py").output.strip() == "(4, 5, 5)"
    shutil.rmtree(package.site)
    missing = package.run("load.py")
    assert missing.status
    assert "'wide' comes from package wide-networks, which is not installed" in missing.output
    resumed = package.run("train", "--resume", "run", "--epochs", "2")
    assert resumed.status == 2
    assert "'wide' comes from package wide-networks, which is not installed" in resumed.output
    assert resumed.output.count("\n") == 1
