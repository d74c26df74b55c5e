"""Torch's settings that a program makes for everything after them, kept away from what is computed here.

A default device, ``torch.autocast``, ``torch.inference_mode`` and a default type of floating-point numbers all change
what the same lines of code do. Other packages set them (MACE's calculator makes float64 the default type), and a
potential has to give the same numbers whoever was there before.
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

_NOTHING: AbstractContextManager[None] = nullcontext()
_building = threading.RLock()


def neutral(*, keep_inference: bool = False) -> AbstractContextManager[Any]:
    """A context without a default device, autocast or inference mode; it costs microseconds where none is set.

    The default type is left alone, as it is that of all threads; what runs here names its types instead.

    Args:
        keep_inference: leave inference mode as it is.
    """
    contexts: list[AbstractContextManager[Any]] = []
    if torch.is_inference_mode_enabled() and not keep_inference:
        contexts.append(torch.inference_mode(False))
    if torch.empty(0).device.type != "cpu":  # in a tenth of the time of get_default_device
        contexts.append(torch.device("cpu"))
    contexts += [torch.autocast(kind, enabled=False) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    if not contexts:
        return _NOTHING
    stack = ExitStack()
    for context in contexts:
        stack.enter_context(context)
    return stack


def neutrally(function: Callable[P, R]) -> Callable[P, R]:
    """The function, run in :func:`neutral`."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with neutral():
            return function(*args, **kwargs)

    return call


def without_inference(data: Data) -> Data:
    """The data, or outside of inference mode a copy where a part was made in it: autograd keeps no such tensors."""
    if torch.is_inference_mode_enabled():
        return data
    values = [value for store in data.stores for value in store.values()]
    return data.clone() if any(isinstance(value, Tensor) and value.is_inference() for value in values) else data


@contextmanager
def building() -> Iterator[None]:
    """A context to build networks in: :func:`neutral`, and float32 as the default type."""
    before = torch.get_default_dtype()
    if before == torch.float32:
        with neutral():
            yield
        return
    with _building, neutral():  # one at a time, as the type is that of all threads
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
