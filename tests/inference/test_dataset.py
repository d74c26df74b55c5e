"""Predictions of labelled data sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mfpyg.datasets import MiniCHNO
from mfpyg.errors import MFPyGError
from mfpyg.inference.dataset import predict_rows
from mfpyg.models import HIPNN, MultiFidelityPotential


def test_dipole_that_is_nan_does_not_pass_for_a_missing_label() -> None:
    dataset = MiniCHNO(properties="D")
    torch.manual_seed(0)
    broken = MultiFidelityPotential(HIPNN([1, 6, 7, 8], 1, 0, 4, 4), ["dz"], further={"dz": "DQ"}).eval()
    with torch.no_grad():
        for parameter in broken.further_head("dz", "charges").parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(MFPyGError, match=r"'dz' of 3 conf.*number 5 .*expected finite energies, forces and dipoles"):
        predict_rows(broken, dataset, np.array([5, 7, 9]))


def test_prediction_that_is_nan_does_not_pass_for_a_missing_label() -> None:
    dataset = MiniCHNO()
    test_rows = np.flatnonzero(dataset.given_split() == 1)
    torch.manual_seed(0)
    broken = MultiFidelityPotential(HIPNN([1, 6, 7, 8], 1, 0, 4, 4), ["dz", "cc"]).eval()
    with torch.no_grad():
        for parameter in broken.heads[1].parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(MFPyGError, match=f"predicts NaN or infinity for 'cc' of {len(test_rows)} conformations"):
        predict_rows(broken, dataset, test_rows)
