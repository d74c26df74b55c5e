"""Labels computed as jobs of a SLURM cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from mfpyg.files import make_folder, write_text
from mfpyg.labeling.jobs import LabelJob
from mfpyg.labeling.pool import worker_environment
from mfpyg.labeling.store import LabelStore
from mfpyg.study.cluster import Slurm, run_on_cluster
from mfpyg.study.jobs import Job

PARTS = 10
"""Number of jobs of the cluster that share the labels, unless given."""


@dataclass
class LabelPart(Job):
    """Labels that one job of the cluster computes.

    Attributes:
        store: where they go.
        keys: their keys.
        threads: threads of each program.
    """

    store: Path = Path()
    keys: list[str] = field(default_factory=list)
    threads: int = 1

    result: ClassVar[str] = "result for some labels"

    @property
    def file(self) -> Path:
        """File with the jobs of the part."""
        return self.folder.with_suffix(".jsonl")

    def finished(self) -> bool:
        """True if all labels are computed, or have failed."""
        return all(map(LabelStore(self.store).has, self.keys))

    def command(self) -> list[str]:
        """Command that computes what is missing."""
        variables = [f"{name}={value}" for name, value in worker_environment(self.threads).items()]
        python = [sys.executable, "-m", "mfpyg.labeling.pool"]
        return ["env", *variables, *python, str(self.store), str(self.file), str(self.threads)]


def compute_on_cluster(
    jobs: Sequence[LabelJob],
    store: LabelStore,
    cluster: Slurm,
    parts: int | None = None,
    threads: int = 1,
    shown: Callable[[Sequence[Job]], None] = lambda parts: None,
) -> dict[str, str]:
    """Compute labels as jobs of a cluster; those of an earlier call that are still in the queue are followed.

    Args:
        jobs: labels to compute.
        store: where the results go; must be visible from the nodes.
        cluster: resources of each job.
        parts: maximum number of jobs of the cluster for labels that have not been submitted before.
        threads: threads of each program.
        shown: called every two seconds with the parts.

    Returns:
        Why labels have no result, by key.

    Raises:
        MFPyGError: if SLURM refuses a job, or does not answer.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; queued jobs stay in the queue.
    """
    folder = store.folder / "parts"
    wanted = {job.key: job for job in jobs}
    before = {file: _keys(file) for file in sorted(folder.glob("*.jsonl"))}
    submitted = {key for keys in before.values() for key in keys}
    new = [job for key, job in wanted.items() if key not in submitted]
    chosen = {file: keys for file, keys in before.items() if not wanted.keys().isdisjoint(keys)}
    for number in range(min(parts or PARTS, len(new))):
        file = folder / f"{len(before) + number:04}.jsonl"
        share = new[number :: parts or PARTS]  # of every level, so that parts take equally long
        make_folder(folder)
        write_text(file, "".join(f"{job.as_line()}\n" for job in share))
        chosen[file] = [job.key for job in share]
    listed: list[Job] = [
        LabelPart(f"part {file.stem}", file.with_suffix(""), [], store=store.folder, keys=keys, threads=threads)
        for file, keys in chosen.items()
    ]
    run_on_cluster(listed, cluster.executor(store.folder, None), store.folder, shown)
    return {key: part.error for part in listed if isinstance(part, LabelPart) and part.error for key in part.keys}


def _keys(file: Path) -> list[str]:
    return [LabelJob.from_line(line).key for line in file.read_text(encoding="utf-8").splitlines()]
