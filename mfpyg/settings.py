"""All settings of a training run, as plain data: defaults, presets, and what values make sense.

Nothing here imports torch. Each field's ``help`` is what ``mfpyg-train --help`` shows, and each
field can be given on the command line or in a YAML file.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from mfpyg import backbones, strategies
from mfpyg.engine import ENGINES
from mfpyg.errors import MFPyGError, shown, unknown_name
from mfpyg.option_groups import (
    KEPT_LR,
    FinetuneSettings,
    HeadSettings,
    OptimSettings,
    SamplingSettings,
    SplitSettings,
    keeps,
)
from mfpyg.options import build, check, setting
from mfpyg.strategy_options import DeltaSettings, MetaSettings, TransferSettings, check_groups
from mfpyg.units import with_known_units

DATASETS = (
    "minichno, ani1x, ani1ccx, ani2x or comp6; NAME:PATH of a raw file or root; or a file of your own as FILE:LEVEL "
    "(.xyz, .db, .npz, others that ASE reads), npy:FOLDER:LEVEL or pyanitools:FILE.h5:LEVEL, a LEVEL being "
    "NAME=ENERGY[,FORCES]@UNIT, as mine.xyz:dft=energy,forces@eV"
)
"""Names of data sets, for the help of commands."""
LOGGERS = ("tensorboard", "wandb", "mlflow")


@dataclass
class TrainSettings:
    """Everything that defines a training run."""

    fidelities: list[str] = setting([], "levels of theory and their labels to train on, as dz:EF cc:E")
    dataset: list[str] = setting(
        ["minichno"],
        f"{DATASETS}; several become one data set",
    )
    backbone: str = setting(
        "hipnn",
        "the network shared by all fidelities; --backbone NAME --help shows its options",
        choices=backbones.names,
    )
    strategy: str = setting(
        "mfl",
        "how the levels teach the network; mfl: all at once; the others have the same splits and, before any early "
        "stop, the same number of optimiser steps, divided among stages: tl: one level after the other, in the order "
        "given; delta: a model of the lower levels and one of the difference of the target's labels; meta: Reptile "
        "over the levels, then adaptation to the target",
        choices=strategies.names,
    )
    strategy_options: list[str] = setting([], "options of a strategy of another package, as name=value")
    init: str | None = setting(
        None, "run folder or checkpoint to train further, whose network, elements, fidelities and weights are taken"
    )
    add_fidelity: list[str] = setting([], "levels of theory that init has not yet, and their labels, as cc:E")
    target: str | None = setting(None, "fidelity that strategies tl, delta and meta end with; null: the last one")
    label_fraction: list[str] = setting(
        [],
        "part of the conformations in training and validation that keeps its labels of a fidelity, as cc=0.1 dz=0.5; "
        "drawn by the seed, a smaller part being within a larger one; the test keeps all",
    )
    references: str | None = setting(
        None,
        "YAML file of reference energies, as 'cc: {unit: Hartree, H: -0.4998}'; what it leaves out is that of isolated "
        "atoms in the training data, or else fitted",
    )
    preset: str = setting("small", "defaults of everything below", choices=("small", "published"))
    out: str | None = setting(None, "run folder; null: runs/ and a name made of the settings")
    epochs: int = setting(2000, "most passes over the training data", low=1)
    batch_size: int = setting(256, "conformations in a batch, over all devices", low=1)
    seed: int = setting(0, "seed of the initial weights, the split and the order of batches", low=0, high=2**63 - 1)
    checkpoint_minutes: float = setting(10.0, "minutes between checkpoints within an epoch", low=0.0)
    logger: list[str] = setting(
        [],
        f"where losses and errors are logged besides metrics.csv: {', '.join(LOGGERS)}; default: tensorboard if "
        "installed",
    )
    devices: int = setting(1, "processes on each node, each with a GPU where there is one", low=1)
    nodes: int = setting(1, "machines, on each of which srun or torchrun starts the processes", low=1)
    accelerator: str = setting("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    threads: int | None = setting(None, "CPU threads of each process; null: as torch decides", low=1)
    precision: int = setting(32, "floating-point bits of the network", choices=(32, 64))
    engine: str = setting(
        "auto",
        "neighbour lists; auto: vesin for large graphs on the CPU, else torch; the edges are the same",
        choices=ENGINES,
    )
    compile: str = setting(
        "auto",
        "training steps through torch.compile, which takes up to a minute at the start; auto: on a CPU, in long runs, "
        "where the backbone compiles soon",
        choices=("auto", "on", "off"),
    )
    edges: str = setting(
        "batch", "batch: built for each batch; stored: built once, with the processed data", choices=("batch", "stored")
    )
    weights: list[str] = setting([], "loss weights that are not 1, as dz:F=0.5 cc:E=2")
    hierarchicality: float = setting(1.0, "weight of the hierarchicality term of each fidelity", low=0.0)
    monitor: str = setting("sum", "whose validation loss decides the best epoch: a fidelity, or sum for all")
    model: Any = field(default_factory=backbones.find("hipnn").options, metadata={"help": "options of the backbone"})
    head: HeadSettings = field(default_factory=HeadSettings, metadata={"help": "what each fidelity has of its own"})
    optim: OptimSettings = field(default_factory=OptimSettings, metadata={"help": "optimiser and schedule"})
    split: SplitSettings = field(default_factory=SplitSettings, metadata={"help": "training, validation, test"})
    sampling: SamplingSettings = field(
        default_factory=SamplingSettings, metadata={"help": "what a training epoch is made of"}
    )
    transfer: TransferSettings = field(default_factory=TransferSettings, metadata={"help": "of strategy tl"})
    delta: DeltaSettings = field(default_factory=DeltaSettings, metadata={"help": "of strategy delta"})
    meta: MetaSettings = field(default_factory=MetaSettings, metadata={"help": "of strategy meta"})
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings, metadata={"help": "of init"})

    @property
    def split_seed(self) -> int:
        """Seed of the split and of the labels that are left out."""
        return self.seed if self.split.seed is None else self.split.seed

    @property
    def sources(self) -> list[str]:
        """Data sets that become one: those of ``dataset``, or of ``split.files`` in the order of their splits."""
        return [spec for _, spec in self.split.sources] or list(self.dataset)

    @property
    def n_processes(self) -> int:
        """Over all nodes."""
        return self.devices * self.nodes

    def check(self) -> None:
        """Check everything that can be checked without the data.

        Raises:
            MFPyGError: in one line, for the first thing that is wrong.
        """
        check(self)
        if hasattr(self.model, "check"):
            self.model.check()
        if self.out is not None and not self.out.strip():
            raise MFPyGError("out is empty, expected the name of a run folder")
        if self.split.files and self.dataset:
            raise MFPyGError(
                f"dataset is {' '.join(self.dataset)}, but split.files names the data; leave one of them out"
            )
        for group in (self.head, self.split, self.sampling):
            group.check()
        for name in self.logger:
            if name not in LOGGERS:
                raise unknown_name("logger", name, LOGGERS)
        self.optim.check(self.batch_size, self.epochs, self.strategy)
        self._check_init()
        check_groups(self, self.strategy)
        strategies.find(self.strategy).read(self.strategy_options)
        self.transfer.check()
        self._check_strategy()
        if self.batch_size < self.n_processes:
            raise MFPyGError(
                f"batch_size {self.batch_size} is less than devices and nodes make processes, {self.n_processes}; "
                "each needs a share"
            )

    def _check_init(self) -> None:
        """Refuse settings that need a trained potential where there is none, and those that do not go with one."""
        if self.init is None:
            of_init = {"add_fidelity": self.add_fidelity, **dataclasses.asdict(self.finetune)}
            nothing = {"add_fidelity": [], **dataclasses.asdict(FinetuneSettings())}
            for name, value in of_init.items():
                if value != nothing[name]:
                    name = name if name == "add_fidelity" else f"finetune.{name}"
                    raise MFPyGError(
                        f"{name} is given, but no init; name the run folder or checkpoint to train further"
                    )
        elif self.strategy != "mfl":
            raise MFPyGError(f"init goes with strategy mfl alone, not with {self.strategy}; leave one of them out")

    def _check_strategy(self) -> None:
        """Refuse settings that do not go with the strategy."""
        if self.strategy == "mfl":
            if self.target is not None:
                raise MFPyGError("target is given, but strategy mfl has none; it has to be tl, delta or meta")
            return
        for name, value, only in (
            ("monitor", self.monitor, "sum"),
            ("sampling.strategy", self.sampling.strategy, "proportional"),
            ("sampling.minimum", self.sampling.minimum, None),
        ):
            if value != only:
                raise MFPyGError(f"{name} is {value}, which goes with strategy mfl alone, not with {self.strategy}")
        if self.strategy == "tl" and self.head.private_blocks:
            raise MFPyGError("head.private_blocks does nothing with strategy tl, which has one level at a time")


PRESETS: dict[str, dict[str, Any]] = {
    # The defaults of the classes above are the published recipe.
    "published": {},
    # For some hundred small molecules and a laptop: narrow, no longer-ranged than what they can teach, and one
    # thread, as two are no faster on matrices this small and much slower on a busy machine.
    "small": {
        "epochs": 160,
        "batch_size": 8,
        "threads": 1,
        "hierarchicality": 0.1,
        "optim": {"schedule": "cosine", "stop_after": None},
    },
}
"""Values that differ from the defaults, by preset."""


def default_preset(dataset: list[str]) -> str:
    """``small`` for the bundled data and files like it, ``published`` for everything else."""
    return "small" if all(str(spec).split(":")[0] == "minichno" for spec in dataset) else "published"


def defaults(preset: str, backbone: str) -> dict[str, Any]:
    """Default value of every setting for a preset and a backbone, nested.

    Raises:
        MFPyGError: for an unknown preset or backbone.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    kind = backbones.find(backbone)
    values = dataclasses.asdict(TrainSettings(model=kind.options()))
    values.update(preset=preset, backbone=backbone)
    if preset == "small":
        values["model"].update(kind.small)
    for name, value in PRESETS[preset].items():
        if isinstance(value, dict):
            values[name].update(value)
        else:
            values[name] = value
    return values


def merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested values with those of ``over`` in their place; a group that is ``None`` there stays as it is."""
    result = {**values, **over}
    for name, value in values.items():
        if isinstance(value, dict):
            result[name] = merged(value, over.get(name) or {})
    return result


def completed(given: dict[str, Any], network: dict[str, Any]) -> TrainSettings:
    """Settings from the values that were given, the rest being the defaults of their preset and backbone.

    Args:
        given: nested values, with the ``backbone``.
        network: those of the trained potential that the training begins with, in place of the defaults; else empty.

    Raises:
        MFPyGError: for an unknown name, or a value of the wrong kind.
    """
    files = (given.get("split") or {}).get("files") or []
    dataset = [spec for _, spec in SplitSettings(files=files).sources] or given.get("dataset") or ["minichno"]
    values = merged(defaults(given.get("preset") or default_preset(dataset), given["backbone"]), network)
    if files:
        values["dataset"] = []
    old = (given.get("finetune") or {}).get("old", "auto")
    if given.get("init") is not None and keeps(old, bool(given.get("add_fidelity"))):
        values["optim"]["lr"] *= KEPT_LR
    return from_dict(merged(values, given))


def from_dict(values: dict[str, Any]) -> TrainSettings:
    """Settings from nested plain values, such as those of a run's ``config.yaml``.

    Raises:
        MFPyGError: for a name that is no setting, or a value of the wrong kind.
    """
    backbone = values.get("backbone", "hipnn")
    kind = backbones.find(str(backbone))
    values = with_dataset_list(values)
    if isinstance(values.get("split"), dict) and values["split"].get("files"):
        values = {"dataset": [], **values}
    fields = dataclasses.fields(TrainSettings)
    groups: dict[str, Any] = {f.name: f.default_factory for f in fields if isinstance(f.default_factory, type)}
    groups["model"] = kind.options
    for name in groups:
        if not isinstance(values.get(name), dict | None):
            raise MFPyGError(f"{name} is {shown(values[name])}, expected settings such as '{name}: {{…}}'")
    built = {name: build(cls, values.get(name) or {}, f"{name}.") for name, cls in groups.items()}
    return build(TrainSettings, {**values, **built})


def with_dataset_list(values: dict[str, Any]) -> dict[str, Any]:
    """The same values, a data set alone (as in files of mfpyg 0.1.0) made a list of one, units by their first names."""
    found = values.get("dataset")
    named = [found] if isinstance(found, str) else found
    if not isinstance(named, list):
        return values
    return {**values, "dataset": [with_known_units(one) if isinstance(one, str) else one for one in named]}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names: ``{"optim": {"lr": 1}}`` becomes ``{"optim.lr": 1}``."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        result.update(flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return result


def to_dict(settings: TrainSettings) -> dict[str, Any]:
    """Nested plain values, the inverse of :func:`from_dict`."""
    return dataclasses.asdict(settings)
