"""Several potentials as one: means, standard deviations, and what is refused."""

from __future__ import annotations

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
