"""Shares of the network, the loss and the optimiser in the time of a training step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from jobs import synchronise


class Clock:
    """Wall time from one training step to the next, and how much of it predict, loss, backward and Adam took.

    A step goes from the moment that ``predict`` is called to the same of the next batch of the epoch.
    """

    def __init__(self, device: str) -> None:
        import torch

        from mfpyg.models import MultiFidelityPotential
        from mfpyg.training.loss import MultiFidelityLoss

        self.device = device
        self.steps: list[tuple[float, float]] = []
        self._begun, self._inside, self._within = 0.0, 0.0, 0.0
        predict = MultiFidelityPotential.predict

        def timed_predict(potential: Any, *args: Any) -> Any:
            if not potential.training:  # validation: the next training step follows no other
                self._begun = 0.0
                return predict(potential, *args)
            now = time.perf_counter()
            if self._begun:
                self.steps.append((now - self._begun, self._inside))
            self._begun, self._inside = now, 0.0
            return self._timed(predict)(potential, *args)

        MultiFidelityPotential.predict = timed_predict  # type: ignore[method-assign, assignment]
        MultiFidelityLoss.forward = self._timed(MultiFidelityLoss.forward)  # type: ignore[method-assign]
        torch.Tensor.backward = self._timed(torch.Tensor.backward)  # type: ignore[method-assign]
        torch.optim.Adam.step = self._optimiser(torch.optim.Adam.step)  # type: ignore[method-assign]

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self._now()
            result = call(*args, **kwargs)
            self._inside += self._now() - start
            return result

        return timed

    def _optimiser(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Adam's step without the closure in which Lightning has everything else happen."""

        def step(optimiser: Any, closure: Any = None) -> Any:
            def timed_closure() -> Any:
                start = self._now()
                result = closure()
                self._within = self._now() - start
                return result

            self._within = 0.0
            start = self._now()
            result = call(optimiser, None if closure is None else timed_closure)
            self._inside += self._now() - start - self._within
            return result

        return step

    def _now(self) -> float:
        synchronise(self.device)
        return time.perf_counter()
