"""torch-sim model of trained potentials (``pip install torch-sim-atomistic``): batched simulations on one GPU.

torch-sim uses eV and Å, cells with lattice vectors as columns, and one ``pbc`` for all systems of a state, so that
molecules and crystals need separate states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from mfpyg.device import version_of
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.inference.ensemble import Ensemble, Model
from mfpyg.interop.steps import Steps
from mfpyg.torch_defaults import default_torch_settings, with_default_torch_settings
from mfpyg.units import KCAL_MOL_TO_EV

try:
    from torch_sim.models.interface import ModelInterface
    from torch_sim.state import SimState
    from torch_sim.typing import MemoryScaling
except ImportError as error:
    raise ImportError(
        f"torch-sim 0.3 or later is not installed ({error}); pip install 'mfpyg[torchsim]', with Python 3.11 or later"
    ) from error

_SCALINGS: tuple[str, ...] = get_args(MemoryScaling)


class MFPyGModel(ModelInterface):
    """torch-sim model for one fidelity of a trained potential; all systems of a state are predicted in one pass.

    Without dipoles and charges, as states have no total charges.

    Args:
        models: a potential, run folder, checkpoint or shipped model, such as ``"chno-1"``, or several, whose mean is
            taken.
        fidelity: level of theory; optional if there is only one.
        device: device to compute on; default: that of the potential, the CPU for files.
        dtype: dtype of weights, positions, cells, forces and stresses; default: that of the weights. Use float64 to
            conserve energy beyond float32 precision.
        compiled: whether to use ``torch.compile``, and on a GPU CUDA graphs, see :mod:`mfpyg.models.compiled`; the
            first predictions then take a minute or more.
        skin: skin of the neighbour list in Å, for states with the same atoms as the one before; see
            :class:`mfpyg.interop.verlet.VerletList`.
        compute_forces: whether to compute forces.
        compute_stress: whether to compute stresses, as needed for variable cells; NaN for systems that are not periodic
            in all three directions.
        memory_scales_with: measure by which torch-sim's batchers estimate memory: ``n_atoms_x_density``, which scales
            like the number of neighbours, or ``n_atoms`` for molecules, as torch-sim 0.3 needs a cell for the density.

    Raises:
        MFPyGError: for a file that cannot be read, an unknown fidelity, none given although there are several, an
            unsupported dtype or scaling, or a negative skin.

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
        compiled: bool = False,
        skin: float = 1.0,
        compute_forces: bool = True,
        compute_stress: bool = False,
        memory_scales_with: str = "n_atoms_x_density",
    ) -> None:
        super().__init__()
        self._ensemble = Ensemble(models, device)
        if compiled:
            self._ensemble.compile()
        self.fidelity = self._ensemble.fidelity(fidelity)
        if dtype not in (None, torch.float32, torch.float64):
            raise MFPyGError(f"dtype is {dtype}, expected torch.float32 or torch.float64")
        self.members = nn.ModuleList(self._ensemble.members).to(dtype=dtype)
        self._compute_forces, self._compute_stress = compute_forces, compute_stress
        if memory_scales_with not in _SCALINGS:
            raise unknown_name("memory scaling", memory_scales_with, _SCALINGS)
        self._memory_scales_with = memory_scales_with
        self._steps = Steps(self._ensemble, skin)
        self._systems: _Systems | None = None
        """Systems of the last state."""

    @property
    def device(self) -> torch.device:
        """Device of the weights; changed by ``to``."""
        return self._ensemble.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights; changed by ``to``."""
        return self._ensemble.members[0].dtype

    @property
    def compute_stress(self) -> bool:
        """Whether stresses are computed; may be set."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, value: bool) -> None:
        self._compute_stress = value

    @property
    def compute_forces(self) -> bool:
        """Whether forces are computed; may be set."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, value: bool) -> None:
        self._compute_forces = value

    def forward(self, state: Any, **_: Any) -> dict[str, Tensor]:
        """Predict energies, and forces and stresses as configured, of all systems of a state.

        Args:
            state: a ``SimState``, or a dictionary with its arguments.

        Returns:
            ``energy`` in eV, (n_systems,), always float64; ``forces`` in eV/Å, (n_atoms, 3); ``stress`` in eV/Å³,
            (n_systems, 3, 3), positive under tension.

        Raises:
            MFPyGError: for an unknown element, or positions that are not finite.
        """
        with default_torch_settings():
            return self._predict(state)

    def _predict(self, state: Any) -> dict[str, Tensor]:
        state = state if isinstance(state, SimState) else SimState(**state)
        before = self._systems
        systems = before if before is not None and before.are_of(state) else _Systems(state)
        known = before is not None and systems.are(before)
        self._systems = systems
        letters = "E" + "F" * self._compute_forces + "S" * (self._compute_stress and systems.periodic)
        # The search with a skin is for states that come again.
        predictor = self._steps if known else self._ensemble
        prediction = predictor.predict(systems.at(state), {self.fidelity: letters})[0][self.fidelity]
        result = {"energy": prediction.energy * KCAL_MOL_TO_EV}
        if self._compute_forces:
            result["forces"] = cast(Tensor, prediction.forces) * KCAL_MOL_TO_EV
        if self._compute_stress:
            undefined = torch.full_like(state.cell, torch.nan)
            result["stress"] = cast(Tensor, prediction.stress) * KCAL_MOL_TO_EV if systems.periodic else undefined
        return result


class _Systems:
    """Systems of a state, wherever their atoms are.

    Attributes:
        periodic: True if they are periodic in all directions.
    """

    def __init__(self, state: SimState) -> None:
        self._given = state.atomic_numbers, state.system_idx, state.pbc
        self._versions = _versions(self._given)
        data = data_of_state(state)
        self._z, self._batch, self._pbc = data.z.clone(), data.batch.clone(), data.pbc.clone()
        self.periodic = bool(data.pbc.all())

    def are_of(self, state: SimState) -> bool:
        """True if a state has the same tensors, unchanged; others may have equal values, which takes a GPU's time."""
        given = state.atomic_numbers, state.system_idx, state.pbc
        return all(a is b for a, b in zip(given, self._given, strict=True)) and _versions(given) == self._versions

    def are(self, others: _Systems) -> bool:
        """True if the systems are the same."""
        pairs = (self._z, others._z), (self._batch, others._batch), (self._pbc, others._pbc)
        return all(a is b or (a.device == b.device and torch.equal(a, b)) for a, b in pairs)

    def at(self, state: SimState) -> Data:
        """Graphs with the positions and cells of a state."""
        return Data(z=self._z, pos=state.positions, batch=self._batch, cell=state.row_vector_cell, pbc=self._pbc)


def _versions(values: tuple[Any, ...]) -> list[Any]:
    return [version_of(value) if isinstance(value, Tensor) else None for value in values]


def data_of_state(state: SimState) -> Data:
    """Convert a state to a batch of graphs without edges.

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
