"""The runs of a study and their folder; importable without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mfpyg import strategies
from mfpyg.errors import MFPyGError
from mfpyg.files import make_folder, write_text
from mfpyg.strategy_options import GROUPS
from mfpyg.strict_yaml import read_yaml
from mfpyg.study.names import PAPER_MODELS, TARGET_WITHOUT_FORCES, model_name, parse_model, target_of


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Args:
        name: name of the model as in the paper, such as ``MF-DZ/EF-CC/E``.
        folder: run folder of mfpyg-train.
        strategy: training strategy; runs of different strategies are never averaged.
        label_fraction: share of the target's labels used in training.
        seed: seed, which distinguishes the members of an ensemble.
        n_labels: number of training conformations with a label of the target; counted if not given, see
            :func:`mfpyg.study.results.n_target_labels`.
        failure: reason why the folder is empty, if known.
        known: names of levels that the model may have; those of the known data sets if not given.
        data: location of its data as for ``--dataset``; as recorded by the run if not given.
    """

    name: str
    folder: Path
    strategy: str = "mfl"
    label_fraction: float = 1.0
    seed: int = 0
    n_labels: int | None = None
    failure: str | None = None
    known: tuple[str, ...] | None = None
    data: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))  # may be given as a string

    @property
    def fidelities(self) -> list[str]:
        """Fidelities as for ``mfpyg-train``, cheap ones first.

        Raises:
            MFPyGError: as :func:`mfpyg.study.names.parse_model`.
        """
        return parse_model(self.name) if self.known is None else parse_model(self.name, self.known)

    @property
    def key(self) -> tuple[str, str, float]:
        """Name, strategy and share of labels, the same for all members of an ensemble."""
        return self.name, self.strategy, self.label_fraction

    def __str__(self) -> str:
        return f"{self.name}, {self.strategy}, {percent(self.label_fraction)} of the labels, seed {self.seed}"


def percent(share: float) -> str:
    """Format a share.

    >>> percent(0.3), percent(0.0025)
    ('30%', '0.25%')
    """
    return f"{100 * share:.4g}%"


SETS: dict[str, tuple[str, ...]] = {"table1": PAPER_MODELS, "tables2-4": TARGET_WITHOUT_FORCES}
"""Names of sets of models."""

DATA_OPTIONS = ("--dataset", "--split.files")
"""Options of mfpyg-train that give the location of the data."""

MOST_MEMBERS = 1000
"""Maximum size of an ensemble."""


@dataclass
class StudyPlan:
    """A study: every model with every strategy and share of labels, as an ensemble.

    Attributes:
        models: names of models as in the paper.
        strategies: training strategies; single-fidelity models have only one.
        fractions: shares of the target's labels.
        members: number of members of each ensemble, with the seeds 0, 1, ….
        options: options of mfpyg-train for all runs; those of a strategy, as ``--delta.share``, for its runs only.
        levels: levels of the data, of which models are composed.
        epochs: number of epochs of a run with all labels.
    """

    models: list[str]
    strategies: list[str] = field(default_factory=lambda: ["mfl"])
    fractions: list[float] = field(default_factory=lambda: [1.0])
    members: int = 8
    options: list[str] = field(default_factory=list)
    levels: list[str] = field(default_factory=list)
    epochs: int = 1

    def check(self) -> None:
        """Check everything that needs no data.

        Raises:
            MFPyGError: for the first error.
        """
        self.models = [model_name(parse_model(name, self.levels)) for name in self.models]
        for name, values in (("models", self.models), ("strategies", self.strategies), ("fractions", self.fractions)):
            if not values or len(set(values)) < len(values):
                raise MFPyGError(f"{name} are {', '.join(map(str, values)) or 'none'}, expected different ones")
        for strategy in self.strategies:
            strategies.find(strategy)
        for fraction in self.fractions:
            if not 0 < fraction <= 1:
                raise MFPyGError(f"label-fraction is {fraction:g}, expected a number above 0 and at most 1")
        if not 1 <= self.members <= MOST_MEMBERS:
            raise MFPyGError(f"members is {self.members}, expected at least 1 and at most {MOST_MEMBERS:,}")

    def check_options(self) -> None:
        """Check that options of a strategy, as ``--delta.share``, belong to one that is used.

        Raises:
            MFPyGError: naming the first option that does not.
        """
        for option in self.options:
            strategy = _strategy_of(option)
            if strategy is not None and strategy not in self.strategies:
                names = ", ".join(self.strategies)
                raise MFPyGError(
                    f"{option} is an option of strategy {strategy}, but the strategies are {names}; leave it out"
                )

    def runs(self, folder: Path) -> list[StudyRun]:
        """All runs, ordered by seed, so that a study stopped early has a member of each ensemble."""
        return [
            StudyRun(name, folder / place(name, strategy, fraction, seed), strategy, fraction, seed,
                     known=tuple(self.levels))
            for seed in range(self.members)
            for fraction in self.fractions
            for name in self.models
            for strategy in (self.strategies if len(parse_model(name, self.levels)) > 1 else ["mfl"])
        ]  # fmt: skip

    def arguments(self, run: StudyRun) -> list[str]:
        """Arguments of mfpyg-train for a new run.

        A single-fidelity model learns nothing from conformations without their label. Its epochs are increased so that
        the number of steps, and with it the learning rate schedule, is that of a model with all labels.
        """
        arguments = ["--fidelities", *run.fidelities, "--seed", str(run.seed), "--split.seed", "0"]
        if run.strategy != "mfl":
            arguments += ["--strategy", run.strategy]
        if run.label_fraction < 1:
            arguments += ["--label-fraction", f"{target_of(run.fidelities).name}={_digits(run.label_fraction)}"]
        used, options = True, []
        for word in self.options:
            if word.startswith("--"):
                used = _is_of(word, run.strategy)
            if used:
                options.append(word)
        if run.label_fraction < 1 and len(run.fidelities) == 1:
            options += ["--epochs", str(round(self.epochs / run.label_fraction))]
        return [*arguments, "--out", str(run.folder), *options]

    def command(self, folder: Path) -> list[str]:
        """Arguments of mfpyg-study for the whole study."""
        return [
            *self.models,
            *("--strategies", *self.strategies),
            *("--label-fraction", *map(_digits, self.fractions)),
            *("--members", str(self.members)),
            *("--out", str(folder)),
            *self.options,
        ]


def place(name: str, strategy: str, fraction: float, seed: int) -> str:
    """Folder of a run relative to its study: ``runs/MF-DZ_EF-CC_E/mfl-1/seed-0``."""
    return f"runs/{name.replace('/', '_')}/{strategy}-{_digits(fraction)}/seed-{seed}"


def _digits(fraction: float) -> str:
    return f"{fraction:.12g}"


def _strategy_of(option: str) -> str | None:
    """Strategy that an option of mfpyg-train belongs to; ``None`` for general options, and for values."""
    return GROUPS.get(option[2:].partition(".")[0]) if option.startswith("--") else None


def _is_of(option: str, strategy: str) -> bool:
    """True unless an option of mfpyg-train belongs to another strategy."""
    if option == "--strategy-options":
        return strategies.find(strategy).package is not None
    return _strategy_of(option) in (None, strategy)


def models_named(words: Iterable[str]) -> list[str]:
    """Models from a list of names and names of sets, without repetitions."""
    return list(dict.fromkeys(name for word in words for name in SETS.get(word, (word,))))


def joined_with_stored(plan: StudyPlan, folder: Path) -> StudyPlan:
    """Merge the plan with the one stored in the folder's ``study.yaml``, if any; the data may have moved.

    Raises:
        MFPyGError: if the options of the runs differ, or the folder is not a study.
    """
    path = folder / "study.yaml"
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise MFPyGError(f"{folder} exists and is not a study; choose another folder with --out")
        return plan
    stored = read_plan(folder)
    if (data_options(stored.options)[1], stored.levels) != (data_options(plan.options)[1], plan.levels):
        raise MFPyGError(
            f"{folder} is a study with the options '{' '.join(stored.options)}', not '{' '.join(plan.options)}'; "
            "give the same options, or another folder with --out"
        )
    return dataclasses.replace(
        plan,
        models=_merged(stored.models, plan.models),
        strategies=_merged(stored.strategies, plan.strategies),
        fractions=_merged(stored.fractions, plan.fractions),
        members=max(stored.members, plan.members),
    )


def data_options(options: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split options, with their values, into those of the data and all others."""
    data: list[str] = []
    others: list[str] = []
    into = others
    for word in options:
        if word.startswith("--"):
            into = data if word.partition("=")[0] in DATA_OPTIONS else others
        into.append(word)
    return data, others


def store(plan: StudyPlan, folder: Path) -> None:
    """Write ``study.yaml``.

    Raises:
        MFPyGError: if the folder cannot be written to.
    """
    make_folder(folder)
    write_text(folder / "study.yaml", yaml.safe_dump(dataclasses.asdict(plan), sort_keys=False))


def _merged(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys([*first, *second]))


def read_plan(folder: Path) -> StudyPlan:
    """Read the plan stored in a study's folder.

    Raises:
        MFPyGError: if its ``study.yaml`` is missing or damaged.
    """
    path = folder / "study.yaml"
    values = read_yaml(path)
    known = [f.name for f in dataclasses.fields(StudyPlan)]
    if set(values) != set(known):
        raise MFPyGError(f"{path}: holds {', '.join(map(str, values)) or 'nothing'}, expected {', '.join(known)}")
    for name, value in values.items():
        of = int | float if name == "fractions" else str
        right = type(value) is int and value > 0 if name in ("members", "epochs") else isinstance(value, list)
        if not right or (isinstance(value, list) and not all(isinstance(one, of) for one in value)):
            raise MFPyGError(f"{path}: {name} is {str(value)[:80]}, which mfpyg-study did not write")
    plan = StudyPlan(**values)
    try:
        plan.check()  # names are used for folders
    except MFPyGError as error:
        raise MFPyGError(f"{path}: {error}") from error
    return plan
