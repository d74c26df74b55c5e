"""A custom strategy: the predictions of a trained potential are the labels of a cheap level.

    mfpyg-train --fidelities dz:EF cc:E --out runs/teacher
    python examples/teacher_student.py --fidelities tz:EF cc:E --strategy-options teacher=runs/teacher of=dz level=tz

Other options are those of mfpyg-train. In your own package, an entry point in the group ``mfpyg.strategies`` replaces
``register`` and ``main``: then run ``mfpyg-train --strategy teacher-student``.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

import mfpyg
from mfpyg import strategies
from mfpyg.cli.train import main
from mfpyg.datasets.batches import BatchLoader
from mfpyg.models import Potential
from mfpyg.training.inputs import Inputs
from mfpyg.training.stage import Stage
from mfpyg.training.strategies import joint


def teacher_student(
    inputs: Inputs, teacher: str = "", of: str = "dz", level: str = "dz"
) -> tuple[Potential, list[Stage]]:
    """Train on all levels at once, with labels of one level predicted by a teacher.

    Args:
        inputs: inputs of the training.
        teacher: run folder or checkpoint of the teacher.
        of: fidelity of the teacher to predict.
        level: fidelity whose labels the predictions become, in training and validation.
    """
    potential = mfpyg.load(teacher)
    rows = np.concatenate([inputs.splits["train"], inputs.splits["val"]])
    batches = BatchLoader(inputs.dataset, plan=lambda epoch: np.array_split(rows, max(1, len(rows) // 128)))
    found = [potential(batch, fidelity=of) for batch in batches]
    energy, forces = torch.cat([p.energy for p in found]), torch.cat([p.forces for p in found])
    inputs.notes.append(f"{level} has the labels that {teacher} predicts for {of}")
    return joint.stages(inputs.relabelled(level, rows, energy, forces))


strategies.register("teacher-student", teacher_student)

if __name__ == "__main__":
    main(["--strategy", "teacher-student", *sys.argv[1:]])
