"""Potentials as models of torch-sim: its own checks, and one batch against one system at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from mfpyg.device import Later
from mfpyg.errors import MFPyGError
from mfpyg.interop import slack, verlet
from mfpyg.interop.ase import data_of
from mfpyg.models import HIPNN, MultiFidelityPotential
from mfpyg.units import KCAL_MOL_TO_EV
from tests.waits import Waits

ts = pytest.importorskip("torch_sim")

from torch_sim.models.interface import validate_model_outputs  # noqa: E402

from mfpyg.interop.torchsim import MFPyGModel  # noqa: E402

CPU = torch.device("cpu")


def potential(
    *fidelities: str, species: tuple[int, ...] = (1, 6, 7, 8), seed: int = 0, **options: Any
) -> MultiFidelityPotential:
    torch.manual_seed(seed)
    sizes = {"n_features": 8, "n_sensitivities": 6, "n_interactions": 2, "n_atom_layers": 1}
    backbone = HIPNN(species, cutoff=4.0, **{**sizes, **options})
    found = MultiFidelityPotential(backbone, fidelities or ["dz", "cc"]).double().eval()
    for level in found.heads.modules():
        if isinstance(level, torch.nn.Linear):
            level.reset_parameters()  # larger than those of an untrained head
    return found


def crystals() -> list[Atoms]:
    """Of different sizes, one of them without a right angle and with atoms outside of its cell."""
    skewed = Atoms("HCNO", [[0.1, 0, 0], [1.2, 0.3, 0.1], [2.0, 1.1, 0.9], [0.4, 1.4, 9.0]], pbc=True)
    skewed.set_cell([[3.5, 0.4, 0.1], [-0.6, 3.9, 0.3], [0.8, 0.5, 4.2]])
    return [skewed, bulk("C", cubic=True) * (2, 1, 1)]


def molecules() -> list[Atoms]:
    return [molecule(name) for name in ("CH3CH2OH", "H2O", "CH4", "C6H6")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_sim_finds_nothing_to_object_to(dtype: torch.dtype) -> None:
    model = MFPyGModel(potential("cc", species=(1, 6, 12, 14, 26)), dtype=dtype)
    validate_model_outputs(model, CPU, dtype)
    assert model.dtype == dtype
    assert model.device == CPU
    assert model.compute_stress
    assert model.memory_scales_with == "n_atoms_x_density"


@pytest.mark.parametrize("systems", [molecules(), crystals()], ids=["molecules", "crystals"])
def test_a_batch_is_its_systems(systems: list[Atoms]) -> None:
    one, periodic = potential(), bool(systems[0].pbc.all())
    found = MFPyGModel(one, "cc", compute_stress=True)(ts.io.atoms_to_state(systems, CPU, torch.float64))
    for number, atoms in enumerate(systems):
        expected = one(data_of(atoms), fidelity="cc", stress=periodic)
        first = sum(map(len, systems[:number]))
        near = {"atol": 1e-10, "rtol": 1e-10}
        torch.testing.assert_close(found["energy"][number], expected.energy[0] * KCAL_MOL_TO_EV, **near)
        forces = found["forces"][first : first + len(atoms)]
        torch.testing.assert_close(forces, expected.forces * KCAL_MOL_TO_EV, **near)
        if periodic:
            torch.testing.assert_close(found["stress"][number], expected.stress[0] * KCAL_MOL_TO_EV, **near)
        else:
            assert found["stress"][number].isnan().all()


def test_compiled(replayed_here: list[int]) -> None:
    systems = crystals()
    plain, compiled = (
        MFPyGModel(potential(n_interactions=1), "cc", compute_stress=True, compiled=compiled)
        for compiled in (False, True)
    )
    for step in range(4):
        for atoms in systems:
            atoms.rattle(0.01, seed=step)
        state = ts.io.atoms_to_state(systems, CPU, torch.float64)
        found, expected = compiled(state), plain(state)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values, atol=1e-10, rtol=1e-10)
    assert 1 <= len(replayed_here) <= 2
    assert sum(replayed_here) >= 2


def test_what_is_not_wanted_is_not_computed() -> None:
    state = ts.io.atoms_to_state(molecules(), CPU, torch.float64)
    assert set(MFPyGModel(potential("cc"))(state)) == {"energy", "forces"}
    assert set(MFPyGModel(potential("cc"), compute_forces=False)(state)) == {"energy"}


def test_a_batch_in_motion_follows_newton() -> None:
    """Velocity Verlet of torch-sim for a batch, and written out for each of its molecules."""
    one, dt = potential("cc"), torch.tensor(0.02, dtype=torch.float64)  # 0.2 fs, in Å √(u/eV)
    model = MFPyGModel(one)
    state = ts.io.atoms_to_state(molecules()[:3], CPU, torch.float64)
    kT, n_steps = torch.tensor(0.05, dtype=torch.float64), 20
    if hasattr(ts, "nve_init"):  # torch-sim from 0.4 on
        state = ts.nve_init(state, model, kT=kT)
        first = state.clone()
        for _ in range(n_steps):
            state = ts.nve_step(state, model, dt=dt)
    else:
        start, step = ts.nve(model, dt=dt, kT=kT, seed=1)
        state = start(state)
        first = state.clone()
        for _ in range(n_steps):
            state = step(state)
    for number, atoms in enumerate(molecules()[:3]):
        mine = first.system_idx == number
        mass, x, p = first.masses[mine, None], first.positions[mine], first.momenta[mine]

        def force(x: torch.Tensor, atoms: Atoms = atoms) -> torch.Tensor:
            atoms.positions = x.numpy()
            return one(data_of(atoms)).forces * KCAL_MOL_TO_EV

        for _ in range(n_steps):
            p = p + dt / 2 * force(x)
            x = x + dt * p / mass
            p = p + dt / 2 * force(x)
        torch.testing.assert_close(state.positions[mine], x, atol=1e-10, rtol=0)
        torch.testing.assert_close(state.momenta[mine], p, atol=1e-10, rtol=0)
        assert (x - first.positions[mine]).abs().max() > 1e-3


def test_relaxation_in_single_precision_with_changing_cells() -> None:
    model = MFPyGModel(potential("cc"), dtype=torch.float32, compute_stress=True)
    optimizer = getattr(ts, "unit_cell_fire", None) or ts.Optimizer.fire
    options = {} if hasattr(ts, "unit_cell_fire") else {"init_kwargs": {"cell_filter": ts.CellFilter.unit}}
    before = model(ts.io.atoms_to_state(crystals(), CPU, torch.float32))["energy"]
    relaxed = ts.optimize(crystals(), model, optimizer=optimizer, max_steps=10, autobatcher=False, **options)
    assert (relaxed.energy < before).all()
    assert relaxed.positions.dtype == torch.float32


def test_torch_sim_divides_many_systems_into_batches() -> None:
    model = MFPyGModel(potential("cc"), memory_scales_with="n_atoms")
    batcher = ts.BinningAutoBatcher(model, memory_scales_with=model.memory_scales_with, max_memory_scaler=15)
    integrator = getattr(ts, "Integrator", ts).nvt_langevin
    options = {"n_steps": 3, "temperature": 300, "timestep": 0.0002}
    final = ts.integrate(molecules(), model, integrator=integrator, autobatcher=batcher, **options)
    assert [len(atoms) for atoms in final.to_atoms()] == [len(atoms) for atoms in molecules()]
    torch.testing.assert_close(final.energy, model(final)["energy"])


def test_several_models_give_their_mean() -> None:
    members = [potential("cc", seed=seed) for seed in range(2)]
    state = ts.io.atoms_to_state(molecules(), CPU, torch.float64)
    each = [MFPyGModel(member)(state) for member in members]
    found = MFPyGModel(members)(state)
    for name in ("energy", "forces"):
        torch.testing.assert_close(found[name], (each[0][name] + each[1][name]) / 2)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(MFPyGError, match="no fidelity given"):
        MFPyGModel(potential())
    with pytest.raises(MFPyGError, match=r"unknown memory scaling 'atoms'.*n_atoms"):
        MFPyGModel(potential("cc"), memory_scales_with="atoms")
    with pytest.raises(MFPyGError, match="float16"):
        MFPyGModel(potential("cc"), dtype=torch.float16)
    with pytest.raises(MFPyGError, match="Fe is unknown"):
        MFPyGModel(potential("cc"))(ts.io.atoms_to_state([bulk("Fe")], CPU, torch.float64))


@pytest.mark.parametrize("systems", [molecules(), crystals()], ids=["molecules", "crystals"])
def test_weights_in_float32_do_not_see_where_the_origin_is(systems: list[Atoms]) -> None:
    """As far as the state is float64; torch-sim makes one of the model's type by itself, which has lost the digits."""
    model, far = MFPyGModel(potential().float(), "cc"), [atoms.copy() for atoms in systems]
    for atoms in far:
        atoms.positions += 1e4
        atoms.positions[::2] += (200 * atoms.pbc) @ atoms.cell.array
    found, expected = (model(ts.io.atoms_to_state(frames, CPU, torch.float64)) for frames in (far, systems))
    for name in ("energy", "forces"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-6)


def test_compiled_members_are_copies() -> None:
    one = potential("cc")
    model = MFPyGModel(one, "cc", compiled=True)
    assert [member.compiled for member in model.members] == [True]
    assert not one.compiled


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("systems", [molecules(), crystals()], ids=["molecules", "crystals"])
def test_neighbours_are_kept_from_step_to_step(systems: list[Atoms], dtype: torch.dtype) -> None:
    """Results are those of a new search; positions and cells are changed in place, as by integrators."""
    one, generator = potential(), torch.Generator().manual_seed(0)
    model = MFPyGModel(one, "cc", dtype=dtype, skin=0.8)
    state = ts.io.atoms_to_state(systems, CPU, dtype)
    velocities = 0.05 * torch.randn(state.positions.shape, generator=generator, dtype=dtype)
    for _ in range(30):
        state.positions.add_(velocities)
        if systems[0].pbc.all():
            state.cell.mul_(1.002)
        found, expected = model(state), MFPyGModel(one, "cc", dtype=dtype)(state)
        for name, values in expected.items():
            assert torch.equal(found[name], values), name
    assert 2 <= model._steps.neighbours.searches <= 20


def test_dynamics_do_not_wait_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of torch-sim's own integrator, but for the first ones and those with a search."""
    for module in (slack, verlet):
        monkeypatch.setattr(module, "waits", lambda device: True)
    scan, model = Waits(), MFPyGModel(potential("cc", kernel="padded"), memory_scales_with="n_atoms")
    monkeypatch.setattr(Later, "read", scan.not_watching(Later.read))
    forward, steps = model.forward, [0]

    def scanned(state: Any, **options: Any) -> Any:
        searches, before = model._steps.neighbours.searches, len(scan.found)
        steps[0], scan.watching = steps[0] + 1, steps[0] > 12
        found = forward(state, **options)
        scan.watching = False
        if model._steps.neighbours.searches > searches:
            del scan.found[before:]
        return found

    monkeypatch.setattr(model, "forward", scanned)
    integrator = getattr(ts, "Integrator", ts).nve
    with scan:
        ts.integrate(molecules(), model, integrator=integrator, n_steps=30, temperature=300, timestep=0.0002)
    assert sorted(set(scan.found)) == []
    assert scan.n_watched > 1000


def test_other_systems_are_searched_anew() -> None:
    one = potential()
    model, first, second = MFPyGModel(one, "cc"), molecules()[:2], molecules()[1:]
    for systems in (first, first, second, second, first):
        state = ts.io.atoms_to_state(systems, CPU, torch.float64)
        assert torch.equal(model(state)["forces"], MFPyGModel(one, "cc")(state)["forces"])
    assert model._steps.neighbours.searches == 2
    model.to(torch.float32)
    for _ in range(2):
        assert model(ts.io.atoms_to_state(first, CPU, torch.float32))["forces"].dtype == torch.float32


def _assert_as_new(model: MFPyGModel, state: ts.SimState) -> None:
    found, new = model(state), MFPyGModel(potential("cc"), compute_stress=model.compute_stress)(state)
    for name, values in new.items():
        torch.testing.assert_close(found[name], values, atol=1e-9, rtol=1e-9, equal_nan=True)


def test_another_conformer_after_slow_motion(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a batcher replaces a relaxed molecule by the next one, on a GPU, where moves are known a step later."""
    monkeypatch.setattr(slack, "waits", lambda device: True)
    monkeypatch.setattr(verlet, "waits", lambda device: True)
    model, generator = MFPyGModel(potential("cc")), torch.Generator().manual_seed(0)
    for _ in range(3):
        state = ts.io.atoms_to_state(molecules(), CPU, torch.float64)
        state.positions += 0.2 * torch.randn(state.positions.shape, generator=generator, dtype=torch.float64)
        for _ in range(14):
            state.positions += 1e-3
            _assert_as_new(model, state)
    assert model._steps.neighbours.searches == 3


def test_periodic_directions_changed_in_place() -> None:
    state, model = ts.io.atoms_to_state(crystals(), CPU, torch.float64), MFPyGModel(potential("cc"))
    state.pbc = torch.tensor([True, True, True])
    for direction in (0, 2):
        for _ in range(3):
            _assert_as_new(model, state)
        state.pbc[direction] = False
    _assert_as_new(model, state)


@pytest.mark.parametrize("systems", [molecules(), crystals()], ids=["molecules", "crystals"])
def test_states_of_inference_mode(systems: list[Atoms]) -> None:
    model = MFPyGModel(potential("cc"), compute_stress=True)
    with torch.inference_mode():
        state = ts.io.atoms_to_state(systems, CPU, torch.float64)
    for _ in range(4):
        with torch.inference_mode():
            state.positions += 1e-3
            state.cell *= 1.0001
        _assert_as_new(model, state)


def test_gradients_between_steps() -> None:
    state, model = ts.io.atoms_to_state(molecules(), CPU, torch.float64), MFPyGModel(potential("cc"))
    for _ in range(3):
        forces = model(state)["forces"]
    state.positions.requires_grad_()
    for _ in range(3):
        (gradient,) = torch.autograd.grad(model(state)["energy"].sum(), state.positions)
        torch.testing.assert_close(-gradient, forces, atol=1e-9, rtol=1e-9)
    state.positions = state.positions.detach()
    assert not model(state)["energy"].requires_grad
