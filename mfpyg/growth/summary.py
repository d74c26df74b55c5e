"""Results of a round: labels and their cost, errors, and the error that the potential expects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mfpyg.checkpoint import load
from mfpyg.datasets.frames import Frame
from mfpyg.datasets.spec import open_dataset, parse_specs
from mfpyg.evaluation.evaluate import evaluate
from mfpyg.fidelity import further_letters, parse_fidelities
from mfpyg.files import write_text
from mfpyg.growth.costs import spent
from mfpyg.growth.folder import RoundFolder
from mfpyg.growth.labels import Labels
from mfpyg.inference.ensemble import Ensemble
from mfpyg.inference.frames import batch_of
from mfpyg.properties import ENERGY, FORCES
from mfpyg.torch_defaults import with_default_torch_settings

AT_ONCE = 64
"""Frames in a batch."""


def summarise(labels: Labels, folder: RoundFolder) -> None:
    """Evaluate the potential of a round, and write ``summary.json``.

    It has the number of ``labels`` and of ``failed`` ones, and their ``seconds``, by level, of all rounds so far;
    ``val`` and ``test``, errors by level and property as :func:`mfpyg.evaluation.evaluate.evaluate` gives them; and
    ``expected``, see :func:`expected_errors`.
    """
    about, costs = labels.about["levels"], labels.costs()
    errors = json.loads(folder.run.metrics.read_text(encoding="utf-8"))
    contents = {
        "labels": {name: about[name]["labels"] for name in about},
        "failed": {name: about[name]["failed"] for name in about},
        "seconds": {name: cost.seconds for name, cost in costs.items()},
        "spent": spent(costs),
        "val": errors["val"],
        "test": _test(folder.run.path, labels.settings.test, folder.run.read_settings().fidelities),
        "expected": expected_errors(folder.run.path, labels.pool.frames, labels.settings.target_name),
    }
    write_text(folder.summary, json.dumps(contents, indent=2) + "\n")


def _test(run: Path, test: Sequence[str], fidelities: Sequence[str]) -> dict[str, Any]:
    """Errors on the test data; empty without any."""
    if not test:
        return {}
    trained = parse_fidelities(fidelities)
    specs = parse_specs(test)
    having = {level.name for spec in specs for level in spec.levels}
    names = [fidelity.name for fidelity in trained if fidelity.name in having]
    dataset = open_dataset(specs, names, properties=further_letters(trained))
    found: dict[str, Any] = evaluate(load(run), dataset, {"test": np.arange(len(dataset))}).metrics["test"]
    return found


@with_default_torch_settings
def expected_errors(run: Path, frames: Sequence[Frame], fidelity: str) -> dict[str, float]:
    """Root mean squares of the standard deviations of energies and force components at a level.

    Args:
        run: run folder.
        frames: geometries to average over.
        fidelity: level of theory.

    Returns:
        ``energy`` in kcal/mol and ``forces`` in kcal/mol/Å; empty if the potential has no standard deviations, as with
        too few labels.
    """
    ensemble = Ensemble(run)
    if not ensemble.has_std(fidelity):
        return {}
    squares: dict[str, list[np.ndarray]] = {ENERGY.name: [], FORCES.name: []}
    for start in range(0, len(frames), AT_ONCE):
        batch = batch_of(frames[start : start + AT_ONCE], ensemble)
        _, spread = ensemble.predict(batch, {fidelity: "EF"}, std=True)
        assert spread is not None
        for name, values in squares.items():
            values.append(getattr(spread[fidelity], name).double().square().flatten().cpu().numpy())
    return {name: float(np.sqrt(np.concatenate(values).mean())) for name, values in squares.items()}
