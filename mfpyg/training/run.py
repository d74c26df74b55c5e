"""One training run, from settings to the final table."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console

from mfpyg.checkpoint import describe, epochs_done, potential_of, read_checkpoint, versions
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.splits import make_splits
from mfpyg.device import choose_device
from mfpyg.evaluation.evaluate import evaluate
from mfpyg.evaluation.report import as_text, metrics_table, print_table
from mfpyg.fidelity import Fidelity, parse_fidelities, parse_weights
from mfpyg.models import MultiFidelityPotential
from mfpyg.progress import shown_on
from mfpyg.settings import TrainSettings
from mfpyg.training.callbacks import EpochLog, EpochProgress, RunCheckpoint, SafeCheckpointIO
from mfpyg.training.check import check_minimum, check_settings, is_main_process
from mfpyg.training.data import ConformationData
from mfpyg.training.folder import RunFolder
from mfpyg.training.loss import MultiFidelityLoss
from mfpyg.training.module import MultiFidelityModule
from mfpyg.training.prepare import check_labels, check_resumable, new_potential, open_training_data, with_compile_chosen
from mfpyg.training.schedule import Schedule


class Interrupted(Exception):
    """Training was stopped by the user or the system; the message says how to go on."""


def train(settings: TrainSettings, folder: RunFolder, console: Console, resume: bool = False) -> None:
    """Train a potential into a run folder.

    Args:
        settings: checked here.
        folder: new, or that of a run to resume.
        console: for progress.
        resume: continue from ``last.ckpt``.

    Raises:
        MFPyGError: for wrong settings or data, a run that can't be resumed, or a loss that becomes NaN.
        Interrupted: if the run was stopped; it can be resumed.
    """
    fidelities = check_settings(settings)
    device = choose_device(settings.accelerator, settings.devices)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if not resume and is_main_process():
        folder.check_new()
    dataset = open_training_data(settings, fidelities, shown_on(console))
    if resume and settings.split.method == "index":  # the file that said it may be gone
        splits = folder.read_splits()
    else:
        splits = make_splits(dataset, settings.split, settings.seed)
    notes = check_labels(dataset, splits, fidelities, settings.monitor)
    left_out = len(dataset) - sum(len(rows) for rows in splits.values())
    if left_out:
        notes.append(f"note: {left_out:,} of {len(dataset):,} conformations are in no split")
    torch.manual_seed(settings.seed)
    potential, more_notes = new_potential(settings, fidelities, dataset, splits)
    unfinished = not resume or check_resumable(folder, settings, dataset, splits)
    settings = with_compile_chosen(settings, len(splits["train"]), device)
    for line in [*_summary(settings, potential, splits, device), *notes, *more_notes]:
        console.print(line, highlight=False, soft_wrap=True)
    if not unfinished:
        console.print("the run had stopped early; there is nothing left to train", highlight=False)
        return
    with _interruptible(folder):
        if is_main_process():
            if resume:
                folder.write_config(settings)
            else:
                folder.create(settings, splits, versions(settings.backbone))
        module, data, trainer = _assemble(settings, fidelities, potential, dataset, splits, folder, console, device)
        trainer.fit(module, data, ckpt_path=str(folder.last) if resume else None)


@contextmanager
def _interruptible(folder: RunFolder) -> Iterator[None]:
    """Say how to go on after Ctrl-C or SIGTERM; leave nothing of a run that reached no checkpoint."""
    try:
        yield
    except BaseException as stop:
        if is_main_process():
            folder.discard_unstarted()
        if not _is_interrupt(stop):
            raise
        if not folder.last.is_file():
            raise Interrupted("stopped before the first epoch ended; nothing was kept") from stop
        epochs = epochs_done(read_checkpoint(folder.last))
        raise Interrupted(
            f"stopped; {epochs} epochs are kept, continue with: mfpyg-train --resume {folder.path}"
        ) from stop


def _is_interrupt(stop: BaseException) -> bool:
    """Whether it is Ctrl-C: Lightning turns it into SystemExit, or stumbles over it between two epochs."""
    cause: BaseException | None = stop
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt | SystemExit):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _summary(
    settings: TrainSettings, potential: MultiFidelityPotential, splits: Mapping[str, np.ndarray], device: torch.device
) -> list[str]:
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in splits.items())
    n_parameters = sum(p.numel() for p in potential.parameters())
    return [
        f"{' + '.join(settings.dataset)}: {sizes} conformations",
        f"{settings.backbone}, {n_parameters:,} parameters, {' '.join(settings.fidelities)}, "
        f"preset {settings.preset}, at most {settings.epochs:,} epochs, on {settings.devices} x {device.type}"
        f"{', compiled' if settings.compile == 'on' else ''}",
    ]


def final_table(settings: TrainSettings, folder: RunFolder, console: Console) -> None:
    """Evaluate the best epoch on every split, print the table, and keep it in the run folder."""
    checkpoint = read_checkpoint(folder.best)
    fidelities = parse_fidelities(settings.fidelities)
    dataset = open_training_data(settings, fidelities)
    potential = potential_of(checkpoint, str(folder.best)).to(choose_device(settings.accelerator))
    result = evaluate(potential, dataset, folder.read_splits())
    table = metrics_table(result.metrics, {f.name: f.labels for f in fidelities})
    folder.write_metrics(result.metrics, as_text(table))
    print_table(console, table)
    console.print(f"run folder: {folder.path}", highlight=False, soft_wrap=True)


def _assemble(
    settings: TrainSettings,
    fidelities: tuple[Fidelity, ...],
    potential: MultiFidelityPotential,
    dataset: ConformationDataset,
    splits: dict[str, np.ndarray],
    folder: RunFolder,
    console: Console,
    device: torch.device,
) -> tuple[MultiFidelityModule, ConformationData, lightning.Trainer]:
    columns = {name: dataset.fidelities.index(name) for name in potential.fidelities}
    loss = MultiFidelityLoss(fidelities, columns, parse_weights(settings.weights, fidelities), settings.hierarchicality)
    methods = {row["name"]: row["method"] for row in dataset.label_counts() if row["name"] in columns}
    source = {"name": list(settings.dataset), "fingerprint": dataset.fingerprint, "methods": methods}
    module = MultiFidelityModule(
        potential,
        loss,
        settings.optim.lr,
        describe(potential, settings, source, splits),
        dataset.molecules,
        compiled=settings.compile == "on",
    )
    minimum = check_minimum(settings, [f.name for f in fidelities])
    data = ConformationData(dataset, splits, fidelities, settings.sampling, minimum, settings.batch_size, settings.seed)
    monitor = "val/loss" if settings.monitor == "sum" else f"val/{settings.monitor}/loss"
    callbacks: list[Callback] = [
        Schedule(settings.optim, monitor, settings.batch_size),
        EpochLog(folder.log),
        EpochProgress(fidelities, console),
        RunCheckpoint(folder.path, monitor, settings.checkpoint_minutes),
    ]
    if settings.optim.stop_after is not None:
        callbacks.append(EarlyStopping(monitor, patience=settings.optim.stop_after, check_on_train_epoch_end=True))
    trainer = lightning.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=settings.devices,
        strategy="ddp" if settings.devices > 1 else "auto",
        precision="64-true" if settings.precision == 64 else "32-true",
        max_epochs=settings.epochs,
        gradient_clip_val=settings.optim.clip,
        callbacks=callbacks,
        plugins=[SafeCheckpointIO()],
        logger=_tensorboard(folder.path),
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,  # a new order each epoch, at the batch size of now
        use_distributed_sampler=False,  # ours shares out whole batches
        inference_mode=False,  # validation forces are gradients
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=True,
    )
    return module, data, trainer


def _tensorboard(path: Path) -> TensorBoardLogger | bool:
    if importlib.util.find_spec("tensorboard") is None:
        return False
    return TensorBoardLogger(path, name="", version="tensorboard")
