"""The device to compute on."""

from __future__ import annotations

import torch

from mfpyg.errors import MFPyGError


def choose_device(accelerator: str, devices: int = 1) -> torch.device:
    """The device of an ``accelerator`` setting: a CUDA GPU, or the CPU.

    ``auto`` takes a GPU where there is one. Apple's is never taken: it has no float64, in which total
    energies are kept.

    Args:
        accelerator: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        devices: how many are wanted.

    Raises:
        MFPyGError: if there are not so many GPUs.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if accelerator == "cpu" or (accelerator == "auto" and not available):
        return torch.device("cpu")
    if available < devices:
        raise MFPyGError(f"{devices} CUDA devices wanted, {available} found; use --accelerator cpu, or fewer --devices")
    return torch.device("cuda")
