"""Laws of invariance: symmetries, distant fragments, other graphs of a batch, supercells, reproducibility."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from mfpyg.properties import ENERGY, Property
from mfpyg.testing.subject import Law, Subject, changed, error_of


def symmetries(s: Subject) -> list[Law]:
    """Compare all properties of a cation, and of a crystal, to those after moving it."""
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    rotation = rotation * torch.linalg.det(rotation).sign()
    mirror = rotation * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    laws = []
    for data, of in ((s.molecule, ""), (s.crystal, " of a crystal")):
        order, shift = torch.arange(len(data.z)).flip(0), 10 * torch.randn(3, dtype=torch.float64)
        before = s.properties(data)
        same, unmoved = torch.eye(3, dtype=torch.float64), torch.arange(len(data.z))
        moves = {
            "rotation": (_turned(data, rotation), rotation, unmoved),
            "reflection": (_turned(data, mirror), mirror, unmoved),
            "translation": (changed(data, pos=data.pos + shift), same, unmoved),
            "order of the atoms": (changed(data, z=data.z[order], pos=data.pos[order]), same, order),
        }
        for name, (moved, matrix, numbers) in moves.items():
            after = s.properties(moved)
            for p, value in before.items():
                expected = _expected(p, value, matrix, numbers)
                how = "unchanged by" if torch.equal(expected, value) else "equivariant under"
                laws.append(Law(f"{p.name}{of} {how} {name}", error_of(after[p], expected), 1e-10))
    return laws


def _turned(data: Data, matrix: Tensor) -> Data:
    cell = getattr(data, "cell", None)
    turned = changed(data, pos=data.pos @ matrix.T)
    return turned if cell is None else changed(turned, cell=cell @ matrix.T)


def _expected(p: Property, value: Tensor, matrix: Tensor, order: Tensor) -> Tensor:
    """Values after an orthogonal matrix (3, 3) has turned positions, and atoms have been put in this order."""
    if p.per == "atom":
        value = value[order]
    if p.shape == ():
        return value
    return value @ matrix.T if p.shape == (3,) else matrix @ value @ matrix.T


def independence(s: Subject) -> list[Law]:
    one, two = s.cluster(5), s.cluster(4, charge=1)
    moved = changed(two, pos=two.pos + 0.1 * torch.randn_like(two.pos))
    first, second, together, still = (
        s.properties(data) for data in (one, two, Batch.from_data_list([one, two]), Batch.from_data_list([one, moved]))
    )
    laws = _of_fragments(s, one, two)
    for p, value in together.items():
        alone = torch.cat([first[p], second[p]])
        laws.append(Law(f"{p.plural} in a batch are those of single graphs", error_of(value, alone), 1e-10))
    for p, value in together.items():
        n = len(first[p])
        laws.append(Law(f"{p.name} independent of another graph", error_of(still[p][:n], value[:n]), 1e-10))
    return [*laws, *_influence_in_training(s, one, two)]


def _of_fragments(s: Subject, one: Data, two: Data) -> list[Law]:
    apart = Data(z=torch.cat([one.z, two.z]), pos=torch.cat([one.pos, two.pos + 10 * s.cutoff]))
    energies, forces = zip(s.energy_and_forces(one), s.energy_and_forces(two), strict=True)
    energy, together = s.energy_and_forces(apart)
    return [
        Law("energies of far fragments add", error_of(energy, torch.cat(energies).sum().view(1)), 1e-10),
        Law("forces of far fragments are their own", error_of(together, torch.cat(forces)), 1e-10),
    ]


def _influence_in_training(s: Subject, one: Data, two: Data) -> list[Law]:
    """Derivatives of the properties of the first graph with respect to positions in the second."""
    batch = Batch.from_data_list([one, two])
    batch.pos = batch.pos.clone().requires_grad_()
    s.potential.train()
    found = s.properties(batch)
    s.potential.eval()
    laws = []
    for p, value in found.items():
        own = value[: 1 if p.per == "graph" else len(one.z)].square().sum()
        (gradient,) = torch.autograd.grad(own, batch.pos, retain_graph=True, materialize_grads=True)
        error = float(gradient[len(one.z) :].abs().max())
        laws.append(Law(f"{p.name} in training independent of another graph", error, 0.0))
    return laws


def supercell(s: Subject) -> list[Law]:
    """Compare the crystal to its doubled cell."""
    small, cell = s.crystal, s.crystal.cell[0]
    double = torch.cat([2 * cell[:1], cell[1:]])[None]
    pos = torch.cat([small.pos, small.pos + cell[0]])
    one, two = s.properties(small), s.properties(changed(small, z=small.z.repeat(2), pos=pos, cell=double))
    laws = []
    for p, value in one.items():
        expected = value.repeat(2, *[1] * len(p.shape)) if p.per == "atom" else value
        expected = 2 * value if p is ENERGY else expected
        laws.append(Law(f"{p.name} of a supercell as of its cells", error_of(two[p], expected), 1e-10))
    return laws


def isolated(s: Subject) -> list[Law]:
    species = torch.tensor(s.potential.species)
    origin = torch.zeros(1, 3, dtype=torch.float64)
    alone = [s.energy_and_forces(Data(z=z.view(1), pos=origin)) for z in species]
    energies, forces = (torch.cat(parts) for parts in zip(*alone, strict=True))
    spread = torch.arange(len(species), dtype=torch.float64)[:, None] * 3 * s.cutoff * torch.ones(3).double()
    together, _ = s.energy_and_forces(Data(z=species, pos=spread))
    laws = [
        Law("no force on an atom alone", error_of(forces, torch.zeros_like(forces)), 0.0),
        Law("energy of an atom alone depends on its element only", error_of(together, energies.sum().view(1)), 1e-10),
    ]
    if s.potential.isolated == "reference":
        reference = s.potential.head(s.fidelity).reference
        laws.append(Law("energy of an atom alone is its reference", error_of(energies, reference), 1e-12))
    return laws


def repeats(s: Subject) -> list[Law]:
    first, again = s.properties(s.molecule), s.properties(s.molecule)
    error = max(float((again[p] - value).abs().max()) for p, value in first.items())
    return [Law("a prediction repeats to the last bit", error, 0.0)]


def fidelities(s: Subject) -> list[Law]:
    """Check that heads, of charges too, and private blocks of other fidelities get no gradient."""
    potential = s.potential.train()
    parts = potential.parts_of([name for name in potential.fidelities if name != s.fidelity])
    others = [parameter for parameter in parts.parameters() if parameter.requires_grad]
    loss = torch.stack([value.square().sum() for value in s.properties(s.molecule).values()]).sum()
    potential.eval()
    gradients = torch.autograd.grad(loss, others, allow_unused=True) if others else ()
    error = max((float(g.abs().max()) for g in gradients if g is not None), default=0.0)
    return [Law("the loss of a fidelity leaves the parts of others alone", error, 0.0)]
