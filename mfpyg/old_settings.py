"""Settings of earlier versions, as runs and checkpoints contain them; importable without torch."""

from __future__ import annotations

from typing import Any

from mfpyg.option_groups import FIT
from mfpyg.units import with_known_units


def updated(values: dict[str, Any]) -> dict[str, Any]:
    """Values of earlier versions as those of this one.

    ``dataset`` becomes a list (mfpyg 0.1.0 wrote a string) with units in canonical spelling, and ``finetune.refit`` (of
    versions between the releases) becomes ``references: fit``.
    """
    finetune = values.get("finetune")
    if isinstance(finetune, dict) and "refit" in finetune:
        others = {name: value for name, value in finetune.items() if name != "refit"}
        values = {**values, "finetune": others, **({"references": FIT} if finetune["refit"] is True else {})}
    found = values.get("dataset")
    named = [found] if isinstance(found, str) else found
    if not isinstance(named, list):
        return values
    return {**values, "dataset": [with_known_units(one) if isinstance(one, str) else one for one in named]}
