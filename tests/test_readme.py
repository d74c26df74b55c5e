"""Commands of the README that train: all are understood, and one on files of the user's own is run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from mfpyg.cli import evaluate, train
from mfpyg.cli.train_options import parse
from mfpyg.training.check import check_settings

README = Path(__file__).resolve().parents[1] / "README.md"
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.splitlines()
    if re.match(r"(srun .*?|torchrun .*? )?(mfpyg-train|-m mfpyg.cli.train) ", line)
]
OTHERS = r"ani1x|ani1ccx|md\.traj|rmd17|--init|--config|--help|--print-config"
"""In commands that need what no test has here, or that other tests run."""


@pytest.fixture
def _here(tmp_path: Path, write_xyz: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """``a.xyz``, ``b.xyz``, ``c.xyz`` with one level, and ``mine.xyz`` with two, of which every other frame has one."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("abc"):
        write_xyz(Path(f"{name}.xyz"), range(number, 788, 30), dz="energy,forces")
    write_xyz(Path("mine.xyz"), range(0, 788, 16), dz="dft_energy,dft_forces", cc="cc_energy")
    with_cc = Path("mine.xyz").read_text().splitlines()
    heads = [number for number, line in enumerate(with_cc) if "cc_energy=" in line]
    for number in heads[::2]:
        with_cc[number] = re.sub(r" cc_energy=\S+", "", with_cc[number])
    Path("mine.xyz").write_text("\n".join(with_cc) + "\n")


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("command", [command for command in COMMANDS if not re.search(OTHERS, command)])
def test_commands_are_understood(command: str) -> None:
    words = shlex.split(command)
    start = next(i for i, word in enumerate(words) if word in ("mfpyg-train", "mfpyg.cli.train"))
    check_settings(parse(words[start + 1 :])[0])


@pytest.mark.slow
@pytest.mark.usefixtures("_here")
def test_training_on_files_of_the_users_own() -> None:
    data = "mine.xyz:dft=dft_energy,dft_forces@eV:cc=cc_energy?@eV"
    tiny = ("--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--batch-size=32")
    train.main(["--fidelities", "dft:EF", "cc:E", "--dataset", data, *tiny, "--epochs=1", "--compile=off", "--out=run"])
    metrics = json.loads(Path("run/metrics.json").read_text())
    counts = {
        name: sum(rows[name]["energy"]["n"] for rows in metrics.values() if name in rows) for name in ("dft", "cc")
    }
    assert counts == {"dft": 50, "cc": 25}
    evaluate.main(["run", "--json=errors.json", "--plot"])
    assert json.loads(Path("errors.json").read_text()) == metrics
