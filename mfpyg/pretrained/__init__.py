"""Trained models that come with the package, ``NAME.ckpt`` in this folder, by name. Importable without torch."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from mfpyg.errors import MFPyGError, MFPyGWarning, did_you_mean

FOLDER = Path(__file__).parent
"""Folder of the checkpoints, and of the card of each, ``NAME.yaml``, see :mod:`mfpyg.pretrained.card`."""


def names() -> list[str]:
    """Names of the models, such as ``chno-1``."""
    return sorted(path.stem for path in FOLDER.glob("*.ckpt"))


def model_path(model: str | os.PathLike[str]) -> Path:
    """Path of a model as named by a user: of a shipped one for its name, else the path itself, which may not exist.

    The name of a shipped model is that model, whatever is in the current folder; ``"./chno-1"`` and ``Path("chno-1")``
    are paths. To be called before a text becomes a ``Path``.

    Warns:
        MFPyGWarning: if the current folder has a file or folder with the name of a shipped model.
    """
    path = Path(model)
    if not isinstance(model, str) or model not in names():
        return path
    if path.exists():
        what = "folder" if path.is_dir() else "file"
        message = f"{model} is the model that comes with mfpyg, not the {what} of this name here; for that, ./{model}"
        warnings.warn(message, MFPyGWarning, stacklevel=2)
    return FOLDER / f"{model}.ckpt"


def is_shipped(path: Path) -> bool:
    """True for the checkpoint of a model that comes with the package."""
    return path.parent == FOLDER


def no_such_model(path: str | os.PathLike[str]) -> MFPyGError:
    """Error for a path that does not exist; suggests the shipped model of a similar name."""
    expected = "a run folder of mfpyg-train or a .ckpt file"
    return MFPyGError(f"{path}: no such checkpoint; expected {expected}{did_you_mean(str(path), names())}")
