"""Kernels for the sum over neighbours of HIP-NN-TS.

All take the sensitivities s of the edges, their harmonics Y and the transformed features Q = V z of the atoms, and
return the moments :math:`A_{ic} = \\sum_j Y_{ijc} \\sum_\\nu s_{ij\\nu} Q_{j\\nu}`, with first and second derivatives:

==============  ======================================================================================================
``definition``  the ``MessagePassing`` layer itself; n_components × F numbers per edge in memory; any derivative
``padded``      batched matrix products, grouped by source and then by target; plain torch; any derivative
``native``      compiled loops without arrays of F numbers per edge; CPUs with a C compiler; two derivatives, no vmap
``triton``      Triton programs without arrays of F numbers per edge; GPUs; two derivatives, no vmap
``auto``        ``native`` on a CPU if it compiles, ``triton`` on a GPU if it is installed, else ``padded``
==============  ======================================================================================================

A kernel is a function that creates a :class:`~mfpyg.kernels.neighbor_sum.NeighborSum` from a graph, once for all
layers; :func:`~mfpyg.kernels.neighbor_sum.prepare` chooses one. All are tested against the definition,
:class:`mfpyg.models.interaction.Interaction`. Where only the first derivative with respect to positions is needed,
:mod:`mfpyg.kernels.inference` evaluates the whole network, with ``native`` for the sums.

This file is importable without torch.
"""

KERNELS = ("auto", "definition", "padded", "native", "triton")
"""Names for ``--model.kernel``."""
