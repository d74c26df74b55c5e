"""One training run, from settings to the final table."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Concatenate, ParamSpec

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console

from mfpyg.ambient import neutral, threads
from mfpyg.checkpoint import describe, potential_of, read_checkpoint, trained_labels, versions
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.splits import make_splits
from mfpyg.device import choose_device
from mfpyg.evaluation.evaluate import evaluate
from mfpyg.evaluation.report import as_text, metrics_table, print_table
from mfpyg.fidelity import parse_fidelities
from mfpyg.models import Potential
from mfpyg.progress import shown_on
from mfpyg.settings import TrainSettings
from mfpyg.training.callbacks import SafeCheckpointIO
from mfpyg.training.check import check_settings, given_references
from mfpyg.training.company import Company, environment_of
from mfpyg.training.completion import completed
from mfpyg.training.ending import ending_told
from mfpyg.training.finetune import Start, method_notes, splits_to_go_on, start_of, start_of_resumed
from mfpyg.training.folder import RunFolder
from mfpyg.training.initial import InitialModel, read_initial
from mfpyg.training.loggers import Loggers
from mfpyg.training.prepare import (
    check_labels,
    label_notes,
    needed,
    open_training_data,
    trained_species,
    with_compile_chosen,
    with_labels_kept,
)
from mfpyg.training.processes import is_main_process, this_process
from mfpyg.training.randomness import GeneratorState, seed_generators
from mfpyg.training.recipe import Describe
from mfpyg.training.restoring import Restored
from mfpyg.training.resume import check_resumable, version_notes
from mfpyg.training.strategies.build import recipe_of

P = ParamSpec("P")


def _with_own_threads(function: Callable[Concatenate[TrainSettings, P], None]) -> Callable[..., None]:
    """The function of settings, run in as many threads as they say, and out of reach of torch's global settings."""

    @functools.wraps(function)
    def call(settings: TrainSettings, *args: P.args, **kwargs: P.kwargs) -> None:
        with neutral(), threads(settings.threads):
            function(settings, *args, **kwargs)

    return call


@_with_own_threads
def train(
    settings: TrainSettings,
    folder: RunFolder,
    console: Console,
    resume: bool = False,
    company: Company | None = None,
) -> None:
    """Train a potential into a run folder.

    Args:
        settings: checked here.
        folder: new, or that of a run to resume.
        console: for progress.
        resume: continue from ``last.ckpt``.
        company: the other processes of the run, if any.

    Raises:
        MFPyGError: for wrong settings or data, a run that can't be resumed, or a loss that becomes NaN.
        Interrupted: if the run was stopped; it can be resumed.
    """
    model = None if resume or settings.init is None else read_initial(settings.init)
    if model is not None:
        settings = completed(settings, model)
    fidelities = check_settings(settings)
    device = choose_device(settings.accelerator, settings.devices)
    if not resume and is_main_process():
        folder.check_new()
    full = open_training_data(settings, fidelities, shown_on(console))
    splits, notes = _splits(settings, folder, full, model, resume)
    unfinished = not resume or check_resumable(folder, settings, full, splits)
    dataset = with_labels_kept(settings, fidelities, full, splits)
    notes += [*label_notes(settings, dataset, splits), *check_labels(dataset, splits, fidelities, needed(settings))]
    left_out = len(dataset) - sum(len(rows) for rows in splits.values())
    if left_out:
        notes.append(f"note: {left_out:,} of {len(dataset):,} conformations are in no split")
    seed_generators(settings.seed)
    start = None
    if settings.init is not None:
        start = start_of_resumed(folder) if model is None else start_of(model)
    given = folder.read_references() if resume else given_references(settings)
    recipe = recipe_of(settings, fidelities, dataset, splits, start, given)
    settings = with_compile_chosen(settings, len(splits["train"]), device)
    for line in [*_summary(settings, recipe.potential, splits, device), *notes, *recipe.notes]:
        console.print(line, highlight=False, soft_wrap=True)
    if not unfinished:
        console.print("the run has ended or stopped early; there is nothing left to train", highlight=False)
        if is_main_process():
            folder.write_config(settings)
        if company is not None:
            company.ready()
        return
    with ending_told(folder, settings):
        if is_main_process() and not resume:
            folder.create(settings, splits, versions(settings.backbone), given)
        module = recipe.module(_describer(settings, dataset, splits, start), compiled=settings.compile == "on")
        loggers = Loggers(settings, folder)
        # A refused run is left as it was.
        restored = Restored(lambda: folder.write_config(settings) if is_main_process() and resume else None)
        callbacks = [GeneratorState(), restored, *recipe.callbacks(folder, console)]
        if company is not None:
            company.ready()
        trainer = _trainer(settings, callbacks, list(loggers.of.values()), device)
        with restored.checked(folder.last if resume else None), loggers.ended():
            trainer.fit(module, recipe.data(module), ckpt_path=str(folder.last) if resume else None)


def _splits(
    settings: TrainSettings, folder: RunFolder, dataset: ConformationDataset, model: InitialModel | None, resume: bool
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Conformations of each split, and lines for the user."""
    if resume:  # what said them may be gone
        return folder.read_splits(), version_notes(folder, settings.backbone)
    notes = []
    if settings.split.files and "val" not in dict(settings.split.sources):
        notes.append(f"note: split.files names no val; {100 * settings.split.val:g}% of train is for validation")
    if model is None:
        return make_splits(dataset, settings.split, settings.split_seed), notes
    splits, more = splits_to_go_on(settings, dataset, model)
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


@_with_own_threads
def final_table(settings: TrainSettings, folder: RunFolder, console: Console) -> None:
    """Evaluate the best epoch on every split, print the table, and keep it in the run folder."""
    checkpoint = read_checkpoint(folder.best)
    fidelities = parse_fidelities(settings.fidelities)
    splits = folder.read_splits()
    dataset = with_labels_kept(settings, fidelities, open_training_data(settings, fidelities), splits)
    potential = potential_of(checkpoint, str(folder.best)).to(choose_device(settings.accelerator))
    result = evaluate(potential, dataset, splits)
    table = metrics_table(result.metrics, trained_labels(checkpoint["mfpyg"]))
    folder.write_metrics(result.metrics, as_text(table))
    print_table(console, table)
    console.print(f"run folder: {folder.path}", highlight=False, soft_wrap=True)


def _describer(
    settings: TrainSettings,
    dataset: ConformationDataset,
    splits: Mapping[str, np.ndarray],
    start: Start | None,
) -> Describe:
    record = None if start is None else start.record
    trained = [fidelity.name for fidelity in parse_fidelities(settings.fidelities)]
    methods = {row["name"]: row["method"] for row in dataset.label_counts() if row["name"] in trained}
    if record is not None:
        methods = {**record["data"]["methods"], **methods}
    source = {
        "name": settings.sources,
        "fingerprint": dataset.fingerprint,
        "geometries": dataset.geometries,
        "levels": list(dataset.fidelities),
        "methods": methods,
    }
    elements = trained_species(settings, dataset, splits["train"])
    if start is not None:
        elements = start.with_trained(elements)
    return lambda potential: describe(potential, settings, source, splits, record, elements)


def _trainer(
    settings: TrainSettings, callbacks: list[Callback], loggers: Sequence[Logger], device: torch.device
) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=settings.devices,
        num_nodes=settings.nodes,
        # Parameters that a step leaves alone are looked for: levels take turns, and a backbone may have some that it
        # never uses. Buckets of gradients then stay as they are, and a resumed run adds in the order of the first.
        strategy=DDPStrategy(find_unused_parameters=True) if settings.n_processes > 1 else "auto",
        precision="64-true" if settings.precision == 64 else "32-true",
        max_epochs=settings.epochs,
        gradient_clip_val=settings.optim.clip,
        accumulate_grad_batches=settings.optim.accumulate,
        callbacks=callbacks,
        plugins=[SafeCheckpointIO(), environment_of(this_process())],
        logger=loggers,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,  # a new order each epoch, at the batch size of now
        use_distributed_sampler=False,  # ours shares out whole batches
        inference_mode=False,  # validation forces are gradients
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=True,
    )
