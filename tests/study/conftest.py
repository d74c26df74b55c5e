"""Finished runs to make tables of: trained once, with a tiny network."""

from __future__ import annotations

import numpy as np
import pytest

from mfpyg.cli import train
from mfpyg.study import StudyRun, parse_model

TINY = [
    "--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--batch-size=128", "--epochs=2",
]  # fmt: skip


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[StudyRun]:
    """SF-CC/E and MF-DZ/EF-CC/E with two seeds, SF-CC/E with half of the labels, too; one MF-DZ/EF-TZ/EF."""
    folder = tmp_path_factory.mktemp("study")
    runs = [
        *(StudyRun(name, folder / f"{number}-{seed}", seed=seed)
          for number, name in enumerate(("SF-CC/E", "MF-DZ/EF-CC/E")) for seed in (0, 1)),
        StudyRun("MF-DZ/EF-TZ/EF", folder / "tz"),
    ]  # fmt: skip
    for run in runs:
        options = ["--fidelities", *parse_model(run.name), "--seed", str(run.seed), "--out", str(run.folder), *TINY]
        train.main(options)
    with np.load(folder / "0-0" / "splits.npz") as splits:
        np.savez(folder / "half.npz", **{**splits, "train": splits["train"][::2]})
    half = StudyRun("SF-CC/E", folder / "half", label_fraction=0.5)
    by_index = ["--split.method=index", f"--split.file={folder / 'half.npz'}"]
    train.main(["--fidelities", "cc:E", "--out", str(half.folder), *by_index, *TINY])
    return [*runs, half]
