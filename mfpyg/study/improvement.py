"""What multi-fidelity learning gains: Figure 3 of Messerly et al., arXiv 2505.01590."""

from __future__ import annotations

from mfpyg.evaluation.ensemble import Estimate
from mfpyg.study.names import baseline_of
from mfpyg.study.runs import ModelResult, StudyResult


def baseline_name(model: ModelResult) -> str:
    """The single-fidelity model with the same labels of the same target."""
    return baseline_of(model.name, [fidelity.partition(":")[0] for fidelity in model.fidelities])


def baseline(result: StudyResult, model: ModelResult) -> ModelResult | None:
    """That model with as many labels of the target, of the same strategy where there is one; ``None`` without any."""
    return result.find(baseline_name(model), model.label_fraction, model.strategy)


def half_width(estimate: Estimate) -> float | None:
    """Half the interval; ``None`` where there is none."""
    return None if estimate.high is None else estimate.high - estimate.value


def improvement(result: StudyResult, model: ModelResult, split: str, prop: str) -> Estimate | None:
    """By how many percent the members' mean RMSE is lower than that of the single-fidelity model.

    The baseline has the same labels of the same target, as many of them, and, where there is one, the same strategy.
    The interval takes the relative half-widths of both in quadrature, which is their first-order propagation for
    independent ensembles; a single member on either side gives none.

    Returns:
        The percentage, or ``None`` where there is no baseline or no label, and for single-fidelity models.
    """
    if len(model.fidelities) == 1:
        return None
    base = baseline(result, model)
    own, other = model.of_target(split, prop), None if base is None else base.of_target(split, prop)
    if own is None or other is None or not other.rmse.value:
        return None
    ratio = own.rmse.value / other.rmse.value
    percent = 100 * (1 - ratio)
    widths = half_width(own.rmse), half_width(other.rmse)
    if widths[0] is None or widths[1] is None:
        return Estimate(percent)
    half = 100 * ((widths[0] / other.rmse.value) ** 2 + (ratio * widths[1] / other.rmse.value) ** 2) ** 0.5
    return Estimate(percent, percent - half, percent + half)
