"""A run that finds no room stops with one line, keeps its last checkpoint, and goes on once there is room."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mfpyg.checkpoint import read_checkpoint
from mfpyg.errors import MFPyGError
from mfpyg.files import append_text

OPTIONS = (
    "--fidelities", "dz:EF", "cc:E", "--epochs=3", "--batch-size=64", "--model.n-features=6", "--model.n-atom-layers=1",
    "--model.n-sensitivities=5", "--compile=off", "--checkpoint-minutes=0",
)  # fmt: skip


def assert_refused(ended: Any, *words: str) -> None:
    assert ended.status == 2, ended.output
    assert "Traceback" not in ended.output
    assert ended.unfinished == []
    (error,) = [line for line in ended.output.splitlines() if "mfpyg-train: error:" in line]
    assert error == ended.output.strip().splitlines()[-1]
    for word in words:
        assert word in error


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "named"), [(500, "config.yaml"), (2000, "splits.npz"), (30_000, "last.ckpt")])
def test_new_run_without_room_leaves_nothing(forks: Any, whole: Path, limit: int, named: str) -> None:
    ended = forks.run(*OPTIONS, "--out", "cut", limit=limit)
    assert_refused(ended, f"cut/{named}: cannot write it")
    assert not (forks.folder / "cut").exists()


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 100])
def test_output_that_finds_no_room(forks: Any, whole: Path, limit: int) -> None:
    ended = forks.run(*OPTIONS, "--out", "cut", limit=limit)
    assert ended.status == 2
    assert "Traceback" not in ended.output
    assert not (forks.folder / "cut").exists()


@pytest.mark.slow
def test_files_that_may_not_be_so_large(forks: Any, whole: Path, assert_same_run: Callable[[Path, Path], None]) -> None:
    forks.run(*OPTIONS, "--out", "cut", aim={"file": "step", "moment": "half", "after": 13, "signal": "SIGINT"})
    kept = (forks.folder / "cut" / "last.ckpt").read_bytes()
    for limit, named in ((500, "config.yaml"), (30_000, "last.ckpt")):
        assert_refused(forks.run("--resume", "cut", limit=limit), f"cut/{named}: cannot write it")
        assert (forks.folder / "cut" / "last.ckpt").read_bytes() == kept
    forks.whole("--resume", "cut")
    assert_same_run(whole, forks.folder / "cut")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all that is left."""
    path = folder / "ballast"
    for size in (1 << 16, 1 << 12, 1):
        with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(size)) == size:
                pass
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "named"),
    [
        ("start", "cut/"),
        ("validation", "cut/metrics.csv"),
        ("writing best.ckpt", "cut/"),
        ("training step", "cut/last.ckpt"),
        ("final table", "cut/best.ckpt"),
    ],
)
def test_disk_that_becomes_full(
    forks: Any, whole: Path, small_disk: Path, assert_same_run: Callable[[Path, Path], None], phase: str, named: str
) -> None:
    ballast = small_disk / "ballast"

    def hit(running: Any) -> None:
        running.wait_for(phase)
        os.kill(running.pid, 19)  # SIGSTOP
        fill(small_disk)
        os.kill(running.pid, 18)  # SIGCONT

    ended = forks.run(*OPTIONS, "--out", "cut", hit=hit, folder=str(small_disk))
    assert_refused(ended, named, "No space left" if named.endswith(("csv", "json")) else "cannot write")
    ballast.unlink()
    cut = small_disk / "cut"
    if (cut / "last.ckpt").is_file():
        read_checkpoint(cut / "last.ckpt")
        ended = forks.run("--resume", "cut", folder=str(small_disk))
    else:
        assert not cut.exists()
        ended = forks.run(*OPTIONS, "--out", "cut", folder=str(small_disk))
    assert ended.status == 0, ended.output
    assert_same_run(whole, cut)


def test_line_that_does_not_fit_is_not_added(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch\n0\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (8, 10):  # none of it fits, or a part
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(MFPyGError, match=r"metrics\.csv: cannot write it"):
                append_text(path, "12345\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert path.read_text() == "epoch\n0\n"
    append_text(path, "1\n")
    assert path.read_text() == "epoch\n0\n1\n"
