"""One training run, from settings to the final table."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console

from mfpyg.checkpoint import describe, potential_of, read_checkpoint, versions
from mfpyg.datasets import ReleaseDataset
from mfpyg.datasets.levels import DatasetSpec
from mfpyg.datasets.spec import open_dataset
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.evaluation.evaluate import evaluate
from mfpyg.evaluation.report import as_text, metrics_table
from mfpyg.fidelity import Fidelity, check_available, parse_fidelities, parse_weights
from mfpyg.graph import RadiusGraph, check_engine
from mfpyg.models.build import build_potential
from mfpyg.models.potential import MultiFidelityPotential
from mfpyg.settings import TrainSettings, from_dict
from mfpyg.training.callbacks import EpochLog, EpochProgress, RunCheckpoint, SafeCheckpointIO, is_main_process
from mfpyg.training.data import ConformationData
from mfpyg.training.folder import RunFolder, check_same
from mfpyg.training.loss import MultiFidelityLoss
from mfpyg.training.module import MultiFidelityModule
from mfpyg.training.references import elements, fit_references
from mfpyg.training.schedule import Schedule
from mfpyg.training.splits import make_splits


class Interrupted(Exception):
    """Training was stopped by the user or the system; the message says how to go on."""


def check_settings(settings: TrainSettings) -> tuple[Fidelity, ...]:
    """Everything about the settings that can be checked without opening the data; the fidelities parsed.

    Raises:
        MFPyGError: in one line, for the first thing that is wrong.
    """
    settings.check()
    fidelities = parse_fidelities(settings.fidelities)
    spec = DatasetSpec.parse(settings.dataset)
    check_available(fidelities, spec.levels, str(spec))
    parse_weights(settings.weights, fidelities)
    names = [f.name for f in fidelities]
    if settings.monitor not in ("sum", *names):
        raise unknown_name("monitor", settings.monitor, ["sum", *names])
    return fidelities


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
    check_engine(settings.engine)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if resume:
        check_same(folder.read_settings(), settings)
    elif is_main_process():
        folder.check_new()
    dataset = open_training_data(settings, fidelities)
    splits = make_splits(dataset, settings.split, settings.seed)
    check_labels(dataset, splits["train"], fidelities)
    torch.manual_seed(settings.seed)
    potential = new_potential(settings, fidelities, dataset, splits, console)
    if resume:
        _check_resumable(folder, dataset, splits)
    module, data, trainer = _assemble(settings, fidelities, potential, dataset, splits, folder, console)
    if is_main_process():
        if resume:
            folder.write_config(settings)
        else:
            folder.create(settings, splits, versions())
    console.print(_summary(settings, potential, splits, trainer), highlight=False, soft_wrap=True)
    _fit(trainer, module, data, folder, resume)


def _summary(
    settings: TrainSettings,
    potential: MultiFidelityPotential,
    splits: dict[str, np.ndarray],
    trainer: lightning.Trainer,
) -> str:
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in splits.items())
    n_parameters = sum(p.numel() for p in potential.parameters())
    device = trainer.strategy.root_device
    return (
        f"{settings.dataset}: {sizes} conformations\n"
        f"{settings.backbone}, {n_parameters:,} parameters, {' '.join(settings.fidelities)}, "
        f"preset {settings.preset}, at most {settings.epochs:,} epochs, on {settings.devices} x {device.type}"
    )


def open_training_data(settings: TrainSettings, fidelities: tuple[Fidelity, ...]) -> ReleaseDataset:
    """The data set of the settings, with edges where they ask for stored ones."""
    pre_transform = RadiusGraph(settings.model.cutoff, settings.engine) if settings.edges == "stored" else None
    names = [f.name for f in fidelities]
    return open_dataset(DatasetSpec.parse(settings.dataset), names, pre_transform=pre_transform)


def final_table(folder: RunFolder, console: Console) -> None:
    """Evaluate the best epoch on every split, print the table, and keep it in the run folder."""
    checkpoint = read_checkpoint(folder.best)
    settings = from_dict(checkpoint["mfpyg"]["config"])
    fidelities = parse_fidelities(settings.fidelities)
    dataset = open_training_data(settings, fidelities)
    result = evaluate(potential_of(checkpoint, str(folder.best)), dataset, folder.read_splits())
    table = metrics_table(result.metrics, {f.name: f.labels for f in fidelities})
    folder.write_metrics(result.metrics, as_text(table))
    console.print(table)
    console.print(f"run folder: {folder.path}", highlight=False, soft_wrap=True)


def check_labels(dataset: ReleaseDataset, rows: np.ndarray, fidelities: tuple[Fidelity, ...]) -> None:
    """Check that every kind of label to train on occurs in the training split.

    Raises:
        MFPyGError: naming the first that does not.
    """
    for fidelity in fidelities:
        column = dataset.fidelities.index(fidelity.name)
        for prop, name in (("energy", "energies"), ("forces", "forces")):
            mask = dataset._data[f"{prop}_mask"][rows, column]
            if getattr(fidelity, prop) and not mask.any():
                raise MFPyGError(
                    f"fidelity '{fidelity}': none of the {len(rows)} conformations of the training split has {name} "
                    f"of '{fidelity.name}'; leave them out, or give other data"
                )


def new_potential(
    settings: TrainSettings,
    fidelities: tuple[Fidelity, ...],
    dataset: ReleaseDataset,
    splits: dict[str, np.ndarray],
    console: Console,
) -> MultiFidelityPotential:
    """A potential with fresh weights, and reference energies fitted to the training split.

    Raises:
        MFPyGError: if another split has an element that the training split has not.
    """
    species = elements(dataset, splits["train"])
    for name, rows in splits.items():
        extra = set(elements(dataset, rows)) - set(species)
        if extra:
            numbers = ", ".join(map(str, sorted(extra)))
            raise MFPyGError(
                f"atomic number {numbers} occurs in split '{name}' but not in training; use another seed or split"
            )
    potential = build_potential(settings, species, [f.name for f in fidelities])
    for name, references in fit_references(dataset, splits["train"], species).items():
        if name in potential.fidelities:
            potential.head(name).reference.copy_(torch.from_numpy(references.energies))
            if references.undetermined:
                console.print(
                    f"note: the {name} labels do not determine the reference energies of "
                    f"{', '.join(references.undetermined)} one by one; their least-norm values are used"
                )
    return potential


def _check_resumable(folder: RunFolder, dataset: ReleaseDataset, splits: dict[str, np.ndarray]) -> None:
    if not folder.last.is_file():
        raise MFPyGError(f"{folder.path}: no last.ckpt, the run stopped before its first epoch ended; start it anew")
    described = read_checkpoint(folder.last)["mfpyg"]
    if described["data"]["fingerprint"] != dataset.fingerprint:
        raise MFPyGError(f"{folder.path}: the data are not those the run was started on; resume needs the same file")
    stored = {name: rows.tolist() for name, rows in described["splits"].items()}
    if stored != {name: rows.tolist() for name, rows in splits.items()}:
        raise MFPyGError(f"{folder.path}: the splits are not those the run was started on")


def _assemble(
    settings: TrainSettings,
    fidelities: tuple[Fidelity, ...],
    potential: MultiFidelityPotential,
    dataset: ReleaseDataset,
    splits: dict[str, np.ndarray],
    folder: RunFolder,
    console: Console,
) -> tuple[MultiFidelityModule, ConformationData, lightning.Trainer]:
    columns = {name: dataset.fidelities.index(name) for name in potential.fidelities}
    loss = MultiFidelityLoss(fidelities, columns, parse_weights(settings.weights, fidelities), settings.hierarchicality)
    methods = {row["name"]: row["method"] for row in dataset.label_counts() if row["name"] in columns}
    source = {"name": settings.dataset, "fingerprint": dataset.fingerprint, "methods": methods}
    module = MultiFidelityModule(
        potential, loss, settings.optim.lr, describe(potential, settings, source, splits), dataset.molecules
    )
    data = ConformationData(dataset, splits, settings.batch_size, settings.seed)
    monitor = "val/loss" if settings.monitor == "sum" else f"val/{settings.monitor}/loss"
    callbacks: list[Callback] = [
        Schedule(settings.optim, monitor, settings.batch_size),
        EpochLog(folder.log),
        EpochProgress(fidelities, console),
        RunCheckpoint(folder.path, monitor),
    ]
    if settings.optim.stop_after is not None:
        callbacks.append(EarlyStopping(monitor, patience=settings.optim.stop_after, check_on_train_epoch_end=True))
    trainer = lightning.Trainer(
        accelerator="gpu" if settings.accelerator == "cuda" else settings.accelerator,
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


def _fit(
    trainer: lightning.Trainer, module: MultiFidelityModule, data: ConformationData, folder: RunFolder, resume: bool
) -> None:
    try:
        trainer.fit(module, data, ckpt_path=str(folder.last) if resume else None)
    except MFPyGError:
        if is_main_process():
            folder.discard_if_empty()
        raise
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns Ctrl-C into SystemExit
        epochs = read_checkpoint(folder.last)["epoch"] + 1 if folder.last.is_file() else 0
        if is_main_process():
            folder.discard_if_empty()
        if not epochs:
            raise Interrupted("stopped before the first epoch ended; nothing was kept") from stop
        raise Interrupted(
            f"stopped; {epochs} epochs are kept, continue with: mfpyg-train --resume {folder.path}"
        ) from stop
