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
        "plateau: raise the batch size, then lower the rate; cosine: to a hundredth over all epochs; constant",
        choices=("plateau", "cosine", "constant"),
    )
    warmup: float = setting(
        0.0,
        "epochs, or a part of one, over which the learning rate rises linearly to that of the schedule; the plateau "
        "schedule waits until then",
        low=0.0,
    )
    patience: int = setting(20, "epochs without improvement before the plateau schedule acts", low=0)
    factor: float = setting(0.5, "what the plateau schedule multiplies the rate by", low=0.01, high=0.99)
    max_batch_size: int | None = setting(
        None, "batch size to which the plateau schedule goes before it lowers the rate; null: as given", low=1
    )
    stop_after: int | None = setting(40, "epochs without improvement before training stops; null: never", low=1)
    clip: float | None = setting(None, "largest norm of the gradient; null: any", low=1e-12)
    accumulate: int = setting(
        1,
        "batches per optimiser step, for want of memory; it averages the gradients of their losses, which is not the "
        "gradient of one large batch, as the loss holds root-mean-square errors",
        low=1,
    )
    weight_decay: float = setting(
        0.0,
        "decoupled weight decay (AdamW) of weight matrices and embeddings; biases, normalisation, radial functions "
        "and reference energies do not decay",
        low=0.0,
    )
    ema: float | None = setting(
        None,
        "decay of an exponential moving average of the weights, such as 0.999; the averaged weights are validated, "
        "chosen and saved; null: no average",
        low=0.0,
        high=0.999999,
    )

    def check(self, batch_size: int, epochs: int, strategy: str) -> None:
        """Check what depends on other settings.

        Raises:
            MFPyGError: in one line, for the first thing that is wrong.
        """
        if self.max_batch_size is not None and self.max_batch_size < batch_size:
            raise MFPyGError(f"optim.max_batch_size {self.max_batch_size} is less than batch_size {batch_size}")
        if self.warmup > epochs:
            raise MFPyGError(f"optim.warmup is {self.warmup:g} epochs, but there are only {epochs}; shorten it")
        if strategy != "meta":
            return
        # Reptile moves the weights itself, after runs of steps on one level after the other.
        for name, value, only in (("ema", self.ema, None), ("accumulate", self.accumulate, 1)):
            if value != only:
                raise MFPyGError(f"optim.{name} is {value}, which does not go with strategy meta; leave it out")


_SPLITS = ("train", "val", "test")


@dataclass
class SplitSettings:
    """Division of the conformations among training, validation and test."""

    method: str = setting(
        "auto",
        "file: as the data file says; random; molecule: all conformations of a molecule together; index: as split.file "
        "says; auto: file where the file says, else random",
        choices=("auto", "file", "random", "molecule", "index"),
    )
    file: str | None = setting(None, "npz file with the numbers of train, val, test, such as a run's splits.npz")
    files: list[str] = setting(
        [],
        "a data set for each split, instead of dataset, as train=SPEC val=SPEC test=SPEC with a SPEC as for dataset; a "
        "split may be given several times, val and test may be left out (val is then split.val of train), and other "
        "names are further splits to evaluate on",
    )
    val: float = setting(0.1, "fraction for validation", low=0.0)
    test: float = setting(0.1, "fraction for the test, where the file does not give one", low=0.0)
    seed: int | None = setting(
        None, "seed of the split, and of labels left out by label_fraction; null: as seed", low=0, high=2**63 - 1
    )

    @property
    def sources(self) -> list[tuple[str, str]]:
        """Split and data set of each of ``files``: those of train, val and test, then of further ones as given."""
        pairs = [(name, spec) for name, _, spec in (text.partition("=") for text in self.files)]
        order = list(dict.fromkeys([*_SPLITS, *(name for name, _ in pairs)]))
        return sorted(pairs, key=lambda pair: order.index(pair[0]))

    def check(self) -> None:
        """Check what the options say together.

        Raises:
            MFPyGError: in one line, for the first thing that is wrong.
        """
        if self.files:
            self._check_files()
        if self.val + (0 if self.files else self.test) >= 1:
            raise MFPyGError(f"split.val {self.val:g} and split.test {self.test:g} leave nothing to train on")
        if self.method == "index" and self.file is None:
            raise MFPyGError("split.method index takes its numbers from a file; name it with split.file")
        if self.method != "index" and self.file is not None:
            raise MFPyGError(f"split.file is given, but split.method is {self.method}; it has to be index")
        if self.method == "index" and (self.val, self.test) != (0.1, 0.1):
            raise MFPyGError("split.val and split.test do nothing with split.method index, whose file says it all")
        if not self.val > 0:
            raise MFPyGError("split.val is 0; the best epoch is chosen by validation, so give it a share such as 0.1")

    def _check_files(self) -> None:
        """Check what ``files`` says, and that nothing else divides the data."""
        usual = SplitSettings()
        for text, (name, _, spec) in ((text, text.partition("=")) for text in self.files):
            if not is_name(name) or name == "all" or not spec:
                raise MFPyGError(
                    f"split.files has '{text}', expected a split and its data set, as train=FILE.xyz:dz=energy@eV"
                )
        names = [name for name, _ in self.sources]
        if "train" not in names:
            raise MFPyGError(f"split.files has no train=SPEC (it has {', '.join(names)}); name the data to train on")
        for name, value in (("method", self.method), ("file", self.file), ("test", self.test), ("val", self.val)):
            if value != getattr(usual, name) and (name != "val" or "val" in names):
                what = "which data are for what" if name in ("method", "file") else f"what {name} is made of"
                raise MFPyGError(f"split.{name} is {value}, but split.files says {what}; leave split.{name} out")


@dataclass
class SamplingSettings:
    """Conformations of a training epoch where fidelities have unequal numbers of labels."""

    strategy: str = setting(
        "proportional",
        "proportional: each conformation once an epoch; balanced: as many of each fidelity's; temperature: between",
        choices=("proportional", "balanced", "temperature"),
    )
    temperature: float | None = setting(
        None, "of that strategy: 1 as proportional, large as balanced; null: 2", low=1.0
    )
    minimum: str | None = setting(None, "fewest graphs a batch with a label of a fidelity, as cc=4")
    window: int = setting(0, "batches among which graphs of like size are brought together; 0: none", low=0)

    def check(self) -> None:
        """Raise :class:`MFPyGError` where the options do not go together."""
        if self.temperature is not None and self.strategy != "temperature":
            raise MFPyGError(
                f"sampling.temperature is given, but sampling.strategy is {self.strategy}, not temperature"
            )


@dataclass
class HeadSettings:
    """Layers that each fidelity has of its own."""

    kind: str = setting(
        "linear",
        "output layers of each level; linear: as in the paper; nonlinear: with a hidden layer",
        choices=("linear", "nonlinear"),
    )
    width: int | None = setting(None, "of the hidden layer; null: half the features' width", low=1)
    private_blocks: int = setting(0, "last interaction blocks that each fidelity has of its own", low=0)
    isolated: str = setting(
        "network",
        "energy of an atom without neighbours; network: its reference and what the network gives; reference: its "
        "reference alone, the network's share being subtracted everywhere",
        choices=("network", "reference"),
    )

    def check(self) -> None:
        """Raise :class:`MFPyGError` where the options do not go together."""
        if self.width is not None and self.kind != "nonlinear":
            raise MFPyGError(f"head.width is given, but head.kind is {self.kind}; it has to be nonlinear")


KEPT_LR = 0.1
"""Factor of the default learning rate where the whole network learns from new labels alone (``kept``): from few labels
it takes more at the full rate than they can teach, and forgets what forces have taught it."""


def keeps(old: str, adds: bool) -> bool:
    """True if a value of ``finetune.old`` means ``kept``, given whether fidelities are added."""
    return old == "kept" or (old == "auto" and not adds)


@dataclass
class FinetuneSettings:
    """Of ``--init``."""

    old: str = setting(
        "auto",
        "what becomes of the potential's own fidelities; replayed: trained on along with the new ones, for which the "
        "data must have their labels (fidelities, if given, names which); frozen: their predictions stay as they are, "
        "bit for bit, and a new fidelity has to do with the features there are; kept: their output layers stay, while "
        "the network below goes on learning, so that their predictions get worse; auto: replayed where fidelities are "
        "added, else kept",
        choices=("auto", "replayed", "frozen", "kept"),
    )
    head_from: str | None = setting(
        None,
        "fidelity of the potential that a new one begins as a copy of, with reference energies of its own; fresh: with "
        "weights drawn anew; null: the last one",
    )
    sha256: str | None = setting(None, "of the checkpoint; filled in, and checked where it is given")
