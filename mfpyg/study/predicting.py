"""From finished runs to the predictions of ensembles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.device import choose_device
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.ensemble import Labels
from mfpyg.evaluation.evaluate import Parity
from mfpyg.inference.dataset import Predictions, run_predictions
from mfpyg.study.names import PAPER_MODELS, model_name
from mfpyg.study.reading import Failure, ReadRun, StudyRun


def evaluated_on(
    one: ReadRun, splits: Sequence[str], whole: Mapping[str, ConformationDataset]
) -> dict[str, tuple[ConformationDataset, np.ndarray]]:
    """What a run is evaluated on: data and numbers of conformations."""
    own = {name: (one.dataset, one.splits[name]) for name in splits}
    return own | {name: (data, np.arange(len(data))) for name, data in whole.items()}


def predict_all(
    read: list[ReadRun],
    splits: Sequence[str],
    whole: Mapping[str, ConformationDataset],
    accelerator: str,
    note: Callable[[str], None],
) -> tuple[dict[int, tuple[ReadRun, dict[str, Predictions]]], list[Failure]]:
    """Predictions of each run, by its ``id``, on everything that has one of its fidelities."""
    device = choose_device(accelerator)
    found, failures = {}, []
    for one in read:
        note(str(one.run))
        try:
            found[id(one)] = (
                one,
                {
                    name: run_predictions(one.run.folder, data, rows, device=device)
                    for name, (data, rows) in evaluated_on(one, splits, whole).items()
                    if set(one.fidelities) & set(data.fidelities)
                },
            )
        except MFPyGError as error:
            failures.append(Failure(one.run, f"{one.run.folder}: {error}"))
    return found, failures


def in_groups(found: Mapping[int, tuple[ReadRun, Any]]) -> tuple[list[list[ReadRun]], list[Failure]]:
    """Members of each ensemble, in the order of the tables, and those that predict other levels than the first."""
    groups: dict[tuple[str, str, float], list[ReadRun]] = {}
    failures = []
    order = sorted((r for r, _ in found.values()), key=lambda r: (_place(r.run), r.run.strategy, -r.run.label_fraction))
    for one in sorted(order, key=lambda r: r.run.seed):
        first = groups.setdefault(one.run.key, [one])[0]
        if set(one.fidelities) != set(first.fidelities):
            what = f"{one.run.folder}: predicts {', '.join(one.fidelities)}, but {first.run.folder}, an earlier member,"
            failures.append(Failure(one.run, f"{what} {', '.join(first.fidelities)}; give it another strategy"))
        elif one is not first:
            groups[one.run.key].append(one)
    return [groups[key] for key in dict.fromkeys(one.run.key for one in order)], failures


def _place(run: StudyRun) -> tuple[int, str]:
    """In the order of the paper's Table 1, others behind."""
    name = model_name(run.fidelities)
    return (PAPER_MODELS.index(name) if name in PAPER_MODELS else len(PAPER_MODELS)), name


def parity_of(mean: Predictions, labels: Labels, target: str) -> dict[tuple[str, str], Parity]:
    """Labels and predictions of the target as :func:`mfpyg.evaluation.report.parity_plot` takes them."""
    pairs: dict[tuple[str, str], Parity] = {}
    if target not in mean.energy:
        return pairs
    mask = labels.energy_mask[target]
    if mask.any():
        reference, n_atoms = mean.reference[target][mask], labels.n_atoms[mask]
        label, predicted = ((e[target][mask] - reference) / n_atoms for e in (labels.energy, mean.energy))
        pairs[target, "energy"] = Parity([label], [predicted])
    atoms = np.repeat(labels.forces_mask[target], labels.n_atoms)
    if target in mean.forces and atoms.any():
        label, predicted = (f[target][atoms].ravel() for f in (labels.forces, mean.forces))
        pairs[target, "forces"] = Parity([label], [predicted])
    return pairs
