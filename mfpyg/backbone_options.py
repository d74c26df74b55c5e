"""Options of the built-in backbones; importable without torch.

The defaults are those of each paper, or of PyTorch Geometric's implementation, with a cutoff of 5 Å.
"""

from __future__ import annotations

from dataclasses import dataclass

from mfpyg.errors import MFPyGError
from mfpyg.kernels import KERNELS
from mfpyg.options import setting


@dataclass
class HIPNNOptions:
    """Options of HIP-NN-TS; the defaults are those of the multi-fidelity learning paper."""

    n_interactions: int = setting(2, "interaction blocks", low=1)
    n_atom_layers: int = setting(4, "atom-wise layers in each block", low=0)
    n_features: int = setting(120, "width of the features", low=1)
    n_sensitivities: int = setting(20, "radial sensitivity functions", low=2)
    tensor_order: int = setting(2, "highest order of the tensor sensitivities: 0, 1 or 2", low=0, high=2)
    cutoff: float = setting(6.5, "cutoff in Å", low=1.0)
    r_soft_min: float = setting(0.75, "initial centre of the innermost sensitivity in Å", low=1e-3)
    r_soft_max: float = setting(5.5, "initial centre of the outermost sensitivity in Å", low=1e-3)
    cusp: float = setting(1e-6, "regularisation of the tensor norms at zero", low=0.0)
    kernel: str = setting(
        "auto", "implementation of the sum over neighbours; auto: the fastest available", choices=KERNELS
    )

    def check(self) -> None:
        """Raise :class:`MFPyGError` if the options are inconsistent."""
        if not self.r_soft_min < self.r_soft_max <= self.cutoff:
            raise MFPyGError(
                f"model.r_soft_min {self.r_soft_min:g}, model.r_soft_max {self.r_soft_max:g} and model.cutoff "
                f"{self.cutoff:g} must be in ascending order"
            )


@dataclass
class SchNetOptions:
    """Options of SchNet (Schütt et al., 2017), in PyTorch Geometric's implementation."""

    n_interactions: int = setting(6, "interaction blocks", low=1)
    n_features: int = setting(128, "width of the features", low=1)
    n_filters: int = setting(128, "width of the continuous filters", low=1)
    n_gaussians: int = setting(50, "radial basis functions", low=2)
    cutoff: float = setting(5.0, "cutoff in Å", low=1.0)


@dataclass
class DimeNetOptions:
    """Options of DimeNet++ (Gasteiger et al., 2020), in PyTorch Geometric's implementation."""

    n_interactions: int = setting(
        4, "interaction blocks; the embedding before the first also feeds an output layer", low=1
    )
    n_features: int = setting(128, "width of the messages", low=1)
    n_triplet: int = setting(64, "embedding size in the triplet interactions", low=1)
    n_basis: int = setting(8, "embedding size of the bases", low=1)
    n_out: int = setting(256, "width of the atomic features", low=1)
    n_spherical: int = setting(7, "angular basis functions", low=2, high=10)
    n_radial: int = setting(6, "radial basis functions", low=1, high=64)
    cutoff: float = setting(5.0, "cutoff in Å", low=1.0)


@dataclass
class ViSNetOptions:
    """Options of ViSNet (Wang et al., 2024), in PyTorch Geometric's implementation."""

    n_interactions: int = setting(6, "interaction blocks", low=1)
    n_features: int = setting(128, "width of the features", low=1)
    n_heads: int = setting(8, "attention heads, a divisor of the width", low=1)
    n_radial: int = setting(32, "radial basis functions", low=2)
    l_max: int = setting(1, "highest degree of the spherical harmonics: 1 or 2", low=1, high=2)
    vertex: bool = setting(False, "use vertex geometric features in the edge updates")
    cutoff: float = setting(5.0, "cutoff in Å", low=1.0)

    def check(self) -> None:
        """Raise :class:`MFPyGError` if the options are inconsistent."""
        if self.n_features % self.n_heads:
            raise MFPyGError(f"model.n_heads {self.n_heads} does not divide model.n_features {self.n_features}")


@dataclass
class PaiNNOptions:
    """Options of PaiNN (Schütt et al., 2021)."""

    n_interactions: int = setting(3, "interaction blocks", low=1)
    n_features: int = setting(128, "width of the scalar and of the vector features", low=1)
    n_radial: int = setting(20, "radial basis functions", low=1)
    cutoff: float = setting(5.0, "cutoff in Å", low=1.0)


@dataclass
class NequIPOptions:
    """Options of a NequIP-style network (Batzner et al., 2022), built on e3nn."""

    n_interactions: int = setting(4, "interaction blocks", low=1)
    n_features: int = setting(32, "multiplicity of each irreducible representation", low=1)
    l_max: int = setting(1, "highest degree of harmonics and features", low=0, high=4)
    parity: bool = setting(True, "use features of both parities for each degree")
    n_radial: int = setting(8, "radial basis functions", low=1)
    radial_width: int = setting(64, "width of the two hidden layers of the radial network", low=1)
    n_neighbours: float = setting(12.0, "average number of neighbours, by whose square root sums are divided", low=1e-3)
    cutoff: float = setting(5.0, "cutoff in Å", low=1.0)


@dataclass
class MACEOptions:
    """Options of MACE (Batatia et al., 2022), built on e3nn."""

    n_interactions: int = setting(2, "interaction blocks", low=1)
    n_features: int = setting(128, "multiplicity of each irreducible representation", low=1)
    l_max: int = setting(3, "highest degree of harmonics and of sums over neighbours", low=0, high=4)
    l_hidden: int = setting(1, "highest degree of the features passed between blocks, at most l_max", low=0, high=4)
    correlation: int = setting(3, "highest number of factors of the products", low=1, high=3)
    n_radial: int = setting(8, "radial basis functions", low=1)
    radial_width: int = setting(64, "width of the hidden layers of the radial network", low=1)
    radial_layers: int = setting(3, "hidden layers of the radial network", low=1)
    n_neighbours: float = setting(12.0, "average number of neighbours, by which sums are divided", low=1e-3)
    cutoff: float = setting(5.0, "cutoff in Å", low=1.0)

    def check(self) -> None:
        """Raise :class:`MFPyGError` if the options are inconsistent."""
        if self.l_hidden > self.l_max:
            raise MFPyGError(f"model.l_hidden {self.l_hidden} is above model.l_max {self.l_max}; choose at most that")
