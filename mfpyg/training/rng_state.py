"""States of the random generators, as part of the state of a training.

The package itself draws only initial weights from them: the order of batches depends on the seed and the epoch. A
third-party backbone may draw in every step, as dropout does.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback


def seed_generators(seed: int) -> None:
    """Seed the generators of torch, numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(np.random.SeedSequence(seed).generate_state(4))
    random.seed(seed)


def generator_states() -> dict[str, Any]:
    """States of the generators of this process, as plain values."""
    version, numbers, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    return {
        "torch": _text(torch.get_rng_state()),
        "cuda": _text(torch.cuda.get_rng_state()) if torch.cuda.is_available() else None,
        "numpy": {
            "key": numpy_state["state"]["key"].astype("<u4").tobytes().hex(),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "python": {"version": version, "numbers": list(numbers), "gauss": gauss},
    }


def set_generators(states: Mapping[str, Any]) -> None:
    """Restore the generators of this process; that of a GPU if there is one now and was then."""
    torch.set_rng_state(_numbers(states["torch"]))
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_numbers(states["cuda"]))
    of_numpy, of_python = states["numpy"], states["python"]
    key = np.frombuffer(bytes.fromhex(of_numpy["key"]), "<u4").astype(np.uint32)
    np.random.set_state(("MT19937", key, of_numpy["pos"], of_numpy["has_gauss"], of_numpy["gauss"]))
    random.setstate((of_python["version"], tuple(of_python["numbers"]), of_python["gauss"]))


def _text(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _numbers(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


class GeneratorState(Callback):
    """Saves the generators of every process in checkpoints, and restores them when a run is resumed.

    With more processes than before, the new ones continue from the seed.
    """

    def __init__(self) -> None:
        self._trainer: lightning.Trainer | None = None
        self._states: list[dict[str, Any]] = []

    def setup(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        self._trainer = trainer

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.global_rank < len(self._states):
            set_generators(self._states[trainer.global_rank])

    def state_dict(self) -> dict[str, Any]:
        """States of all processes, each of which must call this."""
        states = [generator_states()]
        if self._trainer is not None and self._trainer.world_size > 1:
            states *= self._trainer.world_size
            torch.distributed.all_gather_object(states, states[0])
        return {"processes": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._states = state_dict["processes"]
