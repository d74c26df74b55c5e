"""HDF5 files that another process has open."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import pytest

from mfpyg.datasets import ANI1x
from mfpyg.datasets.hdf5 import reading
from mfpyg.errors import UnreadableError

_HOLD = "import sys, h5py; f = h5py.File(sys.argv[1], 'a', libver=sys.argv[2]); print(flush=True); sys.stdin.read()"


@contextmanager
def open_for_writing(path: Path, libver: str = "earliest") -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has the file open for writing; killed in the end."""
    command = [sys.executable, "-c", _HOLD, str(path), libver]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_file_that_another_process_writes_is_locked_not_damaged(release_file: Path) -> None:
    root = release_file.parent / "root"
    with open_for_writing(release_file):
        with pytest.raises(UnreadableError, match=r"tiny.h5: cannot be locked.*HDF5_USE_FILE_LOCKING=FALSE") as error:
            ANI1x(root, file=release_file)
        assert "damaged" not in str(error.value)
        code = f"from mfpyg.datasets import ANI1x; print(len(ANI1x({str(root)!r}, file={str(release_file)!r})))"
        as_advised = subprocess.run(
            [sys.executable, "-c", f"import os; os.environ['HDF5_USE_FILE_LOCKING'] = 'FALSE'; {code}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert as_advised.stdout == "9\n"
    assert len(ANI1x(root, file=release_file, force_reload=True)) == 9


def test_a_file_system_without_locks_is_named(tmp_path: Path) -> None:
    said = "Unable to open file (unable to lock file, errno = 37, error message = 'No locks available')"
    expected = r"\(No locks available\).*HDF5_USE_FILE_LOCKING=FALSE"
    with pytest.raises(UnreadableError, match=expected), reading(tmp_path / "a.h5"):
        raise OSError(37, said)


def test_a_file_whose_writer_was_killed_says_how_to_clear_its_mark(release_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "latest.h5"
    with h5py.File(release_file) as old, h5py.File(path, "w", libver="latest") as new:
        for name in old:
            old.copy(name, new)
    with open_for_writing(path, "latest"):
        pass
    with pytest.raises(UnreadableError, match=r"marked as open for writing.*h5clear -s"):
        ANI1x(tmp_path / "root", file=path)
