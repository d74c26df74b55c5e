"""Laws of smoothness: derivatives equal finite differences, and properties are continuous."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.graph import RadiusGraph
from mfpyg.models.hessian import hessian
from mfpyg.properties import FORCES
from mfpyg.testing.subject import Law, Subject, changed, copies, error_of, least, slope_of, slopes_of


def gradient(s: Subject) -> list[Law]:
    """Compare to central differences, with the best of several steps, as the curvature may be large."""
    pos, (_, forces) = s.molecule.pos, s.energy_and_forces(s.molecule)

    def energies(shift: Tensor) -> Tensor:
        return s.predict(copies(s.molecule, pos=pos + shift), "E").energy

    def error(step: float) -> float:
        return error_of(-forces, slopes_of(energies, _unit_shifts(len(pos)), step).view_as(pos))

    return [Law("forces are the negative numerical gradient", least(error, 1e-6, 1e-3, 1e-4, 1e-5), 1e-6)]


def stress(s: Subject) -> list[Law]:
    """Compare the virial, V times the stress, to derivatives of the energy by strain of positions and cell."""
    crystal, found = s.crystal, s.predict(s.crystal, "S").stress
    assert found is not None
    units = torch.eye(9, dtype=torch.float64).view(9, 3, 3)

    def energies(strain: Tensor) -> Tensor:
        deformation = torch.eye(3, dtype=torch.float64) + strain  # (n_copies, 3, 3)
        strained = copies(crystal, pos=crystal.pos @ deformation, cell=(crystal.cell @ deformation)[:, None])
        return s.predict(strained, "E").energy

    def error(step: float) -> float:
        return error_of(virial, slopes_of(energies, (units + units.mT) / 2, step).view(3, 3), least_scale=1e-3)

    virial = found[0] * torch.linalg.det(crystal.cell[0]).abs()
    return [Law("stress is the numerical derivative by strain", least(error, 1e-6, 1e-3, 1e-4, 1e-5), 1e-6)]


def hessians(s: Subject) -> list[Law]:
    """Compare a Hessian to central differences of forces, its transpose, and that of the rotated molecule."""
    small = s.cluster(5)
    found, n = hessian(s.potential, small, s.fidelity), len(small.z)  # (n, n, 3, 3)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    turned = hessian(s.potential, changed(small, pos=small.pos @ rotation.T), s.fidelity)

    def forces(shift: Tensor) -> Tensor:
        return s.energy_and_forces(copies(small, pos=small.pos + shift))[1].view(-1, n, 3)

    def error(step: float) -> float:
        numeric = -slopes_of(forces, _unit_shifts(n), step).view(n, 3, n, 3).transpose(1, 2)
        return error_of(found, numeric, least_scale=1e-3)

    return [
        Law("Hessian is minus the numerical derivative of forces", least(error, 1e-6, 1e-3, 1e-4, 1e-5), 1e-6),
        Law("Hessian is symmetric", error_of(found, found.permute(1, 0, 3, 2)), 0.0),
        Law(
            "rows of the Hessian add up to zero over atoms",
            error_of(found.sum(dim=1), torch.zeros_like(found[0]), found),
            1e-9,
        ),
        Law("Hessian equivariant under rotation", error_of(turned, rotation @ found @ rotation.T), 1e-9),
    ]


def _unit_shifts(n_atoms: int) -> Tensor:
    """Displacements of each atom along each axis, (3 n_atoms, n_atoms, 3)."""
    return torch.eye(3 * n_atoms, dtype=torch.float64).view(-1, n_atoms, 3)


def continuity(s: Subject) -> list[Law]:
    """Compare an atom just inside and just outside the cutoff of another, on the scale of one well inside.

    Where the backbone says that longer edges have no effect, compare also predictions with and without such edges.
    """
    direction = torch.randn(3, dtype=torch.float64)
    direction = direction / direction.norm()
    near = s.cluster(4)
    z = torch.cat([near.z, near.z[:1]])

    def at(distance: float) -> Data:
        far = near.pos[0] + distance * s.cutoff * direction
        return changed(near, z=z, pos=torch.cat([near.pos, far[None]]))

    inner, outer, well = (s.properties(at(distance)) for distance in (1 - 1e-8, 1 + 1e-8, 0.7))
    laws = []
    for p, value in outer.items():
        error = error_of(inner[p], value, torch.cat([well[p] - value, value]))
        laws.append(Law(f"{p.name} continuous at the cutoff", error, 1e-5 if p is FORCES else 1e-6))
    if s.potential.vanishes_beyond_cutoff:
        beyond = at(1.1)
        expected, more = s.properties(beyond), RadiusGraph(1.3 * s.cutoff)(changed(beyond))
        more.edge_cutoff.fill_(s.cutoff)
        for p, value in s.properties(more).items():
            laws.append(Law(f"{p.name} independent of edges beyond the cutoff", error_of(value, expected[p]), 1e-6))
    return laws


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

    def at(places: Tensor) -> Data:
        last = (centre + places[:, None] * direction)[:, None]  # (n_places, 1, 3)
        return copies(changed(others, z=z), pos=torch.cat([others.pos.expand(len(places), -1, 3), last], dim=1))

    places = offsets.squeeze(1)
    energies, forces = s.energy_and_forces(at(places))
    spread = energies.max() - energies.min()
    along = forces.view(len(places), -1, 3)[:, -1] @ direction
    mismatch = (energies.diff() + (along[1:] + along[:-1]) / 2 * places.diff()).abs()
    begin = int(mismatch.argmax()) if mismatch.isfinite().all() else 0
    ends = places[begin : begin + 2]
    for _ in range(10):
        between = ends[0] + (ends[1] - ends[0]) * torch.linspace(0, 1, 9, dtype=torch.float64)
        energies = s.predict(at(between), "E").energy
        step = int(energies.diff().abs().argmax())
        ends, values = between[step : step + 2], energies[step : step + 2]
    return [Law("energy continuous on a path through a crowd", error_of(values[1], values[0], spread.view(1)), 1e-5)]


def weights(s: Subject) -> list[Law]:
    """Compare the derivative of a force loss by the weights to central differences."""
    small, potential = s.cluster(4), s.potential.train()
    trained = [parameter for parameter in potential.parameters() if parameter.requires_grad]
    target = torch.randn_like(small.pos)
    start = [weight.detach().clone() for weight in trained]
    directions = [torch.randn_like(weight) for weight in trained]

    def loss() -> Tensor:
        return (s.energy_and_forces(small)[1] - target).square().mean()

    def at(h: float) -> Tensor:
        with torch.no_grad():
            for weight, value, direction in zip(trained, start, directions, strict=True):
                weight.copy_(value + h * direction)
        return loss().detach()

    try:
        gradients = torch.autograd.grad(loss(), trained, allow_unused=True)
        pairs = zip(gradients, directions, strict=True)
        slope = sum((g * d).sum() for g, d in pairs if g is not None)
        assert isinstance(slope, Tensor)
        error = least(lambda step: error_of(slope, slope_of(at, step)), 1e-5, 1e-4, 1e-5, 1e-6)
    finally:
        at(0.0)
        potential.eval()
    return [Law("derivative of a loss of forces by the weights is the numerical one", error, 1e-5)]
