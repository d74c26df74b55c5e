"""Laws of charges and dipoles, beside those of all properties."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Batch

from mfpyg.testing.subject import Law, Subject, error_of


def charges(s: Subject) -> list[Law]:
    """Compare sums of charges to the charges of graphs, and the dipole of a neutral molecule to its definition."""
    if not {"D", "Q"} <= set(s.potential.letters(s.fidelity)):
        return []
    neutral = s.cluster(5)
    del neutral.charge
    ions = Batch.from_data_list([s.cluster(4, charge=2), s.cluster(5), s.cluster(1, charge=-1)])
    of_neutral, of_ions = (s.predict(data, "DQ") for data in (neutral, ions))
    q, dipole = of_neutral.charges, of_neutral.dipole
    assert q is not None
    assert dipole is not None
    assert of_ions.charges is not None
    sums = torch.zeros(3, dtype=q.dtype).index_add_(0, ions.batch, of_ions.charges)
    nothing: Tensor = torch.zeros((), dtype=q.dtype)
    return [
        Law("charges of a neutral molecule add up to zero", error_of(q.sum(), nothing), 1e-10),
        Law("charges of ions add up to their charge", error_of(sums, ions.charge), 1e-10),
        Law("dipole of a neutral molecule is the sum of q x", error_of(dipole[0], q @ neutral.pos), 1e-10),
    ]
