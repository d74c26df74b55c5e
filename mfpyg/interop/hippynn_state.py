"""State dictionaries of hippynn: reading, identification of nodes, and names of weights in both packages.

A graph of hippynn is a list of numbered nodes with weights such as ``moddict.node9.blocks.0.0.mu``. The numbers depend
on the whole graph, so nodes are identified by the names and shapes of their weights.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor

from mfpyg.checkpoint_schema import in_words, is_array
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import Fidelity
from mfpyg.files import check_archive, read_torch

_NAME = re.compile(r"(?:.*\.)?(?P<node>node\d+)\.(?P<rest>.+)")
_PARTS = {
    "res_layer": "mix",
    "adjust_layer": "adjust",
    "base_layer": "base",
    "int_weights": "weight",
    "selfint": "self_interaction",
    "vecscales": "tensor_scales.0",
    "quadscales": "tensor_scales.1",
}
EXTRA_STATE = "_extra_state"
"""Last part of the name of the cusp constant of an interaction."""

_FOREIGN = {  # parts of names that do not occur in HIP-NN-TS
    "matching": "sensitivities behind a bottleneck",
    "mixing_weights": "HIP-HOP-NN",
    "activation": "an activation with weights",
}


class _MetricTracker:
    """Placeholder for hippynn's class, which is pickled with the weights."""


_MetricTracker.__module__, _MetricTracker.__qualname__ = "hippynn.experiment.metric_tracker", "MetricTracker"


@dataclass(frozen=True)
class GraphState:
    """Contents of a state dictionary of hippynn.

    Attributes:
        source: file or object, for error messages.
        network: name of the node of the network, such as ``node17``.
        weights: weights of the network, and its cusp constants, by hippynn's names within the node.
        copies: nodes with the same network, for isolated atoms.
        heads: ``{node: {name: weight}}`` of linear layers with one output, on the features of all levels, or of all but
            the first. Heads of energies and charges cannot be distinguished.
        elements: atomic numbers in the order of hippynn's columns; ``None`` if not stored.
        others: name of a weight of each other node, such as ``node19.sensitivity.mu``.
    """

    source: str
    network: str
    weights: dict[str, Any]
    copies: tuple[str, ...]
    heads: dict[str, dict[str, Tensor]]
    elements: tuple[int, ...] | None
    others: tuple[str, ...]

    @property
    def n_levels(self) -> int:
        """Number of levels of features, including that of the elements."""
        return count_levels(self.weights)


def read_state(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Read the state dictionary in a ``best_model.pt`` or ``best_checkpoint.pt``, without hippynn or running code.

    Raises:
        MFPyGError: if the file is missing, damaged, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise MFPyGError(f"{path}: no such file; expected best_model.pt or best_checkpoint.pt of a hippynn training")
    what = "best_model.pt or best_checkpoint.pt of a hippynn training"
    if zipfile.is_zipfile(path):  # files of torch before 1.6 have no checksums
        check_archive(path, what)
    with torch.serialization.safe_globals([_MetricTracker]):
        state = read_torch(path, what)
    if isinstance(state, dict) and isinstance(state.get("model"), Mapping):  # a checkpoint
        state = state["model"]
    if not isinstance(state, Mapping):
        raise MFPyGError(f"{path}: holds {type(state).__name__}, expected a state dictionary of hippynn")
    return state


def split_name(name: Any) -> tuple[str, str] | None:
    """Split a name, as into ``("node17", "blocks.0.0.res_layer.bias")``; ``None`` if it is not of a node."""
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    return match and (match["node"], match["rest"])


def our_name(name: str) -> str:
    """Convert hippynn's name of a weight to that in :class:`mfpyg.models.HIPNN`."""
    return ".".join(_PARTS.get(part, part) for part in name.split("."))


def is_by_species(name: str) -> bool:
    """True for weights of hippynn's network with one column per element."""
    return name.startswith("blocks.0.0.") and name.endswith(("int_weights", "selfint.weight", "adjust_layer.weight"))


def understand(state: Mapping[str, Any], source: str) -> GraphState:
    """Identify the nodes of a state dictionary.

    Args:
        state: state dictionary of a graph.
        source: file or object, for error messages.

    Raises:
        MFPyGError: for no or several networks, or one other than HIP-NN-TS with residual layers.
    """
    nodes: dict[str, dict[str, Any]] = {}
    for name, value in state.items():
        parts = split_name(name)
        if parts is not None:
            if torch.is_tensor(value) and not is_array(value):
                raise MFPyGError(f"{source}: '{name}' is {in_words(value)}, expected an array of real numbers")
            nodes.setdefault(parts[0], {})[parts[1]] = value
    networks = {node: weights for node, weights in nodes.items() if any(name.startswith("blocks.") for name in weights)}
    if not networks:
        raise MFPyGError(f"{source}: no network of hippynn found; expected names such as moddict.node17.blocks.0.0.…")
    network, *rest = networks
    # A network that is also evaluated on isolated atoms is stored twice.
    copies = tuple(node for node in rest if _same(networks[node], networks[network]))
    if len(copies) < len(rest):
        raise MFPyGError(
            f"{source}: holds {len(networks) - len(copies)} networks, as ensembles of hippynn do; expected one"
        )
    weights = networks[network]
    _check_kind(weights, source)
    n_levels = count_levels(weights)
    heads = {node: values for node, values in sorted(nodes.items(), key=_number) if _is_head(values, n_levels)}
    encoders = [node for node, values in nodes.items() if set(values) == {"species_map"}]
    known = {network, *copies, *heads, *encoders}
    others = tuple(f"{node}.{next(iter(values))}" for node, values in nodes.items() if node not in known)
    elements = {_elements(nodes[node]["species_map"], source) for node in encoders}
    if len(elements) > 1:
        raise MFPyGError(f"{source}: holds {len(elements)} encoders of different elements, expected one")
    return GraphState(source, network, weights, copies, heads, next(iter(elements), None), others)


def count_levels(weights: Mapping[str, Any]) -> int:
    """Number of levels of features of a hippynn network: the elements, and one per block."""
    return 1 + len({name.split(".")[1] for name in weights if name.startswith("blocks.")})


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    tensors = [{name: value for name, value in values.items() if torch.is_tensor(value)} for values in (one, other)]
    return tensors[0].keys() == tensors[1].keys() and all(torch.equal(tensors[1][k], v) for k, v in tensors[0].items())


def _number(item: tuple[str, Any]) -> int:
    return int(item[0].removeprefix("node"))


def _check_kind(weights: Mapping[str, Any], source: str) -> None:
    """Check that :class:`mfpyg.models.HIPNN` supports the network."""
    for name, value in weights.items():
        for part, meaning in _FOREIGN.items():
            if part in name.split("."):
                raise MFPyGError(
                    f"{source}: a network with {meaning} ('{name}'); expected Hipnn, HipnnVec or HipnnQuad"
                )
        if not (_is_cusp(value) if name.endswith(EXTRA_STATE) else torch.is_tensor(value)):
            raise MFPyGError(f"{source}: '{name}' is {type(value).__name__}, expected a tensor or a cusp constant")
        if not re.fullmatch(r"blocks\.\d+\.\d+\..+", name):
            raise MFPyGError(f"{source}: its network has '{name}', expected only blocks, as in Hipnn and HipnnQuad")
    if "blocks.0.0.int_weights" in weights:
        raise MFPyGError(f"{source}: networks without residual layers (resnet=False) are not supported")
    first = weights.get("blocks.0.0.base_layer.int_weights")
    centres = [value for name, value in weights.items() if name.endswith("sensitivity.mu")]
    if first is None or first.dim() != 3 or not centres or not all(value.numel() for value in centres):
        raise MFPyGError(f"{source}: its network is not HIP-NN; expected 'blocks.0.0.base_layer.int_weights' in 3 axes")


def _is_cusp(value: Any) -> bool:
    cusp = value.get("cusp_reg") if isinstance(value, Mapping) else None
    return isinstance(cusp, int | float) and 0 <= cusp < math.inf


def _is_head(values: Mapping[str, Any], n_levels: int) -> bool:
    """True for linear layers with one output, on all levels or all but the first."""
    if not all(re.fullmatch(r"layers\.\d+\.(weight|bias)", name) for name in values):
        return False
    n_layers = sum(name.endswith("weight") for name in values)
    expected = {f"layers.{level}.weight" for level in range(n_layers)}
    # Layers without biases on all but the first level are an AtomizationEnergyNode, whose energy is not their sum.
    has_bias = any(name.endswith("bias") for name in values)
    return (
        expected <= set(values)
        and (n_layers == n_levels or (n_layers == n_levels - 1 and has_bias))
        and all(torch.is_tensor(value) and value.shape[:1] == (1,) for value in values.values())
        and all(value.dim() == 2 for name, value in values.items() if name.endswith("weight"))
    )


def _elements(species_map: Any, source: str) -> tuple[int, ...]:
    """Atomic numbers in the order of the columns; hippynn's map numbers elements from 1, and unknown ones 0."""
    if not torch.is_tensor(species_map) or species_map.dim() != 1 or species_map.is_floating_point():
        raise MFPyGError(f"{source}: its species_map is damaged, expected a row of integers")
    numbers = {column: element for element, column in enumerate(species_map.tolist()) if column > 0}
    elements = tuple(numbers[column] for column in sorted(numbers))
    if not elements or max(elements) >= len(chemical_symbols) or sorted(numbers) != list(range(1, len(numbers) + 1)):
        raise MFPyGError(f"{source}: its species_map is damaged, expected the number of each element, from 1")
    return elements


def choose_heads(state: GraphState, fidelities: str | Sequence[str] | Mapping[str, str]) -> dict[Fidelity, str]:
    """Assign nodes to fidelities.

    Args:
        state: state of the graph.
        fidelities: a name for each head, in the order of the node numbers; or ``{name: node}``.

    Raises:
        MFPyGError: if the numbers of heads and names differ, or for an unknown node or a repeated name or node.
    """
    found = "; ".join(_describe_head(state, node) for node in state.heads) or "none"
    if isinstance(fidelities, Mapping):
        names, nodes = list(fidelities), list(fidelities.values())
    else:
        names, nodes = [fidelities] if isinstance(fidelities, str) else list(fidelities), list(state.heads)
    if len(names) != len(nodes) or not names:
        raise MFPyGError(
            f"{state.source}: heads are {found}, but fidelities are {', '.join(names) or 'none'}; name all, in this "
            "order, or some with their nodes, as {'cc': 'node22'}"
        )
    for node in nodes:
        if node not in state.heads:
            raise MFPyGError(f"{state.source}: '{node}' is not an energy head with one output; expected one of {found}")
    chosen = [Fidelity.parse(name) if ":" in name else Fidelity(name, "EF") for name in names]
    if len({fidelity.name for fidelity in chosen}) < len(names) or len(set(nodes)) < len(nodes):
        raise MFPyGError(f"{state.source}: fidelities {fidelities} repeat a name or node; expected each once")
    return dict(zip(chosen, nodes, strict=True))


def has_references(state: GraphState, node: str) -> bool:
    """True if a head includes the level of the elements, as without ``first_is_interacting``."""
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


def check_numbers(state: GraphState, nodes: Iterable[str]) -> None:
    """Check that all weights are finite, and all float32 or all float64."""
    named = {f"{state.network}.{name}": value for name, value in state.weights.items() if torch.is_tensor(value)}
    for node in nodes:
        named.update({f"{node}.{name}": value for name, value in state.heads[node].items()})
    dtype = next(iter(named.values())).dtype
    for name, value in named.items():
        if value.dtype != dtype or dtype not in (torch.float32, torch.float64):
            raise MFPyGError(f"{state.source}: '{name}' is {value.dtype}, expected all weights in float32 or float64")
        if not torch.isfinite(value).all():
            raise MFPyGError(f"{state.source}: '{name}' holds NaN or infinite numbers; the training has failed")
