"""Make ``mace_reference.npz``: a tiny network of mace-torch, its weights, and what its layers return.

In an environment of its own, as mace-torch needs another version of e3nn::

    pip install torch==2.13.0 mace-torch==0.3.16
    TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 python tests/models/mace_reference.py  # for the tables of e3nn 0.4.4
"""

from pathlib import Path

import numpy as np
import torch
from e3nn import o3
from e3nn.math import normalize2mom
from mace.modules import LinearReadoutBlock, RealAgnosticResidualInteractionBlock
from mace.modules.models import MACE
from torch import Tensor

SPECIES = [1, 6, 8]
CUTOFF = 3.0
MOLECULES = [[6, 8, 1, 1, 6], [8, 1, 1, 6, 6, 1, 8]]


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    network = MACE(
        r_max=CUTOFF,
        num_bessel=4,
        num_polynomial_cutoff=6,
        max_ell=2,
        interaction_cls=RealAgnosticResidualInteractionBlock,
        interaction_cls_first=RealAgnosticResidualInteractionBlock,
        num_interactions=2,
        num_elements=len(SPECIES),
        hidden_irreps=o3.Irreps("3x0e+3x1o"),
        MLP_irreps=o3.Irreps("3x0e"),
        atomic_energies=np.random.default_rng(0).normal(size=(2, len(SPECIES))),
        avg_num_neighbors=2.5,
        atomic_numbers=SPECIES,
        correlation=3,
        gate=torch.nn.functional.silu,
        use_reduced_cg=False,
        radial_MLP=[5, 6],
        heads=["dz", "cc"],
        # As the output layers of mfpyg: linear at every level.
        readout_cls=lambda irreps, mlp, gate, out, *rest: LinearReadoutBlock(irreps, out),
    )
    stored = {f"weights/{name}": value for name, value in network.state_dict().items()}
    stored["silu"] = torch.tensor(normalize2mom(torch.nn.functional.silu).cst)

    def store(name: str):
        def hook(module: torch.nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            stored[name] = output[0] if isinstance(output, tuple) else output

        return hook

    for number in range(2):
        network.interactions[number].register_forward_hook(store(f"sums/{number}"))
        network.products[number].symmetric_contractions.register_forward_hook(store(f"products/{number}"))
        network.products[number].register_forward_hook(store(f"tensors/{number}"))
    data = batch()
    for head, name in enumerate(network.heads):
        data["head"] = torch.full((len(MOLECULES),), head)
        result = network(dict(data))
        stored[f"energy/{name}"], stored[f"forces/{name}"] = result["energy"], result["forces"]
    stored |= {name: data[name] for name in ("z", "positions", "batch", "edge_index")}
    arrays = {name: value.detach().numpy() for name, value in stored.items()}
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)


def batch() -> dict[str, Tensor]:
    """Two random molecules, and all edges within the cutoff."""
    z = torch.tensor([number for molecule in MOLECULES for number in molecule])
    number = torch.arange(len(MOLECULES)).repeat_interleave(torch.tensor([len(m) for m in MOLECULES]))
    positions = 2.0 * torch.rand(len(z), 3) + 1.2 * torch.arange(len(z))[:, None] * torch.tensor([0.6, 0.5, 0.4])
    near = (torch.cdist(positions, positions) < CUTOFF) & (number[:, None] == number)
    near.fill_diagonal_(False)
    edge_index = near.nonzero().T.flip(0).contiguous()
    return {
        "z": z,
        "positions": positions,
        "batch": number,
        "ptr": torch.tensor([0, *np.cumsum([len(m) for m in MOLECULES])]),
        "node_attrs": (z[:, None] == torch.tensor(SPECIES)).double(),
        "edge_index": edge_index,
        "shifts": torch.zeros(edge_index.shape[1], 3),
        "unit_shifts": torch.zeros(edge_index.shape[1], 3),
        "cell": torch.zeros(3 * len(MOLECULES), 3),
    }


if __name__ == "__main__":
    main()
