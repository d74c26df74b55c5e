"""What a study's folder says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mfpyg.study.plan import read_plan
from mfpyg.training.folder import RunFolder


def describe_study(path: Path) -> dict[str, Any]:
    """What a study is made of, and how many of its runs are finished; see :func:`mfpyg.inspection.inspect`.

    Raises:
        MFPyGError: if its ``study.yaml`` is damaged.
    """
    plan = read_plan(path)
    states = {str(run): _state(RunFolder(run.folder)) for run in plan.runs(path)}
    return {"kind": "study", "path": str(path), "plan": dataclasses.asdict(plan), "runs": states}


def _state(folder: RunFolder) -> str:
    if folder.metrics.is_file():
        return "finished"
    return "started" if folder.last.is_file() else "missing"
