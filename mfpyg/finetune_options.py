"""Options of training a trained potential further; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from mfpyg.options import setting

KEPT_LR = 0.1
"""What the default learning rate is multiplied by where the whole network learns from new labels alone (``kept``): of
few labels it takes more at the full rate than they can teach, and forgets what forces have taught it."""


def keeps(old: str, adds: bool) -> bool:
    """Whether a value of ``finetune.old`` means ``kept``, given whether fidelities are added."""
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
