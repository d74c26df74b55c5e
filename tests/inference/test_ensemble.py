"""Several potentials as one: means, standard deviations, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mfpyg.datasets import MiniCHNO
from mfpyg.errors import MFPyGError
from mfpyg.inference.ensemble import Ensemble
from mfpyg.models import HIPNN, MultiFidelityPotential


def potential(seed: int, *fidelities: str) -> MultiFidelityPotential:
    torch.manual_seed(seed)
    backbone = HIPNN([1, 6, 7, 8], n_features=8, n_sensitivities=6, n_interactions=1, n_atom_layers=1)
    return MultiFidelityPotential(backbone, fidelities or ["dz", "cc"]).double()


def test_mean_and_spread_are_those_of_the_members() -> None:
    members = [potential(seed) for seed in range(3)]
    data = MiniCHNO()[0]
    mean, spread = Ensemble(members).predict(data, {"cc": "EF"})
    each = [member.eval()(data, fidelity="cc") for member in members]
    assert spread is not None
    for name in ("energy", "forces", "atomic_energies"):
        values = torch.stack([getattr(one, name) for one in each])
        torch.testing.assert_close(getattr(mean["cc"], name), values.sum(dim=0) / 3)
        deviation = ((values - values.mean(dim=0)) ** 2).sum(dim=0) / 2
        torch.testing.assert_close(getattr(spread["cc"], name), deviation.sqrt())
    assert mean["cc"].stress is None


def test_one_member_is_its_own_mean_and_has_no_spread() -> None:
    member, data = potential(0), MiniCHNO()[0]
    mean, spread = Ensemble(member).predict(data, {"cc": "EF"})
    assert spread is None
    assert torch.equal(mean["cc"].forces, member(data, fidelity="cc").forces)  # type: ignore[arg-type]


def test_one_member_has_standard_deviations_of_its_own(add_std: Callable[..., MultiFidelityPotential]) -> None:
    """Of energies and forces, as far as they are predicted, for the fidelities that have them."""
    member, data = add_std(potential(0), "cc").eval(), MiniCHNO()[0]
    ensemble = Ensemble(member)
    mean, spread = ensemble.predict(data, {"dz": "E", "cc": "EF"}, std=True)
    expected = member.predict(data, {"cc": "EF"}, std=True)["cc"]
    assert spread is not None
    assert list(mean) == ["dz", "cc"]
    assert list(spread) == ["cc"]
    assert torch.equal(spread["cc"].energy, expected.energy_std)  # type: ignore[arg-type]
    assert torch.equal(spread["cc"].forces, expected.forces_std)  # type: ignore[arg-type]
    assert torch.equal(mean["cc"].forces, expected.forces)  # type: ignore[arg-type]
    only_energy = ensemble.predict(data, {"cc": "E"}, std=True)[1]
    assert only_energy is not None
    assert only_energy["cc"].forces is None
    assert [ensemble.has_std(name) for name in ("dz", "cc")] == [False, True]
    assert ensemble.predict(data, {"dz": "EF"}, std=True)[1] == {}
    assert ensemble.letters_with_std(["dz", "cc"], "EFS") == "EF"
    assert ensemble.letters_with_std(["dz"], "EFS") == ""
    several = Ensemble([member, potential(1)])
    assert several.has_std("dz")
    assert several.letters_with_std(["dz"], "EFS") == "EFS"
    assert ensemble.quantiles("cc") is several.quantiles("cc") is None


def test_fidelities_are_those_that_all_have() -> None:
    ensemble = Ensemble([potential(0, "dz", "tz", "cc"), potential(1, "cc", "dz")])
    assert ensemble.fidelities == ("dz", "cc")
    assert ensemble.fidelity("cc") == "cc"
    with pytest.raises(MFPyGError, match="no fidelity given"):
        ensemble.fidelity(None)
    with pytest.raises(MFPyGError, match=r"unknown fidelity 'c'.*'cc'"):
        ensemble.fidelity("c")
    assert Ensemble(potential(0, "cc")).fidelity(None) == "cc"


def test_members_without_a_common_fidelity_and_no_member_are_refused() -> None:
    with pytest.raises(MFPyGError, match="no fidelity in common"):
        Ensemble([potential(0, "dz"), potential(1, "cc")])
    with pytest.raises(MFPyGError, match="no model given"):
        Ensemble([])
