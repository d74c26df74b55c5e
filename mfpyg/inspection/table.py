"""Reports of :func:`mfpyg.inspection.inspect` as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mfpyg.datasets.storage import count_columns
from mfpyg.evaluation.report import metrics_table, print_table
from mfpyg.models.calibration import FEWEST
from mfpyg.options import flat
from mfpyg.pretrained.card import error_rows, level_rows


def print_report(console: Console, report: Mapping[str, Any], everything: bool = False) -> None:
    """Print a report.

    Args:
        console: console to print to.
        report: report of :func:`mfpyg.inspection.inspect`.
        everything: whether to print all settings, not only those that differ from the preset.
    """
    parts = {"dataset": _dataset, "study": _study}.get(report["kind"], _trained)(report)
    for part in parts:
        print_table(console, part)
    if report["kind"] not in ("run", "checkpoint"):
        return
    if report["metrics"]:
        labels = {name: level["labels"] or "" for name, level in report["fidelities"].items()}
        print_table(console, metrics_table(report["metrics"], labels))
    settings = flat(dict(report["config"])) if everything else report["changed"]
    title = "all settings" if everything else f"settings that differ from preset {report['config']['preset']}"
    print_table(console, _grid(title, settings.items()))
    if report["card"]:
        for part in _card(report["card"]):
            print_table(console, part)


def _trained(report: Mapping[str, Any]) -> Iterable[Table]:
    potential, data = report["potential"], report["data"]
    units = potential["units"]
    facts = {
        report["kind"]: report["path"],
        "backbone": _backbone(potential),
        "parameters": f"{potential['n_parameters']:,}",
        "cutoff": f"{potential['cutoff']} {units['length']}" if potential["cutoff"] else None,
        "elements": " ".join(potential["elements"]),
        "units": ", ".join(f"{name} {unit}" for name, unit in units.items()),
        "strategy": _strategy(potential),
        "training": _training(report["training"]),
        "standard deviations": _standard_deviations(report["fidelities"]),
        "data": " + ".join(data["name"]),
        "… fingerprint": data["fingerprint"],
        "… splits": ", ".join(f"{n:,} {name}" for name, n in data["splits"].items()),
        "… hash of splits": data["split_hash"],
        "trained with": ", ".join(f"{name} {version}" for name, version in report["versions"]["trained"].items()),
        "… here": ", ".join(f"{name} {v or 'missing'}" for name, v in report["versions"]["different"].items()),
        "format": report["format"],
    }
    yield _grid("", facts.items())
    yield _levels(report)


def _backbone(potential: Mapping[str, Any]) -> str:
    package, missing = potential["backbone_package"], potential["missing"]
    return potential["backbone"] + (f" of package {package}" if package else "") + (f" ({missing})" if missing else "")


def _strategy(potential: Mapping[str, Any]) -> str:
    base = potential["base_level"]
    return potential["strategy"] + (f", a difference to {base}" if base else "")


def _standard_deviations(levels: Mapping[str, Any]) -> str:
    words = []
    for name, level in levels.items():
        if (found := level["standard_deviations"]) is not None:
            energies, forces = found["held_out_energies"], found["held_out_with_forces"]
            scales = f"scales {found['energy_scale']:.3g} and {found['forces_scale']:.3g}"
            if energies is None:
                words.append(f"{name}: calibrated, {scales}")
                continue
            of_forces = f"forces of {forces:,} conformations" if forces >= FEWEST else "expected errors of forces"
            words.append(f"{name}: calibrated by {energies:,} energies and {of_forces}, {scales}")
        else:
            words.append(f"{name}: none")
    return "; ".join(words)


def _training(training: Mapping[str, Any]) -> str | None:
    if training["epochs"] is None:
        return None
    words = [f"{training['epochs']:,} of {training['epochs_asked']:,} epochs, {training['steps'] or 0:,} steps"]
    if training["best_epoch"] is not None:
        words.append(f"best epoch {training['best_epoch']}, validation loss {training['best_loss']:.6g}")
    if training["stage"] is not None:
        words.append(f"stage {training['stage']}")
    if "finished" in training:
        words.append("finished" if training["finished"] else "not finished")
        words.append("can be resumed" if training["resumable"] else "cannot be resumed")
    return "; ".join(words)


def _levels(report: Mapping[str, Any]) -> Table:
    """Labels, method and reference energies of each fidelity."""
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", title_style="", padding=(0, 1, 0, 0))
    table.caption_justify = "left"
    table.title = f"reference energies in {report['potential']['units']['energy']}"
    table.add_column("fidelity", no_wrap=True)
    table.add_column("level of theory")
    for element in report["potential"]["elements"]:
        table.add_column(element, justify="right", no_wrap=True)
    every = report["potential"]["elements"]
    for name, level in report["fidelities"].items():
        untrained = (
            [] if level["trained_elements"] is None else [e for e in every if e not in level["trained_elements"]]
        )
        if untrained:
            table.caption = "* the fidelity was never trained on this element"
        energies = {element: level["reference_energies"].get(element) for element in every}
        shown = ["-" if e is None else f"{e:.3f}{'*' * (element in untrained)}" for element, e in energies.items()]
        table.add_row(f"{name}:{level['labels']}" if level["labels"] else name, Text(level["method"] or ""), *shown)
    return table


def _card(card: Mapping[str, Any]) -> Iterable[Table]:
    """Model card of a shipped model."""
    title = "model card"
    facts = {
        "title": card["title"],
        "licence": card["licence"],
        "elements": card["elements"],
        "use": card["use"],
        "not for": "; ".join(card["not_for"]),
        "tested on": card["tested_on"],
        "recipe": card["recipe"],
    }
    yield _grid(title, facts.items())
    for rows in (level_rows(card), error_rows(card)):
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in rows[0]:
            table.add_column(name)
        for row in rows[1:]:
            table.add_row(*map(Text, row))
        yield table


def _dataset(report: Mapping[str, Any]) -> Iterable[Table]:
    edges = report["edges"]
    facts = {
        "data set": report["path"],
        "sources": ", ".join(report["sources"]),
        "conformations": f"{report['conformations']:,} of {report['molecules']:,} molecules, {report['atoms']:,} atoms",
        "elements": " ".join(report["elements"]),
        "splits": ", ".join(f"{n:,} {name}" for name, n in report["splits"].items() if n),
        "periodic": f"{report['periodic']:,}" if report["periodic"] else None,
        "charged": f"{report['charged']:,}" if report["charged"] else None,
        "edges": f"{edges['number']:,} up to {edges['cutoff']} Å" if edges else None,
        "fingerprint": report["fingerprint"],
        "size": f"{report['bytes'] / 1e6:,.1f} MB, format {report['format']}",
    }
    yield _grid("", facts.items())
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("fidelity", "level of theory"):
        table.add_column(name)
    columns = count_columns(list(report["fidelities"].values()))
    for header in columns.values():
        table.add_column(header, justify="right")
    for name, row in report["fidelities"].items():
        counts = [f"{row[column]:,}" for column in columns]
        table.add_row(Text(name), Text(row["method"]), *counts)
    yield table


def _study(report: Mapping[str, Any]) -> Iterable[Table]:
    plan, states = report["plan"], list(report["runs"].values())
    counted = ", ".join(f"{states.count(state)} {state}" for state in ("finished", "started", "missing"))
    yield _grid("", {"study": report["path"], "runs": counted, **plan}.items())


def _grid(title: str, facts: Iterable[tuple[str, Any]]) -> Table:
    """Names and values; without a title, empty values are left out."""
    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0), title=title or None, title_justify="left")
    grid.title_style = ""
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for name, value in facts:
        if value not in (None, "", []) or title:
            shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            grid.add_row(Text(name), Text(shown))
    return grid
