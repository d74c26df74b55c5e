"""Runs that are killed again and again end as if nothing had happened.

    MFPYG_FAULT_KILLS=100 pytest -n0 -s tests/faults/test_kills.py -k random    # a campaign; its record is printed
    MFPYG_FAULT_SEED=1 …                                                        # other moments

In the campaign a run is killed (SIGKILL) at a random moment and resumed, until it is over; then the next one begins.
About half of the kills come at a random time, half in the midst of writing a file, and some hit a plain ``python -m
mfpyg.cli.train``. What each of them hit is recorded. A run that has no checkpoint yet is started anew, as a study does.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mfpyg

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("MFPYG_FAULT_KILLS", "2"))
CAMPAIGN = KILLS >= 20
SEED = int(os.environ.get("MFPYG_FAULT_SEED", "0"))

OPTIONS = (
    "--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--compile=off", "--batch-size=64",
    "--checkpoint-minutes=0", "--optim.lr=0.01", "--fidelities", "dz:EF", "cc:E", "--epochs=4",
)  # fmt: skip
"""Four epochs of ten steps, each of which writes a checkpoint; of stages the second one from step 20 on."""

BALANCED = ("--sampling.strategy=balanced", "--sampling.minimum=cc=20", "--sampling.window=3")
KINDS: dict[str, tuple[str, ...]] = {
    "mfl": (*OPTIONS, *BALANCED),
    # A patience of zero raises the batch size and then halves the rate within a few epochs.
    "plateau": (*OPTIONS, "--optim.schedule=plateau", "--optim.patience=0", "--optim.max-batch-size=100",
                "--optim.stop-after=50", "--optim.lr=0.5", "--fidelities", "dz:EFHD", "cc:E"),
    **{name: (*OPTIONS, f"--strategy={name}") for name in ("tl", "delta", "meta")},
    **{f"init {old}": (*OPTIONS[:-4], "--add-fidelity", "cc:E", "--epochs=4", "--init=start.ckpt",
                       f"--finetune.old={old}", "--finetune.head-from=fresh", "--optim.lr=0.001")
       for old in ("frozen", "kept", "replayed")},
}  # fmt: skip

MOMENTS = (
    ("step", "half", 3),
    ("validation", "half", 0),
    ("last.ckpt", "whole", 3),
    ("last.ckpt", "moved", 6),  # that of an epoch's, or a stage's, end
    ("best.ckpt", "half", 0),
)
"""In a run that is resumed each time: a file, the moment of its writing, and how many of its name came before."""


@pytest.mark.parametrize("kind", KINDS)
def test_run_that_is_killed_ends_as_an_uninterrupted_one(
    forks: Any, assert_same_run: Callable[[Path, Path], None], untrained: Callable[..., Path], kind: str
) -> None:
    start = untrained("dz:EF", name="start.ckpt")
    forks.whole(*KINDS[kind], "--out", "whole")
    arguments = [*KINDS[kind], "--out", "cut"]
    for file, moment, after in MOMENTS:
        forks.killed(file, after, *arguments, moment=moment)
        start.unlink(missing_ok=True)  # a run has all that it needs
        arguments = ["--resume", "cut"]
    assert forks.run("--resume", "cut").status == 0
    assert_same_run(forks.folder / "whole", forks.folder / "cut")


@pytest.mark.parametrize(("strategy", "levels"), [("tl", ["dz"]), ("delta", ["dz"]), ("meta", ["dz", "cc"])])
def test_checkpoint_between_stages_is_the_potential_of_the_first(forks: Any, strategy: str, levels: list[str]) -> None:
    run = forks.folder / "run"
    forks.killed("last.ckpt", 19, *KINDS[strategy], "--out", "run")
    last = torch.load(run / "last.ckpt", weights_only=True)
    assert (last["stage"]["number"], last["stage"]["over"], last["epoch"], last["global_step"]) == (0, True, 1, 20)
    assert last["mfpyg"]["fidelities"] == levels
    assert not (run / "best.ckpt").is_file()
    assert mfpyg.load(run / "last.ckpt").fidelities == tuple(levels)


CAMPAIGNS: dict[str, tuple[str, ...]] = {
    "small": ("--fidelities", "dz:EF", "cc:E", "--preset=small", "--checkpoint-minutes=0.001", "--compile=off",
              f"--epochs={2 if CAMPAIGN else 1}"),
    **{kind: KINDS[kind] for kind in ("plateau", "tl", "delta", "meta")},
}  # fmt: skip
FILES = ("last.ckpt", "last.ckpt", "last.ckpt", "best.ckpt", "metrics.csv", "metrics.csv", "step")
WRITING = ("empty", "half", "half", "whole", "moved")


class Campaign:
    """A run that is killed and resumed.

    Args:
        forks: to run it.
        options: of the run.
        chance: for the moments.
        seconds: that a whole run takes in a fork.
    """

    def __init__(self, forks: Any, options: tuple[str, ...], chance: random.Random, seconds: float) -> None:
        self.forks, self.options, self.chance, self.seconds = forks, options, chance, seconds
        self.run, self.number = forks.folder / "cut0", 0
        self.record: Counter[str] = Counter()
        self.unfinished = 0

    def arguments(self) -> list[str]:
        if (self.run / "last.ckpt").is_file():
            return ["--resume", self.run.name]
        return [*self.options, "--out", self.run.name]

    def go_on(self, way: str) -> bool:
        """Start or resume the run and kill it; whether it was killed and not over before."""
        if way == "process":
            status, phase, unfinished, output = self.plain_process()
        else:
            ended = self.forks.run(*self.arguments(), **getattr(self, way)())
            status, phase, unfinished, output = ended.status, ended.phase, ended.unfinished, ended.output
        if status == -signal.SIGKILL:
            self.record[phase] += 1
            self.unfinished += bool(unfinished)
            return True
        assert status == 0, output
        return False

    def writing(self) -> dict[str, Any]:
        file = self.chance.choice(FILES)
        moment = "half" if file == "step" else self.chance.choice(WRITING)
        after = self.chance.randrange(2) if file in ("best.ckpt", "metrics.csv") else self.chance.randrange(20)
        return {"aim": {"file": file, "moment": moment, "after": after}}

    def time(self) -> dict[str, Any]:
        delay = self.chance.uniform(0, self.seconds / 4)
        trained = self.chance.random() < 0.7  # the others may fall before the first step

        def hit(running: Any) -> None:
            if trained:
                running.wait_for("training step")
            time.sleep(delay)
            running.send(signal.SIGKILL)

        return {"hit": hit}

    def plain_process(self) -> tuple[int, str, list[str], str]:
        """Kill a process of the command itself, from its first import on."""
        command = [sys.executable, "-m", "mfpyg.cli.train", *self.arguments()]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=self.forks.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            output, _ = process.communicate(timeout=self.chance.uniform(0, self.seconds + 5))
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        unfinished = [path.name for path in self.run.glob(".*.tmp")]
        return process.returncode, "plain process", unfinished, output

    def next_run(self) -> None:
        self.number += 1
        self.run = self.forks.folder / f"cut{self.number}"


@pytest.mark.parametrize("kind", CAMPAIGNS if CAMPAIGN else ["small"])
def test_random_kills(forks: Any, assert_same_run: Callable[[Path, Path], None], kind: str) -> None:
    kills = KILLS if kind == "small" else KILLS // 5
    options, chance = CAMPAIGNS[kind], random.Random(f"{SEED} {kind}")
    forks.whole(*options, "--out", "whole")
    start = time.monotonic()
    forks.whole(*options, "--out", "again")  # when kernels are compiled; the two are compared, too
    assert_same_run(forks.folder / "whole", forks.folder / "again")
    campaign = Campaign(forks, options, chance, time.monotonic() - start)
    survived = 0
    while sum(campaign.record.values()) < kills:
        before = sum(campaign.record.values())
        way = "process" if before % 20 == 0 else chance.choice(["time", "writing"])
        if not campaign.go_on(way):
            assert_same_run(forks.folder / "whole", campaign.run)
            survived = before
            campaign.next_run()
    ended = forks.run(*campaign.arguments())
    assert ended.status == 0, ended.output
    assert_same_run(forks.folder / "whole", campaign.run)
    survived = sum(campaign.record.values())
    print(
        f"\n{kind}: {survived} kills of {campaign.number + 1} runs survived in {time.monotonic() - start:.0f} s; "
        f"a file was unfinished at {campaign.unfinished} of them; hit while: "
        + ", ".join(f"{phase} {n}" for phase, n in campaign.record.most_common())
    )
