"""Symmetric products of an atom's equivariant features, weighted by element: the higher body orders of MACE."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from e3nn import o3
from torch import Tensor, nn

from mfpyg.torch_defaults import with_default_torch_settings

_DEPENDENT = 1e-6
"""Norm, relative to that before, below which what is left of a vector without its projections counts as zero."""


@functools.cache
@with_default_torch_settings
def symmetric_basis(l_max: int, degree: int, l_out: int) -> Tensor:
    r"""Orthonormal basis of the equivariant maps from the symmetric power of harmonics to one degree.

    The generalised Clebsch-Gordan coefficients :math:`U_{k,M,m_1 \ldots m_\nu}`, symmetric in the m, of maps from
    :math:`A = \oplus_{l \le l_{max}} A_l` with parities :math:`(-1)^l`,

    .. math:: B_{k,M} = \sum_{m_1 \ldots m_\nu} U_{k,M,m_1 \ldots m_\nu} A_{m_1} \cdots A_{m_\nu}

    They are products of Wigner 3j symbols, symmetrised and made orthonormal in a fixed order (Gram-Schmidt), so that
    weights have the same meaning everywhere. The square of each norm is :math:`2 l_{out} + 1`.

    Args:
        l_max: highest degree of the features.
        degree: number of factors ν.
        l_out: degree of the result, of parity :math:`(-1)^{l_{out}}`.

    Returns:
        (n_paths, 2 l_out + 1, n, ..., n) float64 with n = (l_max + 1)² once for each factor; n_paths may be 0.
    """
    size = (l_max + 1) ** 2
    basis = []
    for degrees in itertools.combinations_with_replacement(range(l_max + 1), degree):
        if (sum(degrees) + l_out) % 2:
            continue
        place = tuple(slice(ell**2, (ell + 1) ** 2) for ell in degrees)
        own: list[Tensor] = []  # of other degrees they are orthogonal anyway
        for coupling in _couplings(degrees, l_out):
            full = torch.zeros(2 * l_out + 1, *[size] * degree, dtype=torch.float64)
            full[(slice(None), *place)] = coupling
            orders = [(0, *order) for order in itertools.permutations(range(1, degree + 1))]
            symmetric = torch.stack([full.permute(order) for order in orders]).mean(dim=0)
            rest = symmetric
            for _ in range(2):  # the second time for rounding errors
                for other in own:
                    rest = rest - (rest * other).sum() / (2 * l_out + 1) * other
            if rest.norm() > _DEPENDENT * coupling.norm():
                own.append(rest * math.sqrt(2 * l_out + 1) / rest.norm())
        basis += own
    return torch.stack(basis) if basis else torch.zeros(0, 2 * l_out + 1, *[size] * degree, dtype=torch.float64)


def _couplings(degrees: Sequence[int], l_out: int) -> Iterator[Tensor]:
    """Products of Wigner 3j symbols that couple degrees one after the other, (2 l_out + 1, 2 l_1 + 1, 2 l_2 + 1, …)."""
    first, *others = degrees
    partial = [(first, torch.eye(2 * first + 1, dtype=torch.float64))]
    for ell in others:
        partial = [
            (
                product,
                torch.tensordot(o3.wigner_3j(before, ell, product, torch.float64), tensor, ([0], [0])).movedim(0, -1),
            )
            for before, tensor in partial
            for product in range(abs(before - ell), before + ell + 1)
        ]
    return (tensor for product, tensor in partial if product == l_out)


class SymmetricContraction(nn.Module):
    r"""Weighted sums of symmetric products of up to ν features, channel by channel (eqs. 10-11 of the MACE paper).

    .. math:: B_{i,c,LM} = \sum_{\nu' \le \nu} \sum_k W^{L \nu'}_{z_i,k,c} B^{L \nu'}_{k,M}(A_{i,c})

    with the functions of :func:`symmetric_basis`. The weights are multiplied by the basis first, once for each element
    and channel; then the products of up to ν - 1 factors are multiplied by matrices, and by the last factor.

    Args:
        l_in: highest degree of the features.
        l_out: highest degree of the result.
        correlation: highest number of factors ν.
        n_species: number of elements.
        n_channels: number of channels.
    """

    basis: Tensor
    pairs: Tensor

    def __init__(self, l_in: int, l_out: int, correlation: int, n_species: int, n_channels: int) -> None:
        super().__init__()
        self.sizes = l_in, l_out, correlation
        self.n_in, self.n_out = (l_in + 1) ** 2, (l_out + 1) ** 2
        basis, n_paths = contraction_basis(*self.sizes)
        self.n_paths, self.correlation = n_paths, correlation
        self.register_buffer("basis", basis.to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("pairs", monomials(self.n_in, 2), persistent=False)
        self.weight = nn.Parameter(torch.empty(n_species, n_channels, len(basis)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw normal weights, divided by the number of functions of the same degree and number of factors, as MACE."""
        nn.init.normal_(self.weight)
        with torch.no_grad():
            for weights, n in zip(self.weight.split(self.n_paths, dim=2), self.n_paths, strict=True):
                weights.div_(max(n, 1))

    def forward(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Contract the features of atoms that are sorted by element.

        Args:
            x: (n_in, n_channels, n_atoms), n_in = (l_in + 1)².
            counts: number of atoms of each element.

        Returns:
            (n_channels, n_out, n_atoms), n_out = (l_out + 1)².
        """
        lower = [x.new_ones(1, *x.shape[1:])]
        if self.correlation > 1:
            lower.append(x)
        if self.correlation > 2:
            lower.append(x.index_select(0, self.pairs[:, 0]) * x.index_select(0, self.pairs[:, 1]))
        products = torch.cat(lower)  # (n_products, n_channels, n_atoms)
        by_element = self.weight @ self.basis  # (n_species, n_channels, n_out * n_in * n_products)
        by_element = by_element.unflatten(2, (self.n_out * self.n_in, -1))
        parts = zip(by_element, products.transpose(0, 1).split(list(counts), dim=2), strict=True)
        matrices = torch.cat([torch.bmm(w, part) for w, part in parts], dim=2)  # (n_channels, n_out * n_in, n_atoms)
        return (matrices.unflatten(1, (self.n_out, self.n_in)) * x.transpose(0, 1).unsqueeze(1)).sum(dim=2)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)
        self.basis.copy_(contraction_basis(*self.sizes)[0])  # a cast to float32 and back would keep the rounding errors
        return self


@with_default_torch_settings
def monomials(n: int, degree: int) -> Tensor:
    """Indices of the factors of all products of some of n numbers, ascending, (n_products, degree) int64."""
    rows = list(itertools.combinations_with_replacement(range(n), degree))
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), degree)


@functools.cache
@with_default_torch_settings
def contraction_basis(l_in: int, l_out: int, correlation: int) -> tuple[Tensor, list[int]]:
    """Functions of :class:`SymmetricContraction` as matrices: from products of ν - 1 factors to result times factor.

    Returns:
        (n_functions, n_out * n_in * n_products) float64, with the products of 0, 1, … factors; and the number of
        functions of each degree of the result and, within these, each number of factors, in the order of the rows.
    """
    n_in, n_out = (l_in + 1) ** 2, (l_out + 1) ** 2
    products = [monomials(n_in, degree) for degree in range(correlation)]
    starts = [0, *itertools.accumulate(len(rows) for rows in products)]
    functions, n_paths = [], []
    for ell in range(l_out + 1):
        for degree, (rows, start) in enumerate(zip(products, starts, strict=False), 1):
            basis = symmetric_basis(l_in, degree, ell)
            basis = basis.reshape(len(basis), 2 * ell + 1, n_in, n_in ** (degree - 1))
            # A product of different factors stands for all of their orders.
            orders = torch.tensor([len(set(itertools.permutations(row))) for row in rows.tolist()]).double()
            chosen = basis[..., rows @ n_in ** torch.arange(degree - 2, -1, -1)]  # (n_paths, 2l + 1, n_in, n_products)
            matrices = torch.zeros(len(basis), n_out, n_in, starts[-1], dtype=torch.float64)
            matrices[:, ell**2 : (ell + 1) ** 2, :, start : start + len(rows)] = chosen * orders
            functions.append(matrices.flatten(1))
            n_paths.append(len(basis))
    return torch.cat(functions), n_paths
