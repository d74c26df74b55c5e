"""Figures of a study: improvement over single-fidelity models, learning curves, and parity plots."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from mfpyg.evaluation.ensemble import QUANTITIES
from mfpyg.evaluation.report import parity_plot
from mfpyg.files import make_folder, replace_file
from mfpyg.study.results import ModelResult, StudyResult, half_width, improvement
from mfpyg.study.tables import number_of_labels

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
"""Palette of Okabe and Ito, safe for all kinds of colour vision."""

_BEYOND = 40.0
"""Margin of the axis beyond the bars in percent; intervals of two members may be much longer."""

_USUAL = ("energy", "forces", "conformers", "conformer_forces")
"""Quantities whose bars have a place in any case."""


@dataclass(frozen=True)
class StudyFigure:
    """A figure and its caption.

    Attributes:
        path: PNG file.
        caption: description of the content.
    """

    path: Path
    caption: str


def write_figures(result: StudyResult, folder: Path) -> list[StudyFigure]:
    """Draw all figures for which there are data.

    Returns:
        ``improvement.png`` if a model has a baseline, ``learning-….png`` for each target with several shares of
        labels, and ``parity-….png`` for each model and strategy, with its largest share of labels.

    Raises:
        MFPyGError: if the folder cannot be written to.
    """
    make_folder(folder)
    found = [_improvement(result, folder / "improvement.png")]
    targets = dict.fromkeys(model.target.name for model in result.models)
    found += [_learning_curves(result, target, folder / f"learning-{target}.png") for target in targets]
    found += [_parity(model, folder) for model in largest_shares(result)]
    return [figure for figure in found if figure is not None]


def largest_shares(result: StudyResult) -> list[ModelResult]:
    """For each model and strategy, the result with the most labels."""
    most: dict[tuple[str, str], ModelResult] = {}
    for model in result.models:
        best = most.setdefault((model.name, model.strategy), model)
        if model.label_fraction > best.label_fraction:
            most[model.name, model.strategy] = model
    return list(most.values())


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG in one step."""
    replace_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight"))


def _improvement(result: StudyResult, path: Path) -> StudyFigure | None:
    models = [m for m in largest_shares(result) if any(improvement(result, m, s, q) for s, q in _columns(result))]
    splits = [s for s in result.splits if any(improvement(result, m, s, q) for m in models for q in QUANTITIES)]
    if not models:
        return None
    shown = [q for q in QUANTITIES if q in _USUAL or any(improvement(result, m, s, q) for m in models for s in splits)]
    several = len({model.strategy for model in models}) > 1
    height = 0.8 / len(shown)
    figure = Figure(figsize=(2.2 + 3.6 * len(splits), 1.3 + 0.75 * len(models)))
    axes = figure.subplots(1, len(splits), squeeze=False, sharey=True)
    for axis, split in zip(axes[0], splits, strict=True):
        for number, quantity in enumerate(shown):
            values = [improvement(result, model, split, quantity) for model in models]
            at = [i for i, value in enumerate(values) if value is not None]
            widths = [half_width(v) or 0.0 for v in values if v is not None]
            axis.barh(
                np.array(at) + (number - (len(shown) - 1) / 2) * height,
                [v.value for v in values if v is not None],
                height * 0.9,
                xerr=widths if any(widths) else None,
                color=COLOURS[number % len(COLOURS)],
                label=QUANTITIES[quantity].short,
                error_kw={"elinewidth": 0.8, "ecolor": "0.25"},
            )
        bars = [e.value for e in (improvement(result, m, split, q) for m in models for q in shown) if e is not None]
        axis.set_xlim(min(0.0, *bars) - _BEYOND, max(0.0, *bars) + _BEYOND)
        axis.axvline(0, color="0.3", linewidth=0.8)
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
        axis.set(title=split, xlabel="RMSE reduction over the single-fidelity model (%)")
    axes[0][0].set_yticks(range(len(models)), [_name(model, several) for model in models])
    axes[0][0].invert_yaxis()
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(labels), frameon=False)
    figure.tight_layout()
    save(figure, path)
    return StudyFigure(
        path,
        "Reduction in percent of a model's RMSE at its target with respect to the single-fidelity model with the same "
        "labels of the same target (Figure 3 of the paper); positive is better. Mean over the members; lines: 95 % "
        "interval if both have several members, cut off at the frame.",
    )


def _columns(result: StudyResult) -> list[tuple[str, str]]:
    return [(split, quantity) for split in result.splits for quantity in QUANTITIES]


def _name(model: ModelResult, with_strategy: bool) -> str:
    return f"{model.name}\n{model.strategy}" if with_strategy else model.name


def _learning_curves(result: StudyResult, target: str, path: Path) -> StudyFigure | None:
    """Target error against number of the target's labels, if a model has several numbers."""
    models = [model for model in result.models if model.target.name == target]
    lines = {key: [m for m in models if (m.name, m.strategy) == key] for key in [(m.name, m.strategy) for m in models]}
    if all(len({model.n_labels for model in line}) < 2 for line in lines.values()):
        return None
    wanted = [quantity for quantity in QUANTITIES if quantity != "conformer_forces"]
    splits = [s for s in result.splits if any(m.of_target(s, q) for m in models for q in wanted)]
    quantities = [q for q in wanted if any(m.of_target(s, q) for m in models for s in splits)]
    figure = Figure(figsize=(3.5 * len(quantities), 3.1 * len(splits)))
    axes = figure.subplots(len(splits), len(quantities), squeeze=False)
    for row, split in zip(axes, splits, strict=True):
        for axis, quantity in zip(row, quantities, strict=True):
            of = QUANTITIES[quantity]
            for number, ((name, strategy), line) in enumerate(lines.items()):
                colour, style = COLOURS[number % len(COLOURS)], ("-", "--", ":")[number // len(COLOURS) % 3]
                offset = 1.02 ** (number - (len(lines) - 1) / 2)  # or intervals would cover each other
                _curve(axis, line, split, quantity, offset, colour, style, f"{name}, {strategy}")
            axis.set(title=f"{split}: {of.short}", xscale="log", yscale="log", ylabel=f"RMSE ({of.property.unit})")
            axis.set_xlabel(f"{target} labels in training")
            counts = sorted({model.n_labels for model in models})
            axis.xaxis.set_major_locator(FixedLocator(counts))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_xticklabels([f"{n:,}" for n in counts], rotation=45)
            values = [found.rmse.value for model in models if (found := model.of_target(split, quantity)) is not None]
            if values:  # long intervals of two members would leave no room for the curves
                axis.set_ylim(max(min(values) / 2, 1e-12), 2 * max(values))
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.yaxis.set_major_formatter("{x:g}")
            axis.tick_params(labelsize=8)
            axis.grid(color="0.9")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=9)
    figure.tight_layout()
    save(figure, path)
    return StudyFigure(
        path,
        f"RMSE at {target} against the number of {target} labels in training: mean over the members, lines: 95 % "
        "interval if there are several members, cut off at the frame.",
    )


def _curve(
    axis: Axes, line: list[ModelResult], split: str, quantity: str, offset: float, colour: str, style: str, label: str
) -> None:
    known = [(model.n_labels, found.rmse) for model in line if (found := model.of_target(split, quantity)) is not None]
    points = sorted(known, key=lambda point: point[0])
    if not points:
        return
    x, y = [n * offset for n, _ in points], np.array([e.value for _, e in points])
    width = np.array([half_width(e) or 0.0 for _, e in points])
    low = np.minimum(width, 0.999 * y)  # an interval that reaches zero has no end on a logarithmic axis
    errors = np.stack([low, width]) if width.any() else None
    axis.errorbar(x, y, errors, color=colour, linestyle=style, marker="o", markersize=4, capsize=2, label=label)


def _parity(model: ModelResult, folder: Path) -> StudyFigure | None:
    target = model.target.name
    pairs = {
        (f"{target}, {split}", prop): points for split, of in model.parity.items() for (_, prop), points in of.items()
    }
    if not pairs:
        return None
    path = folder / f"parity-{safe_name(f'{model.name}-{model.strategy}')}.png"
    title = f"{model.name}, {model.strategy}, {number_of_labels(model)} {target} labels"
    parity_plot(pairs, path, title)
    members = f"the average of {len(model.runs)} members" if len(model.runs) > 1 else "its single member"
    return StudyFigure(path, f"{title}: predictions of {members} against the labels.")


def safe_name(text: str) -> str:
    """File name of letters, digits, dots and hyphens, others replaced by underscores."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text)
