"""Rows of cc_forces.py that mfpyg trains or computes: the commands that train and predict."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cc_forces_data import BenchmarkData

import mfpyg
from mfpyg import backbones
from mfpyg.errors import MFPyGError
from mfpyg.settings import defaults

CHNO = "chno-1"
"""Potential that comes with the package."""

STRATEGIES = ("mfl", "tl", "delta", "xtb", "xtb+mfl")
"""Strategies of mfpyg-train, and GFN2-xTB as the baseline, of the target alone and of all levels."""


@dataclass(frozen=True)
class Setting:
    """Settings that all rows share.

    Attributes:
        data: data and their files.
        preset: preset of mfpyg-train.
        epochs: of mfpyg-train; ``None``: those of the preset.
        extra: further options of mfpyg-train.
    """

    data: BenchmarkData
    preset: str
    epochs: int | None = None
    extra: Sequence[str] = ()

    @property
    def levels(self) -> list[str]:
        return [str(one) for one in self.data.fidelities]


@dataclass(frozen=True)
class Row:
    """A model and how it is trained.

    Attributes:
        name: name in tables.
        setting: what all rows have in common.
    """

    name: str
    setting: Setting = field(repr=False)

    trained = True
    """Whether there is a training; if not, the zero of energy is fitted to the labels."""

    def missing(self) -> str:
        """Why the row has to be left out, or nothing."""
        return ""

    def epochs(self) -> int:
        """Epochs of the longest training."""
        raise NotImplementedError

    def train(self, run: Path, epochs: int, seed: int) -> list[str]:
        """Command of a training."""
        raise NotImplementedError

    def predict(self, run: Path) -> list[str]:
        """Command of the predictions, without the files."""
        raise NotImplementedError

    def training(self, run: Path, epochs: int, seed: int, *options: str) -> list[str]:
        """Command of a training by mfpyg-train with its own options."""
        data, command = self.setting.data, [sys.executable, "-m", "mfpyg.cli.train", *options]
        levels = [one for one in data.fidelities if str(one) in options]
        command += ["--preset", self.setting.preset, "--epochs", str(epochs), "--seed", str(seed), "--split.files"]
        command += [f"{part}={data.spec(part, levels)}" for part in data.parts]
        command += ["--threads", "1", "--accelerator", "cpu", "--out", str(run / "model")]
        return [*command, *self.setting.extra]

    def prediction(self, *arguments: str, python: str = sys.executable) -> list[str]:
        """Command of the predictions from arguments of cc_forces_predict.py."""
        return [python, str(Path(__file__).with_name("cc_forces_predict.py")), *arguments]


@dataclass(frozen=True)
class Trained(Row):
    """A backbone and a strategy of mfpyg-train."""

    backbone: str = "hipnn"
    strategy: str = "mfl"

    def missing(self) -> str:
        if self.backbone not in backbones.names():
            return f"there is no backbone {self.backbone}"
        return "tblite is not installed" if self._of_xtb and importlib.util.find_spec("tblite") is None else ""

    @property
    def _of_xtb(self) -> bool:
        return self.strategy.startswith("xtb")

    def epochs(self) -> int:
        return self.setting.epochs or int(defaults(self.setting.preset, self.backbone)["epochs"])

    def train(self, run: Path, epochs: int, seed: int) -> list[str]:
        levels = self.setting.levels[-1:] if self.strategy == "xtb" else self.setting.levels
        options = ["--fidelities", *levels, "--backbone", self.backbone]
        if self._of_xtb:
            options += ["--baseline", *(f"{level.partition(':')[0]}=tblite:GFN2-xTB" for level in levels)]
        else:
            options += ["--strategy", self.strategy]
        return self.training(run, epochs, seed, *options)

    def predict(self, run: Path) -> list[str]:
        return self.prediction("mfpyg", "--model", str(run / "model"), "--level", self.setting.data.target)


@dataclass(frozen=True)
class Pretrained(Row):
    """The potential that comes with the package, trained further on the target if ``finetuned``."""

    finetuned: bool = False

    @property
    def trained(self) -> bool:  # type: ignore[override]
        return self.finetuned

    def missing(self) -> str:
        try:
            potential = mfpyg.load(CHNO)
            potential.check_fidelity(self.setting.data.target)
        except MFPyGError as error:
            return str(error)
        return ""

    def epochs(self) -> int:
        return self.setting.epochs or int(defaults(self.setting.preset, "hipnn")["epochs"])

    def train(self, run: Path, epochs: int, seed: int) -> list[str]:
        return self.training(run, epochs, seed, "--init", CHNO, "--fidelities", *self.setting.levels[-1:])

    def predict(self, run: Path) -> list[str]:
        model = str(run / "model") if self.finetuned else CHNO
        return self.prediction("mfpyg", "--model", model, "--level", self.setting.data.target)


@dataclass(frozen=True)
class XTB(Row):
    """GFN2-xTB, computed."""

    trained = False

    def missing(self) -> str:
        return "tblite is not installed" if importlib.util.find_spec("tblite") is None else ""

    def predict(self, run: Path) -> list[str]:
        return self.prediction("xtb")
