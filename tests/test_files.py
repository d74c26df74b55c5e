"""What the system refuses is not called damage, whatever the file."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms

import mfpyg
from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.frames import frames_of, frames_of_database, frames_of_text
from mfpyg.datasets.hdf5 import open_hdf5
from mfpyg.datasets.splits import read_splits
from mfpyg.datasets.storage import read_processed
from mfpyg.errors import MFPyGError, UnreadableError
from mfpyg.files import raise_if_unreadable
from mfpyg.training.folder import RunFolder
from mfpyg.training.resume import read_last


@contextmanager
def no_more_open_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def a_file(kind: str, folder: Path, release_file: Path, untrained: Callable[..., Path]) -> Path:
    atoms = Atoms("CO", [(0, 0, 0), (0, 0, 1.1)])
    if kind in ("in.xyz", "in.traj", "in.cif"):
        ase.io.write(folder / kind, atoms)
    elif kind == "in.db":
        with ase.db.connect(folder / kind) as database:
            database.write(atoms)
    elif kind == "splits.npz":
        np.savez(folder / kind, train=np.arange(3), val=np.arange(3, 5))
    elif kind == "processed.pt":
        shutil.copy(MiniCHNO().processed_paths[0], folder / kind)
    elif kind == "last.ckpt":
        untrained("dz:E", name=kind)
    else:
        return release_file
    return folder / kind


READERS: dict[str, Callable[[Path], object]] = {
    "in.xyz": lambda path: list(frames_of_text(path)),
    "in.db": lambda path: list(frames_of_database(path)),
    "in.traj": lambda path: list(frames_of(path)),
    "in.cif": lambda path: list(frames_of(path)),
    "splits.npz": lambda path: read_splits(path, 5),
    "processed.pt": read_processed,
    "last.ckpt": mfpyg.load,
    "tiny.h5": lambda path: open_hdf5(path, "a release file").__enter__(),
}


@pytest.mark.parametrize("kind", READERS)
def test_too_many_open_files_are_no_damage(
    kind: str, tmp_path: Path, release_file: Path, untrained: Callable[..., Path]
) -> None:
    path = a_file(kind, tmp_path, release_file, untrained)
    if kind.startswith("in."):
        READERS[kind](path)  # ASE imports its readers when they are needed
    with no_more_open_files(), pytest.raises(UnreadableError, match="ulimit -n") as error:
        READERS[kind](path)
    assert str(path) in str(error.value)
    assert "damaged" not in str(error.value)


def test_a_run_whose_state_cant_be_read_now_is_not_given_up(untrained: Callable[..., Path]) -> None:
    path = untrained("dz:E", name="last.ckpt")
    with no_more_open_files(), pytest.raises(UnreadableError) as error:
        read_last(RunFolder(path.parent))
    assert "create it again" not in str(error.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "x"), "Permission denied.*owner"),
        (OSError(errno.EIO, "x"), "Input/output error.*try again"),
        (OSError(errno.ESTALE, "x"), "Stale file handle"),
        (KeyError("Unable to open object (file read failed, errno = 5, error message = 'x')"), "Input/output error"),
        (
            RuntimeError("unable to mmap 9 bytes from file <a.pt>: Cannot allocate memory (12)"),
            "Cannot allocate memory",
        ),
    ],
)
def test_what_the_system_says_is_passed_on(error: Exception, message: str) -> None:
    with pytest.raises(UnreadableError, match=f"^a.h5: cannot be read .*{message}"):
        raise_if_unreadable("a.h5", error)


@pytest.mark.parametrize(
    "error",
    [OSError("truncated file"), OSError(errno.EINVAL, "x"), FileNotFoundError(errno.ENOENT, "x"), KeyError("x")],
)
def test_what_is_said_of_the_contents_is_left_to_the_reader(error: Exception) -> None:
    raise_if_unreadable("a.h5", error)


def test_damage_is_still_called_damage(tmp_path: Path, release_file: Path, untrained: Callable[..., Path]) -> None:
    for kind in ("splits.npz", "processed.pt", "last.ckpt", "tiny.h5"):
        path = a_file(kind, tmp_path, release_file, untrained)
        path.write_bytes(path.read_bytes()[:-500])
        with pytest.raises(MFPyGError, match="damaged") as error:
            READERS[kind](path)
        assert not isinstance(error.value, UnreadableError)
