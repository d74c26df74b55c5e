"""Parity plots: predictions against labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from mfpyg.errors import MFPyGError
from mfpyg.evaluation.evaluate import Parity
from mfpyg.files import replace_file
from mfpyg.units import ENERGY_UNIT, FORCE_UNIT

_AXES = {
    "energy": (f"{ENERGY_UNIT} per atom", "energies less references"),
    "forces": (FORCE_UNIT, "force components"),
}


def parity_plot(pairs: Mapping[tuple[str, str], Parity], path: Path, title: str) -> None:
    """One panel a fidelity and property, written as PNG.

    Args:
        pairs: ``{(fidelity, "energy" | "forces"): labels and predictions}`` of one split.
        path: of the picture.
        title: above the panels.

    Raises:
        MFPyGError: if there is nothing to draw.
    """
    if not pairs:
        raise MFPyGError(f"{title}: no labels to plot")
    names = list(dict.fromkeys(name for name, _ in pairs))
    properties = [p for p in _AXES if any((name, p) in pairs for name in names)]
    figure, axes = plt.subplots(
        len(properties), len(names), figsize=(3.4 * len(names), 3.4 * len(properties)), squeeze=False
    )
    for row, prop in enumerate(properties):
        for column, name in enumerate(names):
            _panel(axes[row][column], name, prop, pairs.get((name, prop)))
    figure.suptitle(title)
    figure.tight_layout()
    replace_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))
    plt.close(figure)


def _panel(axis: plt.Axes, name: str, prop: str, parity: Parity | None) -> None:
    if parity is None:
        axis.set_axis_off()
        return
    label, predicted = np.concatenate(parity.labels), np.concatenate(parity.predictions)
    low, high = min(label.min(), predicted.min()), max(label.max(), predicted.max())
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    unit, quantity = _AXES[prop]
    axis.plot(limits, limits, color="0.6", linewidth=1, zorder=0)
    axis.plot(label, predicted, ".", markersize=3, alpha=0.5, markeredgewidth=0, rasterized=True)
    axis.set(xlim=limits, ylim=limits, aspect="equal", xlabel=f"label ({unit})", ylabel=f"prediction ({unit})")
    rmse = float(np.sqrt(np.mean((predicted - label) ** 2)))
    axis.set_title(f"{name}: {quantity}\nRMSE {rmse:.2f} {unit}", fontsize=9)
