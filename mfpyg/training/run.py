"""A training run, from settings to the final table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from rich.console import Console

from mfpyg.backbones import find as find_backbone
from mfpyg.checkpoint import epochs_done, potential_of, read_checkpoint, trained_labels, versions
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.splits import make_splits
from mfpyg.device import choose_device
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.evaluate import evaluate
from mfpyg.evaluation.report import as_text, metrics_table, print_table
from mfpyg.evaluation.uncertainty import fit_uncertainty
from mfpyg.fidelity import parse_fidelities
from mfpyg.files import FULL, save_torch
from mfpyg.kernels.compilation import find_compiler
from mfpyg.models import Potential
from mfpyg.models.uncertainty import uncertainty_state
from mfpyg.progress import shown_on
from mfpyg.settings import TrainSettings
from mfpyg.torch_defaults import with_default_torch_settings
from mfpyg.training.baselines import check_baselines, without_baselines
from mfpyg.training.callbacks import Stopped
from mfpyg.training.check import check_settings, given_references
from mfpyg.training.data import open_training_data
from mfpyg.training.distributed import is_main_process
from mfpyg.training.fit import fit, stages_of
from mfpyg.training.folder import RunFolder
from mfpyg.training.initial import InitialModel, completed, read_initial, start_of, start_of_resumed
from mfpyg.training.inputs import Inputs
from mfpyg.training.labels import label_notes, with_labels_kept
from mfpyg.training.loggers import Loggers
from mfpyg.training.optimizer import Diverged
from mfpyg.training.pairs import groups_of_pairs, with_pairs
from mfpyg.training.resume import check_resumable, version_notes
from mfpyg.training.rng_state import seed_generators
from mfpyg.training.strategies.finetune import inherited_splits, method_notes


@with_default_torch_settings
def train(
    settings: TrainSettings,
    folder: RunFolder,
    console: Console,
    resume: bool = False,
) -> None:
    """Train a potential, and save it to a run folder.

    Args:
        settings: settings, which are checked.
        folder: new run folder, or that of a run to resume.
        console: console for progress.
        resume: continue from ``last.ckpt``.

    Raises:
        MFPyGError: for wrong settings or data, a run that cannot be resumed, or a loss that becomes NaN.
        Interrupted: if the run was stopped; it can be resumed.
    """
    model = None if resume or settings.init is None else read_initial(settings.init)
    settings = settings if model is None else completed(settings, model)
    fidelities, device = check_settings(settings), choose_device(settings.accelerator, settings.devices)
    check_baselines(settings, fidelities)
    if not resume and is_main_process():
        folder.check_new()

    full = open_training_data(settings, fidelities, shown_on(console))
    splits, notes = _splits(settings, folder, full, model, resume)
    unfinished = not resume or check_resumable(folder, settings, full, splits)
    dataset = without_baselines(settings, with_labels_kept(settings, fidelities, full, splits))
    notes += label_notes(settings, dataset, splits, fidelities)
    if settings.pair_weight:
        dataset, found = with_pairs(dataset, splits, fidelities)
        notes.append(found)
    settings = with_compile_chosen(settings, len(splits["train"]), device)

    seed_generators(settings.seed)
    start = None
    if settings.init is not None:
        start = start_of_resumed(folder) if model is None else start_of(model)
    given = folder.read_references() if resume else given_references(settings)
    inputs = Inputs(settings, fidelities, dataset, splits, given, start)
    potential, stages = stages_of(inputs)
    for line in [*_summary(settings, potential, splits, device), *notes, *inputs.notes]:
        console.print(line, highlight=False, soft_wrap=True)

    if not unfinished:
        console.print("the run has ended or stopped early; there is nothing left to train", highlight=False)
        if is_main_process():
            folder.write_config(settings)
        return
    with report_stop(folder, settings):
        if is_main_process() and not resume:
            folder.create(settings, splits, versions(settings.backbone), given)
        loggers = Loggers(settings, folder)
        with loggers.ended():
            fit(inputs, potential, stages, folder, console, device, list(loggers.of.values()), resume)


def _splits(
    settings: TrainSettings, folder: RunFolder, dataset: ConformationDataset, model: InitialModel | None, resume: bool
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Conformations of each split, and lines for the user."""
    if resume:  # their source may no longer exist
        return folder.read_splits(), version_notes(folder, settings.backbone)
    notes = []
    if settings.split.files and "val" not in dict(settings.split.sources):
        notes.append(f"note: split.files names no val; {100 * settings.split.val:g}% of train is used for validation")
    together = groups_of_pairs(dataset) if settings.pair_weight else None
    if model is None:
        return make_splits(dataset, settings.split, settings.split_seed, together), notes
    splits, more = inherited_splits(settings, dataset, model, together)
    return splits, [*notes, *more, *method_notes(dataset, model)]


def _summary(
    settings: TrainSettings, potential: Potential, splits: Mapping[str, np.ndarray], device: torch.device
) -> list[str]:
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in splits.items())
    n_parameters = sum(p.numel() for p in potential.parameters())
    return [
        f"{' + '.join(settings.split.files or settings.dataset)}: {sizes} conformations",
        f"{settings.backbone}, {n_parameters:,} parameters, {' '.join(settings.fidelities)}, "
        f"preset {settings.preset}, at most {settings.epochs:,} epochs, on {settings.n_processes} x {device.type}"
        f"{', compiled' if settings.compile == 'on' else ''}",
    ]


class Interrupted(Exception):
    """Training was stopped by the user or the system; the message says how to continue."""


@contextmanager
def report_stop(folder: RunFolder, settings: TrainSettings) -> Iterator[None]:
    """Say how to continue after Ctrl-C, SIGTERM or a divergence, and remove a run without a checkpoint.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM.
        MFPyGError: after a divergence, or if the disk is full.
    """
    try:
        yield
    except BaseException as stop:
        if is_main_process():
            folder.discard_unstarted()
        if isinstance(stop, Diverged):
            raise MFPyGError(f"{stop}; {_after_divergence(folder, settings)}") from stop
        if isinstance(stop, OSError) and stop.errno in FULL:  # raised by Lightning or its loggers
            raise MFPyGError(f"{stop.filename or folder.path}: cannot write there ({stop.strerror})") from stop
        if not isinstance(stop, Stopped) and not _is_interrupt(stop):
            raise
        if not folder.last.is_file():
            raise Interrupted("stopped before the first step; nothing was saved") from stop
        checkpoint = read_checkpoint(folder.last)
        raise Interrupted(
            f"stopped; {'saved' if isinstance(stop, Stopped) else 'the last checkpoint is'} at step "
            f"{checkpoint['global_step']:,}, after {epochs_done(checkpoint):,} complete epochs; continue with: "
            f"mfpyg-train --resume {folder.path}"
        ) from stop


def _after_divergence(folder: RunFolder, settings: TrainSettings) -> str:
    """Advice after a divergence: not ``--resume``, which would take the same steps again."""
    if not folder.last.is_file():
        return "no epoch was completed, nothing was saved"
    if settings.strategy != "mfl" or not folder.best.is_file():
        return f"{folder.last} is from before, but --resume would diverge again; start a new run in another folder"
    rate = f"{settings.optim.lr / 10:g}"
    return (
        f"best.ckpt and last.ckpt in {folder.path} are from before; --resume would diverge again, so continue from "
        f"the best epoch in a new folder: --init {folder.path} --optim.lr {rate} and the run's other options"
    )


def _is_interrupt(stop: BaseException) -> bool:
    """True for Ctrl-C, which Lightning may turn into SystemExit, or into another error between two epochs."""
    cause: BaseException | None = stop
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt | SystemExit):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


@with_default_torch_settings
def final_table(settings: TrainSettings, folder: RunFolder, console: Console) -> None:
    """Fit the standard deviations of the best epoch, evaluate it on every split, and print and save the table."""
    checkpoint = read_checkpoint(folder.best)
    fidelities = parse_fidelities(settings.fidelities)
    splits = folder.read_splits()
    dataset = with_labels_kept(settings, fidelities, open_training_data(settings, fidelities), splits)
    potential = potential_of(checkpoint, str(folder.best)).to(choose_device(settings.accelerator))
    fit_uncertainty(potential, dataset, splits["train"], splits["val"])
    save_torch(folder.best, {**checkpoint, "uncertainty": uncertainty_state(potential)})
    result = evaluate(potential, dataset, splits)
    table = metrics_table(result.metrics, trained_labels(checkpoint["mfpyg"]))
    folder.write_metrics(result.metrics, as_text(table))
    print_table(console, table)
    console.print(f"run folder: {folder.path}", highlight=False, soft_wrap=True)


COMPILE_FROM = 10_000
"""Number of training steps above which a compilation of up to a minute pays off."""


def with_compile_chosen(settings: TrainSettings, n_train: int, device: torch.device) -> TrainSettings:
    """Settings with ``compile`` set to on or off, which a resumed run keeps.

    Args:
        settings: settings of the run.
        n_train: number of conformations in the training split.
        device: device of the run; ``auto`` compiles on a CPU with a C++ compiler, if the backbone compiles quickly.
    """
    if settings.compile != "auto":
        return settings
    n_steps = settings.epochs * math.ceil(n_train / settings.batch_size)
    compiler = find_compiler("CXX", ("g++", "c++", "clang++"))
    possible = find_backbone(settings.backbone).compiles and compiler is not None
    worthwhile = possible and device.type == "cpu" and n_steps >= COMPILE_FROM
    return dataclasses.replace(settings, compile="on" if worthwhile else "off")
