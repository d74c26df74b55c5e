"""Trained potentials in torch-sim (``pip install torch-sim-atomistic``): many systems as one batch, on one GPU.

torch-sim has eV and Å, cells whose lattice vectors are columns, and one ``pbc`` for all systems of a state, so that
molecules and crystals go into states of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_sim.models.interface import ModelInterface
from torch_sim.state import SimState
from torch_sim.typing import MemoryScaling

from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.inference.ensemble import Ensemble, Model
from mfpyg.torch_defaults import default_torch_settings, with_default_torch_settings
from mfpyg.units import KCAL_MOL_TO_EV

_SCALINGS: tuple[str, ...] = get_args(MemoryScaling)


class MFPyGModel(ModelInterface):
    """One fidelity of a trained potential as a model of torch-sim; all systems of a state in one pass.

    Args:
        models: a potential, run folder or checkpoint, or several, whose mean is taken.
        fidelity: a name; may be left out where there is a single one.
        device: where to compute; where the potential is (the CPU for files), if not given.
        dtype: of positions, cells, forces and stresses, to which the weights are cast; that of the weights, if not
            given. float64 where energy has to be conserved to more than float32 tells.
        compute_forces: whether forces are wanted.
        compute_stress: whether stresses are; cells that change need them. Of systems that do not repeat in all three
            directions they are not defined, and NaN.
        memory_scales_with: by what torch-sim's batchers judge how many systems fit into memory: atoms times density, as
            the number of neighbours, or ``n_atoms`` for molecules, whose density torch-sim 0.3 takes from a cell.

    Raises:
        MFPyGError: for a file that cannot be read, an unknown fidelity or none given among several, or another type or
            scaling.

    Example:
        >>> import torch_sim as ts                                                        # doctest: +SKIP
        >>> model = MFPyGModel("runs/example", fidelity="cc", device="cuda")              # doctest: +SKIP
        >>> ts.integrate(atoms, model, integrator=ts.Integrator.nvt_langevin,
        ...              n_steps=1000, temperature=300, timestep=0.0005)                  # doctest: +SKIP
    """

    @with_default_torch_settings
    def __init__(
        self,
        models: Model | Sequence[Model],
        fidelity: str | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        compute_forces: bool = True,
        compute_stress: bool = False,
        memory_scales_with: str = "n_atoms_x_density",
    ) -> None:
        super().__init__()
        self._ensemble = Ensemble(models, device)
        self.fidelity = self._ensemble.fidelity(fidelity)
        if dtype not in (None, torch.float32, torch.float64):
            raise MFPyGError(f"dtype is {dtype}, expected torch.float32 or torch.float64")
        self.members = nn.ModuleList(self._ensemble.members).to(dtype=dtype)
        self._compute_forces, self._compute_stress = compute_forces, compute_stress
        if memory_scales_with not in _SCALINGS:
            raise unknown_name("memory scaling", memory_scales_with, _SCALINGS)
        self._memory_scales_with = memory_scales_with

    @property
    def device(self) -> torch.device:
        """Of the weights; ``to`` moves them."""
        return self._ensemble.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; ``to`` casts them."""
        return self._ensemble.members[0].dtype

    @property
    def compute_stress(self) -> bool:
        """True if stresses are computed; may be set."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, value: bool) -> None:
        self._compute_stress = value

    @property
    def compute_forces(self) -> bool:
        """True if forces are computed; may be set."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, value: bool) -> None:
        self._compute_forces = value

    def forward(self, state: Any, **_: Any) -> dict[str, Tensor]:
        """Energies, and what else is wanted, of all systems of a state.

        Args:
            state: a ``SimState``, or a dictionary to make one of.

        Returns:
            ``energy`` in eV, (n_systems,) float64, as total energies need it; ``forces`` in eV/Å, (n_atoms, 3);
            ``stress`` in eV/Å³, (n_systems, 3, 3), positive under tension.

        Raises:
            MFPyGError: for an unknown element, or positions that are not finite.
        """
        with default_torch_settings():
            return self._predicted(state)

    def _predicted(self, state: Any) -> dict[str, Tensor]:
        data = data_of_state(state if isinstance(state, SimState) else SimState(**state))
        defined = bool(data.pbc.all())
        wanted = {self.fidelity: self._compute_forces}
        prediction = self._ensemble.predict(data, wanted, self._compute_stress and defined)[0][self.fidelity]
        result = {"energy": prediction.energy * KCAL_MOL_TO_EV}
        if self._compute_forces:
            result["forces"] = cast(Tensor, prediction.forces) * KCAL_MOL_TO_EV
        if self._compute_stress:
            undefined = torch.full_like(data.cell, torch.nan)
            result["stress"] = cast(Tensor, prediction.stress) * KCAL_MOL_TO_EV if defined else undefined
        return result


def data_of_state(state: SimState) -> Data:
    """The systems of a state as a batch of graphs without edges.

    Returns:
        ``Data`` with ``z`` (n_atoms,) int64, ``pos`` (n_atoms, 3) in Å, ``batch`` (n_atoms,) int64, ``cell``
        (n_systems, 3, 3) in Å and ``pbc`` (n_systems, 3) bool.
    """
    pbc = torch.as_tensor(state.pbc, dtype=torch.bool, device=state.positions.device)
    return Data(
        z=state.atomic_numbers.long(),
        pos=state.positions,
        batch=state.system_idx,
        cell=state.row_vector_cell,
        pbc=pbc.expand(len(state.cell), 3),
    )
