"""Devices: their choice, CUDA streams, and numbers that are read from them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

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


def waits(device: torch.device) -> bool:
    """True if reading a number from the device waits for all its earlier work, as on a GPU."""
    return device.type != "cpu"


class Later:
    """A number on a device, to be read later, which then waits for no work that was queued after it.

    Args:
        number: tensor of one element.
    """

    def __init__(self, number: Tensor) -> None:
        if number.device.type != "cuda":
            self._number, self._copied = number.clone(), None
            return
        self._number = torch.empty(number.shape, dtype=number.dtype, device="cpu", pin_memory=True)
        self._number.copy_(number, non_blocking=True)
        self._copied = torch.cuda.current_stream(number.device).record_event()

    def read(self) -> float:
        """Wait for the number."""
        if self._copied is not None:
            self._copied.synchronize()
        return float(self._number)


def version_of(tensor: Tensor) -> object:
    """Number that changes when a tensor is changed in place; those of inference mode have none, and never agree."""
    return object() if tensor.is_inference() else tensor._version


def captures(device: torch.device) -> bool:
    """True if work on the device can be captured in a CUDA graph."""
    return device.type == "cuda"


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Context manager for work on a second CUDA stream; without effect on a CPU.

    The host can wait for such work without waiting for the current stream, which continues meanwhile; later work of the
    current stream waits for it, on the device. Memory that the current stream is to use must be passed
    to ``record_stream``, see :meth:`torch.Tensor.record_stream`.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.stream(_stream(device)):
        yield
    torch.cuda.current_stream(device).wait_stream(_stream(device))


@functools.lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)  # small work, before the large one of a step


def stream_number(device: torch.device) -> int:
    """Number of the current CUDA stream, 0 on a CPU. Streams do not wait for each other."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def fits(device: torch.device, n_bytes: int) -> bool:
    """True if data of this size should be kept on the device: a GPU, half of whose free memory they fit into."""
    return device.type == "cuda" and n_bytes <= torch.cuda.mem_get_info(device)[0] // 2
