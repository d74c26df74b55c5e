"""Heads of fidelities on a shared backbone: adding, renaming and removing them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from mfpyg.errors import MFPyGError
from mfpyg.models.backbone import reset
from mfpyg.models.compiled import Compiler
from mfpyg.models.heads import FurtherHead, Head, make_further_head
from mfpyg.models.interface import Potential
from mfpyg.properties import heads_of, of_heads


class FidelityHeads(Potential):
    """Base class of :class:`mfpyg.models.MultiFidelityPotential`: its heads, which can be added and removed.

    Attributes:
        backbone: backbone shared by the fidelities.
        heads: output layers of each fidelity for its energy.
        private: copies of the backbone's last blocks, one of each fidelity, or none.
        further_heads: output layers of each fidelity for further properties, by kind.
    """

    backbone: nn.Module
    heads: nn.ModuleList
    private: nn.ModuleList
    further_heads: nn.ModuleList
    _compiler: Compiler

    def head(self, fidelity: str) -> Head:
        """Output layers of a fidelity.

        Raises:
            MFPyGError: for an unknown fidelity.
        """
        self.check_fidelity(fidelity)
        return self.heads[self.fidelities.index(fidelity)]  # type: ignore[return-value]

    @property
    def further(self) -> dict[str, str]:  # type: ignore[override]
        """Letters of the properties with heads of their own, ``{fidelity: letters}``."""
        heads = zip(self.fidelities, self.further_heads, strict=True)
        return {name: of_heads(of) for name, of in heads if len(of)}  # type: ignore[arg-type]

    def further_head(self, fidelity: str, kind: str) -> FurtherHead:
        """Output layers of a fidelity for other properties, see :data:`mfpyg.properties.HEADS`.

        Raises:
            MFPyGError: for a fidelity without.
        """
        self.check_wanted({fidelity: of_heads((kind,))})
        return self.further_heads[self.fidelities.index(fidelity)][kind]  # type: ignore[index, return-value]

    def add_properties(self, fidelity: str, letters: str) -> None:
        """Add heads with new weights for properties that a fidelity does not have yet.

        Raises:
            MFPyGError: for an unknown fidelity.
        """
        self.check_fidelity(fidelity)
        heads: nn.ModuleDict = self.further_heads[self.fidelities.index(fidelity)]  # type: ignore[assignment]
        for kind in heads_of(letters):
            if kind not in heads:
                head = make_further_head(kind, self.backbone.feature_sizes)  # type: ignore[arg-type]
                heads[kind] = head.to(next(self.parameters()))
        self._compiler = Compiler()

    def keep_properties(self, fidelity: str, letters: str) -> None:
        """Remove the heads of a fidelity that predict none of these properties, except that of its energy.

        Raises:
            MFPyGError: for an unknown fidelity.
        """
        self.check_fidelity(fidelity)
        heads: nn.ModuleDict = self.further_heads[self.fidelities.index(fidelity)]  # type: ignore[assignment]
        for kind in set(heads) - set(heads_of(letters)):
            del heads[kind]
        self._compiler = Compiler()

    def reference(self, fidelity: str) -> Tensor:
        return self.head(fidelity).reference

    def rename(self, fidelity: str) -> None:
        """Rename the only fidelity of the potential; its weights do not change.

        Raises:
            MFPyGError: if there are several fidelities.
        """
        if len(self.fidelities) != 1:
            raise MFPyGError(f"fidelities are {', '.join(self.fidelities)}, expected a single one to rename")
        self.fidelities, self._compiler = (fidelity,), Compiler()

    def add_fidelity(self, fidelity: str, like: str, fresh: bool = False) -> None:
        """Add a fidelity with its own head and, if the other one has them, private blocks and further heads.

        Args:
            fidelity: name of the new fidelity.
            like: fidelity whose heads, reference energies and private blocks are copied.
            fresh: whether to draw new weights for the copies.

        Raises:
            MFPyGError: if ``like`` is unknown, or the fidelity exists already.
        """
        if fidelity in self.fidelities:
            raise MFPyGError(f"there is a fidelity '{fidelity}' already; choose another name for the new one")
        self.check_fidelity(like)
        number = self.fidelities.index(like)
        for parts in (self.heads, self.private, self.further_heads):
            if parts:
                parts.append(copy.deepcopy(parts[number]))
        if fresh:
            self.heads[-1].reset_parameters()  # type: ignore[operator]
            reset(self.private[-1:])
            reset(self.further_heads[-1])
        self.fidelities, self._compiler = (*self.fidelities, fidelity), Compiler()

    def parts_of(self, fidelities: Sequence[str]) -> nn.ModuleList:
        """Heads, further ones too, and private blocks of the given fidelities.

        Raises:
            MFPyGError: for an unknown fidelity.
        """
        for name in fidelities:
            self.check_fidelity(name)
        numbers = [self.fidelities.index(name) for name in fidelities]
        every = (self.heads, self.private, self.further_heads)
        return nn.ModuleList(parts[i] for parts in every if parts for i in numbers)

    def keep_only(self, fidelity: str) -> None:
        """Remove the heads, further ones too, and private blocks of all other fidelities.

        Raises:
            MFPyGError: for an unknown fidelity.
        """
        self.check_fidelity(fidelity)
        number = self.fidelities.index(fidelity)
        self.heads = nn.ModuleList([self.heads[number]])
        self.private = nn.ModuleList([self.private[number]] if self.private else [])
        self.further_heads = nn.ModuleList([self.further_heads[number]])
        self.fidelities, self._compiler = (fidelity,), Compiler()  # compiled functions take the removed weights
