"""Cache folder for processed data and compiled kernels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def cache_dir() -> Path:
    """Return ``$MFPYG_CACHE``, else a folder in the user's cache."""
    given = os.environ.get("MFPYG_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mfpyg"


def cached_root(kind: str, files: Iterable[Path]) -> Path:
    """Cache folder for the data processed from files outside a data set root.

    Args:
        kind: data set name; used as the folder name in the cache.
        files: raw files.
    """
    paths = "+".join(str(file.resolve()) for file in files)
    return cache_dir() / kind / hashlib.sha256(paths.encode()).hexdigest()[:12]
