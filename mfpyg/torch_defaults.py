"""Protection from global torch settings: default device and dtype, ``torch.autocast``, ``torch.inference_mode``.

Other packages change them (MACE's calculator makes float64 the default dtype); the results of a potential must not
depend on them.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch_geometric.data import Data

P = ParamSpec("P")
R = TypeVar("R")

_NO_CHANGE: AbstractContextManager[None] = nullcontext()
_construction_lock = threading.RLock()


def default_torch_settings(*, keep_inference: bool = False) -> AbstractContextManager[Any]:
    """Context manager that switches off a default device, autocast and inference mode.

    It takes microseconds where none is set. The default dtype is left unchanged, since all threads share it; code in
    this context must name the dtypes of its tensors.

    Args:
        keep_inference: leave inference mode unchanged.
    """
    contexts: list[AbstractContextManager[Any]] = []
    if torch.is_inference_mode_enabled() and not keep_inference:
        contexts.append(torch.inference_mode(False))
    if torch.empty(0).device.type != "cpu":  # ten times faster than get_default_device
        contexts.append(torch.device("cpu"))
    contexts += [torch.autocast(kind, enabled=False) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    if not contexts:
        return _NO_CHANGE
    stack = ExitStack()
    for context in contexts:
        stack.enter_context(context)
    return stack


def with_default_torch_settings(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator that runs a function in :func:`default_torch_settings`."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with default_torch_settings():
            return function(*args, **kwargs)

    return call


def without_inference_tensors(data: Data) -> Data:
    """Return the data, cloned if autograd is to use tensors in it that were created in inference mode."""
    if torch.is_inference_mode_enabled():
        return data
    values = [value for store in data.stores for value in store.values()]
    return data.clone() if any(isinstance(value, Tensor) and value.is_inference() for value in values) else data


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Context manager of a precision of float32 products, see :func:`torch.set_float32_matmul_precision`."""
    try:
        before: str | list[str] = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch does not say, if it was set by the attributes of its backends
        before = [backend.fp32_precision for backend in _backends()]
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        if isinstance(before, str):
            torch.set_float32_matmul_precision(before)
        else:
            for backend, precision in zip(_backends(), before, strict=True):
                backend.fp32_precision = precision


def _backends() -> list[Any]:
    return [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]


@contextmanager
def model_construction() -> Iterator[None]:
    """Context manager for building networks: :func:`default_torch_settings` with float32 as the default dtype."""
    before = torch.get_default_dtype()
    if before == torch.float32:
        with default_torch_settings():
            yield
        return
    with _construction_lock, default_torch_settings():  # all threads share the default dtype
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
