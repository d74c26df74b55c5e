"""One run of a study, as it is asked for; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mfpyg.study.names import parse_model


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Args:
        name: the paper's name of the model, such as ``MF-DZ/EF-CC/E``.
        folder: run folder of mfpyg-train.
        strategy: how it was trained; runs of different strategies are never averaged.
        label_fraction: share of the target's labels that it was trained on.
        seed: that tells the members of an ensemble apart.
        n_labels: conformations with a label of the target that it was trained on; if not given, by
            :func:`mfpyg.study.provenance.n_target_labels`.
        failure: why there is nothing in the folder, where that is known.
        known: names of levels that the model may have; if not given, those of ANI-1x and the bundled data.
        data: where its data are now, as ``--dataset`` names them; if not given, where the run says.
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
        object.__setattr__(self, "folder", Path(self.folder))  # where a string was given

    @property
    def fidelities(self) -> list[str]:
        """As ``mfpyg-train`` takes them, cheap ones first.

        Raises:
            MFPyGError: as :func:`mfpyg.study.names.parse_model`.
        """
        return parse_model(self.name) if self.known is None else parse_model(self.name, self.known)

    @property
    def key(self) -> tuple[str, str, float]:
        """What the members of an ensemble have in common."""
        return self.name, self.strategy, self.label_fraction

    def __str__(self) -> str:
        return f"{self.name}, {self.strategy}, {percent(self.label_fraction)} of the labels, seed {self.seed}"


def percent(share: float) -> str:
    """A share as it is shown.

    >>> percent(0.3), percent(0.0025)
    ('30%', '0.25%')
    """
    return f"{100 * share:.4g}%"
