"""Figures of extrapolated_forces.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

PANELS = {
    "energy": "cc energy RMSE",
    "slope": "RMSE of the slopes of near pairs",
    "dz": "dz force RMSE",
    "spread": "spread of cc forces over the seeds",
    "rehearsal": "dz force RMSE of a rehearsal",
    "estimate": "estimate from random directions",
}
"""Diagnostics and their titles."""


def draw_diagnostics(models: Sequence[Any], found: Sequence[dict[str, Any]], path: Path) -> None:
    """Error of the cc forces against each diagnostic; on the line the two are equal.

    Args:
        models: models with a name, a colour and a marker.
        found: diagnostics of each, a number per seed; of ``estimate`` three quantiles.
        path: PNG file to write.
    """
    figure = Figure(figsize=(9.5, 6.8))
    axes = figure.subplots(2, 3, sharey=True)
    for axis, (key, title) in zip(axes.ravel(), PANELS.items(), strict=True):
        if key != "energy":
            axis.plot([2, 100], [2, 100], color="0.6", linewidth=1, zorder=0)
        for model, one in zip(models, found, strict=True):
            if key not in one:
                continue
            y = one["forces"][0] if key == "estimate" else float(np.mean(one["forces"]))
            x = one[key][1] if key == "estimate" else float(np.mean(one[key]))
            ends = [[x - min(one[key])], [max(one[key]) - x]]
            style = {"color": model.colour, "marker": model.marker, "linestyle": "none", "elinewidth": 1}
            axis.errorbar([x], [y], xerr=ends, label=model.name, **style)
        axis.set(title=title, xlabel="kcal/mol" if key == "energy" else "kcal/mol/Å")
        axis.title.set_size(10)
        logarithmic(axis)
        axis.set(xlim=(0.8, 20) if key == "energy" else (3, 70), ylim=(5, 70))
    for axis in axes[:, 0]:
        axis.set_ylabel("cc force RMSE (kcal/mol/Å)")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150, bbox_inches="tight")


def draw_directions(models: Sequence[Any], found: Sequence[dict[str, Any]], path: Path, n_bins: int = 8) -> None:
    """Force error along a direction against the width of the training data along it.

    Args:
        models, found, path: as above; drawn are the models with all cc labels that were trained in one stage.
        n_bins: number of bins with equally many directions.
    """
    width, label = found[0]["directions"]["width"], found[0]["directions"]["label"]
    bins = np.array_split(np.argsort(width), n_bins)
    middle = [float(np.median(width[one])) for one in bins]
    figure = Figure(figsize=(8, 4))
    axis = figure.subplots()
    axis.plot(middle, [np.sqrt(np.mean(label[one] ** 2)) for one in bins], color="0.6", label="cc forces themselves")
    for model, one in zip(models, found, strict=True):
        if model.cc == 1 and model.strategy == "mfl":
            values = [np.sqrt(np.mean(one["directions"]["error"][of_bin] ** 2)) for of_bin in bins]
            axis.plot(middle, values, color=model.colour, marker=model.marker, label=f"error, {model.name}")
    axis.set(xlabel="width of the training data along a direction (Å)", ylabel="RMS along it (kcal/mol/Å)")
    logarithmic(axis)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=150, bbox_inches="tight")


def logarithmic(axis: Axes) -> None:
    axis.set(xscale="log", yscale="log")
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_locator(LogLocator(subs=(1, 2, 5)))
        one.set_minor_locator(NullLocator())
        one.set_major_formatter("{x:g}")
    axis.grid(color="0.9")
    axis.set_axisbelow(True)
