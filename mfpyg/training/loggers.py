"""Experiment loggers besides ``metrics.csv``: TensorBoard, Weights & Biases, MLflow.

They write to the run folder, unless their environment variables, such as ``MLFLOW_TRACKING_URI``, say otherwise. A
resumed run continues the same logger runs.
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
"""Default project of Weights & Biases, and default experiment of MLflow."""


class Loggers:
    """Loggers of a run, in its first process; the others have none.

    Args:
        settings: settings of the run.
        folder: run folder, which must exist.

    Raises:
        MFPyGError: if a logger cannot start or continue its run, for example without a login.
    """

    def __init__(self, settings: TrainSettings, folder: RunFolder) -> None:
        self.folder, self.of = folder, dict[str, Logger]()
        default = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
        runs = folder.read_loggers()
        for name in (settings.logger or default) if is_main_process() else ():
            with _errors_in_one_line(name):
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
        """End the runs of the loggers at the end of the context."""
        failed = True
        try:
            yield
            failed = False
        finally:
            wandb = sys.modules.get("wandb")
            if "wandb" in self.of and wandb is not None and wandb.run is not None:  # the others end with the trainer
                wandb.finish(exit_code=int(failed))


@contextmanager
def _errors_in_one_line(name: str) -> Iterator[None]:
    """Convert any error of a logger, each with its own exceptions, into one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        hint = "; WANDB_MODE=offline needs no connection" if name == "wandb" else ""
        raise MFPyGError(f"logger {name} cannot be started: {reason}{hint}") from error
