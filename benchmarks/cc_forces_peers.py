"""Rows of cc_forces.py of other packages, each in a Python of its own.

MACE is trained by its own command with a head for each level: 32 channels, L = 1, 4.5 Å, an exponential moving
average, and a second stage for energies in the last quarter, as its documentation recommends. ANI-1ccx is used as it
is; the wheel of torchani 2.0 contains its weights.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from cc_forces_rows import Row

SETTINGS = {
    "num_channels": 32,
    "max_L": 1,
    "r_max": 4.5,
    "E0s": "average",
    "energy_weight": 10,
    "forces_weight": 100,
    "batch_size": 10,
    "ema": None,
    "swa": None,
    "default_dtype": "float32",
    "plot": False,
    "device": "cpu",
}
"""Options of mace_run_train; the others are its defaults."""


@dataclass(frozen=True)
class MACE(Row):
    """MACE of mace-torch.

    Attributes:
        python: its Python.
        longest: epochs of the longest training.
        extra: further options of mace_run_train, which replace those of :data:`SETTINGS`.
        equal_to: row whose time the training takes instead.
    """

    python: str | None = None
    longest: int = 120
    extra: tuple[str, ...] = ()
    equal_to: str | None = None

    def missing(self) -> str:
        return why_not(self.python, "--mace-python", "import mace.cli.run_train", "mace-torch")

    def epochs(self) -> int:
        return self.longest

    def train(self, run: Path, epochs: int, seed: int) -> list[str]:
        data = self.setting.data
        heads = {
            one.name: {
                "train_file": str(data.path(f"{one.name}-train").resolve()),
                "valid_file": str(data.path(f"{one.name}-val").resolve()),
                "energy_key": f"{one.name}_energy",
                "forces_key": f"{one.name}_forces",
            }
            for one in data.fidelities
        }
        command = [str(self.python), "-m", "mace.cli.run_train", "--name", "mace", "--work_dir", str(run.resolve())]
        command += ["--heads", str(heads), "--seed", str(seed), "--max_num_epochs", str(epochs)]
        command += [f"--{name}" if value is None else f"--{name}={value}" for name, value in SETTINGS.items()]
        return [*command, *self.extra]

    def predict(self, run: Path) -> list[str]:
        # Without a second stage, which one epoch has not, there is the first alone.
        stages = [path for path in (run / "mace_stagetwo.model", run / "mace.model") if path.is_file()]
        model = str((stages or [run / "mace.model"])[0].resolve())
        return self.prediction("mace", "--model", model, "--level", self.setting.data.target, python=str(self.python))


@dataclass(frozen=True)
class ANI1ccx(Row):
    """ANI-1ccx of torchani, an ensemble of eight networks."""

    trained = False
    python: str | None = None

    def missing(self) -> str:
        call = "import torchani; torchani.models.ANI1ccx(periodic_table_index=True)"
        return why_not(self.python, "--ani-python", call, "torchani with the weights of ANI-1ccx")

    def predict(self, run: Path) -> list[str]:
        return self.prediction("ani", python=str(self.python))


def why_not(python: str | None, option: str, call: str, what: str) -> str:
    """Why a Python cannot make a call, or nothing."""
    if python is None:
        return f"{option} names no Python"
    try:
        found = subprocess.run([python, "-c", call], capture_output=True, text=True)
    except OSError as error:
        return f"{python}: {error.strerror}"
    words = found.stderr.strip().splitlines()
    return f"{python} has no {what} ({words[-1] if words else 'no message'})" if found.returncode else ""
