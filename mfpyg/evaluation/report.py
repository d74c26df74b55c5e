"""Errors of a potential as tables and parity plots."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mfpyg.errors import MFPyGError
from mfpyg.evaluation.coverage import coverage_table
from mfpyg.evaluation.pairs import DIRECTIONAL_FORCE
from mfpyg.files import replace_file
from mfpyg.properties import ENERGY, FORCES, HESSIAN, PROPERTIES, Property

if TYPE_CHECKING:  # imports torch and matplotlib, which tables do not need
    from matplotlib.axes import Axes

    from mfpyg.evaluation.evaluate import Parity

WIDEST = 250
"""Maximum width of a table as text."""

FREQUENCIES = "frequencies", "cm⁻¹"
"""Name and unit of harmonic frequencies, which follow from Hessians."""


def metrics_table(metrics: Mapping[str, Mapping[str, Any]], trained: Mapping[str, str]) -> Table | Group:
    """Table of the errors of every split and fidelity, followed by those of directional forces and standard deviations.

    Args:
        metrics: :attr:`mfpyg.evaluation.evaluate.Evaluation.metrics`; other properties than energies and forces get
            columns if there are any.
        trained: ``{fidelity: labels trained on}``, such as ``{"cc": "E"}``; others are marked by a star.
    """
    there = {quantity for rows in metrics.values() for row in rows.values() for quantity in row}
    shown = [p for p in PROPERTIES.values() if p in (ENERGY, FORCES) or p.name in there]
    units = [f"{p.plural} in {p.unit}" for p in shown]
    with_frequencies = FREQUENCIES[0] in there
    if with_frequencies:
        units.append(f"{FREQUENCIES[0]} in {FREQUENCIES[1]}")
    title = f"{', '.join(units)}; * never trained on"
    table, heads = _new_table(title), list[str]()
    for property in shown:
        count = "comp." if property.shape else "labels"
        heads += [f"{property.singular}\n{count}", *_HEADS[property is ENERGY].values()]
    if with_frequencies:
        heads += ["frequen-\ncies", *_HEADS[False].values()]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for split, rows in metrics.items():
        for name, row in rows.items():
            labels = trained.get(name, "")
            cells = [_cells(row.get(p.name), p.letter in labels, _HEADS[p is ENERGY]) for p in shown]
            if with_frequencies:
                cells.append(_cells(row.get(FREQUENCIES[0]), HESSIAN.letter in labels, _HEADS[False]))
            table.add_row(split, _named(name, trained), *itertools.chain.from_iterable(cells))
        table.add_section()
    of_pairs = _directional_forces(metrics, trained) if DIRECTIONAL_FORCE in there else None
    more = [found for found in (of_pairs, coverage_table(metrics, trained)) if found is not None]
    fitted = [Text(line, no_wrap=True, overflow="ignore") for line in _alignments(metrics)]
    return Group(*fitted, table, *more) if fitted or more else table


def _alignments(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Data that reference energies were fitted to for the evaluation, a line for each set."""
    found: dict[str, dict[str, int]] = {}
    for rows in metrics.values():
        for name, row in rows.items():
            if aligned := row.get(ENERGY.name, {}).get("aligned"):
                found.setdefault(aligned["on"], {})[name] = aligned["n"]
    return [
        f"reference energies fitted to {on}: {', '.join(f'{n:,} {name} energies' for name, n in of.items())}"
        for on, of in found.items()
    ]


def _new_table(title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="", padding=(0, 1, 0, 0))
    table.add_column("split", no_wrap=True)
    table.add_column("fidelity", no_wrap=True)
    return table


def _named(fidelity: str, trained: Mapping[str, str]) -> str:
    labels = trained.get(fidelity, "")
    return f"{fidelity}:{labels}" if labels else fidelity


def _directional_forces(metrics: Mapping[str, Mapping[str, Any]], trained: Mapping[str, str]) -> Table:
    table = _new_table(f"directional forces of near pairs in {FORCES.unit}")
    for head in ("pairs", "MAE", "RMSE", "comp. RMSE,\nestimated"):
        table.add_column(head, justify="right", no_wrap=True)
    for split, rows in metrics.items():
        found = {name: row[DIRECTIONAL_FORCE] for name, row in rows.items() if DIRECTIONAL_FORCE in row}
        for name, values in found.items():
            errors = (f"{values[key]:.3f}" for key in ("mae", "rmse", "component_rmse"))
            table.add_row(split, _named(name, trained), str(values["n"]), *errors)
        table.add_section()
    return table


_HEADS = {
    True: {"mae": "MAE", "rmse": "RMSE", "mae_per_atom": "MAE\n/atom", "rmse_per_atom": "RMSE\n/atom"},
    False: {"mae": "MAE", "rmse": "RMSE"},
}
"""Heads of the columns with errors, by whether they are energies."""


def _cells(values: Mapping[str, float] | None, trained: bool, names: Iterable[str]) -> list[str]:
    if values is None:
        return ["-"] * (len(list(names)) + 1)
    star = "" if trained else "*"
    return [f"{values['n']}{star}", *[f"{values[name]:.3f}" for name in names]]


def as_text(table: RenderableType) -> str:
    """Table as text without colours."""
    console = Console(file=io.StringIO(), width=WIDEST, force_terminal=False)  # whatever FORCE_COLOR is
    console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines()) + "\n"


def print_table(console: Console, table: RenderableType) -> None:
    """Print a table; a narrow terminal wraps its lines without cutting off digits."""
    console.print(as_text(table), soft_wrap=True, highlight=False, markup=False)


def parity_plot(pairs: Mapping[tuple[str, str], Parity], path: Path, title: str) -> None:
    """Write parity plots as PNG, with a panel for each fidelity and property.

    Args:
        pairs: ``{(fidelity, name of the property): labels and predictions}`` of one split.
        path: PNG file to write.
        title: title above the panels.

    Raises:
        MFPyGError: if there is nothing to draw.
    """
    from matplotlib.figure import Figure

    if not pairs:
        raise MFPyGError(f"{title}: no labels to plot")
    names = list(dict.fromkeys(name for name, _ in pairs))
    properties = [p for p in PROPERTIES.values() if any((name, p.name) in pairs for name in names)]
    figure = Figure(figsize=(3.4 * len(names), 3.4 * len(properties)))
    axes = figure.subplots(len(properties), len(names), squeeze=False)
    for row, prop in enumerate(properties):
        for column, name in enumerate(names):
            _panel(axes[row][column], name, prop, pairs.get((name, prop.name)))
    figure.suptitle(title)
    figure.tight_layout()
    replace_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def _panel(axis: Axes, name: str, property: Property, parity: Parity | None) -> None:
    if parity is None:
        axis.set_axis_off()
        return
    label, predicted = np.concatenate(parity.labels), np.concatenate(parity.predictions)
    low, high = min(label.min(), predicted.min()), max(label.max(), predicted.max())
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    unit = f"{property.unit} per atom" if property is ENERGY else property.unit
    components = f"{property.singular} components" if property.shape else property.plural
    quantity = "energies without references" if property is ENERGY else components
    axis.plot(limits, limits, color="0.6", linewidth=1, zorder=0)
    axis.plot(label, predicted, ".", markersize=3, alpha=0.5, markeredgewidth=0, rasterized=True)
    axis.set(xlim=limits, ylim=limits, aspect="equal", xlabel=f"label ({unit})", ylabel=f"prediction ({unit})")
    rmse = float(np.sqrt(np.mean((predicted - label) ** 2)))
    axis.set_title(f"{name}: {quantity}\nRMSE {rmse:.2f} {unit}", fontsize=9)
