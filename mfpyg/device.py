"""Choice of the device to compute on."""

from __future__ import annotations

import torch

from mfpyg.errors import MFPyGError


def choose_device(accelerator: str, devices: int = 1) -> torch.device:
    """Return the device for an ``accelerator`` setting: a CUDA GPU, or the CPU.

    ``auto`` uses a GPU if there is one. Apple GPUs are never used: they have no float64, in which total energies are
    kept.

    Args:
        accelerator: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        devices: number of devices needed.

    Raises:
        MFPyGError: if there are fewer GPUs.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if accelerator == "cpu" or (accelerator == "auto" and not available):
        return torch.device("cpu")
    if available < devices:
        raise MFPyGError(
            f"{devices} CUDA devices requested, {available} found; use --accelerator cpu, or fewer --devices"
        )
    return torch.device("cuda")
