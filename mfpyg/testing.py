"""The laws that every potential must obey, to be checked in one line::

    from mfpyg.testing import check_potential

    check_potential(MyBackbone([1, 6, 7, 8]))

Each is checked in float64 on random molecules, with random weights in place of those a network starts with, so that
nothing is right only because a weight is zero.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from mfpyg.models import MultiFidelityPotential

__all__ = ["Law", "PotentialError", "check_potential"]


class PotentialError(AssertionError):
    """A potential breaks a law of physics, or of this package; the message says which, by how much."""


@dataclass
class Law:
    """What was checked.

    Attributes:
        name: of the law.
        error: by how much it is broken, relative to the size of what is compared; 0 where it holds to the last bit.
        allowed: the largest error that passes.
    """

    name: str
    error: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.error <= self.allowed  # not for NaN

    def __str__(self) -> str:
        return f"{'ok  ' if self.holds else 'FAIL'}  {self.name}: {self.error:.1e} (allowed {self.allowed:.0e})"


def check_potential(potential: nn.Module, *, seed: int = 0) -> list[Law]:
    """Check a potential, or a backbone, which linear heads of two fidelities are put on.

    That is, for each fidelity: energies do not change with rotation, reflection, translation and order of the atoms,
    and forces turn with them; forces are the negative numerical gradient; energies and forces are continuous where an
    atom crosses the cutoff, and energies on a path through a crowd of atoms; energies of fragments far from each other
    add; graphs of a batch do not see each other, in training neither; a supercell is its cells (energy, forces,
    stress); an atom alone has an energy that depends on nothing else and no force (its reference energy, where
    ``potential.isolated`` is ``"reference"``); energies can be differentiated twice, and a loss of forces by the
    weights; a prediction repeats to the last bit; and the loss of one fidelity leaves the parts of another alone.

    Args:
        potential: is not changed.
        seed: of molecules and weights.

    Returns:
        The laws with their errors, in the order above, fidelity by fidelity.

    Raises:
        PotentialError: naming each law that is broken. An error of the potential itself comes as it is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prepared = _prepared(potential)
        with torch.enable_grad():
            laws = [law for name in prepared.fidelities for law in _laws(_Subject(prepared, name))]
    broken = [law for law in laws if not law.holds]
    if broken:
        listed = "\n".join(map(str, broken))
        raise PotentialError(f"{len(broken)} of {len(laws)} laws are broken:\n{listed}")
    return laws


def _laws(subject: _Subject) -> list[Law]:
    laws = [law for check in _CHECKS for law in check(subject)]
    if len(subject.potential.fidelities) > 1:
        laws = [dataclasses.replace(law, name=f"{law.name} ({subject.fidelity})") for law in laws]
    return laws


def _prepared(module: nn.Module) -> MultiFidelityPotential:
    """A copy in float64 on the CPU, in evaluation mode, with random weights and references."""
    module = copy.deepcopy(module).cpu()
    potential = module if isinstance(module, MultiFidelityPotential) else MultiFidelityPotential(module, ["a", "b"])
    potential = potential.double().eval()
    potential.engine, potential.compiled = "auto", False
    with torch.no_grad():
        for parameter in potential.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        for parameter in potential.heads.parameters():  # small at the start; energies of some kcal/mol show errors
            parameter.normal_(std=0.3)
        for head in potential.heads:
            head.reference.copy_(torch.randn(len(potential.species)))  # type: ignore[operator, union-attr]
    return potential


class _Subject:
    """A potential and molecules to try it on."""

    def __init__(self, potential: MultiFidelityPotential, fidelity: str) -> None:
        self.potential, self.cutoff, self.fidelity = potential, potential.cutoff, fidelity
        self.molecule = self.cluster(7)

    def cluster(self, n_atoms: int) -> Data:
        """A random molecule whose atoms are 1 to 1.6 Å from the one they are bonded to, 0.95 Å from any."""
        pos = torch.zeros(1, 3, dtype=torch.float64)
        while len(pos) < n_atoms:
            step = torch.randn(3, dtype=torch.float64)
            new = pos[torch.randint(len(pos), ())] + (1 + 0.6 * torch.rand(())) * step / step.norm()
            if (pos - new).norm(dim=1).min() > 0.95:
                pos = torch.cat([pos, new[None]])
        return self.of(pos)

    def of(self, pos: Tensor) -> Data:
        """Atoms of random elements at these places."""
        species = torch.tensor(self.potential.species)
        return Data(z=species[torch.randint(len(species), (len(pos),))], pos=pos)

    def energy(self, data: Data) -> Tensor:
        """(n_graphs,)."""
        return self.predict(data)[0]

    def predict(self, data: Data) -> tuple[Tensor, Tensor]:
        """Energies (n_graphs,) and forces (n_atoms, 3) of the first fidelity."""
        prediction = self.potential.predict(data, {self.fidelity: True})[self.fidelity]
        assert prediction.forces is not None
        return prediction.energy, prediction.forces

    def moved(self, pos: Tensor) -> Data:
        return Data(z=self.molecule.z, pos=pos)


def _error(actual: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """Largest difference, relative to the largest of what is expected, or to another scale, and 1 at least."""
    size = float((expected if scale is None else scale).abs().max()) if expected.numel() else 0.0
    difference = (actual - expected).abs()
    if not torch.isfinite(difference).all():
        return float("nan")
    return float(difference.max()) / max(size, 1.0) if difference.numel() else 0.0


def _symmetries(s: _Subject) -> list[Law]:
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
        laws.append(Law(f"energy unchanged by {name}", _error(new_energy, energy), 1e-10))
        laws.append(Law(f"forces follow {name}", _error(new_forces, expected), 1e-10))
    return laws


def _gradient(s: _Subject) -> list[Law]:
    """Central differences of every coordinate; of several steps the best, as a network may be sharply curved."""
    pos, forces = s.molecule.pos, s.predict(s.molecule)[1]

    def error(step: float) -> float:
        numeric = torch.empty_like(pos)
        for i in range(pos.numel()):
            direction = torch.zeros_like(pos)
            direction.view(-1)[i] = 1
            slope = _slope(lambda h, direction=direction: s.energy(s.moved(pos + h * direction)), step)  # type: ignore[misc]
            numeric.view(-1)[i] = -slope.item()
        return _error(forces, numeric)

    return [Law("forces are the negative numerical gradient", _least(error, 1e-3, 1e-4, 1e-5), 1e-6)]


def _least(error: Callable[[float], float], *steps: float) -> float:
    """The least error of some steps; NaN if one is."""
    errors = [error(step) for step in steps]
    return max(errors) if any(e != e for e in errors) else min(errors)


def _continuity(s: _Subject) -> list[Law]:
    """An atom on either side of the cutoff of another one, which has neighbours of its own, and one far inside."""
    direction = torch.randn(3, dtype=torch.float64)
    direction = direction / direction.norm()
    near = s.cluster(4)
    far = near.pos[0] + s.cutoff * direction
    data = [Data(z=torch.cat([near.z, near.z[:1]]), pos=torch.cat([near.pos, far[None]])) for _ in range(3)]
    for number, distance in enumerate((1 - 1e-8, 1 + 1e-8, 0.7)):
        data[number].pos[-1] = near.pos[0] + distance * s.cutoff * direction
    (inner, inner_forces), (outer, outer_forces), (well, well_forces) = map(s.predict, data)
    energies, forces = well - outer, well_forces - outer_forces
    return [
        Law("energy continuous at the cutoff", _error(inner, outer, torch.cat([energies, outer])), 1e-6),
        Law(
            "forces continuous at the cutoff",
            _error(inner_forces, outer_forces, torch.cat([forces, outer_forces])),
            1e-5,
        ),
    ]


def _independence(s: _Subject) -> list[Law]:
    one, two = s.cluster(5), s.cluster(4)
    apart = Data(z=torch.cat([one.z, two.z]), pos=torch.cat([one.pos, two.pos + 10 * s.cutoff]))
    energies, forces = zip(s.predict(one), s.predict(two), strict=True)
    alone, own_forces = torch.cat(energies), torch.cat(forces)
    energy, together = s.predict(apart)
    in_batch, batch_forces = s.predict(Batch.from_data_list([one, two]))
    moved = Data(z=two.z, pos=two.pos + 0.1 * torch.randn_like(two.pos))
    first, still = s.predict(Batch.from_data_list([one, moved]))
    return [
        Law("energies of far fragments add", _error(energy, alone.sum().view(1)), 1e-10),
        Law("forces of far fragments are their own", _error(together, own_forces), 1e-10),
        Law("energies of a batch are each graph's own", _error(in_batch, alone), 1e-10),
        Law("forces of a batch are each graph's own", _error(batch_forces, own_forces), 1e-10),
        Law("energy unmoved by another graph", _error(first[0], in_batch[0]), 1e-10),
        Law("forces unmoved by another graph", _error(still[: len(one.z)], batch_forces[: len(one.z)]), 1e-10),
        Law("energy in training does not see another graph", _seen_in_training(s, one, two), 0.0),
    ]


def _seen_in_training(s: _Subject, one: Data, two: Data) -> float:
    """Largest derivative of the energy of the first graph by positions in the second."""
    batch = Batch.from_data_list([one, two])
    batch.pos = batch.pos.clone().requires_grad_()
    potential = s.potential.train()
    energy = potential.predict(batch, {s.fidelity: False})[s.fidelity].energy
    potential.eval()
    (gradient,) = torch.autograd.grad(energy[0], batch.pos)
    return float(gradient[len(one.z) :].abs().max())


def _crowd(s: _Subject) -> list[Law]:
    """A step of the energy on a straight path through other atoms, found by halving where it changes unlike forces."""
    others = s.cluster(9)
    centre = others.pos.mean(dim=0)
    directions = torch.nn.functional.normalize(torch.randn(40, 3, dtype=torch.float64), dim=1)
    offsets = torch.linspace(-1, 1, 301, dtype=torch.float64)[:, None] * (s.cutoff + 3)  # (n_places, 1)
    paths = centre + offsets * directions[:, None]  # (n_directions, n_places, 3)
    free = torch.cdist(paths.flatten(0, 1), others.pos).amin(dim=1).view(40, -1).amin(dim=1)
    direction, z = directions[int(free.argmax())], torch.cat([others.z, others.z[:1]])

    def at(places: Tensor) -> tuple[Tensor, Tensor]:
        data = [Data(z=z, pos=torch.cat([others.pos, (centre + x * direction)[None]])) for x in places]
        energy, forces = s.predict(Batch.from_data_list(data))
        return energy, forces.view(len(data), -1, 3)[:, -1] @ direction

    places = offsets.squeeze(1)
    energies, forces = at(places)
    spread = energies.max() - energies.min()
    unlike = (energies.diff() + (forces[1:] + forces[:-1]) / 2 * places.diff()).abs()
    begin = int(unlike.argmax()) if unlike.isfinite().all() else 0
    low, high = places[begin], places[begin + 1]
    for _ in range(30):
        middle = (low + high) / 2
        (a, b, c), _ = at(torch.stack([low, middle, high]))
        low, high = (low, middle) if (b - a).abs() > (c - b).abs() else (middle, high)
    ends, _ = at(torch.stack([low, high]))
    return [Law("energy continuous on a path through a crowd", _error(ends[1], ends[0], spread.view(1)), 1e-5)]


def _supercell(s: _Subject) -> list[Law]:
    """A cell smaller than the cutoff, whose atoms see their own images, and twice the cell."""
    pair = s.cluster(2)
    cell = 0.8 * s.cutoff * torch.eye(3, dtype=torch.float64) + 0.1 * torch.rand(3, 3, dtype=torch.float64)
    all_ways = torch.ones(1, 3, dtype=torch.bool)
    small = Data(z=pair.z, pos=pair.pos, cell=cell[None], pbc=all_ways)
    double = torch.cat([2 * cell[:1], cell[1:]])[None]
    large = Data(z=pair.z.repeat(2), pos=torch.cat([pair.pos, pair.pos + cell[0]]), cell=double, pbc=all_ways)
    one, two = (s.potential.predict(data, {s.fidelity: True}, stress=True)[s.fidelity] for data in (small, large))
    assert one.forces is not None
    assert two.forces is not None
    assert one.stress is not None
    assert two.stress is not None
    return [
        Law("energy of a supercell is that of its cells", _error(two.energy, 2 * one.energy), 1e-10),
        Law("forces of a supercell are those of its cells", _error(two.forces, one.forces.repeat(2, 1)), 1e-10),
        Law("stress of a supercell is that of its cells", _error(two.stress, one.stress), 1e-10),
    ]


def _isolated(s: _Subject) -> list[Law]:
    species = torch.tensor(s.potential.species)
    origin = torch.zeros(1, 3, dtype=torch.float64)
    alone = [s.predict(Data(z=z.view(1), pos=origin)) for z in species]
    energies, forces = (torch.cat(parts) for parts in zip(*alone, strict=True))
    spread = torch.arange(len(species), dtype=torch.float64)[:, None] * 3 * s.cutoff * torch.ones(3).double()
    together, _ = s.predict(Data(z=species, pos=spread))
    laws = [
        Law("no force on an atom alone", _error(forces, torch.zeros_like(forces)), 0.0),
        Law("energy of an atom alone depends on its element only", _error(together, energies.sum().view(1)), 1e-10),
    ]
    if s.potential.isolated == "reference":
        reference = s.potential.head(s.fidelity).reference
        laws.append(Law("energy of an atom alone is its reference", _error(energies, reference), 1e-12))
    return laws


def _second_derivatives(s: _Subject) -> list[Law]:
    """By positions, and of a loss of forces by the weights, along random directions, by central differences."""
    small = s.cluster(4)
    potential = s.potential

    def gradient(pos: Tensor) -> Tensor:
        pos = pos.detach().requires_grad_()
        energy = potential.predict(Data(z=small.z, pos=pos), {s.fidelity: False})[s.fidelity].energy
        (result,) = torch.autograd.grad(energy.sum(), pos, create_graph=True)
        return result

    direction = torch.randn_like(small.pos)
    pos = small.pos.clone().requires_grad_()
    energy = potential.predict(Data(z=small.z, pos=pos), {s.fidelity: False})[s.fidelity].energy
    (first,) = torch.autograd.grad(energy.sum(), pos, create_graph=True)
    (second,) = torch.autograd.grad((first * direction).sum(), pos)
    steps = (1e-3, 1e-4, 1e-5)
    error = _least(lambda h: _error(second, _slope(lambda x: gradient(small.pos + x * direction).detach(), h)), *steps)
    return [Law("second derivatives by positions are the numerical ones", error, 1e-5), _force_loss(s, small)]


def _force_loss(s: _Subject, small: Data) -> Law:
    potential = s.potential.train()
    weights = [parameter for parameter in potential.parameters() if parameter.requires_grad]
    target = torch.randn_like(small.pos)
    start = [weight.detach().clone() for weight in weights]
    directions = [torch.randn_like(weight) for weight in weights]

    def loss() -> Tensor:
        forces = potential.predict(small, {s.fidelity: True})[s.fidelity].forces
        assert forces is not None
        return (forces - target).square().mean()

    def at(h: float) -> Tensor:
        with torch.no_grad():
            for weight, value, direction in zip(weights, start, directions, strict=True):
                weight.copy_(value + h * direction)
        return loss().detach()

    try:
        gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
        pairs = zip(gradients, directions, strict=True)
        slope = sum((g * d).sum() for g, d in pairs if g is not None)
        assert isinstance(slope, Tensor)
        error = _least(lambda step: _error(slope, _slope(at, step)), 1e-4, 1e-5, 1e-6)
    finally:
        at(0.0)
        potential.eval()
    return Law("derivative of a loss of forces by the weights is the numerical one", error, 1e-5)


def _slope(function: Callable[[float], Tensor], step: float) -> Tensor:
    """Derivative at zero by central differences of fourth order."""
    one, two = (function(k * step) - function(-k * step) for k in (1, 2))
    return (8 * one - two) / (12 * step)


def _repeats(s: _Subject) -> list[Law]:
    (energy, forces), (again, forces_again) = s.predict(s.molecule), s.predict(s.molecule)
    error = max(float((again - energy).abs().max()), float((forces_again - forces).abs().max()))
    return [Law("a prediction repeats to the last bit", error, 0.0)]


def _fidelities(s: _Subject) -> list[Law]:
    """What belongs to the other fidelities gets no gradient."""
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
    prediction = potential.predict(s.molecule, {s.fidelity: True})[s.fidelity]
    potential.eval()
    assert prediction.forces is not None
    loss = prediction.energy.square().sum() + prediction.forces.square().sum()
    gradients = torch.autograd.grad(loss, others, allow_unused=True) if others else ()
    error = max((float(g.abs().max()) for g in gradients if g is not None), default=0.0)
    return [Law("the loss of a fidelity leaves the parts of others alone", error, 0.0)]


_CHECKS: tuple[Callable[[_Subject], list[Law]], ...] = (
    _symmetries,
    _gradient,
    _continuity,
    _crowd,
    _independence,
    _supercell,
    _isolated,
    _second_derivatives,
    _repeats,
    _fidelities,
)
