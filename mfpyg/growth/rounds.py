"""Labels of each round: of random geometries in the first, of selected ones in the others."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from itertools import islice

from mfpyg.files import make_folder, sidecar
from mfpyg.growth.costs import Cost, duration, per_frame, spent
from mfpyg.growth.folder import RoundFolder
from mfpyg.growth.frames import Assignment, n_validation, read_assignment
from mfpyg.growth.labels import Labels
from mfpyg.selection.run import select_file
from mfpyg.selection.trained import open_trained


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
        fitting = max(int((share - spent(costs)) / per_frame(costs)), 0)  # the last ones may have cost more
        more = _random(labels, min(fitting, len(chosen.levels)))
        if not more:
            return
        chosen.add(more, settings.chosen)


def _random(labels: Labels, n: int) -> list[int]:
    """The next n random geometries, or as many as there are, some of them for validation."""
    pool, taken = labels.pool, labels.taken
    val = _next(pool.val, taken, min(_n_val(labels, n), n))
    return [*val, *_next(pool.train, taken, n - len(val))]


def _n_val(labels: Labels, n: float) -> int:
    """Number of geometries for validation among n more."""
    good = labels.taken - labels.failed
    there = len(good & labels.pool.of_val)
    return max(n_validation(len(good) + int(n), labels.settings.validation) - there, 0)


def _next(numbers: Sequence[int], taken: Container[int], n: int) -> list[int]:
    """The first n numbers, or as many as there are, that are not taken."""
    return list(islice((number for number in numbers if number not in taken), n))


def choose_next(labels: Labels, this: RoundFolder, before: RoundFolder) -> str:
    """Choose what a round labels, by the potential of the round before, and write it.

    Args:
        labels: labels of all rounds before.
        this: the round.
        before: the round before.

    Returns:
        Why nothing is chosen, empty if something is.

    Raises:
        MFPyGError: as :func:`mfpyg.selection.run.select_file`.
    """
    settings, costs = labels.settings, labels.costs(labels.settings.chosen)
    left = settings.seconds - spent(labels.costs())
    candidates = _candidates(labels)
    if not candidates.levels:
        return "all geometries are labelled"
    least = _least(candidates, costs, whole=settings.selection({}, 1.0).method != "multi-fidelity")
    if left < least:
        return f"the rest of the budget, {duration(max(left, 0.0))}, is below one label"
    share = left / (settings.rounds - this.number)
    share = left if share < least else share
    each = per_frame(costs)
    n_val = min(_n_val(labels, share / each), int((share - least) / each))
    val = _next(labels.pool.val, labels.taken, n_val)
    chosen = _selected(labels, candidates, share - len(val) * each, this, before)
    chosen.add(val, settings.chosen)
    labels.pool.write(this.frames, chosen)
    return ""


def _candidates(labels: Labels) -> Assignment:
    """Geometries to train on that lack some levels, and these levels."""
    found, failed = Assignment(), labels.failed
    for number in labels.pool.train:
        there = labels.assignment.levels.get(number, ())
        missing = [name for name in labels.settings.chosen if name not in there]
        if missing and number not in failed:
            found.add([number], missing)
    return found


def _least(candidates: Assignment, costs: Mapping[str, Cost], whole: bool) -> float:
    """Processor time of the cheapest choice: of all levels that a geometry lacks, or of one of them."""
    total = sum if whole else min
    return min(total([costs[name].mean for name in levels]) for levels in candidates.levels.values())


def _selected(
    labels: Labels, candidates: Assignment, budget: float, this: RoundFolder, before: RoundFolder
) -> Assignment:
    """Geometries and levels that mfpyg-select chooses."""
    make_folder(this.path)
    for path in (this.selected, sidecar(this.selected)):  # of a call that was stopped before it used them
        path.unlink(missing_ok=True)
    labels.pool.write(labels.folder.candidates, candidates)
    costs = {name: cost.mean for name, cost in labels.costs(labels.settings.chosen).items()}
    settings = labels.settings.selection(costs, budget)
    trained = open_trained(before.run.path)
    report = select_file(labels.folder.candidates, this.selected, settings, trained=trained)
    for line in report.notes:
        labels.note(line)
    return read_assignment(this.selected)
