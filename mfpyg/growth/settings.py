"""Settings of ``mfpyg-grow``; importable without torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfpyg.datasets.spec import available_fidelities, parse_specs
from mfpyg.errors import MFPyGError, shown, unknown_name
from mfpyg.labeling.level import LabelLevel, parse_label_levels
from mfpyg.option_groups import FIT, KEEP
from mfpyg.options import build, check, flat, setting
from mfpyg.sampling.settings import SampleSettings
from mfpyg.selection.settings import SelectSettings
from mfpyg.settings import TrainSettings, completed
from mfpyg.strict_yaml import read_yaml

SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
"""Units of the budget."""

MAY_CHANGE = ("out", "budget", "rounds", "jobs")
"""Settings that a later call may change."""

MAY_CHANGE_BEFORE_TRAINING = ("train", "select")
"""Settings that a later call may change as long as nothing is trained."""

SET_BY_GROWTH = {
    "sample": ("seed",),
    "select": ("costs", "budget", "target", "seed"),
    "train": (
        *("fidelities", "dataset", "split", "seed", "out", "init", "add_fidelity"),
        *("finetune", "strategy", "strategy_options", "target", "label_fraction"),
    ),
}
"""Options of other commands that a growth sets for each round, or that make no sense in one."""


@dataclass(frozen=True)
class GrowSettings:
    """Settings of a growth."""

    out: str | None = setting(None, "folder of the growth; -o takes precedence")
    molecules: list[str] = setting([], "what to sample, as for mfpyg-sample: SMILES, files of SMILES, structures")
    pool: str | None = setting(None, "file of geometries to choose from, instead of molecules")
    levels: dict = setting({}, "levels of theory by name, as {cc: 'pyscf:CCSD(T)/cc-pVDZ:E'}")
    target: str | None = setting(None, "level whose error is to be reduced (default: the last one)")
    everywhere: list[str] = setting([], "cheap levels that are computed for all geometries; others are chosen")
    budget: int | float | str | None = setting(
        None, "processor time of all labels together, in seconds or as 30min, 2h, 1d (required)"
    )
    rounds: int = setting(4, "number of rounds, which share the budget equally", low=1)
    validation: float = setting(
        0.1, "share of the geometries, and of the budget, for validation: drawn at random", low=0.01, high=0.5
    )
    sample: dict = setting({}, "options of mfpyg-sample, as {modes: 100}")
    train: dict = setting({}, "options of mfpyg-train, as {preset: small, optim: {lr: 0.001}}")
    select: dict = setting({}, "options of mfpyg-select, as {method: random}")
    test: list[str] = setting([], "labelled data to evaluate each round on, as for mfpyg-train --dataset")
    jobs: int = setting(1, "labels, or molecules to sample, at a time", low=1)
    seed: int = setting(0, "seed of the whole growth", low=0, high=2**31 - 1)

    @property
    def label_levels(self) -> tuple[LabelLevel, ...]:
        """Levels of theory, in the order given.

        Raises:
            MFPyGError: for none, or a malformed one.
        """
        for name, text in self.levels.items():
            if not isinstance(name, str) or not isinstance(text, str):
                raise MFPyGError(f"level {shown(name)} is {shown(text)}, expected text as in xtb: tblite:GFN2-xTB:EF")
        return parse_label_levels(f"{name}={text}" for name, text in self.levels.items())

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the levels that are computed for chosen geometries only."""
        return tuple(name for name in self.levels if name not in self.everywhere)

    @property
    def epochs(self) -> int:
        """Number of epochs of a training at most."""
        return self.training([], "data", Path("split"), Path("out")).epochs

    @property
    def target_name(self) -> str:
        """Name of the target."""
        return self.target or list(self.levels)[-1]

    @property
    def seconds(self) -> float:
        """The budget in seconds."""
        return parse_seconds(self.budget)

    @property
    def sampling(self) -> SampleSettings:
        """Settings of sampling."""
        values = dict(self.sample)
        if "temperature" in values:
            given = values["temperature"]
            values["temperature"] = tuple(given) if isinstance(given, list) else (given,)
        settings: SampleSettings = build(SampleSettings, {**values, "seed": self.seed}, "sample.")
        return settings

    def selection(self, costs: dict[str, float], budget: float) -> SelectSettings:
        """Settings of a selection.

        Args:
            costs: processor time of a label of each level in seconds.
            budget: processor time of all labels in seconds.
        """
        own = {"costs": costs, "budget": budget, "target": self.target_name, "seed": self.seed}
        settings: SelectSettings = build(SelectSettings, {**self.select, **own}, "select.")
        return settings

    def training(
        self, fidelities: Sequence[str], dataset: str, split: Path, out: Path, init: Path | None = None
    ) -> TrainSettings:
        """Settings of a training.

        Args:
            fidelities: levels and their labels.
            dataset: labelled data.
            split: npz file of the conformations of each split.
            out: run folder.
            init: run to continue from.
        """
        own = {"fidelities": list(fidelities), "dataset": [dataset], "out": str(out), "seed": self.seed}
        own["split"] = {"method": "index", "file": str(split)}
        settings = completed({"backbone": "hipnn", **self.train, **own}, {})
        if init is None:
            return settings
        # All labels so far are trained on, so that nothing is forgotten at the full learning rate.
        references = FIT if settings.references in (None, FIT) else KEEP  # which a file has given
        return dataclasses.replace(settings, init=str(init), references=references)

    def check(self) -> None:
        """Check everything that needs no data.

        Raises:
            MFPyGError: for the first error.
        """
        check(self)
        if bool(self.molecules) == (self.pool is not None):
            found = "both" if self.molecules else "neither"
            raise MFPyGError(f"molecules and pool: {found} given; expected one of them, as molecules: [CCO, C=O]")
        if self.pool is not None and self.sample:
            raise MFPyGError("sample is given, but pool names the geometries, so none are sampled; leave one out")
        names = [level.name for level in self.label_levels]
        for key, given in (("target", [self.target_name]), ("everywhere", self.everywhere)):
            for name in given:
                if name not in names:
                    raise unknown_name(f"level of {key}", name, names)
        if self.target_name in self.everywhere:
            raise MFPyGError(
                f"everywhere has the target {self.target_name}, so that nothing is chosen; name only cheaper levels"
            )
        if self.budget is None:
            raise MFPyGError("budget is missing; expected the processor time of all labels together, as 2h")
        parse_seconds(self.budget)
        for command, options in SET_BY_GROWTH.items():
            for name in getattr(self, command):
                if name in options:
                    raise MFPyGError(f"{command}.{name} is set by mfpyg-grow for each round; leave it out")
        self.sampling.check()
        self.selection(dict.fromkeys(self.chosen, 1.0), 1.0).check()
        fidelities = [f"{level.name}:{level.letters}" for level in self.label_levels]
        try:
            self.training(fidelities, "data", Path("split"), Path("out"), Path("init")).check()
        except MFPyGError as error:
            raise MFPyGError(f"train: {error}") from error
        self._check_test(names)

    def _check_test(self, names: Sequence[str]) -> None:
        if not self.test:
            return
        found = {name for spec in parse_specs(self.test) for name in available_fidelities(spec)}
        if not found & set(names):
            raise MFPyGError(
                f"test has none of the levels {', '.join(names)} (it has {', '.join(sorted(found))}); give the levels "
                "the same names"
            )


def parse_seconds(budget: Any) -> float:
    """Seconds of a budget: a number, or one with a unit.

    >>> parse_seconds("1.5h"), parse_seconds(20)
    (5400.0, 20.0)

    Raises:
        MFPyGError: for anything else, or no time.
    """
    match = re.fullmatch(rf"\s*([0-9.]+)\s*({'|'.join(SECONDS)})?\s*", str(budget))
    try:
        seconds = float(match[1]) * SECONDS[match[2] or "s"] if match is not None else 0.0
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise MFPyGError(f"budget is {shown(budget)}, expected a time above 0 in seconds, or as 30min, 2h or 1d")
    return seconds


def read_settings(path: Path) -> GrowSettings:
    """Settings from a YAML file.

    Raises:
        MFPyGError: for a file that cannot be read, an unknown name, or a value of the wrong type.
    """
    values = read_yaml(path, "settings of a growth", "'molecules: [CCO]'")
    if isinstance(values.get("test"), str):
        values["test"] = [values["test"]]
    try:
        settings: GrowSettings = build(GrowSettings, values)
    except MFPyGError as error:
        raise MFPyGError(f"{path}: {error}") from error
    return settings


def differences(before: Mapping[str, Any], now: Mapping[str, Any], allowed: Sequence[str] = MAY_CHANGE) -> list[str]:
    """Descriptions of all differences in settings, but for those that are allowed."""
    old, new = (flat({k: v for k, v in values.items() if k not in allowed}) for values in (before, now))
    return [
        f"{name} was {old.get(name, 'absent')}, now {new.get(name, 'absent')}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def as_dict(settings: GrowSettings) -> dict[str, Any]:
    """Plain values, from which the same settings can be made."""
    return dataclasses.asdict(settings)
