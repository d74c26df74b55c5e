"""Settings of a training run: defaults, presets and checks; importable without torch.

Each field can be given on the command line or in a YAML file; ``mfpyg-train --help`` shows its ``help``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from mfpyg import backbones, baselines, strategies
from mfpyg.engine import ENGINES
from mfpyg.errors import MFPyGError, shown, unknown_name
from mfpyg.old_settings import updated
from mfpyg.option_groups import (
    KEEP,
    KEPT_LR,
    REPULSIONS,
    FinetuneSettings,
    HeadSettings,
    OptimSettings,
    SamplingSettings,
    SplitSettings,
    keeps,
)
from mfpyg.options import build, check, merged, setting
from mfpyg.properties import PROPERTIES
from mfpyg.strategy_options import DeltaSettings, MetaSettings, TransferSettings, check_groups

DATASETS = (
    "known data (minichno, ani1x, ani1ccx, ani2x, comp6 or NAME:PATH), or a file and the keys of its labels as "
    "FILE:NAME=ENERGY[,FORCES]@UNIT, such as mine.xyz:dft=energy,forces@eV, with npy:FOLDER or pyanitools:FILE.h5 in "
    "place of FILE for these formats"
)
"""Help text of data sets."""
LOGGERS = ("tensorboard", "wandb", "mlflow")
_LABELS = ", ".join(f"{p.letter} {p.plural}" for p in PROPERTIES.values())


@dataclass
class TrainSettings:
    """Everything that defines a training run."""

    fidelities: list[str] = setting(
        [], f"levels of theory and their labels to train on, such as dz:EF cc:E ({_LABELS})"
    )
    dataset: list[str] = setting(["minichno"], f"{DATASETS}; several are combined")
    backbone: str = setting(
        "hipnn",
        "network shared by all fidelities; --backbone NAME --help shows its options",
        choices=backbones.names,
    )
    strategy: str = setting(
        "mfl",
        "mfl: all levels at once; tl: transfer learning, one level after the other; delta: a model of the lower levels "
        "and one of the difference to the target; meta: Reptile over the levels, then adaptation to the target",
        choices=strategies.names,
    )
    strategy_options: list[str] = setting([], "options of a third-party strategy, as name=value")
    init: str | None = setting(
        None,
        "run folder, checkpoint, or shipped model, such as chno-1, to start from; its network, elements, fidelities "
        "and weights are used",
    )
    add_fidelity: list[str] = setting([], "levels of theory to add to those of init, and their labels, such as cc:E")
    target: str | None = setting(None, "final fidelity of strategies tl, delta and meta (default: the last one)")
    label_fraction: list[str] = setting(
        [],
        "fraction of the training and validation conformations that keep their labels of a fidelity, such as cc=0.1; "
        "smaller fractions are subsets of larger ones",
    )
    references: str | None = setting(
        None,
        "FILE: YAML file of reference energies, such as 'cc: {unit: Hartree, H: -0.4998}', others being taken from "
        "isolated atoms in the training data, or else fitted; fit: all of them are; with init, only new fidelities get "
        "reference energies, those of init are kept (keep, the default), or fit: shifted by a least-squares fit of "
        "labels minus predictions where they are trained",
    )
    preset: str = setting(
        "small",
        "defaults of the other settings; small: narrow network, few epochs; published: as in the papers (default: "
        "small for minichno, else published)",
        choices=("small", "published"),
    )
    out: str | None = setting(None, "run folder (default: a folder in runs/ that is named after the settings)")
    epochs: int = setting(2000, "maximum number of passes over the training data", low=1)
    batch_size: int = setting(256, "conformations per batch, over all devices", low=1)
    seed: int = setting(0, "seed of the initial weights, the split and the order of batches", low=0, high=2**63 - 1)
    checkpoint_minutes: float = setting(10.0, "minutes between checkpoints within an epoch", low=0.0)
    logger: list[str] = setting(
        [],
        f"loggers of losses and errors besides metrics.csv: {', '.join(LOGGERS)} (default: tensorboard if installed)",
    )
    devices: int = setting(1, "processes per node, each on a GPU of its own if there are any", low=1)
    nodes: int = setting(1, "number of nodes; srun or torchrun starts the processes on each", low=1)
    accelerator: str = setting("auto", "device to compute on", choices=("auto", "cpu", "cuda"))
    threads: int | None = setting(None, "CPU threads per process; null: torch's default", low=1)
    precision: int = setting(32, "floating-point bits of the network", choices=(32, 64))
    matmul_precision: str = setting(
        "highest",
        "precision of products of float32 matrices in training, as in torch.set_float32_matmul_precision: high allows "
        "TF32, medium also bfloat16, where the device has them",
        choices=("highest", "high", "medium"),
    )
    engine: str = setting(
        "auto",
        "neighbour search; auto: vesin for large graphs on a CPU, nvalchemi, if installed, on a GPU, else torch; "
        "all of them find the same edges",
        choices=ENGINES,
    )
    repulsion: str = setting(
        "none",
        "zbl: add the nuclear repulsion of Ziegler, Biersack and Littmark to all levels, at distances below 0.65 times "
        "the sum of the covalent radii, so that atoms do not fuse in dynamics",
        choices=REPULSIONS,
    )
    baseline: list[str] = setting(
        [],
        "energies and forces of a fidelity that are subtracted from its labels and added to its predictions, such as "
        "cc=d3bj:b3lyp; d3bj:FUNCTIONAL is the dispersion D3(BJ), tblite:GFN2-xTB all of a GFN2-xTB calculation",
    )
    compile: str = setting(
        "auto",
        "compile training steps with torch.compile, which takes up to a minute at the start; auto: in long runs on a "
        "CPU, if the backbone compiles quickly",
        choices=("auto", "on", "off"),
    )
    edges: str = setting(
        "batch",
        "batch: find the edges of each batch; stored: find them once, and store them with the data",
        choices=("batch", "stored"),
    )
    weights: list[str] = setting(
        [],
        "weights of labels in the loss, of all fidelities or of one, such as F=10 cc:E=2; others have 1, Hessians 0.01",
    )
    pair_weight: float = setting(0.0, "weight of forces from energies of near geometries in the loss; 0: none", low=0.0)
    difference_weight: float = setting(
        0.0, "weight of energy differences between a fidelity and the one before it in the loss; 0: none", low=0.0
    )
    hessian_directions: int = setting(1, "random directions per step along which each Hessian is compared", low=1)
    hierarchicality: float = setting(1.0, "weight of the hierarchicality term of each fidelity in the loss", low=0.0)
    monitor: str = setting("sum", "fidelity whose validation loss selects the best epoch; sum: the loss of all")
    model: Any = field(default_factory=backbones.find("hipnn").options, metadata={"help": "options of the backbone"})
    head: HeadSettings = field(default_factory=HeadSettings, metadata={"help": "fidelity-specific layers"})
    optim: OptimSettings = field(default_factory=OptimSettings, metadata={"help": "optimiser and schedule"})
    split: SplitSettings = field(default_factory=SplitSettings, metadata={"help": "training, validation, test"})
    sampling: SamplingSettings = field(default_factory=SamplingSettings, metadata={"help": "sampling of epochs"})
    transfer: TransferSettings = field(default_factory=TransferSettings, metadata={"help": "options of strategy tl"})
    delta: DeltaSettings = field(default_factory=DeltaSettings, metadata={"help": "options of strategy delta"})
    meta: MetaSettings = field(default_factory=MetaSettings, metadata={"help": "options of strategy meta"})
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings, metadata={"help": "options of init"})

    @property
    def split_seed(self) -> int:
        """Seed of the split and of ``label_fraction``."""
        return self.seed if self.split.seed is None else self.split.seed

    @property
    def sources(self) -> list[str]:
        """Data sets to combine: those of ``dataset``, or of ``split.files`` in the order of their splits."""
        return [spec for _, spec in self.split.sources] or list(self.dataset)

    @property
    def n_processes(self) -> int:
        """Number of processes over all nodes."""
        return self.devices * self.nodes

    def check(self) -> None:
        """Check everything that can be checked without the data.

        Raises:
            MFPyGError: for the first inconsistency.
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
        baselines.parse(self.baseline)
        self.transfer.check()
        self._check_strategy()
        if self.batch_size < self.n_processes:
            raise MFPyGError(
                f"batch_size {self.batch_size} is less than the number of processes (devices x nodes), "
                f"{self.n_processes}; raise it, or use fewer"
            )

    def _check_init(self) -> None:
        """Refuse options of ``init`` without it, and other strategies with it."""
        if self.init is None:
            given = {"add_fidelity": self.add_fidelity, **dataclasses.asdict(self.finetune)}
            defaults = {"add_fidelity": [], **dataclasses.asdict(FinetuneSettings())}
            for name, value in given.items():
                if value != defaults[name]:
                    name = name if name == "add_fidelity" else f"finetune.{name}"
                    raise MFPyGError(
                        f"{name} is given, but no init; name the run folder or checkpoint to train further"
                    )
            if self.references == KEEP:
                raise MFPyGError(
                    "references is keep, but there is no init whose reference energies to keep; leave it out"
                )
        elif self.strategy != "mfl":
            raise MFPyGError(f"init works only with strategy mfl, not with {self.strategy}; leave one of them out")

    def _check_strategy(self) -> None:
        """Refuse settings that the strategy does not support."""
        if self.strategy == "mfl":
            if self.target is not None:
                raise MFPyGError("target is given, but strategy mfl has none; set strategy to tl, delta or meta")
            return
        for name, value, only in (
            ("monitor", self.monitor, "sum"),
            ("sampling.strategy", self.sampling.strategy, "proportional"),
            ("sampling.minimum", self.sampling.minimum, None),
        ):
            if value != only:
                raise MFPyGError(f"{name} is {value}, which works only with strategy mfl, not with {self.strategy}")
        if self.strategy == "tl" and self.head.private_blocks:
            raise MFPyGError("head.private_blocks has no effect with strategy tl, which has one level at a time")


PRESETS: dict[str, dict[str, Any]] = {
    # The defaults of the classes above are the published recipe.
    "published": {},
    # For a few hundred small molecules on a laptop: a narrow network with a short cutoff, and one thread, as two are
    # no faster for such small matrices and much slower on a busy machine.
    "small": {
        "epochs": 160,
        "batch_size": 8,
        "threads": 1,
        "hierarchicality": 0.1,
        "weights": ["F=10"],
        "difference_weight": 3.0,
        "optim": {"schedule": "cosine", "stop_after": None},
    },
}
"""Values that differ from the defaults, by preset."""


def default_preset(dataset: list[str]) -> str:
    """``small`` for the bundled data, ``published`` for everything else."""
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
    for name, value in PRESETS[preset].items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    if preset == "small":
        values["model"].update(kind.small)
        values["optim"].update(kind.small_optim)
    return values


def completed(given: dict[str, Any], network: dict[str, Any]) -> TrainSettings:
    """Settings from given values, completed by the defaults of their preset and backbone.

    Args:
        given: nested values, with the ``backbone``.
        network: settings of the initial potential's network, which replace the defaults; else empty.

    Raises:
        MFPyGError: for an unknown name, or a value of the wrong type.
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
        MFPyGError: for an unknown setting, or a value of the wrong type.
    """
    backbone = values.get("backbone", "hipnn")
    kind = backbones.find(str(backbone))
    values = updated(values)
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


def to_dict(settings: TrainSettings) -> dict[str, Any]:
    """Nested plain values, the inverse of :func:`from_dict`."""
    return dataclasses.asdict(settings)
