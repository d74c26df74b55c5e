"""Groups of settings: optimiser, split, sampling, heads, fine-tuning; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from mfpyg.errors import MFPyGError
from mfpyg.fidelity import is_name
from mfpyg.options import setting


@dataclass
class OptimSettings:
    """Optimiser and learning-rate schedule."""

    lr: float = setting(1e-3, "initial learning rate of Adam", low=1e-12, high=10.0)
    schedule: str = setting(
        "plateau",
        "learning-rate schedule; plateau: without improvement, raise the batch size, then lower the rate; cosine: "
        "decay to a hundredth over all epochs",
        choices=("plateau", "cosine", "constant"),
    )
    warmup: float = setting(
        0.0,
        "epochs of linear warm-up of the learning rate, such as 0.5; the plateau schedule starts after it",
        low=0.0,
    )
    patience: int = setting(20, "epochs without improvement before the plateau schedule acts", low=0)
    factor: float = setting(
        0.5,
        "factor by which the plateau schedule multiplies the learning rate and divides the batch size",
        low=0.01,
        high=0.99,
    )
    max_batch_size: int | None = setting(
        None, "batch size that the plateau schedule reaches before it lowers the rate (default: batch_size)", low=1
    )
    stop_after: int | None = setting(40, "epochs without improvement before training stops; null: never", low=1)
    clip: float | None = setting(None, "maximum gradient norm (default: no clipping)", low=1e-12)
    accumulate: int = setting(
        1,
        "batches per optimiser step, to save memory; their gradients are averaged, which differs from one large batch "
        "because the loss contains root-mean-square errors",
        low=1,
    )
    weight_decay: float = setting(
        0.0,
        "decoupled weight decay (AdamW) of weight matrices and embeddings only",
        low=0.0,
    )
    ema: float | None = setting(
        None,
        "decay of an exponential moving average of the weights, such as 0.999; the averaged weights are validated "
        "and saved (default: no average)",
        low=0.0,
        high=0.999999,
    )

    def check(self, batch_size: int, epochs: int, strategy: str) -> None:
        """Check the options against other settings.

        Raises:
            MFPyGError: for the first inconsistency.
        """
        if self.max_batch_size is not None and self.max_batch_size < batch_size:
            raise MFPyGError(f"optim.max_batch_size {self.max_batch_size} is less than batch_size {batch_size}")
        if self.warmup > epochs:
            raise MFPyGError(f"optim.warmup is {self.warmup:g} epochs, but there are only {epochs}; shorten it")
        if strategy != "meta":
            return
        # Reptile moves the weights itself, after a run of steps on each level.
        for name, value, only in (("ema", self.ema, None), ("accumulate", self.accumulate, 1)):
            if value != only:
                raise MFPyGError(f"optim.{name} is {value}, which strategy meta does not support; leave it out")


_SPLITS = ("train", "val", "test")


@dataclass
class SplitSettings:
    """Division of the conformations into training, validation and test."""

    method: str = setting(
        "auto",
        "file: as given in the data; random: by conformation; molecule: all conformations of a molecule in one split; "
        "index: as given in split.file; auto: file if the data give a split, else random",
        choices=("auto", "file", "random", "molecule", "index"),
    )
    file: str | None = setting(
        None, "npz file with arrays of conformation indices train, val and test, such as a run's splits.npz"
    )
    files: list[str] = setting(
        [],
        "data by split, instead of dataset: train=DATA val=DATA test=DATA, each any number of times; without val, the "
        "fraction split.val of train is used; other names are evaluated on as well",
    )
    val: float = setting(0.1, "fraction for validation", low=0.0)
    test: float = setting(0.1, "fraction for the test, if the data give no split", low=0.0)
    seed: int | None = setting(
        None, "seed of the split and of label_fraction (default: the value of seed)", low=0, high=2**63 - 1
    )

    @property
    def sources(self) -> list[tuple[str, str]]:
        """Pairs of split and data set from ``files``: train, val and test, then the others in the order given."""
        pairs = [(name, spec) for name, _, spec in (text.partition("=") for text in self.files)]
        order = list(dict.fromkeys([*_SPLITS, *(name for name, _ in pairs)]))
        return sorted(pairs, key=lambda pair: order.index(pair[0]))

    def check(self) -> None:
        """Check that the options are consistent.

        Raises:
            MFPyGError: for the first inconsistency.
        """
        if self.files:
            self._check_files()
        if self.val + (0 if self.files else self.test) >= 1:
            raise MFPyGError(f"split.val {self.val:g} and split.test {self.test:g} leave nothing to train on")
        if self.method == "index" and self.file is None:
            raise MFPyGError("split.method is index, but split.file is not given; name the file of indices")
        if self.method != "index" and self.file is not None:
            raise MFPyGError(f"split.file is given, but split.method is {self.method}; set split.method to index")
        if self.method == "index" and (self.val, self.test) != (0.1, 0.1):
            raise MFPyGError("split.val and split.test have no effect with split.method index; leave them out")
        if not self.val > 0:
            raise MFPyGError("split.val is 0, but the best epoch is chosen by validation; give a fraction such as 0.1")

    def _check_files(self) -> None:
        """Check ``files``, and that no other option divides the data."""
        defaults = SplitSettings()
        for text, (name, _, spec) in ((text, text.partition("=")) for text in self.files):
            if not is_name(name) or name == "all" or not spec:
                raise MFPyGError(
                    f"split.files has '{text}', expected a split and its data set, as train=FILE.xyz:dz=energy@eV"
                )
        names = [name for name, _ in self.sources]
        if "train" not in names:
            raise MFPyGError(f"split.files has no train=DATA (it has {', '.join(names)}); name the data to train on")
        for name, value in (("method", self.method), ("file", self.file), ("test", self.test), ("val", self.val)):
            if value != getattr(defaults, name) and (name != "val" or "val" in names):
                raise MFPyGError(f"split.{name} is {value}, but split.files divides the data; leave split.{name} out")


@dataclass
class SamplingSettings:
    """Sampling of training epochs when fidelities have different numbers of labels."""

    strategy: str = setting(
        "proportional",
        "proportional: each conformation once per epoch; balanced: equally many of each fidelity; temperature: in "
        "between",
        choices=("proportional", "balanced", "temperature"),
    )
    temperature: float | None = setting(
        None, "for sampling.strategy temperature; 1: proportional, large: balanced (default: 2)", low=1.0
    )
    minimum: str | None = setting(
        None, "minimum number of conformations with a label of a fidelity in a batch, such as cc=4"
    )
    window: int = setting(
        0, "number of batches within which conformations of similar size are grouped; 0: no grouping", low=0
    )

    def check(self) -> None:
        """Raise :class:`MFPyGError` if the options are inconsistent."""
        if self.temperature is not None and self.strategy != "temperature":
            raise MFPyGError(
                f"sampling.temperature is given, but sampling.strategy is {self.strategy}, not temperature"
            )


@dataclass
class HeadSettings:
    """Fidelity-specific layers."""

    kind: str = setting(
        "linear",
        "output layers of each fidelity; linear: as in the paper; nonlinear: with a hidden layer",
        choices=("linear", "nonlinear"),
    )
    width: int | None = setting(None, "width of the hidden layer (default: half the width of the features)", low=1)
    private_blocks: int = setting(
        0, "number of interaction blocks, the last ones, of which each fidelity has its own", low=0
    )
    isolated: str = setting(
        "network",
        "energy of an isolated atom; network: its reference energy plus the network's output; reference: its reference "
        "energy, the network's output for isolated atoms being subtracted everywhere",
        choices=("network", "reference"),
    )

    def check(self) -> None:
        """Raise :class:`MFPyGError` if the options are inconsistent."""
        if self.width is not None and self.kind != "nonlinear":
            raise MFPyGError(f"head.width is given, but head.kind is {self.kind}; set head.kind to nonlinear")


REPULSIONS = ("none", "zbl")
"""Values of ``repulsion``."""

FIT, KEEP = "fit", "keep"
"""Values of ``references`` other than the name of a file."""

KEPT_LR = 0.1
"""Factor on the default learning rate with ``finetune.old kept``: at the full rate, the network overfits few new labels
and forgets what it has learnt from forces."""


def keeps(old: str, adds: bool) -> bool:
    """True if a value of ``finetune.old`` means ``kept``; ``auto`` does unless fidelities are added."""
    return old == "kept" or (old == "auto" and not adds)


@dataclass
class FinetuneSettings:
    """Options of ``--init``."""

    old: str = setting(
        "auto",
        "treatment of the fidelities of init; replayed: trained on together with the new ones, so the data must have "
        "their labels (fidelities, if given, selects which); frozen: the shared network is not trained, so fidelities "
        "that are not trained on predict the same bit for bit; kept: the shared network is trained, so fidelities that "
        "are not trained on get worse; auto: replayed if fidelities are added, else kept",
        choices=("auto", "replayed", "frozen", "kept"),
    )
    head_from: str | None = setting(
        None,
        "fidelity of init whose output layers a new one starts from, with reference energies of its own; fresh: random "
        "weights (default: the last one)",
    )
    sha256: str | None = setting(None, "SHA-256 of the checkpoint of init; recorded, and checked if given")
