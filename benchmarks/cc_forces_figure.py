"""Figure of cc_forces.py: force error against the time of the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from mfpyg.evaluation.ensemble import mean_estimate
from mfpyg.files import replace_file
from mfpyg.study.figures import COLOURS

MARKERS = "osv^D"


def draw(results: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw means over the seeds with 95 % intervals; what is not trained is a line across.

    Args:
        results: runs by row.
        path: PNG file to write; not written if there are no forces of the target.
    """
    splits = [
        s for s in ("test", "ood") if any("forces" in r["errors"].get(s, {}) for rs in results.values() for r in rs)
    ]
    if not splits:
        return
    figure = Figure(figsize=(4.4 * len(splits) + 2.4, 4.2))
    axes = np.atleast_1d(figure.subplots(1, len(splits)))
    for axis, split in zip(axes, splits, strict=True):
        for number, (name, runs) in enumerate(results.items()):
            style = {"color": COLOURS[number % len(COLOURS)], "label": name}
            forces = lambda some, split=split: [one["errors"][split]["forces"] for one in some]  # noqa: E731
            if not runs[0]["epochs"]:
                axis.axhline(forces(runs)[0], linestyle="--", linewidth=1, **style)
                continue
            parts = [[one for one in runs if one["fraction"] == f] for f in sorted({one["fraction"] for one in runs})]
            estimates = [mean_estimate(forces(part)) for part in parts]
            half = [0.0 if one.high is None else one.high - one.value for one in estimates]
            minutes = [float(np.mean([one["training_s"] for one in part])) / 60 for part in parts]
            marker = MARKERS[number // len(COLOURS) % len(MARKERS)]
            axis.errorbar(minutes, [one.value for one in estimates], half, marker=marker, capsize=2, **style)
        axis.set(xscale="log", yscale="log", xlabel="training, minutes of one core", title=split)
        for one in (axis.xaxis, axis.yaxis):
            one.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
            one.set_major_formatter("{x:g}")
            one.set_minor_formatter(NullFormatter())
        axis.grid(color="0.9")
        axis.set_axisbelow(True)
    axes[0].set_ylabel("RMSE of forces, kcal/mol/Å")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda name: figure.savefig(name, dpi=150, bbox_inches="tight", format="png"))
