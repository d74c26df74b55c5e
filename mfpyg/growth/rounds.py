"""What each round labels: random geometries in the first, selected ones in the others."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mfpyg.datasets.spec import open_dataset, parse_specs
from mfpyg.growth.costs import Cost, duration, per_frame, spent
from mfpyg.growth.folder import RoundFolder
from mfpyg.growth.frames import Assignment, read_assignment
from mfpyg.growth.labels import Labels
from mfpyg.selection.run import recipe_path, select_file
from mfpyg.selection.settings import SelectSettings


def label_first(labels: Labels, folder: RoundFolder) -> None:
    """Label random geometries at all levels, until the share of the first round in the budget is spent.

    What labels cost is not known before: a few are computed to measure it, and then up to as many again as there are,
    as long as they fit. What is to be labelled is written first, so that a later call decides the same.

    Raises:
        MFPyGError: if the budget is below the first labels, or these cannot be computed.
    """
    pool, settings = labels.pool, labels.settings
    if settings.everywhere:
        labels.compute()
        labels.check_budget()
    share = (settings.seconds - spent(labels.costs(settings.everywhere))) / settings.rounds
    chosen = read_assignment(folder.frames) if folder.frames.is_file() else Assignment()
    if not chosen.levels:
        chosen.add([*pool.first, pool.val[0]], settings.chosen)
    while True:
        pool.write(folder.frames, chosen)
        labels.assignment.update(chosen)
        labels.compute()
        labels.check_budget()
        costs = labels.costs(settings.chosen)
        fitting = int((share - spent(costs)) / per_frame(costs))
        more = _random(labels, min(fitting, len(chosen.levels)))
        if not more:
            return
        chosen.add(more, settings.chosen)


def _random(labels: Labels, n: int) -> list[int]:
    """The next n random geometries, of which the share for validation is kept."""
    pool, taken, failed = labels.pool, labels.assignment.numbers_at(labels.settings.target_name), labels.failed
    good = [number for number in taken if number not in failed]
    n_val = math.ceil(labels.settings.validation * (len(good) + n)) - sum(number in pool.of_val for number in good)
    val = _next(pool.val, taken, min(n_val, n))
    return [*val, *_next(pool.train, taken, n - len(val))]


def _next(numbers: Sequence[int], taken: Sequence[int], n: int) -> list[int]:
    """The first n numbers, if there are as many, that are not taken."""
    there = set(taken)
    return [number for number in numbers if number not in there][: max(n, 0)]


def choose_next(labels: Labels, folder: RoundFolder, run: RoundFolder) -> str:
    """Choose what a round labels, by the potential of the round before, and write it.

    Args:
        labels: labels of all rounds before.
        folder: the round.
        run: the round before.

    Returns:
        Why nothing is chosen, empty if something is.

    Raises:
        MFPyGError: as :func:`mfpyg.selection.run.select_file`.
    """
    pool, settings = labels.pool, labels.settings
    failed, left = labels.failed, settings.seconds - spent(labels.costs())
    costs = labels.costs(settings.chosen)
    candidates = _candidates(labels, failed)
    if not candidates.levels:
        return "all geometries are labelled"
    least = _least(candidates, costs, whole=_options(labels, 1.0).method != "multi-fidelity")
    if left < least:
        return f"the rest of the budget, {duration(max(left, 0.0))}, is below one label"
    share = left / (settings.rounds - folder.number)
    share = left if share < least else share
    n_val = int(settings.validation * share / per_frame(costs))
    val = _next(pool.val, [*labels.assignment.numbers_at(settings.target_name), *failed], n_val)
    chosen = _selected(labels, candidates, share - len(val) * per_frame(costs), folder, run)
    chosen.add(val, settings.chosen)
    pool.write(folder.frames, chosen)
    return ""


def _candidates(labels: Labels, failed: set[int]) -> Assignment:
    """Geometries to train on that lack some levels, and these levels."""
    found = Assignment()
    for number in labels.pool.train:
        there = labels.assignment.levels.get(number, ())
        missing = [name for name in labels.settings.chosen if name not in there]
        if missing and number not in failed:
            found.add([number], missing)
    return found


def _least(candidates: Assignment, costs: dict[str, Cost], whole: bool) -> float:
    """Computing time of the cheapest choice: all levels that a geometry lacks, or one of them."""
    add = sum if whole else min
    return min(add(costs[name].mean for name in levels) for levels in candidates.levels.values())


def _options(labels: Labels, budget: float) -> SelectSettings:
    settings = labels.settings
    costs = {name: cost.mean for name, cost in labels.costs(settings.chosen).items()}
    return settings.selection(costs, budget)


def _selected(
    labels: Labels, candidates: Assignment, budget: float, folder: RoundFolder, run: RoundFolder
) -> Assignment:
    for path in (folder.selected, recipe_path(folder.selected)):  # of a call that was stopped here
        path.unlink(missing_ok=True)
    labels.pool.write(labels.folder.candidates, candidates)
    ...
