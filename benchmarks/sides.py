"""The two sides of the speed benchmark, hippynn and mfpyg, with the same network, weights, batches and loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jobs import Job
from molecules import BENZENE, Batch, benzene, organic_liquid, organic_molecules

SPECIES = [1, 6, 7, 8]
STEP = 1e-3
"""Of dynamics, in the units of masses in u, kcal/mol and Å: 0.05 fs, so that random weights tear nothing apart."""


def sets_of(job: Job) -> list[Batch]:
    """The batches that a case goes through, so that nobody can specialise on the shapes of one."""
    if job.kind == "liquid":
        return organic_liquid(job.size, seed=0, snapshots=3)
    if job.kind == "md":
        return [benzene()] if job.size == BENZENE else organic_liquid(job.size, seed=0, snapshots=1)
    return [organic_molecules(job.size, seed) for seed in range(4)]


class Hippynn:
    """The peer through its own graph, on its own padded arrays.

    Args:
        job: with a file of ``weights``, written if it is not there.
    """

    def __init__(self, job: Job) -> None:
        import torch
        from hippynn import custom_kernels
        from hippynn.graphs import GraphModule, Predictor, inputs, networks, physics, targets
        from hippynn.graphs.nodes import indexers, pairs
        from torch_geometric.utils import to_dense_batch

        custom_kernels.set_custom_kernels(job.kernel)
        torch.manual_seed(0)
        species, positions = inputs.SpeciesNode(db_name="Z"), inputs.PositionsNode(db_name="R")
        arrays, parents = [species, positions], (species, positions)
        if job.pairs:
            cell = inputs.CellNode(db_name="C")
            arrays.append(cell)
            encoder, padding = indexers.acquire_encoding_padding(species, species_set=[0, *SPECIES])
            finder = getattr(pairs, str(job.pairs))("pairs", (positions, encoder, padding, cell), dist_hard_max=6.5)
            parents = (padding, finder)
        network = networks.HipnnQuad("HIPNN", parents, module_kwargs=peer_options())
        energy = targets.HEnergyNode("HEnergy", network)
        force = physics.GradientNode("forces", (energy, positions), sign=-1)
        if not Path(job.weights).exists():
            torch.save(weights_of(network.torch_module, energy.torch_module), job.weights)
        self.graph = GraphModule(arrays, [energy.mol_energy, force, energy.hierarchicality]).to(job.device)
        self.optimiser = torch.optim.Adam(self.graph.parameters(), lr=1e-4, fused=True)
        self.predictor = Predictor(
            arrays, [energy.mol_energy, force], return_device=None, model_device=torch.device(job.device)
        )
        if job.task == "pairs":
            self.finder = GraphModule(arrays, [finder.pair_first, finder.pair_coord]).to(job.device)
        self.sets, self.labels, self.real, self.moving = [], [], [], []
        for batch in sets_of(job):
            number = torch.from_numpy(batch.batch)
            z, real = to_dense_batch(torch.from_numpy(batch.z), number)  # 0 being no atom
            pos, _ = to_dense_batch(torch.from_numpy(batch.pos), number)
            forces, _ = to_dense_batch(torch.from_numpy(batch.forces), number)
            tensors = [z, pos] + ([torch.from_numpy(batch.cell)[None]] if len(batch.cell) else [])
            self.sets.append([x.to(job.device) for x in tensors])
            energies = torch.from_numpy(batch.energy).float()[:, None]
            self.labels.append([x.to(job.device) for x in (energies, forces)])
            self.real.append(real.to(job.device))

    def pairs(self, number: int) -> None:
        """Its pair finder alone."""
        self.finder(*self.sets[number])

    def predict(self, number: int) -> tuple[Any, Any]:
        """Energies (n_graphs,) and forces (n_atoms, 3) of a set."""
        values = self.predictor(**dict(zip("ZRC", self.sets[number], strict=False)))
        return values["HEnergy.mol_energy"].squeeze(1), values["forces"][self.real[number]]

    def md(self, number: int) -> None:
        """A velocity Verlet step, without the rest of an MD program."""
        import torch

        tensors, mass = self.sets[number], 12.0
        if not self.moving:
            self.moving = [torch.zeros_like(tensors[1]), self.predictor(**dict(zip("ZRC", tensors, strict=False)))]
        velocities, values = self.moving
        velocities = velocities + 0.5 * STEP / mass * values["forces"]
        tensors[1] = tensors[1] + STEP * velocities
        values = self.predictor(**dict(zip("ZRC", tensors, strict=False)))
        self.moving = [velocities + 0.5 * STEP / mass * values["forces"], values]

    def loss(self, number: int) -> Any:
        """RMSE + MAE of energies and of forces, and the mean hierarchicality."""
        z, pos = self.sets[number]
        energies, forces, hierarchicality = self.graph(z, pos.detach().requires_grad_())
        expected_energies, expected_forces = self.labels[number]
        real = self.real[number]
        errors = energies - expected_energies, forces[real] - expected_forces[real]
        return sum(e.square().mean().sqrt() + e.abs().mean() for e in errors) + hierarchicality.mean()

    def train(self, number: int) -> None:
        """A training step."""
        self.optimiser.zero_grad()
        self.loss(number).backward()
        self.optimiser.step()


def peer_options() -> dict[str, Any]:
    """The published network in hippynn's words."""
    sizes = {"n_features": 120, "n_sensitivities": 20, "n_interaction_layers": 2, "n_atom_layers": 4}
    radii = {"dist_soft_min": 0.75, "dist_soft_max": 5.5, "dist_hard_max": 6.5}
    return {"possible_species": [0, *SPECIES], **sizes, **radii}


def weights_of(network: Any, energy: Any) -> dict[str, Any]:
    """hippynn's weights by our names, in hippynn's shapes."""
    found = {"heads.0.reference": energy.layers[0].weight}

    def add(name: str, linear: Any) -> None:
        found.update({f"{name}.{key}": value for key, value in linear.named_parameters()})

    for b, block in enumerate(network.blocks):
        for i, layer in enumerate(block):
            name = f"backbone.blocks.{b}.{i}"
            add(f"{name}.mix", layer.res_layer)
            if layer.needs_size_adjust:
                add(f"{name}.adjust", layer.adjust_layer)
            if i > 0:
                add(f"{name}.base", layer.base_layer)
                continue
            base = layer.base_layer
            found[f"{name}.base.weight"] = base.int_weights
            found[f"{name}.base.sensitivity.mu"] = base.sensitivity.mu
            found[f"{name}.base.sensitivity.sigma"] = base.sensitivity.sigma
            add(f"{name}.base.self_interaction", base.selfint)
            found[f"{name}.base.tensor_scales.0"] = base.vecscales
            found[f"{name}.base.tensor_scales.1"] = base.quadscales
    for level, linear in enumerate(energy.layers[1:]):
        add(f"heads.0.levels.{level}", linear)
    return {name: value.detach().clone() for name, value in found.items()}


def build_ours(job: Job) -> Any:
    """Our potential with hippynn's weights, every one of them."""
    import torch

    from mfpyg.models import HIPNN, MultiFidelityPotential

    potential = MultiFidelityPotential(HIPNN(SPECIES, kernel=job.kernel), ["dz"])
    weights, own = torch.load(job.weights, weights_only=True), potential.state_dict()
    shaped = {name: value.reshape(own[name].shape) for name, value in weights.items()}
    potential.load_state_dict(shaped, strict=True)
    potential.compiled = job.compile
    return potential.to(job.device)


class MFPyG:
    """Ours, building its edges in every step.

    Args:
        job: with a file of ``weights``, which is there.
    """

    def __init__(self, job: Job) -> None:
        import torch

        from mfpyg.fidelity import parse_fidelities, parse_weights
        from mfpyg.training.loss import MultiFidelityLoss

        fidelities = parse_fidelities(["dz:EF"])
        self.potential = build_ours(job).train(job.kind == "train")
        self.loss_of = MultiFidelityLoss(fidelities, {"dz": 0}, parse_weights([], fidelities), 1.0).to(job.device)
        self.optimiser = torch.optim.Adam(self.potential.parameters(), lr=1e-4, fused=True)
        self.sets = [self._data(batch).to(job.device) for batch in sets_of(job)]
        self.integrator: Callable[[], None] | None = None

    @staticmethod
    def _data(batch: Batch) -> Any:
        import torch
        from torch_geometric.data import Batch as DataBatch
        from torch_geometric.data import Data

        z, pos = torch.from_numpy(batch.z), torch.from_numpy(batch.pos)
        if len(batch.cell):
            return Data(z=z, pos=pos, cell=torch.from_numpy(batch.cell)[None], pbc=torch.ones(1, 3, dtype=torch.bool))
        labelled = torch.ones(1, 1, dtype=torch.bool)
        rows = [np.flatnonzero(batch.batch == i) for i in range(len(batch.energy))]
        return DataBatch.from_data_list(
            [
                Data(
                    z=z[atoms],
                    pos=pos[atoms],
                    energy=torch.tensor([[energy]], dtype=torch.float64),
                    energy_mask=labelled,
                    forces=torch.from_numpy(batch.forces[atoms])[:, None],
                    forces_mask=labelled,
                )
                for atoms, energy in zip(rows, batch.energy, strict=True)
            ]
        )

    def predict(self, number: int) -> tuple[Any, Any]:
        """Energies (n_graphs,) and forces (n_atoms, 3) of a set."""
        prediction = self.potential(self.sets[number])
        return prediction.energy, prediction.forces

    def md(self, number: int) -> None:
        """A step of torch-sim's NVE."""
        if self.integrator is None:
            self.integrator = nve(self.potential, self.sets[number])
        self.integrator()

    def loss(self, number: int) -> Any:
        """RMSE + MAE of energies and of forces, and the mean hierarchicality."""
        batch = self.sets[number]
        return self.loss_of(self.loss_of.predict(self.potential, batch), batch)[0]

    def train(self, number: int) -> None:
        """A training step."""
        self.optimiser.zero_grad()
        self.loss(number).backward()
        self.optimiser.step()


def nve(potential: Any, data: Any) -> Callable[[], None]:
    """Function that makes a step of torch-sim's NVE from these positions."""
    import torch
    import torch_sim
    from ase import Atoms

    from mfpyg.interop.torchsim import MFPyGModel

    periodic, device = "cell" in data, data.pos.device
    atoms = Atoms(data.z.cpu().numpy(), data.pos.cpu().numpy(), cell=data.cell[0].cpu().numpy() if periodic else None)
    atoms.pbc = periodic
    scaling = "n_atoms_x_density" if periodic else "n_atoms"
    model = MFPyGModel(potential, "dz", dtype=torch.float32, memory_scales_with=scaling)
    step, kT = torch.tensor(STEP * 0.0488882, device=device), torch.tensor(0.0, device=device)  # in ps, and 0 K
    state = torch_sim.io.atoms_to_state([atoms], device, torch.float32)
    if hasattr(torch_sim, "nve_init"):  # from 0.4 on
        start, update = torch_sim.nve_init, torch_sim.nve_step
        now = [start(state, model, kT=kT)]
        return lambda: now.append(update(now.pop(), model, dt=step))
    begin, advance = torch_sim.nve(model, dt=step, kT=kT, seed=1)
    now = [begin(state)]
    return lambda: now.append(advance(now.pop(), dt=step))
