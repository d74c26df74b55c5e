"""Options of how data are divided; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from mfpyg.errors import MFPyGError
from mfpyg.fidelity import is_name
from mfpyg.options import setting

_SPLITS = ("train", "val", "test")


@dataclass
class SplitSettings:
    """How conformations are divided among training, validation and test."""

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

    def check_files(self) -> None:
        """Check what ``files`` says, and that nothing else divides the data.

        Raises:
            MFPyGError: in one line, for the first thing that is wrong.
        """
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
