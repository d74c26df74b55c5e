"""Two runs never work in one folder."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from mfpyg.cli import evaluate, train
from mfpyg.errors import MFPyGError
from mfpyg.interrupt import Postponed, listening
from mfpyg.training import lock
from mfpyg.training.lock import held

OPTIONS = (
    "--fidelities", "dz:EF", "cc:E", "--epochs=4", "--batch-size=64", "--model.n-features=6", "--model.n-atom-layers=1",
    "--model.n-sensitivities=5", "--compile=off", "--checkpoint-minutes=0",
)  # fmt: skip


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


@pytest.mark.slow
def test_second_run_is_refused_and_the_first_goes_on(
    forks: Any, whole: Path, assert_same_run: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(forks.folder)
    errors = []

    def hit(running: Any) -> None:
        while not Path("run/best.ckpt").is_file():
            assert running.alive()
        files = sorted(path.name for path in Path("run").iterdir() if path.suffix != ".tmp")
        errors.extend(refused(capsys, *arguments) for arguments in (["--resume", "run"], [*OPTIONS, "--out", "run"]))
        errors.append(str(running.pid))
        evaluate.main(["run", "--split", "test"])  # which reads what is there
        for name in ("evaluation-test.json", "evaluation-test.txt"):
            Path("run", name).unlink(missing_ok=True)
        assert set(files) <= {path.name for path in Path("run").iterdir()}

    ended = forks.run(*OPTIONS, "--out", "run", hit=hit)
    assert ended.status == 0, ended.output
    assert f"run: another mfpyg-train is running in this folder (process {errors[2]} on" in errors[0]
    assert "run exists; continue it with --resume run" in errors[1]
    for path in Path("run").glob("evaluation*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert_same_run(whole, Path("run"))


@pytest.mark.slow
def test_two_that_start_at_once(
    forks: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(forks.folder)
    with held(Path("run")):
        ended = forks.run(*OPTIONS, "--out", "run")
    assert ended.status == 2
    assert ended.output.count("\n") == 1, ended.output
    assert f"another mfpyg-train is running in this folder (process {os.getpid()} on" in ended.output
    assert not Path("run").exists()


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "new"
    pid = os.fork()
    if pid == 0:
        lasting = held(folder)
        lasting.__enter__()
        os._exit(0)  # without giving it back
    os.waitpid(pid, 0)
    assert (folder / lock.LOCK).is_file()
    with held(folder):
        assert str(os.getpid()) in (folder / lock.HOLDER).read_text()
    assert list(folder.iterdir()) == []


def test_folders_that_nothing_came_into_are_removed(tmp_path: Path) -> None:
    with held(tmp_path / "one" / "two"):
        pass
    assert not (tmp_path / "one").exists()
    with held(tmp_path / "one" / "two"):
        (tmp_path / "one" / "file").touch()
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["file"]


@pytest.mark.parametrize("moment", ["acquire", "release"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_at_the_lock_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, number: signal.Signals
) -> None:
    original = getattr(lock.FileLock, moment)

    def interrupted(self: Any, *arguments: Any, **options: Any) -> Any:
        result = original(self, *arguments, **options)
        monkeypatch.setattr(lock.FileLock, moment, original)
        signal.raise_signal(number)
        return result

    folder = tmp_path / "runs" / "new"
    monkeypatch.setattr(lock.FileLock, moment, interrupted)
    with pytest.raises(KeyboardInterrupt), listening(), held(folder):
        assert moment == "release"
    assert list(tmp_path.iterdir()) == []
    with held(folder):
        assert (folder / lock.LOCK).is_file()


def test_handlers_are_put_back_though_a_signal_comes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGINT is the last, as with it the next Ctrl-C may raise."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with listening():
        within = signal.getsignal(signal.SIGTERM)
        postponed, put_back = Postponed(), signal.signal

        def interrupted(number: int, handler: Any) -> None:
            put_back(number, handler)
            signal.raise_signal(signal.SIGINT)

        postponed.begin()
        monkeypatch.setattr(signal, "signal", interrupted)
        with pytest.raises(KeyboardInterrupt):
            postponed.end()
        monkeypatch.undo()
        assert postponed.asked
        assert signal.getsignal(signal.SIGTERM) is within
    assert {number: signal.getsignal(number) for number in before} == before


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(MFPyGError, match=r"write or lock it \(No locks available\)"), held(tmp_path):
        pass


def test_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MFPyGError, match="cannot create this folder"), held(tmp_path / "file" / "run"):
        pass
