"""Laws of smoothness: derivatives equal finite differences, and energies and forces are continuous."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from mfpyg.testing.subject import Law, Subject, error_of, least, slope_of


def gradient(s: Subject) -> list[Law]:
    """Compare to central differences, with the best of several steps, as the curvature may be large."""
    pos, forces = s.molecule.pos, s.predict(s.molecule)[1]

    def error(step: float) -> float:
        numeric = torch.empty_like(pos)
        for i in range(pos.numel()):
            direction = torch.zeros_like(pos)
            direction.view(-1)[i] = 1
            slope = slope_of(lambda h, direction=direction: s.energy(s.moved(pos + h * direction)), step)  # type: ignore[misc]
            numeric.view(-1)[i] = -slope.item()
        return error_of(forces, numeric)

    return [Law("forces are the negative numerical gradient", least(error, 1e-3, 1e-4, 1e-5), 1e-6)]


def continuity(s: Subject) -> list[Law]:
    """Compare an atom just inside and just outside the cutoff of another, on the scale of one well inside."""
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
        Law("energy continuous at the cutoff", error_of(inner, outer, torch.cat([energies, outer])), 1e-6),
        Law(
            "forces continuous at the cutoff",
            error_of(inner_forces, outer_forces, torch.cat([forces, outer_forces])),
            1e-5,
        ),
    ]


def crowd(s: Subject) -> list[Law]:
    """Search for a step of the energy on a straight path through other atoms.

    Bisection starts where the change of the energy differs most from the work of the forces.
    """
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
    mismatch = (energies.diff() + (forces[1:] + forces[:-1]) / 2 * places.diff()).abs()
    begin = int(mismatch.argmax()) if mismatch.isfinite().all() else 0
    low, high = places[begin], places[begin + 1]
    for _ in range(30):
        middle = (low + high) / 2
        (a, b, c), _ = at(torch.stack([low, middle, high]))
        low, high = (low, middle) if (b - a).abs() > (c - b).abs() else (middle, high)
    ends, _ = at(torch.stack([low, high]))
    return [Law("energy continuous on a path through a crowd", error_of(ends[1], ends[0], spread.view(1)), 1e-5)]


def second_derivatives(s: Subject) -> list[Law]:
    """Compare derivatives of forces by positions, and of a force loss by weights, to central differences."""
    small = s.cluster(4)
    potential = s.potential

    def first_at(pos: Tensor) -> Tensor:
        pos = pos.detach().requires_grad_()
        energy = potential.predict(Data(z=small.z, pos=pos), {s.fidelity: "E"})[s.fidelity].energy
        (result,) = torch.autograd.grad(energy.sum(), pos, create_graph=True)
        return result

    direction = torch.randn_like(small.pos)
    pos = small.pos.clone().requires_grad_()
    energy = potential.predict(Data(z=small.z, pos=pos), {s.fidelity: "E"})[s.fidelity].energy
    (first,) = torch.autograd.grad(energy.sum(), pos, create_graph=True)
    (second,) = torch.autograd.grad((first * direction).sum(), pos)

    def error_at(step: float) -> float:
        return error_of(second, slope_of(lambda h: first_at(small.pos + h * direction).detach(), step))

    error = least(error_at, 1e-3, 1e-4, 1e-5)
    return [Law("second derivatives by positions are the numerical ones", error, 1e-5), _force_loss(s, small)]


def _force_loss(s: Subject, small: Data) -> Law:
    potential = s.potential.train()
    weights = [parameter for parameter in potential.parameters() if parameter.requires_grad]
    target = torch.randn_like(small.pos)
    start = [weight.detach().clone() for weight in weights]
    directions = [torch.randn_like(weight) for weight in weights]

    def loss() -> Tensor:
        forces = potential.predict(small, {s.fidelity: "EF"})[s.fidelity].forces
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
        error = least(lambda step: error_of(slope, slope_of(at, step)), 1e-4, 1e-5, 1e-6)
    finally:
        at(0.0)
        potential.eval()
    return Law("derivative of a loss of forces by the weights is the numerical one", error, 1e-5)
