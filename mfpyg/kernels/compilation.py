"""Compilation of the C sources for this processor and the sizes of a network, kept in the user's cache."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mfpyg.cache import cache_dir
from mfpyg.errors import MFPyGError, MFPyGWarning
from mfpyg.files import make_folder, replace_file

_SOURCES = [Path(__file__).with_name(name) for name in ("moments.c", "pointwise.c")]
_HEADER = Path(__file__).with_name("products.h")
_FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC"),
    # The vectors are written out. GCC's own on top, and its tuning for some processors, which keeps addresses in vector
    # registers, made the second derivative a third slower.
    *("-fno-tree-vectorize", "-fno-tree-slp-vectorize", "-mtune=generic", "-fschedule-insns"),
)
_TYPES = {torch.float32: ("float", "int32_t"), torch.float64: ("double", "int64_t")}
_SECONDS = 120


class NoCompilerError(MFPyGError):
    """The kernel cannot be compiled here, and why."""


def find_compiler(variable: str, names: Sequence[str]) -> list[str] | None:
    """Command of a compiler: that in an environment variable, else the first of the names that is installed.

    Args:
        variable: such as ``CC``, which may hold options or a wrapper too, as in ``ccache gcc``.
        names: of programs.

    Returns:
        The command's words, the first being a path; ``None`` if there is no such program.
    """
    given = shlex.split(os.environ.get(variable, ""))
    for command in [given] if given else [[name] for name in names]:
        path = shutil.which(command[0])
        if path is not None:
            return [path, *command[1:]]
    return None


def library(dtype: torch.dtype, n_features: int, n_sensitivities: int, n_components: int) -> ctypes.CDLL:
    """The kernel for arrays of these sizes, compiled within some two seconds if the cache has none.

    Raises:
        NoCompilerError: if there is no compiler, or it fails; it is tried once in a process.
    """
    outcome = _tried(dtype, n_features, n_sensitivities, n_components)
    if isinstance(outcome, NoCompilerError):
        raise outcome
    return outcome


_ARGUMENTS: dict[str, Any] = {"i": ctypes.c_int, "q": ctypes.c_int64, "d": ctypes.c_double, "P": ctypes.c_void_p}


@functools.lru_cache
def function(name: str, arguments: str, dtype: torch.dtype, sizes: tuple[int, int, int]) -> Any:
    """A function of the kernel, which takes numbers and addresses as Python has them.

    Args:
        name: of the function.
        arguments: types of its arguments, in the letters of :mod:`struct`.
        dtype, sizes: as in :func:`library`.

    Raises:
        NoCompilerError: see :func:`library`.
    """
    found = library(dtype, *sizes)[name]
    found.argtypes = [_ARGUMENTS[letter] for letter in arguments]
    return found


@functools.lru_cache
def _tried(dtype: torch.dtype, n_features: int, n_sensitivities: int, n_components: int) -> Any:
    try:
        return _loaded(dtype, n_features, n_sensitivities, n_components)
    except NoCompilerError as error:
        return error
    except (OSError, MFPyGError, subprocess.SubprocessError) as error:
        return NoCompilerError(f"the native kernel cannot be compiled or loaded: {error}")


def _loaded(dtype: torch.dtype, n_features: int, n_sensitivities: int, n_components: int) -> ctypes.CDLL:
    if dtype not in _TYPES:
        raise NoCompilerError(f"the native kernel takes float32 and float64, not {str(dtype).removeprefix('torch.')}")
    cc = find_compiler("CC", ("cc", "gcc", "clang"))
    if cc is None:
        sought = f"CC is '{os.environ['CC']}'" if os.environ.get("CC") else "cc, gcc or clang"
        raise NoCompilerError(f"no C compiler found ({sought}); install one, or name it in CC")
    real, mask = _TYPES[dtype]
    sizes = [f"-DREAL={real}", f"-DMASK={mask}", f"-DF={n_features}", f"-DN={n_sensitivities}", f"-DC={n_components}"]
    target = _target(cc)
    failures = []
    for threads in _ways_to_threads():
        command = [*cc, *_FLAGS, *sizes, *map(str, _SOURCES), *threads]
        key = "\0".join([*command, target, *(source.read_text() for source in (*_SOURCES, _HEADER))])
        path = cache_dir() / "kernels" / f"moments-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
        make_folder(path.parent)
        if path.is_file():
            with contextlib.suppress(OSError):  # damaged
                return ctypes.CDLL(str(path))
        try:
            replace_file(path, functools.partial(_compile, command))
        except NoCompilerError as failure:
            failures.append(failure)
            continue
        if not threads:
            text = f"the native kernel was compiled without OpenMP and uses one thread ({failures[-1]})"
            warnings.warn(text, MFPyGWarning, stacklevel=4)
        return ctypes.CDLL(str(path))
    raise failures[0]


def _ways_to_threads() -> list[list[str]]:
    """OpenMP: torch's own where torch brings one, as two of them would fight for the cores; the compiler's; none."""
    own = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return [*([["-fopenmp", *map(str, own)]] if own else []), ["-fopenmp"], []]


def _compile(command: list[str], output: str) -> None:
    done = subprocess.run([*command, "-o", output], capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        raise NoCompilerError(f"{command[0]} failed: {' '.join(done.stderr.split())[:200]}")


def _target(cc: list[str]) -> str:
    """The compiler's macros, which tell its version and the instructions of ``-march=native``.

    A cache may be shared by the machines of a cluster.
    """
    command = [*cc, "-march=native", "-dM", "-E", "-x", "c", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    return done.stdout
