"""Table, figure and page of a growth."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from mfpyg.files import write_text
from mfpyg.growth.costs import duration, unit_of
from mfpyg.growth.folder import GrowFolder
from mfpyg.growth.labels import NAMED, Labels
from mfpyg.growth.settings import GrowSettings
from mfpyg.properties import PROPERTIES, Property
from mfpyg.study.figures import COLOURS, StudyFigure, save
from mfpyg.study.report import details, embedded, grid, page, paragraph, section
from mfpyg.study.tables import DASH

VAL, TEST, EXPECTED = "val", "test", "expected"
"""Kinds of errors: on the geometries kept for validation, on the test data, and what the potential expects."""

_LEGEND = (
    "A row per round. Labels: number of labels by level, of all rounds so far. Processor time: of all labels so far. "
    "RMSE of energies in kcal/mol and of force components in kcal/mol/Å: val, random geometries of the pool kept for "
    "validation; test, the given test data; expected, root mean square of the potential's own standard deviations "
    f"over the pool. {DASH}: no labels, or too few for standard deviations."
)

Summary = Mapping[str, Any]


def rounds_table(summaries: Sequence[Summary], target: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of rounds."""
    columns = list(_columns(summaries, target))
    levels = list(summaries[-1]["labels"])
    heads = [f"{kind}\n{level} {property.letter}" for kind, level, property in columns]
    header = ["round", *(f"labels\n{name}" for name in levels), "processor\ntime", *heads]
    rows = []
    for number, summary in enumerate(summaries):
        counts = [f"{summary['labels'].get(name, 0):,}" for name in levels]
        values = [_error(summary, *column) for column in columns]
        errors = [DASH if value is None else f"{value:.3f}" for value in values]
        rows.append([str(number), *counts, duration(summary["spent"]), *errors])
    return header, rows


def _columns(summaries: Sequence[Summary], target: str) -> Iterator[tuple[str, str, Property]]:
    """Kind of error, level and property of the columns for which there are values."""
    levels = list(summaries[-1]["labels"])
    for kind, names in ((VAL, levels), (EXPECTED, [target]), (TEST, levels)):
        for name in names:
            for property in PROPERTIES.values():
                if any(_error(summary, kind, name, property) is not None for summary in summaries):
                    yield kind, name, property


def _error(summary: Summary, kind: str, level: str, property: Property) -> float | None:
    if kind == EXPECTED:
        found: float | None = summary[EXPECTED].get(property.name)
        return found
    errors = summary[kind].get(level, {}).get(property.name)
    return None if errors is None else float(errors["rmse"])


def text_table(summaries: Sequence[Summary], target: str) -> Table:
    """Table of rounds, without its legend."""
    header, rows = rounds_table(summaries, target)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in header:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def draw(summaries: Sequence[Summary], target: str, folder: GrowFolder) -> StudyFigure:
    """Draw the errors against the processor time of all labels."""
    columns = list(_columns(summaries, target))
    properties = [p for p in PROPERTIES.values() if any(column[2] is p for column in columns)]
    unit, size = unit_of(summaries[-1]["spent"])
    times = [summary["spent"] / size for summary in summaries]
    figure = Figure(figsize=(5.2 * len(properties), 4.0))
    for axis, property in zip(figure.subplots(1, len(properties), squeeze=False)[0], properties, strict=True):
        levels = list(summaries[-1]["labels"])
        for kind, level, _ in (column for column in columns if column[2] is property):
            values = [_error(summary, kind, level, property) for summary in summaries]
            points = [(x, y) for x, y in zip(times, values, strict=True) if y is not None]
            style = {VAL: "o--", TEST: "s-", EXPECTED: "^:"}[kind]
            colour = COLOURS[levels.index(level) % len(COLOURS)]
            axis.plot(*zip(*points, strict=True), style, color=colour, markersize=4, label=f"{level}, {kind}")
        axis.set(title=property.plural, xlabel=f"processor time of labels ({unit})", ylabel=f"RMSE ({property.unit})")
        axis.set_xlim(left=0)
        axis.set_ylim(0, 1.1 * axis.dataLim.y1)
        axis.grid(color="0.9")
        axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    save(figure, folder.figure)
    return StudyFigure(folder.figure, "Errors against the processor time of all labels so far, a point for each round.")


def use(folder: GrowFolder, settings: GrowSettings) -> list[str]:
    """Commands that use the potential."""
    test = "".join(f" --dataset {shlex.quote(spec)}" for spec in settings.test)
    return [
        f"mfpyg-evaluate {folder.potential}{test}",
        f"mfpyg-predict {folder.potential} FILE -o predicted.xyz --fidelity {settings.target_name}",
    ]


def write_report(labels: Labels, stop: str = "") -> None:
    """Write ``report.html``, with the figure in it.

    Args:
        labels: labels of a growth with at least one complete round.
        stop: why there are no more rounds before the last one, if so.
    """
    folder, settings, target = labels.folder, labels.settings, labels.settings.target_name
    summaries = [one.read_summary() for one in folder.rounds()]
    header, rows = rounds_table(summaries, target)
    levels = [
        [level.name, f"{level.program}: {level.method}", level.letters, *_cost(summaries[-1], level.name)]
        for level in settings.label_levels
    ]
    heads = ["level", "method", "letters", "labels", "failed", "processor time", "per label"]
    parts = [
        paragraph(_introduction(labels, summaries, stop)),
        section("Rounds", grid(header, rows, _LEGEND), embedded(draw(summaries, target, folder))),
        section("Levels", grid(heads, levels, "Labels of all rounds.", text=(1,)), _failures(labels)),
        section("Use", f"<pre>{escape(chr(10).join(use(folder, settings)))}</pre>\n"),
        details("Settings", f"<pre>{escape(folder.config.read_text(encoding='utf-8'))}</pre>\n"),
    ]
    write_text(folder.report, page(f"Growth of {folder.path.resolve().name}", "".join(parts)))


def _introduction(labels: Labels, summaries: Sequence[Summary], stop: str) -> str:
    settings, pool = labels.settings, labels.pool
    everywhere = f" {', '.join(settings.everywhere)} is computed for all of them." if settings.everywhere else ""
    time = f"{duration(summaries[-1]['spent'])} of {duration(settings.seconds)} of processor time"
    end = f" It has ended, as {stop}." if stop else ""
    return (
        f"A pool of {len(pool.frames):,} geometries, {len(pool.val):,} of which are kept for validation.{everywhere} "
        f"Each round labels more of them at {', '.join(settings.chosen)}, and trains the potential of the round before "
        f"further. {len(summaries)} of {settings.rounds} rounds are complete, with {time}.{end}"
    )


def _cost(summary: Summary, level: str) -> list[str]:
    labels, seconds = summary["labels"].get(level, 0), summary["seconds"][level]
    each = duration(seconds / labels) if labels else DASH
    return [f"{labels:,}", f"{summary['failed'].get(level, 0):,}", duration(seconds), each]


def _failures(labels: Labels) -> str:
    failures = labels.about["failures"]
    if not failures:
        return ""
    rows = [[str(one["frame"]), one["formula"], one["level"], one["reason"]] for one in failures[:NAMED]]
    more = f" The first {NAMED} of {len(failures):,}." if len(failures) > NAMED else ""
    caption = f"Labels that could not be computed, by the number of the frame in frames.xyz.{more}"
    return grid(["frame", "formula", "level", "reason"], rows, caption, text=(3,))
