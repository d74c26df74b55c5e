"""Compilation of the C sources for this processor and network size, with a cache of the libraries."""

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

_SOURCES = [Path(__file__).with_name(name) for name in ("moments.c", "pointwise.c", "dense.c")]
_HEADER = Path(__file__).with_name("products.h")
_FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC"),
    # The code is vectorized by hand. GCC's vectorizer on top of that, and its tuning for some processors, which keeps
    # addresses in vector registers, made the second derivative a third slower.
    *("-fno-tree-vectorize", "-fno-tree-slp-vectorize", "-mtune=generic", "-fschedule-insns"),
)
_TYPES = {torch.float32: ("float", "int32_t"), torch.float64: ("double", "int64_t")}
_SECONDS = 120


class NoCompilerError(MFPyGError):
    """The native kernel cannot be compiled."""


def find_compiler(variable: str, names: Sequence[str]) -> list[str] | None:
    """Find a compiler: the command in an environment variable, or the first installed program of ``names``.

    Args:
        variable: environment variable such as ``CC``; may include a wrapper or options, as in ``ccache gcc``.
        names: program names.

    Returns:
        The words of the command, with the path of the program first; ``None`` if it is not installed.
    """
    given = shlex.split(os.environ.get(variable, ""))
    for command in [given] if given else [[name] for name in names]:
        path = shutil.which(command[0])
        if path is not None:
            return [path, *command[1:]]
    return None


def library(dtype: torch.dtype, n_features: int, n_sensitivities: int, n_components: int) -> ctypes.CDLL:
    """Return the kernel for arrays of these sizes; compiling takes about two seconds if it is not in the cache.

    Raises:
        NoCompilerError: if there is no compiler, or it fails; it is tried once per process.
    """
    outcome = _library_or_error(dtype, n_features, n_sensitivities, n_components)
    if isinstance(outcome, NoCompilerError):
        raise outcome
    return outcome


_ARGUMENTS: dict[str, Any] = {"i": ctypes.c_int, "q": ctypes.c_int64, "d": ctypes.c_double, "P": ctypes.c_void_p}


@functools.lru_cache
def function(name: str, arguments: str, dtype: torch.dtype, sizes: tuple[int, int, int]) -> Any:
    """Return a function of the kernel, which takes Python numbers and addresses.

    Args:
        name: name of the function.
        arguments: types of its arguments, as format characters of :mod:`struct`.
        dtype, sizes: as in :func:`library`.

    Raises:
        NoCompilerError: see :func:`library`.
    """
    result = library(dtype, *sizes)[name]
    result.argtypes = [_ARGUMENTS[letter] for letter in arguments]
    return result


@functools.lru_cache
def _library_or_error(dtype: torch.dtype, n_features: int, n_sensitivities: int, n_components: int) -> Any:
    try:
        return _load(dtype, n_features, n_sensitivities, n_components)
    except NoCompilerError as error:
        return error
    except (OSError, MFPyGError, subprocess.SubprocessError) as error:
        return NoCompilerError(f"the native kernel cannot be compiled or loaded: {error}")


def _load(dtype: torch.dtype, n_features: int, n_sensitivities: int, n_components: int) -> ctypes.CDLL:
    if dtype not in _TYPES:
        raise NoCompilerError(f"the native kernel takes float32 and float64, not {str(dtype).removeprefix('torch.')}")
    cc = find_compiler("CC", ("cc", "gcc", "clang"))
    if cc is None:
        tried = f"CC is '{os.environ['CC']}'" if os.environ.get("CC") else "cc, gcc or clang"
        raise NoCompilerError(f"no C compiler found ({tried}); install one, or set CC")
    real, mask = _TYPES[dtype]
    sizes = [f"-DREAL={real}", f"-DMASK={mask}", f"-DF={n_features}", f"-DN={n_sensitivities}", f"-DC={n_components}"]
    target = _target(cc)
    failures = []
    for openmp in _openmp_flags():
        command = [*cc, *_FLAGS, *sizes, *map(str, _SOURCES), *openmp]
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
        if not openmp:
            text = f"the native kernel was compiled without OpenMP and uses one thread ({failures[-1]})"
            warnings.warn(text, MFPyGWarning, stacklevel=4)
        return ctypes.CDLL(str(path))
    raise failures[0]


def _openmp_flags() -> list[list[str]]:
    """Compiler flags to try: torch's OpenMP if it bundles one (two would compete for cores), the compiler's, none."""
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return [*([["-fopenmp", *map(str, bundled)]] if bundled else []), ["-fopenmp"], []]


def _compile(command: list[str], output: str) -> None:
    done = subprocess.run([*command, "-o", output], capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        raise NoCompilerError(f"{command[0]} failed: {' '.join(done.stderr.split())[:200]}")


def _target(cc: list[str]) -> str:
    """Macros of the compiler, which show its version and the instructions of ``-march=native``.

    Part of the cache key, as the machines of a cluster may share a cache.
    """
    command = [*cc, "-march=native", "-dM", "-E", "-x", "c", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    return done.stdout
