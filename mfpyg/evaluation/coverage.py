r"""Comparison of standard deviations with errors: coverage of intervals, and rank correlation.

If standard deviations :math:`\sigma` are calibrated (:mod:`mfpyg.models.calibration`), the interval
:math:`\pm q_p\,\sigma` holds the fraction :math:`p` of all labels. The miscalibration area is

.. math:: \int_0^1 |\hat p(p) - p|\; dp ,

:math:`\hat p` being the fraction observed (Tran et al., Mach. Learn.: Sci. Technol. 1, 025006 (2020)): 0 at best, 0.5
at worst.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from torch_geometric.data import Batch

from mfpyg.evaluation.metrics import label_errors, labelled_rows
from mfpyg.models import Prediction
from mfpyg.models.calibration import FEWEST, PROBABILITIES
from mfpyg.properties import ENERGY, FORCES

CALIBRATION = "calibration"
"""Key of :func:`statistics` in tables of errors."""

INTERVALS = (50, 80, 95)
"""Probabilities of the intervals in tables, in per cent."""

MOST = 1_000_000
"""Number of errors above which a random half is dropped."""

WITH_STD = (ENERGY, FORCES)
"""Properties with standard deviations."""


def observed_coverage(errors: np.ndarray, std: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Fraction of errors within each of the intervals ±q σ.

    Args:
        errors, std: errors and standard deviations, (n,).
        quantiles: q in ascending order, (n_intervals,).

    Returns:
        (n_intervals,).
    """
    sizes, positive = np.abs(errors), std > 0
    ratios = np.where(sizes > 0, np.inf, 0.0)
    ratios[positive] = sizes[positive] / std[positive]
    return np.searchsorted(np.sort(ratios), quantiles, side="right") / len(ratios)


def rank_correlation(errors: np.ndarray, std: np.ndarray) -> float | None:
    r"""Spearman's correlation of \|error\| and standard deviation; ``None`` if one of them is constant."""
    from scipy.stats import rankdata  # takes some tenths of a second

    ranks = [rankdata(values) for values in (np.abs(errors), std)]
    if any(np.ptp(of_values) == 0 for of_values in ranks):
        return None
    return float(np.corrcoef(ranks)[0, 1])


def statistics(errors: np.ndarray, std: np.ndarray, quantiles: np.ndarray) -> dict[str, Any]:
    """Comparison of standard deviations with errors.

    Args:
        errors, std: at least :data:`mfpyg.models.calibration.FEWEST` errors and standard deviations, (n,).
        quantiles: quantiles at :data:`mfpyg.models.calibration.PROBABILITIES`, (99,).

    Returns:
        ``rms_std``, root mean square of the standard deviations; ``coverage``, fractions within the
        :data:`INTERVALS` by their probability in per cent; ``miscalibration_area``; ``rank_correlation``;
        ``rmse_least_certain`` of the tenth with the largest standard deviations, and ``rmse_rest`` of the others.
    """
    errors, std = errors.astype(np.float64), std.astype(np.float64)
    observed = observed_coverage(errors, std, quantiles)
    by_std = errors[np.argsort(-std, kind="stable")]
    n_least = round(len(errors) / 10)
    return {
        "rms_std": _rms(std),
        "coverage": {str(percent): float(observed[percent - 1]) for percent in INTERVALS},
        "miscalibration_area": float(np.sum(np.abs(observed - PROBABILITIES)) * 0.01),  # trapezia, 0 at both ends
        "rank_correlation": rank_correlation(errors, std),
        "rmse_least_certain": _rms(by_std[:n_least]),
        "rmse_rest": _rms(by_std[n_least:]),
    }


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


class _Sample:
    """Errors and standard deviations of one quantity, a random part of them if there are more than :data:`MOST`."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []
        self.fraction, self.random = 1.0, np.random.default_rng(0)

    def add(self, errors: np.ndarray, std: np.ndarray) -> None:
        self.parts.append(self._drawn(np.stack([errors, std]).astype(np.float32), self.fraction))
        if sum(part.shape[1] for part in self.parts) > MOST:
            self.fraction /= 2
            self.parts = [self._drawn(np.concatenate(self.parts, axis=1), 0.5)]

    def _drawn(self, values: np.ndarray, fraction: float) -> np.ndarray:
        return values if fraction == 1 else values[:, self.random.random(values.shape[1]) < fraction]


class Coverage:
    """Accumulates errors and standard deviations of several fidelities over batches.

    Args:
        columns: ``{fidelity: its index among the T of the data set}``.
    """

    def __init__(self, columns: Mapping[str, int]) -> None:
        self.columns = dict(columns)
        self._samples: dict[tuple[str, str], _Sample] = {}

    def add(self, predictions: Mapping[str, Prediction], batch: Batch) -> None:
        """Add the labelled energies and forces of a batch, as far as predictions have standard deviations."""
        for name, prediction in predictions.items():
            for property in WITH_STD:
                std = getattr(prediction, f"{property.name}_std")
                if std is None or getattr(prediction, property.name) is None:  # forces may not be requested
                    continue
                errors = label_errors(property, prediction, batch, self.columns[name])
                std = std[labelled_rows(property, batch, self.columns[name])].flatten()
                sample = self._samples.setdefault((name, property.name), _Sample())
                sample.add(errors.cpu().numpy(), std.cpu().numpy())

    def add_to(self, metrics: Mapping[str, Mapping[str, dict[str, Any]]], quantiles: Mapping[str, np.ndarray]) -> None:
        """Add :func:`statistics` to a table of errors, ``{fidelity: {"energy": {…}, "forces": {…}}}``.

        Args:
            metrics: errors of the same labels; those of at least :data:`mfpyg.models.calibration.FEWEST` labels get an
                entry :data:`CALIBRATION`.
            quantiles: quantiles of energies and forces of each fidelity, see :attr:`mfpyg.models.Potential.quantiles`.
        """
        for (name, property), sample in self._samples.items():
            errors, std = np.concatenate(sample.parts, axis=1)
            if len(errors) >= FEWEST:
                of_property = quantiles[name][[p.name for p in WITH_STD].index(property)]
                metrics[name][property][CALIBRATION] = statistics(errors, std, of_property)


_HEADS = (
    "RMSE",
    "std",
    *(f"{percent} %" for percent in INTERVALS),
    "area",
    "rank\ncorr.",
    "RMSE,\ntop 10 %",
    "RMSE,\nrest",
)


def coverage_table(metrics: Mapping[str, Mapping[str, Any]], trained: Mapping[str, str]) -> Table | None:
    """Table of the standard deviations of every split, fidelity and property; ``None`` if there are none.

    Args:
        metrics: errors with entries :data:`CALIBRATION`, see :attr:`mfpyg.evaluation.evaluate.Evaluation.metrics`.
        trained: ``{fidelity: labels trained on}``, such as ``{"cc": "E"}``; others are marked by a star.
    """
    units = ", ".join(p.unit for p in WITH_STD)
    title = f"standard deviations ({units}); * never trained on"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="", padding=(0, 1, 0, 0))
    for head in ("split", "label"):
        table.add_column(head, no_wrap=True)
    for head in ("number", *_HEADS):
        table.add_column(head, justify="right", no_wrap=True)
    for split, rows in metrics.items():
        for name, row in rows.items():
            for p in WITH_STD:
                if CALIBRATION in row.get(p.name, {}):
                    star = "" if p.letter in trained.get(name, "") else "*"
                    table.add_row(split, f"{name}:{p.letter}", f"{row[p.name]['n']}{star}", *_cells(row[p.name]))
        table.add_section()
    return table if table.row_count else None


def _cells(values: Mapping[str, Any]) -> list[str]:
    found = values[CALIBRATION]
    numbers = [values["rmse"], found["rms_std"]]
    numbers += [100 * found["coverage"][str(percent)] for percent in INTERVALS]
    numbers += [found[key] for key in ("miscalibration_area", "rank_correlation", "rmse_least_certain", "rmse_rest")]
    digits = [3, 3, *(0 for _ in INTERVALS), 3, 2, 3, 3]
    return ["-" if x is None else f"{x:.{n}f}" for x, n in zip(numbers, digits, strict=True)]
