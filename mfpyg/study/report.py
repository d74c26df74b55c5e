"""Self-contained HTML report of a study: its runs, its results and how to reproduce them."""

from __future__ import annotations

import base64
import platform
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from mfpyg.checkpoint import versions
from mfpyg.datasets.labels import ALWAYS
from mfpyg.evaluation.conformers import WINDOW
from mfpyg.evaluation.ensemble import CONFIDENCE
from mfpyg.files import make_folder, write_text
from mfpyg.properties import ENERGY, PROPERTIES
from mfpyg.study.figures import StudyFigure, largest_shares, write_figures
from mfpyg.study.plan import percent
from mfpyg.study.results import StudyResult, baseline, baseline_name
from mfpyg.study.tables import DASH, StudyTable, number_of_labels, other_tables, tables

_STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --soft: #555; --page: #fff; --code: #f4f4f4; --line: #e2e2e2;
        --strong: #999; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e4e4; --soft: #b4b4b4; --page: #16181c; --code: #24272d; --line: #363a42; --strong: #7c828d; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); margin: 0 auto;
       max-width: 90rem; padding: 1.5rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-spacing: 0; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.5rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: pre; } td.text { white-space: normal; }
th { border-bottom: 2px solid var(--strong); vertical-align: bottom; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--page); text-align: left; }
.text { text-align: left; } .wide { overflow-x: auto; }
p, figcaption { max-width: 60rem; } figure { margin: 1.5rem 0; }
figcaption { color: var(--soft); font-size: 0.9rem; margin-bottom: 0.5rem; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; margin-bottom: 0.5rem; }
pre { background: var(--code); padding: 0.8rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.85rem; }
summary { cursor: pointer; margin: 1.5rem 0; }
.failed { border-left: 4px solid #c0392b; padding-left: 1rem; }
"""


def page(title: str, body: str) -> str:
    """The whole page; ``body`` is HTML."""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and the HTML below it."""
    return f"<h2>{escape(title)}</h2>\n{''.join(parts)}"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>\n"


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str, text: tuple[int, ...] = ()) -> str:
    """An HTML table; columns in ``text`` contain words and may wrap."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = [' class="text"' if i in text else "" for i in range(len(cells))]
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    head, body = line("th", header), "".join(f"<tr>{line('td', row)}</tr>\n" for row in rows)
    return (
        f'<figure><figcaption>{escape(caption)}</figcaption>\n<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div></figure>\n"
    )


def details(summary: str, inner: str) -> str:
    """HTML that is shown when its summary is clicked."""
    return f"<details><summary>{escape(summary)}</summary>\n{inner}</details>\n"


_IN_COLUMNS = ("strategy", "label_fraction")
"""Settings that have their own column in the table of models."""


def write_report(
    result: StudyResult,
    folder: Path,
    *,
    commands: Sequence[str] = (),
    title: str = "Multi-fidelity study",
    figures: Sequence[StudyFigure] | None = None,
) -> Path:
    """Write ``report.html``, with embedded figures; nothing is loaded from elsewhere.

    Args:
        result: result of :func:`mfpyg.study.results.collect`.
        folder: folder to write to.
        commands: commands that made the study, in their order.
        title: title of the page.
        figures: figures of :func:`mfpyg.study.figures.write_figures`; drawn into the folder if not given.

    Raises:
        MFPyGError: if the folder cannot be written to.
    """
    make_folder(folder)
    drawn = write_figures(result, folder) if figures is None else figures
    sections = [
        _introduction(result),
        _left_out(result),
        section("Models", _models(result)),
        section("Data", _data(result)),
        section("Errors", _errors(tables(result)), _missing_baselines(result)),
        _other_levels(result),
        section("Figures", *map(embedded, drawn)),
        section("Reproduction", _commands(commands), _settings(result), _versions(result)),
    ]
    path = folder / "report.html"
    write_text(path, page(title, "".join(sections)))
    return path


def _introduction(result: StudyResult) -> str:
    n_runs, n_missing = sum(len(model.runs) for model in result.models), len(result.failures)
    missing = f" {n_missing} run{'s' * (n_missing != 1)} could not be used." if n_missing else ""
    return paragraph(
        "Interatomic potentials trained on labels of several levels of quantum chemistry (fidelities), after Messerly "
        "et al., “Multi-fidelity learning for interatomic potentials”, arXiv:2505.01590. The name of a model lists the "
        "levels that it was trained on, cheap ones first, with their labels: MF-DZ/EF-CC/E was trained on energies (E) "
        "and forces (F) of dz and on energies of cc; SF stands for a single level. The last level is the target, at "
        f"which models are compared.{_further_letters(result)}"
    ) + paragraph(
        f"{n_runs} runs of {len(result.models)} models. Runs that differ only in the seed are the members of an "
        f"ensemble.{missing}"
    )


def _further_letters(result: StudyResult) -> str:
    further = [f"{PROPERTIES[letter].plural} ({letter})" for letter in result.letters if letter not in ALWAYS]
    return f" Other labels: {', '.join(further)}." if further else ""


def _left_out(result: StudyResult) -> str:
    if not result.failures:
        return ""
    rows = [
        [f.run.name, f.run.strategy, percent(f.run.label_fraction), str(f.run.seed), f.reason] for f in result.failures
    ]
    caption = "These runs are not included in any result below."
    table = grid(["model", "strategy", "labels", "seed", "reason"], rows, caption, text=(1, 4))
    return f'<div class="failed">{section("Missing runs", table)}</div>\n'


def _models(result: StudyResult) -> str:
    header = [
        "model",
        "trained on",
        "strategy",
        "target labels",
        "number",
        "seeds",
        "best epochs",
        "settings of its own",
    ]
    rows = []
    for model in result.models:
        own = [
            f"{name} {_listed(values)}"
            for name, values in model.own_settings.items()
            if name not in _IN_COLUMNS and set(map(str, values)) != {"None"}
        ]
        rows.append(
            [
                *(model.name, " ".join(model.fidelities), model.strategy, percent(model.label_fraction)),
                *(number_of_labels(model), _listed(run.seed for run in model.runs), ", ".join(map(str, model.epochs))),
                "; ".join(own) or DASH,
            ]
        )
    caption = (
        "One row per model, whose runs differ only in the seed. Target labels: share and number of the target's labels "
        "that were trained on. Best epochs: epochs with the lowest validation loss."
    )
    return grid(header, rows, caption, text=(1, 2, 7))


def _listed(values: Any) -> str:
    """Distinct values, separated by commas."""
    return ", ".join(dict.fromkeys(str(value) for value in values))


def _data(result: StudyResult) -> str:
    parts = []
    for spec, sizes in result.trained_on.items():
        parts.append(
            paragraph(f"Conformations of {spec}: {', '.join(f'{n:,} in {name}' for name, n in sizes.items())}.")
        )
    rows = [[name, f"{n:,}", f"{molecules:,}"] for name, (n, molecules) in result.sizes.items()]
    caption = (
        "Data used for evaluation. No run was trained on the splits test and ood of its data; whether other data "
        "overlap with the training data was not checked."
    )
    parts.append(grid(["evaluated on", "conformations", "molecules"], rows, caption))
    splits = list(dict.fromkeys(split for of_split in result.label_counts.values() for split in of_split))
    levels = [
        [name, result.methods.get(name, DASH), *(_counts(of_split.get(split)) for split in splits)]
        for name, of_split in result.label_counts.items()
    ]
    caption = (
        f"Levels of theory, and numbers of conformations {_with_labels(result.letters)}; a model trains on the labels "
        "in its name only."
    )
    if levels:
        parts.append(grid(["level", "method", *splits], levels, caption, text=(1,)))
    parts.append(
        paragraph(
            f"Conformers are the conformations of a molecule within {WINDOW:g} kcal/mol of its lowest one, by the "
            f"labels of the level in question. {100 * CONFIDENCE:.0f} % intervals are Student's t over members, and "
            f"{result.resamples:,} bootstrap resamples of whole molecules for averaged predictions."
        )
    )
    return "".join(parts)


def _errors(found: Sequence[StudyTable]) -> str:
    """Tables of errors, after the legends that they share."""
    legends = dict.fromkeys(table.legend for table in found if table.legend)
    return "".join([*map(paragraph, legends), *map(_html_table, found)])


def _other_levels(result: StudyResult) -> str:
    found = other_tables(result)
    return details("Errors at levels other than the target", _errors(found)) if found else ""


def _counts(counts: tuple[int, ...] | None) -> str:
    return DASH if counts is None else ", ".join(f"{n:,}" for n in counts)


def _with_labels(letters: str) -> str:
    """Properties in words: ``with an energy, with forces and with a dipole``."""
    several = [PROPERTIES[letter] for letter in letters]
    each = [p.plural if p.per == "atom" else f"a{'n' * (p is ENERGY)} {p.singular}" for p in several]
    return " and ".join(filter(None, [", ".join(f"with {words}" for words in each[:-1]), f"with {each[-1]}"]))


def _missing_baselines(result: StudyResult) -> str:
    missing = [m for m in largest_shares(result) if len(m.fidelities) > 1 and baseline(result, m) is None]
    if not missing:
        return ""
    names = ", ".join(f"{m.name} ({baseline_name(m)}, {percent(m.label_fraction)} of the labels)" for m in missing)
    return paragraph(f"No improvement is given for models without a single-fidelity counterpart here: {names}.")


def embedded(figure: StudyFigure) -> str:
    """HTML of a figure, with the picture in it."""
    encoded = base64.b64encode(figure.path.read_bytes()).decode()
    caption = escape(figure.caption)
    image = f'<img alt="{caption}" src="data:image/png;base64,{encoded}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>\n"


def _html_table(table: StudyTable) -> str:
    # Intervals in brackets have a line of their own, for narrow columns.
    rows = [[cell.replace(" [", "\n[") for cell in row] for row in table.rows]
    return grid(table.header, rows, table.caption, text=(1,))


def _commands(commands: Sequence[str]) -> str:
    if not commands:
        return paragraph("The commands that made the study are not known.")
    return f"<pre>{escape(chr(10).join(commands))}</pre>\n"


def _settings(result: StudyResult) -> str:
    if not result.settings:
        return ""
    rows = [[name, _value(value)] for name, value in result.settings.items()]
    table = grid(["setting", "value"], rows, f"Settings of mfpyg-train; {DASH}: not set.", text=(1,))
    return details("Settings shared by all runs", table)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or DASH
    return DASH if value is None else str(value)


def _versions(result: StudyResult) -> str:
    now = versions()
    rows = [
        [name, _listed(result.versions.get(name, [DASH])), now.get(name, DASH)] for name in {**result.versions, **now}
    ]
    caption = f"The evaluation ran on {platform.platform()}."
    return details("Versions of packages", grid(["package", "trained with", "evaluated with"], rows, caption))
