"""Compiling ``moments.c`` for this processor and these sizes, once."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

from mfpyg.cache import cache_dir
from mfpyg.errors import MFPyGError
from mfpyg.files import make_folder, replace_file

_SOURCE = Path(__file__).with_name("moments.c")
_FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"),
    # The vectors are written out. GCC's own on top, and its tuning for some processors, which keeps addresses in vector
    # registers, made the second derivative a third slower.
    *("-fno-tree-vectorize", "-fno-tree-slp-vectorize", "-mtune=generic", "-fschedule-insns"),
)
_TYPES = {torch.float32: ("float", "int32_t"), torch.float64: ("double", "int64_t")}
_SECONDS = 120


class NoCompilerError(MFPyGError):
    """The kernel can't be compiled here; the message says why."""


def compiler() -> str | None:
    """Path of the C compiler: that of ``$CC``, else cc, gcc or clang; ``None`` if there is none."""
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    return next((found for name in names if (found := shutil.which(name))), None)


@functools.lru_cache
def library(dtype: torch.dtype, n_features: int, n_sensitivities: int, n_components: int) -> ctypes.CDLL:
    """The kernel for arrays of these sizes, compiled within some two seconds if the cache has none.

    Raises:
        NoCompilerError: if there is no compiler, or it fails.
    """
    if dtype not in _TYPES:
        raise NoCompilerError(f"the native kernel takes float32 and float64, not {str(dtype).removeprefix('torch.')}")
    cc = compiler()
    if cc is None:
        raise NoCompilerError("no C compiler found (cc, gcc or clang); install one, or name it in CC")
    real, mask = _TYPES[dtype]
    sizes = [f"-DREAL={real}", f"-DMASK={mask}", f"-DF={n_features}", f"-DN={n_sensitivities}", f"-DC={n_components}"]
    command = [cc, *_FLAGS, *sizes, str(_SOURCE)]
    key = "\0".join([*command, _version(cc), _processor(), _SOURCE.read_text()])
    path = cache_dir() / "kernels" / f"moments-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    try:
        make_folder(path.parent)
        if path.is_file():
            with contextlib.suppress(OSError):  # damaged
                return ctypes.CDLL(str(path))
        replace_file(path, functools.partial(_compile, command))
        return ctypes.CDLL(str(path))
    except (OSError, MFPyGError) as error:
        raise NoCompilerError(f"the native kernel can't be compiled or loaded: {error}") from error


def _compile(command: list[str], output: str) -> None:
    """Compile with OpenMP, torch's own where torch brings one, as two of them would fight for the cores."""
    own = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    failure = ""
    for threads in (["-fopenmp", *map(str, own)], ["-fopenmp"], []):
        try:
            done = subprocess.run(
                [*command, *threads, "-o", output], capture_output=True, text=True, timeout=_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoCompilerError(f"{command[0]} failed ({error})") from error
        if done.returncode == 0:
            return
        failure = failure or " ".join(done.stderr.split())[:200]
    raise NoCompilerError(f"{command[0]} failed: {failure}")


def _version(cc: str) -> str:
    done = subprocess.run([cc, "--version"], capture_output=True, text=True, check=False)
    return done.stdout


def _processor() -> str:
    """What ``-march=native`` depends on; a cache may be shared by the machines of a cluster."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() + platform.machine()
    lines = info.read_text().splitlines()
    return "\n".join(
        sorted({line for line in lines if line.startswith(("flags", "model name", "Features", "CPU part"))})
    )
