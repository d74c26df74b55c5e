"""The output layers in a state dictionary of hippynn, and the fidelities that they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ase.data import chemical_symbols

from mfpyg.errors import MFPyGError
from mfpyg.fidelity import Fidelity
from mfpyg.interop.hippynn_state import GraphState


def choose_heads(state: GraphState, fidelities: str | Sequence[str] | Mapping[str, str]) -> dict[Fidelity, str]:
    """Which node is the head of which fidelity.

    Args:
        state: of the graph.
        fidelities: a name for each head, in the order of the nodes' numbers; or ``{name: node}``.

    Raises:
        MFPyGError: if there are more or fewer heads than names, an unknown node, or a name or node twice.
    """
    found = "; ".join(_describe_head(state, node) for node in state.heads) or "none"
    if isinstance(fidelities, Mapping):
        names, nodes = list(fidelities), list(fidelities.values())
    else:
        names, nodes = [fidelities] if isinstance(fidelities, str) else list(fidelities), list(state.heads)
    if len(names) != len(nodes) or not names:
        raise MFPyGError(
            f"{state.source}: heads are {found}; but fidelities {', '.join(names) or 'none'}; name each, in this "
            "order, or those wanted with their nodes, as {'cc': 'node22'}"
        )
    for node in nodes:
        if node not in state.heads:
            raise MFPyGError(
                f"{state.source}: '{node}' is no head of energies with one output; expected one of {found}"
            )
    chosen = [Fidelity.parse(name) if ":" in name else Fidelity(name, forces=True) for name in names]
    if len({fidelity.name for fidelity in chosen}) < len(names) or len(set(nodes)) < len(nodes):
        raise MFPyGError(f"{state.source}: fidelities {fidelities} name one twice, expected different names and nodes")
    return dict(zip(chosen, nodes, strict=True))


def has_references(state: GraphState, node: str) -> bool:
    """Whether a head has a level of the elements alone; with ``first_is_interacting`` it has not."""
    n_layers = sum(name.endswith("weight") for name in state.heads[node])
    return n_layers == state.n_levels


def _describe_head(state: GraphState, node: str) -> str:
    if not has_references(state, node):
        return f"{node} without reference energies"
    values = state.heads[node]["layers.0.weight"][0].tolist()
    names = [f"{chemical_symbols[number]} " for number in state.elements or ()] or [""] * len(values)
    return (
        f"{node} with references {', '.join(f'{name}{value:.4g}' for name, value in zip(names, values, strict=False))}"
    )
