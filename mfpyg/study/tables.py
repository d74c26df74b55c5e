"""Tables of a study: errors of all properties and of conformers, and improvement by multi-fidelity learning.

As in Tables 2 to 4 of Messerly et al., arXiv 2505.01590: RMSE and MAE of energies, of forces, and of energy differences
between conformers, for each model at its target; and of other properties with labels. As in its Figure 3: reduction of
the RMSE in percent of that of the single-fidelity model with the same labels of the same target.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfpyg.evaluation.ensemble import QUANTITIES, Estimate, PropertyErrors
from mfpyg.fidelity import Fidelity
from mfpyg.files import make_folder, write_text
from mfpyg.study.plan import percent
from mfpyg.study.results import ModelResult, StudyResult, baseline_name, half_width, improvement

DASH = "–"
FEW_MOLECULES = 10
"""With fewer molecules, bootstrap intervals are too narrow."""

_AT_TARGET = "Each model at its target, the last level of its name."
_LEGEND = (
    "RMSE and MAE are means over the members ± half the 95 % confidence interval by Student's t "
    f"({DASH} for a single member). Ensemble RMSE and MAE are errors of the averaged prediction, with a 95 % bootstrap "
    "interval over molecules in brackets. *: not trained on such labels."
)


@dataclass(frozen=True)
class StudyTable:
    """A table as text.

    Attributes:
        name: name of its files.
        caption: description of the content.
        header: names of the columns.
        rows: cells of each row.
        legend: explanation of the numbers, which tables may share.
    """

    name: str
    caption: str
    header: list[str]
    rows: list[list[str]]
    legend: str = ""

    def markdown(self) -> str:
        """Markdown of the caption, the legend and the table."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"{' '.join(filter(None, [self.caption, self.legend]))}\n\n{table}\n"


def tables(result: StudyResult) -> list[StudyTable]:
    """Errors of each model at its target, and the improvements; empty tables are left out."""
    found = [_errors(result, quantity) for quantity in QUANTITIES]
    return [table for table in [*found, _improvements(result)] if table.rows]


def other_tables(result: StudyResult) -> list[StudyTable]:
    """Errors of models at each of their levels other than the target; empty tables are left out."""
    levels = {f.partition(":")[0]: None for model in result.models for f in model.fidelities[:-1]}
    found = [_errors(result, quantity, level) for level in levels for quantity in QUANTITIES]
    return [table for table in found if table.rows]


def write_tables(result: StudyResult, folder: Path) -> list[Path]:
    """Write each table as Markdown and CSV, and all numbers as ``study.json`` and ``errors.csv``.

    Raises:
        MFPyGError: if the folder cannot be written to.
    """
    make_folder(folder)
    written = []
    for table in [*tables(result), *other_tables(result)]:
        for suffix, text in ((".md", table.markdown()), (".csv", _csv([table.header, *table.rows]))):
            written.append(folder / f"{table.name}{suffix}")
            write_text(written[-1], text)
    for name, text in (("errors.csv", _csv(_every_number(result))), ("study.json", as_json(result))):
        written.append(folder / name)
        write_text(written[-1], text)
    return written


def labelled(model: ModelResult) -> list[str]:
    """Cells that identify a model: name, strategy, share and number of the target's labels, and members."""
    return [model.name, model.strategy, percent(model.label_fraction), number_of_labels(model), str(len(model.runs))]


def number_of_labels(model: ModelResult) -> str:
    """Number of the target's labels in training."""
    return f"{model.n_labels:,}"


_MODEL_COLUMNS = ["model", "strategy", "labels", "number", "members"]


def _errors(result: StudyResult, quantity: str, level: str | None = None) -> StudyTable:
    """Errors at each model's target, or at a level of all models with another target."""
    models = [(m, m.target.name if level is None else level) for m in result.models if m.target.name != level]
    splits = [s for s in result.splits if any(model.at_level(at, s, quantity) for model, at in models)]
    header = [*_MODEL_COLUMNS]
    for split in splits:
        header += [f"{split}: {name}" for name in ("RMSE", "MAE", "ensemble RMSE", "ensemble MAE")]
    rows, counted = [], {}
    for model, at in models:
        found = [model.at_level(at, split, quantity) for split in splits]
        if any(found):
            cells = [[DASH] * 4 if e is None else _cells(e) for e in found]
            name, *others = labelled(model)
            star = "" if _trained(model, at, quantity) else "*"
            rows.append([name + star, *others, *(cell for of_split in cells for cell in of_split)])
            counted.update({(at, split): e for split, e in zip(splits, found, strict=True) if e is not None})
    where = _AT_TARGET if level is None else f"Each model with another target that predicts {level}, at {level}."
    of = QUANTITIES[quantity]
    caption = f"{of.caption}, in {of.property.unit}. {where} {_counts(counted)}"
    name = "-".join(["table", quantity.replace("_", "-"), *([] if level is None else [level])])
    return StudyTable(name, caption, header, rows, _LEGEND)


def _counts(counted: dict[tuple[str, str], PropertyErrors]) -> str:
    """Numbers of labels and molecules, with a warning if there are few molecules."""
    counts = [f"{e.n:,} of {e.n_molecules:,} ({level}, {split})" for (level, split), e in counted.items()]
    few = any(e.n_molecules < FEW_MOLECULES for e in counted.values())
    warning = f" Intervals from fewer than {FEW_MOLECULES} molecules are too narrow." if few else ""
    return f"Numbers of labels and molecules: {', '.join(counts)}.{warning}"


def _trained(model: ModelResult, level: str, quantity: str) -> bool:
    at = next((f for f in map(Fidelity.parse, model.fidelities) if f.name == level), None)
    return at is not None and QUANTITIES[quantity].property in at.properties


def _cells(e: PropertyErrors) -> list[str]:
    return [_plus_minus(e.rmse), _plus_minus(e.mae), _brackets(e.ensemble_rmse), _brackets(e.ensemble_mae)]


def _plus_minus(estimate: Estimate) -> str:
    half = half_width(estimate)
    return f"{estimate.value:.3f} ± {DASH if half is None else f'{half:.3f}'}"


def _brackets(estimate: Estimate) -> str:
    if estimate.low is None:
        return f"{estimate.value:.3f} [{DASH}]"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _improvements(result: StudyResult) -> StudyTable:
    columns = [(split, quantity) for split in result.splits for quantity in QUANTITIES]
    found = {id(m): [improvement(result, m, *column) for column in columns] for m in result.models}
    used = [i for i in range(len(columns)) if any(of[i] for of in found.values())]
    rows = []
    for model in result.models:
        if any(found[id(model)]):
            cells = [DASH if e is None else _percent(e) for e in (found[id(model)][i] for i in used)]
            rows.append([*labelled(model), baseline_name(model), *cells])
    caption = (
        "Improvement over the single-fidelity model with the same labels of the same target, in percent of its RMSE "
        "(mean over the members); positive is better. ±: half the 95 % interval, propagated from both ensembles."
    )
    header = [*_MODEL_COLUMNS, "baseline", *(f"{columns[i][0]}: {QUANTITIES[columns[i][1]].plural}" for i in used)]
    return StudyTable("table-improvement", caption, header, rows)


def _percent(estimate: Estimate) -> str:
    half = half_width(estimate)
    value = round(estimate.value, 1) + 0.0  # no -0.0
    return f"{value:.1f} ± {DASH if half is None else f'{half:.1f}'}"


def _every_number(result: StudyResult) -> list[list[Any]]:
    """One line per model, split, fidelity (not only the target) and quantity."""
    estimates = ("rmse", "mae", "ensemble_rmse", "ensemble_mae")
    columns = [f"{name}{end}" for name in estimates for end in ("", "_low", "_high")]
    header = [
        "model",
        "strategy",
        "label_fraction",
        "n_labels",
        "members",
        "split",
        "fidelity",
        "property",
        "unit",
        "n",
    ]
    lines: list[list[Any]] = [[*header, "n_molecules", *columns, "member_rmse", "member_mae"]]
    for model in result.models:
        about = [model.name, model.strategy, model.label_fraction, model.n_labels, len(model.runs)]
        for split, of_split in model.errors.items():
            for fidelity, of_fidelity in of_split.items():
                for quantity, e in of_fidelity.items():
                    unit = QUANTITIES[quantity].property.unit
                    values = [dataclasses.astuple(getattr(e, name)) for name in estimates]
                    numbers = ["" if v is None else v for triple in values for v in triple]
                    each = [" ".join(map(str, of)) for of in (e.member_rmse, e.member_mae)]
                    lines.append([*about, split, fidelity, quantity, unit, e.n, e.n_molecules, *numbers, *each])
    return lines


def as_json(result: StudyResult) -> str:
    """All results except the points of the parity plots."""

    def plain(value: Any) -> Any:
        return str(value) if isinstance(value, Path) else dataclasses.asdict(value)

    models = [{f.name: getattr(m, f.name) for f in dataclasses.fields(m) if f.name != "parity"} for m in result.models]
    values = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)} | {"models": models}
    return json.dumps(values, indent=2, ensure_ascii=False, default=plain) + "\n"


def _csv(lines: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
