"""Labels of a growth: geometries and their levels in one file, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mfpyg.errors import MFPyGError
from mfpyg.files import sidecar
from mfpyg.growth.costs import Cost, duration, spent
from mfpyg.growth.folder import GrowFolder
from mfpyg.growth.frames import Assignment, Pool, read_assignment
from mfpyg.growth.settings import GrowSettings
from mfpyg.labeling.run import Compute, label_file
from mfpyg.strict_yaml import read_yaml

NAMED = 20
"""Number of failures that are named at a time."""


class Labels:
    """Labels that a growth has, and computes.

    Args:
        folder: folder of the growth.
        settings: settings.
        pool: geometries.
        compute: computes jobs.
        note: shows a line to the user.
        retry: whether to compute again, once, what has failed before.

    Attributes:
        assignment: levels of each geometry.
    """

    def __init__(
        self,
        folder: GrowFolder,
        settings: GrowSettings,
        pool: Pool,
        compute: Compute,
        note: Callable[[str], None],
        retry: bool = False,
    ) -> None:
        self.folder, self.settings, self.pool, self.note = folder, settings, pool, note
        self.assignment = Assignment()
        self._compute, self._retry = compute, retry
        if settings.everywhere:
            self.assignment.add(range(len(pool.frames)), settings.everywhere)

    def compute(self) -> None:
        """Compute the labels of the assignment that are missing, and write all of them.

        Raises:
            MFPyGError: if none of the labels of some level can be computed, with the reason.
        """
        known = {self._line(failure) for failure in self.about["failures"]}
        self.pool.write(self.folder.frames, self.assignment)
        levels = self.settings.label_levels
        report = label_file(self.folder.frames, self.folder.labelled, levels, self._compute, retry=self._retry)
        self._retry = False
        failures = [line for line in map(self._line, self.about["failures"]) if line not in known]
        for line in failures[:NAMED]:
            self.note(line)
        if len(failures) > NAMED:
            self.note(f"failed: {len(failures) - NAMED:,} more, see {sidecar(self.folder.labelled)}")
        for name, about in report.levels.items():
            if about["failed"] and not about["labels"]:
                reason = next(failure.reason for failure in report.failures if failure.level == name)
                raise MFPyGError(
                    f"level {name}: none of {about['failed']} labels could be computed, the first because: {reason}; "
                    "once this is remedied, continue with --retry"
                )

    @property
    def about(self) -> dict[str, Any]:
        """Contents of the file beside the labels, see :func:`mfpyg.labeling.run.label_file`; empty without labels."""
        path = sidecar(self.folder.labelled)
        return read_yaml(path, "labels") if path.is_file() else {"dataset": "", "levels": {}, "failures": []}

    @staticmethod
    def _line(failure: Mapping[str, Any]) -> str:
        return f"failed: frame {failure['frame']} ({failure['formula']}): {failure['level']}: {failure['reason']}"

    @property
    def failed(self) -> set[int]:
        """Numbers of the geometries with a label that could not be computed."""
        failures = self.about["failures"]
        numbers = list(read_assignment(self.folder.frames).levels) if failures else []
        return {numbers[failure["frame"]] for failure in failures}

    @property
    def taken(self) -> set[int]:
        """Numbers of the geometries that are labelled at a level that is chosen."""
        return {number for name in self.settings.chosen for number in self.assignment.numbers_at(name)}

    def costs(self, levels: Iterable[str] | None = None) -> dict[str, Cost]:
        """Cost so far of levels, all if not given."""
        about = self.about["levels"]
        found = {name: Cost(of["labels"], of["total_seconds"]) for name, of in about.items()}
        return {name: found.get(name, Cost()) for name in (self.settings.levels if levels is None else levels)}

    def check_budget(self) -> None:
        """Check that the first labels are within the budget.

        Raises:
            MFPyGError: if they are not.
        """
        costs, budget = self.costs(), self.settings.seconds
        if spent(costs) > budget:
            what = ", ".join(f"{cost.labels:,} of {name}" for name, cost in costs.items() if cost.labels)
            raise MFPyGError(
                f"budget is {duration(budget)}, but the first labels ({what}) took {duration(spent(costs))}; raise it "
                "and call again, these labels are kept"
            )
