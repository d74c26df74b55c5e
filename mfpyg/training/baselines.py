"""Labels without the baselines of their levels, which the network is trained on.

They are subtracted once, before training: they depend on the geometries only, which every epoch repeats.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfpyg import baselines
from mfpyg.datasets.batches import rows_of
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.fidelity import Fidelity
from mfpyg.models.baseline import Baseline, check_baseline
from mfpyg.properties import listed
from mfpyg.settings import TrainSettings

CHUNK = 4096
"""Conformations evaluated together."""


def check_baselines(settings: TrainSettings, fidelities: Sequence[Fidelity]) -> None:
    """Check that the levels of baselines are known, without stresses and Hessians, and that baselines can be created.

    Raises:
        MFPyGError: for the first that is not.
    """
    known = {fidelity.name: fidelity for fidelity in fidelities}
    for name, text in baselines.parse(settings.baseline).items():
        if name not in known and settings.init is None:  # others are those of init, see mfpyg.training.initial
            raise unknown_name("fidelity of baseline", name, known)
        others = [letter for letter in (known[name].labels if name in known else "") if letter in "SH"]
        if others:
            raise MFPyGError(
                f"fidelity {known[name]} has the baseline {text}, which is subtracted from energies and forces only; "
                f"leave {listed(others)} out, or the baseline"
            )
        baselines.make(text)


def with_inherited(settings: TrainSettings, described: Mapping[str, Any], added: Sequence[str], init: str) -> list[str]:
    """Baselines of the fidelities of an initial potential, which are kept, and those of added ones.

    Args:
        settings: settings of the training.
        described: metadata of the initial checkpoint.
        added: names of the added fidelities.
        init: name of the initial potential, for errors.

    Raises:
        MFPyGError: for another baseline of a fidelity of the initial potential, or an unknown fidelity.
    """
    old = described["fidelities"]
    before = baselines.parse(described["config"].get("baseline") or [])
    before = {name: text for name, text in before.items() if name in old}
    now = baselines.parse(settings.baseline)
    for name, text in now.items():
        if name not in (*old, *added):
            raise unknown_name("fidelity of baseline", name, [*old, *added])
        if name in old and before.get(name) != text:
            found = f"the baseline {before[name]}" if name in before else "no baseline"
            raise MFPyGError(
                f"{init} was trained with {found} of '{name}', but the settings say {text}; its weights fit no other, "
                f"so leave {name}={text} out"
            )
    return [f"{name}={text}" for name, text in {**before, **now}.items()]


def without_baselines(
    settings: TrainSettings, dataset: ConformationDataset, rows: np.ndarray | None = None
) -> ConformationDataset:
    """Data set without the baselines of the settings in its energies and forces.

    Args:
        settings: settings of a training.
        dataset: labelled data.
        rows: conformations whose labels are needed, (n,) int64; default: all.

    Raises:
        MFPyGError: if a conformation with such labels is periodic, or a baseline does not know an element.
    """
    levels_of: dict[str, list[str]] = {}
    for name, text in baselines.parse(settings.baseline).items():
        if name in dataset.fidelities:
            levels_of.setdefault(text, []).append(name)
    if not levels_of:
        return dataset
    result = copy.copy(dataset)
    result._data, result._data_list = copy.copy(dataset._data), None
    for key in ("energy", "forces"):
        result._data[key] = result._data[key].clone()
    chosen = torch.ones(len(result._data.energy), dtype=torch.bool)
    if rows is not None:
        chosen = torch.zeros_like(chosen).index_fill_(0, torch.from_numpy(rows), True)
    for text, names in levels_of.items():
        _subtract(result, names, baselines.make(text), chosen)
    return result


def _subtract(dataset: ConformationDataset, names: Sequence[str], baseline: Baseline, chosen: Tensor) -> None:
    """Subtract a baseline from the labels of fidelities; geometries with labels of several are evaluated once."""
    data, columns = dataset._data, torch.tensor([dataset.fidelities.index(name) for name in names])
    labelled = (data.energy_mask | data.forces_mask)[:, columns] & chosen[:, None]
    pbc, charge = (getattr(data, key, None) for key in ("pbc", "charge"))
    for name, of_level in zip(names, labelled.T, strict=True):
        check_baseline(name, baseline, *(None if of is None else of[of_level] for of in (pbc, charge)))
    for rows in labelled.any(dim=1).nonzero().flatten().split(CHUNK):
        atoms, _, owner = rows_of(dataset.slices["z"], rows)
        energies, forces = baseline(data.z[atoms], data.pos[atoms].double(), owner, len(rows))
        # A missing label is NaN, and stays one.
        data.energy[rows[:, None], columns] -= energies.new_zeros(len(rows)).index_add(0, owner, energies)[:, None]
        data.forces[atoms[:, None], columns] -= forces.to(data.forces.dtype)[:, None]
