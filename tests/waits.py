"""Scan of dispatched operators for those that wait for a GPU, on machines without one."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

READING = {
    # The size of the result, or the result, depends on numbers that the host has to read.
    aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero, aten.nonzero_numpy,
    aten.masked_select, aten.bincount, aten.unique_dim, aten.unique_consecutive, aten._unique, aten._unique2,
    # Numbers that are made on the host, as by torch.tensor, and copied to the device.
    aten.lift, aten.lift_fresh, aten.lift_fresh_copy,
}  # fmt: skip


UNDISPATCHED = {Tensor.tolist, Tensor.numpy, Tensor.__array__}
"""What reads numbers of tensors on a CPU without an operator."""


class Waits(TorchDispatchMode):
    """Collects the operators that wait while ``watching``, with the lines of this package that called them."""

    def __init__(self) -> None:
        super().__init__()
        self.watching, self.n_watched = False, 0
        self.found: list[str] = []
        self._functions = _Functions(self)

    def __enter__(self) -> Waits:
        self._functions.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._functions.__exit__(*error)
        self.watching = False

    def add(self, function: Any) -> None:
        """Add a function that waits."""
        lines = [line for line in traceback.extract_stack() if "mfpyg/" in line.filename]
        where = " <- ".join(f"{line.filename.split('mfpyg/')[-1]}:{line.lineno}" for line in lines[:-4:-1])
        self.found.append(f"{function} at {where or 'backward'}")

    def _watch(self, function: Callable[..., Any], during: bool, after: bool | None) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **more: Any) -> Any:
            before, self.watching = self.watching, self.watching and during
            try:
                return function(*arguments, **more)
            finally:
                self.watching = before if after is None else after

        return call

    def watching_after(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which is not watched, unlike what follows."""
        return self._watch(function, during=False, after=True)

    def watching_until(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, after which nothing is watched."""
        return self._watch(function, during=True, after=False)

    def not_watching(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which is not watched."""
        return self._watch(function, during=False, after=None)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if self.watching:
            self.n_watched += 1
            if waits(function, args, kwargs):
                self.add(function)
        return function(*args, **kwargs)


class _Functions(TorchFunctionMode):
    def __init__(self, scan: Waits) -> None:
        super().__init__()
        self.scan = scan

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None):  # type: ignore[no-untyped-def]
        if self.scan.watching and function in UNDISPATCHED:
            self.scan.add(function)
        return function(*args, **(kwargs or {}))


def waits(function: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """True for an operator that would wait if its tensors were on a GPU."""
    packet = function.overloadpacket
    if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
        indices = [index for index in args[1] if index is not None]
        return any(index.dtype in (torch.bool, torch.uint8) for index in indices)
    if packet is aten.repeat_interleave:
        return kwargs.get("output_size") is None
    if packet in (aten._to_copy, aten.copy_):
        tensors = [value for value in args if isinstance(value, Tensor)]
        devices = {str(value.device) for value in tensors} | {str(kwargs.get("device") or tensors[0].device)}
        return len(devices) > 1 and not kwargs.get("non_blocking")
    return packet in READING
