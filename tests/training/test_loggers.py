"""Runs logged by TensorBoard, Weights & Biases and MLflow, each where it is installed, without a connection."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger

from mfpyg import settings as s
from mfpyg.cli import train
from mfpyg.errors import MFPyGError
from mfpyg.training import check, loggers
from mfpyg.training.folder import RunFolder
from mfpyg.training.loggers import Loggers

OPTIONS = (
    "--fidelities", "cc:E", "--batch-size=128", "--model.n-features=6", "--model.n-atom-layers=1",
    "--model.n-sensitivities=5", "--compile=off", "--out", "run",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def errors_of(run: Path) -> list[float]:
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row["val/cc/energy_rmse"]) for row in csv.DictReader(file)]


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        check.importlib.util, "find_spec", lambda name: None if name == "wandb" else SimpleNamespace(origin=name)
    )
    with pytest.raises(SystemExit) as stop:
        train.main([*OPTIONS, "--logger", "mlflow", "wandb"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.endswith("pip install wandb\n")
    assert not Path("run").exists()


@pytest.mark.slow
def test_resumed_run_is_logged_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a logger that stands in for those that may not be installed."""
    opened: list[str | None] = []

    class Stub(CSVLogger):
        def __init__(self, run: str | None) -> None:
            super().__init__("run/csv", name="", version=run or "first")
            opened.append(run)
            self.params: dict[str, Any] = {}
            made.append(self)

        def log_hyperparams(self, params: Any = None) -> None:
            self.params.update(params)

    made: list[Stub] = []
    monkeypatch.setattr(check, "check_installed", lambda names: None)
    monkeypatch.setattr(Loggers, "_open", lambda self, name, run: Stub(run))
    train.main([*OPTIONS, "--epochs=1", "--logger", "mlflow", "--optim.warmup=0.5"])
    assert json.loads(Path("run/loggers.json").read_text()) == {"mlflow": "first"}
    train.main(["--resume", "run", "--epochs=2"])
    assert opened == [None, "first"]
    assert made[0].params["optim.warmup"] == 0.5
    assert made[1].params == {}, "MLflow takes no second value for a setting"


def test_logger_that_can_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, name: str, run: str | None) -> Any:
        raise RuntimeError("no key\nat all.")

    monkeypatch.setattr(Loggers, "_open", fail)
    settings = s.from_dict({"logger": ["wandb"]})
    with pytest.raises(MFPyGError) as refused:
        Loggers(settings, RunFolder(Path("run")))
    said = "logger wandb cannot be started: no key at all; WANDB_MODE=offline needs no connection"
    assert str(refused.value) == said


def test_other_processes_log_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "is_main_process", lambda: False)
    assert Loggers(s.from_dict({"logger": ["wandb", "mlflow"]}), RunFolder(Path("run"))).of == {}


@pytest.mark.slow
def test_mlflow_in_the_run_folder() -> None:
    tracking = pytest.importorskip("mlflow.tracking", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="mlflow-skinny has no store of its own")
    train.main([*OPTIONS, "--epochs=1", "--logger", "mlflow"])
    train.main(["--resume", "run", "--epochs=2"])
    client = tracking.MlflowClient("sqlite:///run/mlflow.db")
    experiment = client.get_experiment_by_name("mfpyg")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == json.loads(Path("run/loggers.json").read_text())["mlflow"]
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["optim.lr"] == "0.001"
    logged = [metric.value for metric in client.get_metric_history(run.info.run_id, "val/cc/energy_rmse")]
    assert logged == pytest.approx(errors_of(Path("run")), rel=1e-4)


@pytest.mark.slow
def test_wandb_in_the_run_folder_without_a_connection() -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    train.main([*OPTIONS, "--epochs=1", "--logger", "wandb"])
    assert wandb.run is None, "it is finished"
    train.main(["--resume", "run", "--epochs=2"])
    run = json.loads(Path("run/loggers.json").read_text())["wandb"]
    folders = [path.name for path in Path("run/wandb").glob("offline-run-*")]
    assert len(folders) == 2
    assert all(name.endswith(f"-{run}") for name in folders)


@pytest.mark.slow
def test_tensorboard_in_the_run_folder() -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train.main([*OPTIONS, "--epochs=2"])
    events = EventAccumulator("run/tensorboard").Reload()
    logged = [event.value for event in events.Scalars("val/cc/energy_rmse")]
    assert logged == pytest.approx(errors_of(Path("run")), rel=1e-4)
    assert "lr: 0.001" in Path("run/tensorboard/hparams.yaml").read_text()
    assert not Path("run/loggers.json").exists()
