"""Training in the stages of a strategy, each in its own ``lightning.Trainer.fit``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console

from mfpyg import strategies
from mfpyg.checkpoint import describe, read_checkpoint
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import parse_fidelities
from mfpyg.models import Potential
from mfpyg.models.uncertainty import drop_uncertainty
from mfpyg.settings import TrainSettings
from mfpyg.torch_defaults import matmul_precision
from mfpyg.training.average import WeightAverage
from mfpyg.training.callbacks import EpochLog, EpochProgress, RunCheckpoint, SafeCheckpointIO
from mfpyg.training.check import check_warmup
from mfpyg.training.data import ConformationData
from mfpyg.training.distributed import environment_of, is_main_process, this_process
from mfpyg.training.folder import RunFolder
from mfpyg.training.inputs import Inputs
from mfpyg.training.module import MultiFidelityModule
from mfpyg.training.resume import Restored
from mfpyg.training.rng_state import GeneratorState, set_generators
from mfpyg.training.schedule import Schedule
from mfpyg.training.stage import Place, Stage, trained_species
from mfpyg.training.strategies import finetune


def stages_of(inputs: Inputs) -> tuple[Potential, list[Stage]]:
    """Initial potential and stages of a training, by the strategy of the settings.

    Raises:
        MFPyGError: if the strategy does not support the data or the backbone, or a stage is shorter than the warm-up.
    """
    settings = inputs.settings
    if inputs.start is not None:
        return finetune.stages(inputs)
    strategy = strategies.find(settings.strategy)
    potential, stages = strategy.make(inputs, settings.strategy_options)
    if not stages:
        raise MFPyGError(f"strategy {settings.strategy} returns no stages, expected at least one")
    if settings.strategy != "mfl":
        steps = math.ceil(math.ceil(inputs.budget / settings.batch_size) / settings.optim.accumulate)
        named = ", then ".join(f"{stage.name} {stage.epochs:,}" for stage in stages)
        inputs.notes.insert(0, f"strategy {settings.strategy}, epochs of {steps:,} steps: {named}")
    for stage in stages:
        check_warmup(settings, stage.name, stage.epochs)
    return potential, stages


def fit(
    inputs: Inputs,
    potential: Potential,
    stages: Sequence[Stage],
    folder: RunFolder,
    console: Console,
    device: torch.device,
    loggers: Sequence[Logger] = (),
    resume: bool = False,
    more: Sequence[Callback] = (),
) -> None:
    """Train a potential in stages, and save it to a run folder.

    The checkpoint at the end of a stage before the last has the weights for the next stage, which a run resumed from
    it begins.

    Args:
        inputs: inputs of the training.
        potential: initial potential.
        stages: stages in their order.
        folder: run folder.
        console: console for progress.
        device: device to compute on.
        loggers: loggers besides ``metrics.csv``.
        resume: continue from ``last.ckpt``.
        more: additional callbacks for all stages.

    Raises:
        MFPyGError: if the state in ``last.ckpt`` does not fit, or the loss becomes NaN.
        Stopped: if the training is stopped by the user or the system.
    """
    settings, environment = inputs.settings, environment_of(this_process())
    # The folder of a run that cannot be resumed is left unchanged.
    restored = Restored(lambda: folder.write_config(settings) if is_main_process() and resume else None)
    place, state = Place(last=len(stages) == 1), None
    if resume:
        potential, place, state = _resumed(folder, potential, stages, settings)
    for stage in stages[place.number :]:
        potential = _start(stage, potential, settings)
        drop_uncertainty(potential)
        described, compiled = _described(inputs, potential, stages), settings.compile == "on"
        module = MultiFidelityModule(
            potential, stage, described, inputs.dataset.molecules, compiled, settings.optim, place
        )
        data = ConformationData(stage, settings.batch_size, place.epochs)
        saving = RunCheckpoint(folder.path, settings.checkpoint_minutes)
        callbacks = [restored, *_callbacks(settings, stage, folder, console, len(stages) > 1), saving, *more]
        trainer = trainer_of(settings, stage.epochs, callbacks, loggers, device, environment)
        with restored.checked(state), matmul_precision(settings.matmul_precision):
            trainer.fit(module, data, ckpt_path=None if state is None else str(state))
        if not place.last:
            assert saving.weights is not None
            potential.load_state_dict(saving.weights)
            place = _next_place(place, module.epoch, module.step, len(stages))
        state = None
    if settings.n_processes > 1:
        torch.distributed.destroy_process_group()  # its threads may abort at interpreter exit


def _start(stage: Stage, potential: Potential, settings: TrainSettings) -> Potential:
    potential = stage.start(potential)
    return potential.double() if settings.precision == 64 else potential


def _next_place(place: Place, epochs: int, steps: int, n_stages: int) -> Place:
    number = place.number + 1
    return Place(number, epochs, steps, number == n_stages - 1)


def _resumed(
    folder: RunFolder, potential: Potential, stages: Sequence[Stage], settings: TrainSettings
) -> tuple[Potential, Place, Path | None]:
    """Potential and stage to resume with, and the checkpoint of the stage if it has begun."""
    checkpoint = read_checkpoint(folder.last)
    if "stage" not in checkpoint:  # mfpyg 0.1.0 had a single stage
        return potential, Place(), folder.last
    stored, callbacks = checkpoint["stage"], checkpoint["callbacks"]
    place = Place(**{field.name: stored[field.name] for field in dataclasses.fields(Place)})
    for stage in stages[: place.number]:  # the checkpoint has their weights
        potential = _start(stage, potential, settings)
    if place.last or not stored["over"]:
        return potential, place, folder.last
    potential = _start(stages[place.number], potential, settings)
    potential.load_state_dict(callbacks[RunCheckpoint.__qualname__]["weights"])
    states, rank = callbacks[GeneratorState.__qualname__]["processes"], this_process().rank
    if rank < len(states):
        set_generators(states[rank])
    return potential, _next_place(place, checkpoint["progress"]["epochs"], checkpoint["global_step"], len(stages)), None


def _described(inputs: Inputs, potential: Potential, stages: Sequence[Stage]) -> dict[str, Any]:
    """Metadata of checkpoints, see :func:`mfpyg.checkpoint.describe`."""
    settings, dataset = inputs.settings, inputs.dataset
    record = None if inputs.start is None else inputs.start.record
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
    elements = trained_species(stages)
    if inputs.start is not None:
        elements = inputs.start.with_trained(elements)
    return describe(potential, settings, source, inputs.splits, record, elements)


def _callbacks(
    settings: TrainSettings, stage: Stage, folder: RunFolder, console: Console, staged: bool
) -> list[Callback]:
    """Callbacks of a stage without the one that saves, which Lightning calls last."""
    optim = settings.optim
    stopping = (
        [EarlyStopping(stage.monitor, patience=optim.stop_after, check_on_train_epoch_end=True)]
        if optim.stop_after is not None
        else []
    )
    return [
        GeneratorState(),
        *([] if optim.ema is None else [WeightAverage(optim.ema)]),  # before callbacks that read the weights
        Schedule(optim, stage.lr, stage.monitor, settings.batch_size),
        EpochLog(folder.log, staged),
        EpochProgress(settings.epochs, console, staged),
        *stopping,
    ]


def trainer_of(
    settings: TrainSettings,
    epochs: int,
    callbacks: list[Callback],
    loggers: Sequence[Logger],
    device: torch.device,
    environment: ClusterEnvironment,
) -> lightning.Trainer:
    """Lightning trainer for a stage."""
    return lightning.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=settings.devices,
        num_nodes=settings.nodes,
        # A step may not use all parameters: levels take turns, and a backbone may have unused ones. Gradient buckets
        # are then never rebuilt, so that a resumed run adds gradients in the same order.
        strategy=DDPStrategy(find_unused_parameters=True) if settings.n_processes > 1 else "auto",
        precision="64-true" if settings.precision == 64 else "32-true",
        max_epochs=epochs,
        gradient_clip_val=settings.optim.clip,
        accumulate_grad_batches=settings.optim.accumulate,
        callbacks=callbacks,
        plugins=[SafeCheckpointIO(), environment],
        logger=list(loggers),
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,  # a new order each epoch, at the current batch size
        use_distributed_sampler=False,  # ConformationData distributes the batches
        inference_mode=False,  # validation forces are gradients
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=True,
    )
