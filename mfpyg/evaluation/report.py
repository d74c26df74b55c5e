"""The table of errors, on the terminal and as text."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mfpyg.units import ENERGY_UNIT, FORCE_UNIT

WIDEST = 250


def metrics_table(metrics: Mapping[str, Mapping[str, Any]], trained: Mapping[str, str]) -> Table:
    """Errors of every split and fidelity.

    Args:
        metrics: ``{split: {fidelity: {"energy": {…}, "forces": {…}}}}``.
        trained: ``{fidelity: its labels trained on}``, such as ``{"cc": "E"}``; forces that were not
            trained on are marked.
    """
    title = f"energies in {ENERGY_UNIT}, forces in {FORCE_UNIT}; * never trained on"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="", padding=(0, 1, 0, 0))
    table.add_column("split", no_wrap=True)
    table.add_column("fidelity", no_wrap=True)
    energy_columns = ("energy\nlabels", "MAE", "RMSE", "MAE\n/atom", "RMSE\n/atom")
    for name in (*energy_columns, "force\ncomp.", "MAE", "RMSE"):
        table.add_column(name, justify="right", no_wrap=True)
    for split, rows in metrics.items():
        for name, row in rows.items():
            labels = trained.get(name, "")
            energy = _cells(row.get("energy"), "E" in labels, ("mae", "rmse", "mae_per_atom", "rmse_per_atom"))
            forces = _cells(row.get("forces"), "F" in labels, ("mae", "rmse"))
            table.add_row(split, f"{name}:{labels}" if labels else name, *energy, *forces)
        table.add_section()
    return table


def _cells(values: Mapping[str, float] | None, trained: bool, names: tuple[str, ...]) -> list[str]:
    if values is None:
        return ["-"] * (len(names) + 1)
    star = "" if trained else "*"
    return [f"{values['n']}{star}", *[f"{values[name]:.3f}" for name in names]]


def as_text(table: Table) -> str:
    """A table without colours, as wide as it has to be."""
    console = Console(file=io.StringIO(), width=WIDEST)
    console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines()) + "\n"


def print_table(console: Console, table: Table) -> None:
    """Print a table; a narrow terminal wraps its lines, but no digit is cut off."""
    console.print(as_text(table), soft_wrap=True, highlight=False, markup=False)
