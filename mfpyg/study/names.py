"""Names of models as Messerly et al. (arXiv 2505.01590) write them: ``MF-DZ/EF-CC/E`` is ``dz:EF cc:E``.

A name is ``SF`` (single-fidelity) or ``MF`` (multi-fidelity), and ``-LEVEL/LABELS`` for each fidelity, cheap ones
first; the last one is the target, which the model is made to predict. Labels are letters of :mod:`mfpyg.properties`, as
in ``MF-DZ/EFHD-CC/E``. Importable without torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mfpyg.datasets.levels import LEVELS
from mfpyg.errors import MFPyGError, did_you_mean
from mfpyg.fidelity import Fidelity, parse_fidelities
from mfpyg.properties import PROPERTIES

PAPER_MODELS = (
    "SF-DZ/E",
    "SF-DZ/EF",
    "SF-TZ/E",
    "SF-TZ/EF",
    "SF-MP2/E",
    "SF-CC/E",
    "MF-DZ/E-TZ/E",
    "MF-DZ/EF-TZ/E",
    "MF-DZ/E-TZ/EF",
    "MF-DZ/EF-TZ/EF",
    "MF-DZ/EF-MP2/E",
    "MF-TZ/EF-MP2/E",
    "MF-DZ/E-CC/E",
    "MF-DZ/EF-CC/E",
    "MF-TZ/E-CC/E",
    "MF-TZ/EF-CC/E",
    "MF-DZ/EF-TZ/EF-CC/E",
)
"""The 17 models of the paper's Table 1."""

TARGET_WITHOUT_FORCES = tuple(name for name in PAPER_MODELS if name.endswith(("-MP2/E", "-CC/E")))
"""The nine models whose target, MP2 or CC, has energies but no forces.

They represent the nine of the paper's Tables 2 to 4. The choice is inferred from Table 1 and not checked against the
printed tables: exactly nine of its 17 models have a target without forces, the paper's subject, and each of the two
targets has its single-fidelity baseline among them.
"""

_PART = re.compile(rf"([A-Za-z][A-Za-z0-9_-]*)/([{''.join(PROPERTIES)}]+)")
_KNOWN = tuple(dict.fromkeys(level.name for levels in LEVELS.values() for level in levels))


def parse_model(name: str, known: Iterable[str] = _KNOWN) -> list[str]:
    """Fidelities of a model, as for ``mfpyg-train --fidelities``.

    Args:
        name: name such as ``MF-DZ/EF-CC/E``; levels may be in upper or lower case.
        known: names of the existing levels; those of the known data sets if not given.

    Raises:
        MFPyGError: for any other name, suggesting the closest name of the paper or level.

    >>> parse_model("MF-DZ/EF-CC/E")
    ['dz:EF', 'cc:E']
    """
    kind, _, rest = name.partition("-")
    parts = list(_PART.finditer(rest))
    if kind not in ("SF", "MF") or not parts or "-".join(part[0] for part in parts) != rest:
        raise MFPyGError(
            f"malformed model '{name}': expected SF-LEVEL/LABELS or MF-LEVEL/LABELS-LEVEL/LABELS, as MF-DZ/EF-CC/E"
            f"{did_you_mean(name, PAPER_MODELS)}"
        )
    if (kind == "SF") != (len(parts) == 1):
        right = "MF" if kind == "SF" else "SF"
        raise MFPyGError(
            f"model '{name}' is {'single' if kind == 'SF' else 'multi'}-fidelity by its {kind}, but has "
            f"{len(parts)} fidelit{'y' if len(parts) == 1 else 'ies'}; did you mean '{right}-{rest}'?"
        )
    by_lower_case = {level.lower(): level for level in known}
    fidelities = []
    for part in parts:
        level = part[1].lower()
        if level not in by_lower_case:
            listed = ", ".join(one.upper() for one in by_lower_case)
            raise MFPyGError(
                f"unknown level '{part[1]}' in model '{name}' (known: {listed})"
                f"{did_you_mean(part[1].upper(), [one.upper() for one in by_lower_case])}"
            )
        fidelities.append(f"{by_lower_case[level]}:{part[2]}")
    return [str(fidelity) for fidelity in parse_fidelities(fidelities)]


def model_name(fidelities: Iterable[str]) -> str:
    """Name in the paper of a model trained on these fidelities, cheap ones first.

    Raises:
        MFPyGError: as :func:`mfpyg.fidelity.parse_fidelities`.

    >>> model_name(["dz:EF", "cc:E"])
    'MF-DZ/EF-CC/E'
    """
    parsed = parse_fidelities(fidelities)
    return "-".join(["SF" if len(parsed) == 1 else "MF", *(f"{f.name.upper()}/{f.labels}" for f in parsed)])


def target_of(fidelities: Iterable[str]) -> Fidelity:
    """Target of a model: its last level.

    >>> target_of(["dz:EF", "cc:E"]).name
    'cc'
    """
    return parse_fidelities(fidelities)[-1]


def baseline_of(name: str, known: Iterable[str] = _KNOWN) -> str:
    """Single-fidelity model with the same labels of the same target; a single-fidelity model is its own baseline.

    Raises:
        MFPyGError: as :func:`parse_model`.

    >>> baseline_of("MF-DZ/E-TZ/EF")
    'SF-TZ/EF'
    """
    return model_name([parse_model(name, known)[-1]])
