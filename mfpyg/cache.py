"""The folder for what can be made again: processed data without a root of their own, compiled kernels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def cache_dir() -> Path:
    """``$MFPYG_CACHE``, else a folder in the user's cache."""
    given = os.environ.get("MFPYG_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mfpyg"


def cached_root(kind: str, files: Iterable[Path]) -> Path:
    """The folder in the cache for these files, which are not in a data set's root; nothing is put beside them.

    Args:
        kind: of data set, a folder of the cache.
        files: raw files.
    """
    paths = "+".join(str(file.resolve()) for file in files)
    return cache_dir() / kind / hashlib.sha256(paths.encode()).hexdigest()[:12]
