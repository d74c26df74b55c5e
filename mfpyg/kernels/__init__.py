"""The sum over neighbours of HIP-NN-TS, fast, and the choice among the ways to compute it.

All take the sensitivities s of the edges, their harmonics Y and the transformed features Q = V z of the atoms, and
give the moments :math:`A_{ic} = \\sum_j Y_{ijc} \\sum_\\nu s_{ij\\nu} Q_{j\\nu}`, with first and second derivatives:

==============  ======================================================================================================
``definition``  the ``MessagePassing`` layer itself, an array of n_components × F numbers an edge; any derivative
``padded``      batched matrix products, grouped by source and then by target; plain torch, for GPUs; any derivative
``native``      compiled loops without any array of F numbers an edge; CPUs with a C compiler; two derivatives, no vmap
``auto``        ``native`` on a CPU where it compiles, else ``padded``
==============  ======================================================================================================

A kernel is a function that makes a :class:`~mfpyg.kernels.neighbor_sum.NeighborSum` of a graph, once for all layers;
:func:`~mfpyg.kernels.neighbor_sum.prepare` chooses among them. The definition is
:class:`mfpyg.models.interaction.Interaction`, against which all are tested. Where one derivative by positions is
enough, :mod:`mfpyg.kernels.inference` evaluates the whole network around ``native``.

This file is importable without torch.
"""

KERNELS = ("auto", "definition", "padded", "native")
"""Names for ``--model.kernel``."""
