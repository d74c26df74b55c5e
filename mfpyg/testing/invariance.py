"""Laws of invariance: symmetries, distant fragments, other graphs of a batch, supercells, reproducibility."""

from __future__ import annotations

import torch
from torch_geometric.data import Batch, Data

from mfpyg.testing.subject import Law, Subject, error_of


def symmetries(s: Subject) -> list[Law]:
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    rotation = rotation * torch.linalg.det(rotation).sign()
    mirror = rotation * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    order = torch.randperm(len(s.molecule.z))
    pos, (energy, forces) = s.molecule.pos, s.predict(s.molecule)
    moved = {
        "rotation": (s.moved(pos @ rotation.T), forces @ rotation.T),
        "reflection": (s.moved(pos @ mirror.T), forces @ mirror.T),
        "translation": (s.moved(pos + 10 * torch.randn(3, dtype=torch.float64)), forces),
        "order of the atoms": (Data(z=s.molecule.z[order], pos=pos[order]), forces[order]),
    }
    laws = []
    for name, (data, expected) in moved.items():
        new_energy, new_forces = s.predict(data)
        laws.append(Law(f"energy unchanged by {name}", error_of(new_energy, energy), 1e-10))
        laws.append(Law(f"forces follow {name}", error_of(new_forces, expected), 1e-10))
    return laws


def independence(s: Subject) -> list[Law]:
    one, two = s.cluster(5), s.cluster(4)
    apart = Data(z=torch.cat([one.z, two.z]), pos=torch.cat([one.pos, two.pos + 10 * s.cutoff]))
    energies, forces = zip(s.predict(one), s.predict(two), strict=True)
    alone, own_forces = torch.cat(energies), torch.cat(forces)
    energy, together = s.predict(apart)
    in_batch, batch_forces = s.predict(Batch.from_data_list([one, two]))
    moved = Data(z=two.z, pos=two.pos + 0.1 * torch.randn_like(two.pos))
    first, still = s.predict(Batch.from_data_list([one, moved]))
    return [
        Law("energies of far fragments add", error_of(energy, alone.sum().view(1)), 1e-10),
        Law("forces of far fragments are their own", error_of(together, own_forces), 1e-10),
        Law("energies in a batch are those of single graphs", error_of(in_batch, alone), 1e-10),
        Law("forces in a batch are those of single graphs", error_of(batch_forces, own_forces), 1e-10),
        Law("energy independent of another graph", error_of(first[0], in_batch[0]), 1e-10),
        Law("forces independent of another graph", error_of(still[: len(one.z)], batch_forces[: len(one.z)]), 1e-10),
        Law("energy in training independent of another graph", _influence_in_training(s, one, two), 0.0),
    ]


def _influence_in_training(s: Subject, one: Data, two: Data) -> float:
    """Largest derivative of the energy of the first graph with respect to positions in the second."""
    batch = Batch.from_data_list([one, two])
    batch.pos = batch.pos.clone().requires_grad_()
    potential = s.potential.train()
    energy = potential.predict(batch, {s.fidelity: "E"})[s.fidelity].energy
    potential.eval()
    (gradient,) = torch.autograd.grad(energy[0], batch.pos)
    return float(gradient[len(one.z) :].abs().max())


def supercell(s: Subject) -> list[Law]:
    """Compare a cell smaller than the cutoff, whose atoms interact with their own images, to the doubled cell."""
    pair = s.cluster(2)
    cell = 0.8 * s.cutoff * torch.eye(3, dtype=torch.float64) + 0.1 * torch.rand(3, 3, dtype=torch.float64)
    pbc = torch.ones(1, 3, dtype=torch.bool)
    small = Data(z=pair.z, pos=pair.pos, cell=cell[None], pbc=pbc)
    double = torch.cat([2 * cell[:1], cell[1:]])[None]
    large = Data(z=pair.z.repeat(2), pos=torch.cat([pair.pos, pair.pos + cell[0]]), cell=double, pbc=pbc)
    one, two = (s.potential.predict(data, {s.fidelity: "EFS"})[s.fidelity] for data in (small, large))
    assert one.forces is not None
    assert two.forces is not None
    assert one.stress is not None
    assert two.stress is not None
    return [
        Law("energy of a supercell is that of its cells", error_of(two.energy, 2 * one.energy), 1e-10),
        Law("forces of a supercell are those of its cells", error_of(two.forces, one.forces.repeat(2, 1)), 1e-10),
        Law("stress of a supercell is that of its cells", error_of(two.stress, one.stress), 1e-10),
    ]


def isolated(s: Subject) -> list[Law]:
    species = torch.tensor(s.potential.species)
    origin = torch.zeros(1, 3, dtype=torch.float64)
    alone = [s.predict(Data(z=z.view(1), pos=origin)) for z in species]
    energies, forces = (torch.cat(parts) for parts in zip(*alone, strict=True))
    spread = torch.arange(len(species), dtype=torch.float64)[:, None] * 3 * s.cutoff * torch.ones(3).double()
    together, _ = s.predict(Data(z=species, pos=spread))
    laws = [
        Law("no force on an atom alone", error_of(forces, torch.zeros_like(forces)), 0.0),
        Law("energy of an atom alone depends on its element only", error_of(together, energies.sum().view(1)), 1e-10),
    ]
    if s.potential.isolated == "reference":
        reference = s.potential.head(s.fidelity).reference
        laws.append(Law("energy of an atom alone is its reference", error_of(energies, reference), 1e-12))
    return laws


def repeats(s: Subject) -> list[Law]:
    (energy, forces), (again, forces_again) = s.predict(s.molecule), s.predict(s.molecule)
    error = max(float((again - energy).abs().max()), float((forces_again - forces).abs().max()))
    return [Law("a prediction repeats to the last bit", error, 0.0)]


def fidelities(s: Subject) -> list[Law]:
    """Check that weights of other fidelities get no gradient."""
    potential = s.potential.train()
    own = potential.fidelities.index(s.fidelity)
    others = [
        parameter
        for parts in (potential.heads, potential.private)
        for number, part in enumerate(parts)
        if number != own
        for parameter in part.parameters()
        if parameter.requires_grad
    ]
    prediction = potential.predict(s.molecule, {s.fidelity: "EF"})[s.fidelity]
    potential.eval()
    assert prediction.forces is not None
    loss = prediction.energy.square().sum() + prediction.forces.square().sum()
    gradients = torch.autograd.grad(loss, others, allow_unused=True) if others else ()
    error = max((float(g.abs().max()) for g in gradients if g is not None), default=0.0)
    return [Law("the loss of a fidelity leaves the parts of others alone", error, 0.0)]
