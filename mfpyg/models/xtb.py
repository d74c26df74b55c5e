"""Extended tight binding (xTB) as a baseline, by the package ``tblite``.

(Bannwarth, Ehlert, Grimme, J. Chem. Theory Comput. 15, 1652 (2019), GFN2-xTB; Grimme, Bannwarth, Shushkov, J. Chem.
Theory Comput. 13, 1989 (2017), GFN1-xTB.) The difference to the labels is smaller than these, and easier to learn.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mfpyg.errors import MFPyGError
from mfpyg.units import BOHR_TO_ANGSTROM, HARTREE_TO_KCAL_MOL
from mfpyg.xtb_methods import ACCURACY, method_named


class XTB:
    """Energies and forces of neutral molecules in their lowest spin by an xTB method.

    Second derivatives are not available. The last result is kept, for the other members of an ensemble.

    Args:
        method: one of :data:`mfpyg.xtb_methods.METHODS`.

    Raises:
        MFPyGError: for an unknown method, or if ``tblite`` is not installed.
    """

    neutral: ClassVar[bool] = True
    """See :class:`mfpyg.models.baseline.Baseline`."""

    def __init__(self, method: str) -> None:
        self.method = method_named(method)
        try:
            import threadpoolctl  # noqa: F401
            from tblite.interface import Calculator
        except ImportError as error:
            raise MFPyGError(
                f"baseline tblite:{method} needs the package tblite, which is not installed; pip install 'mfpyg[label]'"
            ) from error
        self._calculator: Any = Calculator
        self._last: tuple[tuple[np.ndarray, ...], tuple[np.ndarray, np.ndarray]] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> XTB:
        return self  # copies of a potential share it

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.method!r})"

    def __call__(self, z: Tensor, pos: Tensor, batch: Tensor, n_graphs: int) -> tuple[Tensor, Tensor]:
        """See :class:`mfpyg.models.baseline.Baseline`.

        Raises:
            MFPyGError: for a molecule that has no parameters or whose charges do not converge.
        """
        places = pos.detach().double().cpu().numpy() / BOHR_TO_ANGSTROM
        inputs = z.cpu().numpy().copy(), places, batch.cpu().numpy().copy()
        last = self._last  # other threads may replace it
        if last is None or not all(map(np.array_equal, inputs, last[0])):
            last = inputs, self._of_batch(*inputs, n_graphs)
            self._last = last
        energies, forces = (torch.tensor(values, device=pos.device) for values in last[1])
        return energies, forces

    def _of_batch(
        self, numbers: np.ndarray, places: np.ndarray, batch: np.ndarray, n_graphs: int
    ) -> tuple[np.ndarray, np.ndarray]:
        energies, forces = np.zeros(len(numbers)), np.zeros((len(numbers), 3))
        ends = np.searchsorted(batch, np.arange(n_graphs + 1)).tolist()
        with _threads().limit(limits=1, user_api="openmp"):
            for graph, (start, end) in enumerate(itertools.pairwise(ends)):
                if end > start:
                    atoms = slice(start, end)
                    energies[atoms], forces[atoms] = self._of_one(graph, numbers[atoms], places[atoms])
        return energies, forces

    def _of_one(self, graph: int, numbers: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            calculator = self._calculator(self.method, numbers, places, uhf=int(numbers.sum()) % 2)
            calculator.set("verbosity", 0)
            calculator.set("accuracy", ACCURACY)
            found = calculator.singlepoint()
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise MFPyGError(
                f"{self.method} of graph {graph} failed ({reason}); leave it out, or the baseline"
            ) from error
        force = -found.get("gradient") * HARTREE_TO_KCAL_MOL / BOHR_TO_ANGSTROM
        return found.get("energies") * HARTREE_TO_KCAL_MOL, force


@functools.lru_cache
def _threads() -> Any:
    """Control of the threads of OpenMP; more than one make small molecules many times slower."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
