"""Makes the stored run of a release, which all later versions have to read (``tests/test_versions.py``).

    python tests/checkpoints/make.py            # with the installed mfpyg, into tests/checkpoints/<its version>
    PYTHONPATH=TREE python tests/checkpoints/make.py    # with the code of another tree, as that of an older tag

A tiny network is trained on the bundled data for two epochs. Kept are the run folder and, in ``expected.json``, what
the version itself computes with it: energies in kcal/mol and forces in kcal/mol/Å.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from torch_geometric.data import Data

import mfpyg
from mfpyg.cli import train
from mfpyg.datasets import MiniCHNO

OPTIONS = [
    *("--fidelities", "dz:EF", "cc:E", "--epochs", "2", "--batch_size", "64", "--optim.lr", "0.01"),
    *("--model.n_interactions", "1", "--model.n_atom_layers", "1", "--model.n_features", "8"),
    *("--model.n_sensitivities", "6"),
]
CONFORMATIONS = (0, 300, 600, -1)
KEPT = ("config.yaml", "versions.json", "splits.npz", "metrics.csv", "metrics.json", "best.ckpt", "last.ckpt")


def main() -> None:
    """Train, compute, and keep both."""
    folder = Path(__file__).resolve().parent / mfpyg.__version__
    if folder.exists():
        sys.exit(f"{folder} exists; what a release has written stays as it is")
    os.chdir(folder.parent)  # the settings remember the folder's name as it is given
    train.main([*OPTIONS, "--out", folder.name])
    for path in sorted(folder.iterdir()):
        if path.name not in KEPT and path.is_file():
            path.unlink()
    potential, dataset = mfpyg.load(folder), MiniCHNO()
    molecules = []
    for number in CONFORMATIONS:
        z, pos = dataset[number].z, dataset[number].pos
        found: dict[str, object] = {"z": z.tolist(), "pos": pos.tolist()}
        for name in potential.fidelities:
            prediction = potential(Data(z=z, pos=pos), fidelity=name)
            found[name] = {"energy": prediction.energy.item(), "forces": prediction.forces.tolist()}
        molecules.append(found)
    expected = {"versions": json.loads((folder / "versions.json").read_text()), "molecules": molecules}
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
