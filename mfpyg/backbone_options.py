"""Options of the backbones that come with the package; importable without torch.

The defaults are those of each paper, or of PyTorch Geometric's implementation, with a cutoff of 5 Å.
"""

from __future__ import annotations

from dataclasses import dataclass

from mfpyg.errors import MFPyGError
from mfpyg.kernels import KERNELS
from mfpyg.options import setting


@dataclass
class HIPNNOptions:
    """Of HIP-NN-TS; the published recipe of multi-fidelity learning."""

    n_interactions: int = setting(2, "interaction blocks", low=1)
    n_atom_layers: int = setting(4, "layers on single atoms in each block", low=0)
    n_features: int = setting(120, "width of the features", low=1)
    n_sensitivities: int = setting(20, "radial sensitivity functions", low=2)
    tensor_order: int = setting(2, "highest order of the tensor sensitivities: 0, 1 or 2", low=0, high=2)
    cutoff: float = setting(6.5, "cutoff in Å", low=1.0)
    r_soft_min: float = setting(0.75, "initial position of the innermost sensitivity in Å", low=1e-3)
    r_soft_max: float = setting(5.5, "initial position of the outermost sensitivity in Å", low=1e-3)
    cusp: float = setting(1e-6, "regularisation of the tensor norms at zero", low=0.0)
    kernel: str = setting("auto", "how neighbours are summed over; auto: the fastest that runs here", choices=KERNELS)

    def check(self) -> None:
        """Raise :class:`MFPyGError` where the options do not go together."""
        if not self.r_soft_min < self.r_soft_max <= self.cutoff:
            raise MFPyGError(
                f"model.r_soft_min {self.r_soft_min:g}, model.r_soft_max {self.r_soft_max:g} and model.cutoff "
                f"{self.cutoff:g} must stand in ascending order"
            )


@dataclass
class SchNetOptions:
    """Of SchNet (Schütt et al., 2017), in PyTorch Geometric's implementation."""

    n_interactions: int = setting(6, "interaction blocks", low=1)
    n_features: int = setting(128, "width of the features", low=1)
    n_filters: int = setting(128, "width of the continuous filters", low=1)
    n_gaussians: int = setting(50, "radial basis functions", low=2)
    cutoff: float = setting(5.0, "cutoff in Å", low=1.0)


@dataclass
class DimeNetOptions:
    """Of DimeNet++ (Gasteiger et al., 2020), in PyTorch Geometric's implementation."""

    n_interactions: int = setting(4, "interaction blocks; the features before the first are a level, too", low=1)
    n_features: int = setting(128, "width of the messages", low=1)
    n_triplet: int = setting(64, "width of what messages tell each other", low=1)
    n_basis: int = setting(8, "width of the embedded bases", low=1)
    n_out: int = setting(256, "width of the features of atoms", low=1)
    n_spherical: int = setting(7, "angular basis functions", low=2, high=10)
    n_radial: int = setting(6, "radial basis functions", low=1, high=64)
    cutoff: float = setting(5.0, "cutoff in Å", low=1.0)


@dataclass
class ViSNetOptions:
    """Of ViSNet (Wang et al., 2024), in PyTorch Geometric's implementation."""

    n_interactions: int = setting(6, "interaction blocks", low=1)
    n_features: int = setting(128, "width of the features", low=1)
    n_heads: int = setting(8, "attention heads, a divisor of the width", low=1)
    n_radial: int = setting(32, "radial basis functions", low=2)
    l_max: int = setting(1, "highest degree of the vectors' harmonics: 1 or 2", low=1, high=2)
    vertex: bool = setting(False, "whether edges see the geometry around their target, too")
    cutoff: float = setting(5.0, "cutoff in Å", low=1.0)

    def check(self) -> None:
        """Raise :class:`MFPyGError` where the options do not go together."""
        if self.n_features % self.n_heads:
            raise MFPyGError(f"model.n_heads {self.n_heads} is no divisor of model.n_features {self.n_features}")


@dataclass
class PaiNNOptions:
    """Of PaiNN (Schütt et al., 2021)."""

    n_interactions: int = setting(3, "interaction blocks", low=1)
    n_features: int = setting(128, "width of the scalar and of the vector features", low=1)
    n_radial: int = setting(20, "radial basis functions", low=1)
    cutoff: float = setting(5.0, "cutoff in Å", low=1.0)


@dataclass
class NequIPOptions:
    """Of a network in the style of NequIP (Batzner et al., 2022), built on e3nn."""

    n_interactions: int = setting(4, "interaction blocks", low=1)
    n_features: int = setting(32, "multiplicity of each irreducible representation", low=1)
    l_max: int = setting(1, "highest degree of harmonics and features", low=0, high=4)
    parity: bool = setting(True, "whether there are features of odd and of even parity of each degree")
    n_radial: int = setting(8, "radial basis functions", low=1)
    radial_width: int = setting(64, "width of the two hidden layers of the radial network", low=1)
    n_neighbours: float = setting(12.0, "neighbours an atom has on average, by whose root sums are divided", low=1e-3)
    cutoff: float = setting(5.0, "cutoff in Å", low=1.0)
