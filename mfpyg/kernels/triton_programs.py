"""Triton programs of the sum over neighbours and its derivatives.

With the message :math:`m_e = s_e Q_j` of an edge from j to i, and :math:`g_e = \\sum_c Y_{ec} G_{ic}` for a gradient G
with respect to the moments A, :math:`\\langle G, A\\rangle = \\sum_e \\langle g_e, m_e\\rangle`, so that

.. math::
    A_{ic} = \\sum_{e \\to i} Y_{ec}\\, m_e, \\quad
    \\partial s_e = g_e Q_j^T, \\quad
    \\partial Y_{ec} = \\langle G_{ic}, m_e\\rangle, \\quad
    \\partial Q_j = \\sum_{e: j \\to} s_e^T g_e .

All are linear in s, Y and Q separately. The second derivatives are those of these results along (hs, hY, hQ), which
programs return with ``TANGENT``: :math:`\\dot m_e = h^s_e Q_j + s_e h^Q_j` and
:math:`\\dot g_e = \\sum_c h^Y_{ec} G_{ic}`.

``moments`` and ``edge_gradient`` are programs of T consecutive targets and BF features. Each row of ``table`` has the
edges from one source to these targets, -1 where there is none; Q of a source is read once for all of them, and
multiplied by a (T, n) matrix of sensitivities. ``source_gradient`` is a program of one source. Nothing is added by
atomics, so results do not depend on the order in which programs run.
"""

import triton
import triton.language as tl


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    """Product of matrices; PRECISION is ``ieee`` or ``tf32``."""
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=a.dtype)


@triton.jit
def _edge_rows(s, edge, there, nu, N: tl.constexpr):
    """Rows of s for these edges, zero where there is none: (edges,), (BN,) -> (edges, BN)."""
    return tl.load(s + edge[:, None] * N + nu[None, :], mask=there[:, None] & (nu < N)[None, :], other=0.0)


@triton.jit
def _source_rows(q, j, nu, f, N: tl.constexpr, F: tl.constexpr):
    """Q of source j, zero beyond its sizes: (BN, BF)."""
    return tl.load(q + (j * N + nu[:, None]) * F + f[None, :], mask=(nu < N)[:, None] & (f < F)[None, :], other=0.0)


@triton.jit
def _atom_row(g, atom, there, f, c: tl.constexpr, C: tl.constexpr, F: tl.constexpr):
    """Component c of the moments, or their gradient, of these atoms: (atoms, BF)."""
    return tl.load(g + (atom[:, None] * C + c) * F + f[None, :], mask=there[:, None] & (f < F)[None, :], other=0.0)


@triton.jit
def moments(
    s, y, q, hs, hy, hq, table, source, block_ptr, out, n_atoms,
    F: tl.constexpr, N: tl.constexpr, C: tl.constexpr, BN: tl.constexpr, BF: tl.constexpr, T: tl.constexpr,
    TANGENT: tl.constexpr, WITH_HQ: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A (n_atoms, C, F), or its tangent."""
    block, slot, nu = tl.program_id(0), tl.arange(0, T), tl.arange(0, BN)
    f = tl.program_id(1) * BF + tl.arange(0, BF)
    sums = ()
    for _ in tl.static_range(C):
        sums = sums + (tl.zeros((T, BF), dtype=out.dtype.element_ty),)
    for row in range(tl.load(block_ptr + block), tl.load(block_ptr + block + 1)):
        edge = tl.load(table + row * T + slot).to(tl.int64)
        there = edge >= 0
        j = tl.load(source + row)
        of_edges, of_source = _edge_rows(s, edge, there, nu, N), _source_rows(q, j, nu, f, N, F)
        message = _dot(of_edges, of_source, PRECISION)  # (T, BF)
        # Targets without an edge from this source may be in another molecule, and 0 times a Q of NaN is NaN.
        message = tl.where(there[:, None], message, 0.0)
        if TANGENT:
            tangent = _dot(_edge_rows(hs, edge, there, nu, N), of_source, PRECISION)
            if WITH_HQ:
                tangent += _dot(of_edges, _source_rows(hq, j, nu, f, N, F), PRECISION)
            tangent = tl.where(there[:, None], tangent, 0.0)
        added = ()
        for c in tl.static_range(C):
            direction = tl.load(y + edge * C + c, mask=there, other=0.0)[:, None]
            if TANGENT:
                turned = tl.load(hy + edge * C + c, mask=there, other=0.0)[:, None]
                added = added + (sums[c] + direction * tangent + turned * message,)
            else:
                added = added + (sums[c] + direction * message,)
        sums = added
    target = block.to(tl.int64) * T + slot
    inside = (target < n_atoms)[:, None] & (f < F)[None, :]
    for c in tl.static_range(C):
        tl.store(out + (target[:, None] * C + c) * F + f[None, :], sums[c], mask=inside)


@triton.jit
def edge_gradient(
    s, y, q, g, hs, hy, hq, table, source, block_ptr, ds, dy, n_atoms, n_edges,
    F: tl.constexpr, N: tl.constexpr, C: tl.constexpr, BN: tl.constexpr, BF: tl.constexpr, T: tl.constexpr,
    TANGENT: tl.constexpr, WITH_HQ: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Part of these features in ∂s and ∂Y, (tiles, n_edges, N) and (tiles, n_edges, C), or their tangents."""
    block, slot, nu = tl.program_id(0), tl.arange(0, T), tl.arange(0, BN)
    tile = tl.program_id(1).to(tl.int64)
    f = tile * BF + tl.arange(0, BF)
    target = block.to(tl.int64) * T + slot
    gradient = ()
    for c in tl.static_range(C):
        gradient = gradient + (_atom_row(g, target, target < n_atoms, f, c, C, F),)
    for row in range(tl.load(block_ptr + block), tl.load(block_ptr + block + 1)):
        edge = tl.load(table + row * T + slot).to(tl.int64)
        there = edge >= 0
        j = tl.load(source + row)
        of_edges, of_source = _edge_rows(s, edge, there, nu, N), _source_rows(q, j, nu, f, N, F)
        if TANGENT:
            message = _dot(_edge_rows(hs, edge, there, nu, N), of_source, PRECISION)
            if WITH_HQ:
                turned_source = _source_rows(hq, j, nu, f, N, F)
                message += _dot(of_edges, turned_source, PRECISION)
        else:
            message = _dot(of_edges, of_source, PRECISION)
        seen = tl.zeros((T, BF), dtype=ds.dtype.element_ty)
        turned = tl.zeros((T, BF), dtype=ds.dtype.element_ty)
        for c in tl.static_range(C):
            seen += tl.load(y + edge * C + c, mask=there, other=0.0)[:, None] * gradient[c]
            if TANGENT:
                turned += tl.load(hy + edge * C + c, mask=there, other=0.0)[:, None] * gradient[c]
            tl.store(dy + (tile * n_edges + edge) * C + c, tl.sum(gradient[c] * message, axis=1), mask=there)
        if TANGENT:
            by_s = _dot(turned, tl.trans(of_source), PRECISION)
            if WITH_HQ:
                by_s += _dot(seen, tl.trans(turned_source), PRECISION)
        else:
            by_s = _dot(seen, tl.trans(of_source), PRECISION)
        tl.store(ds + (tile * n_edges + edge[:, None]) * N + nu[None, :], by_s, mask=there[:, None] & (nu < N)[None, :])


@triton.jit
def source_gradient(
    s, y, g, hs, hy, by_source, target_of, source_ptr, dq,
    F: tl.constexpr, N: tl.constexpr, C: tl.constexpr, BN: tl.constexpr, BF: tl.constexpr, T: tl.constexpr,
    TANGENT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """∂Q (n_atoms, N, F), or its tangent, T edges of the source at a time."""
    j, nu = tl.program_id(0), tl.arange(0, BN)
    f = tl.program_id(1) * BF + tl.arange(0, BF)
    total = tl.zeros((BN, BF), dtype=dq.dtype.element_ty)
    end = tl.load(source_ptr + j + 1)
    for start in range(tl.load(source_ptr + j), end, T):
        place = start + tl.arange(0, T)
        there = place < end
        edge = tl.load(by_source + place, mask=there, other=0)
        target = tl.load(target_of + edge, mask=there, other=0)
        seen = tl.zeros((T, BF), dtype=dq.dtype.element_ty)
        turned = tl.zeros((T, BF), dtype=dq.dtype.element_ty)
        for c in tl.static_range(C):
            gradient = _atom_row(g, target, there, f, c, C, F)
            seen += tl.load(y + edge * C + c, mask=there, other=0.0)[:, None] * gradient
            if TANGENT:
                turned += tl.load(hy + edge * C + c, mask=there, other=0.0)[:, None] * gradient
        of_edges = tl.trans(_edge_rows(s, edge, there, nu, N))
        if TANGENT:
            total += _dot(of_edges, turned, PRECISION)
            total += _dot(tl.trans(_edge_rows(hs, edge, there, nu, N)), seen, PRECISION)
        else:
            total += _dot(of_edges, seen, PRECISION)
    row = j.to(tl.int64) * N + nu
    tl.store(dq + row[:, None] * F + f[None, :], total, mask=(nu < N)[:, None] & (f < F)[None, :])
