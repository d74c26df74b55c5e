"""``mfpyg-train``: train a multi-fidelity potential and print its errors."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

from mfpyg.cli.common import quiet_frameworks, run, threads
from mfpyg.cli.train_options import NAME, default_out, new_data, parse
from mfpyg.datasets.spec import recorded_specs
from mfpyg.errors import INTERRUPT_STATUS
from mfpyg.settings import TrainSettings
from mfpyg.training.check import check_same_references, check_settings, given_references
from mfpyg.training.distributed import check_processes, is_main_process, launch, run_as_worker, this_process
from mfpyg.training.folder import RunFolder, check_same
from mfpyg.training.lock import held


def main(arguments: Iterable[str] | None = None) -> None:
    """Entry point."""
    run(NAME, train_command, arguments)


def train_command(arguments: Sequence[str]) -> None:
    """Run the command, as a worker if a launcher has started this process."""
    process = this_process()
    if process.launcher is None:
        _command(arguments)
    else:
        run_as_worker(lambda: _command(arguments), process)


def _command(arguments: Sequence[str]) -> None:
    """Parse, check, train, evaluate; with several devices, start the processes that do so."""
    settings, resumed = parse(arguments)
    if resumed is not None:
        recorded_specs(settings.sources, f"{NAME} --resume {resumed} {new_data(settings)}")
    check_settings(settings)
    check_processes(settings)
    folder = RunFolder(resumed or Path(settings.out or default_out(settings)))
    settings = dataclasses.replace(settings, out=str(folder.path))
    if resumed is not None:
        check_same(folder.read_settings(), settings)
        check_same_references(settings, folder)
    else:
        given_references(settings)
        if is_main_process():
            folder.check_new()
    if settings.n_processes > 1 and this_process().launcher is None:
        _set_environment(settings.n_processes)
        sys.exit(launch(arguments, settings.n_processes, folder))
    with held(folder.path) if is_main_process() else nullcontext(), threads(settings.threads):
        if is_main_process():
            folder.remove_leftovers()
        _train(settings, folder, resumed is not None)


def _set_environment(n_processes: int) -> None:
    """Set environment variables for the processes to start, unless the user has set them."""
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")  # seconds to save a step before a process is killed
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // n_processes, 1)))


def _train(settings: TrainSettings, folder: RunFolder, resume: bool) -> None:
    from rich.console import Console

    from mfpyg.training.run import Interrupted, final_table, train

    quiet_frameworks()
    console = Console(quiet=not is_main_process())
    try:
        train(settings, folder, console, resume)
    except Interrupted as stop:
        console.print(f"{NAME}: {stop}", highlight=False, soft_wrap=True)
        sys.exit(INTERRUPT_STATUS)
    if is_main_process():
        try:
            final_table(settings, folder, console)
        except KeyboardInterrupt:
            again = f"mfpyg-train --resume {folder.path}"
            console.print(
                f"{NAME}: stopped; the training has ended, print its table with: {again}",
                highlight=False,
                soft_wrap=True,
            )
            sys.exit(INTERRUPT_STATUS)


if __name__ == "__main__":
    main()
