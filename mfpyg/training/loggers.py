"""Experiment trackers that a run is logged by, besides its own ``metrics.csv``: TensorBoard, Weights & Biases, MLflow.

What they write goes into the run folder, unless their environment variables, such as ``MLFLOW_TRACKING_URI``, say
otherwise. A resumed run goes on in the same run of theirs.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from mfpyg.errors import MFPyGError
from mfpyg.options import flat
from mfpyg.settings import TrainSettings, to_dict
from mfpyg.training.distributed import is_main_process
from mfpyg.training.folder import RunFolder

PROJECT = "mfpyg"
"""Project of Weights & Biases, experiment of MLflow, where the environment names none."""


class Loggers:
    """The loggers of a run, in its first process; the others have none.

    Args:
        settings: of the run.
        folder: of the run, which is there already.

    Raises:
        MFPyGError: if one can't begin or go on with its run, as when it is not logged in.
    """

    def __init__(self, settings: TrainSettings, folder: RunFolder) -> None:
        self.folder, self.of = folder, dict[str, Logger]()
        usual = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
        runs = folder.read_loggers()
        for name in (settings.logger or usual) if is_main_process() else ():
            with _told(name):
                self.of[name] = logger = self._open(name, runs.get(name))
                if name not in runs:
                    logger.log_hyperparams(flat(to_dict(settings)))
                runs[name] = str(logger.version)
        if runs.keys() - {"tensorboard"} and self.of:
            folder.write_loggers(runs)

    def _open(self, name: str, run: str | None) -> Logger:
        path = self.folder.path.absolute()
        if name == "tensorboard":
            return TensorBoardLogger(path, name="", version="tensorboard", default_hp_metric=False)
        if name == "wandb":
            project = os.environ.get("WANDB_PROJECT", PROJECT)
            return WandbLogger(project=project, name=path.name, save_dir=path, id=run)
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        return MLFlowLogger(
            os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
            run_name=path.name,
            tracking_uri=uri or f"sqlite:///{path / 'mlflow.db'}",
            artifact_location=None if uri else (path / "mlruns").as_uri(),
            run_id=run,
        )

    @contextmanager
    def ended(self) -> Iterator[None]:
        """End what they have started, with the training."""
        failed = True
        try:
            yield
            failed = False
        finally:
            wandb = sys.modules.get("wandb")
            if "wandb" in self.of and wandb is not None and wandb.run is not None:  # the others end with the trainer
                wandb.finish(exit_code=int(failed))


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn any error of a tracker, of which each has its own kinds, into one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        hint = "; WANDB_MODE=offline needs no connection" if name == "wandb" else ""
        raise MFPyGError(f"logger {name} can't be started: {reason}{hint}") from error
