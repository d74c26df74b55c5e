"""How far the runs of a study are, on a terminal in bars, elsewhere in a line for each run that ends."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mfpyg.study.scheduling import Job


class StudyProgress:
    """A bar for the study, in epochs of all its runs, and one for each run that is going on.

    Args:
        console: where to.
        jobs: of the study.
    """

    def __init__(self, console: Console, jobs: Sequence[Job]) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.total = self.bars.add_task("", total=sum(job.epochs for job in jobs))
        self.of_job: dict[str, TaskID] = {}
        self.told: set[str] = set()

    def __enter__(self) -> StudyProgress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Show the jobs as they are now."""
        epochs = 0
        for job in jobs:
            done = job.epochs if job.state in ("done", "failed") else job.epochs_done()
            epochs += done
            if job.state == "running" and self.console.is_terminal:
                if job.name not in self.of_job:
                    self.of_job[job.name] = self.bars.add_task(job.name, total=job.epochs)
                self.bars.update(self.of_job[job.name], completed=done)
            elif job.name in self.of_job:
                self.bars.remove_task(self.of_job.pop(job.name))
            if job.state in ("done", "failed") and job.name not in self.told:
                self.told.add(job.name)
                self.console.print(f"{job.state}: {job.name}", highlight=False, soft_wrap=True)
        ended = sum(job.state in ("done", "failed") for job in jobs)
        self.bars.update(self.total, completed=epochs, description=f"{ended} of {len(jobs)} runs")
