"""Predictions through ``torch.compile``, with the forces inside the compiled graph.

``torch.compile`` cannot trace a call of ``torch.autograd.grad``. Therefore the operations of a prediction and its
forces (and stresses) are recorded once with ``make_fx`` and symbolic sizes, and the record is compiled: once for each
set of wanted fidelities, in about ten seconds, for all sizes of later batches. In training the compiler differentiates
the record again. Neighbour lists are built outside.

On a GPU small systems are padded to few sizes (:mod:`mfpyg.models.buckets`, in :mod:`mfpyg.models.prepare`), and from
the second time on the compiled kernels of a size are replayed as a CUDA graph (:mod:`mfpyg.models.cuda_graphs`), except
in training.
"""

from __future__ import annotations

import copy
import dataclasses
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental import _config
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx

from mfpyg.errors import MFPyGError, MFPyGWarning
from mfpyg.lattice import Lattice
from mfpyg.models.cuda_graphs import Replayed
from mfpyg.models.derivatives import Network, Variables, derive, energies, evaluate
from mfpyg.models.prediction import Prediction
from mfpyg.models.system import System
from mfpyg.properties import ENERGY, PROPERTIES

_FIELDS = tuple(field.name for field in dataclasses.fields(Prediction) if not field.name.endswith("_std"))
_LETTERS = {p.name: p.letter for p in PROPERTIES.values() if p is not ENERGY}
"""Letters of the optional fields."""

Compiled = Callable[..., list[Tensor]]

_lock = threading.RLock()
"""Recording changes global settings of torch."""


class _Module(Network, Protocol):
    """A network whose weights can be replaced."""

    backbone: nn.Module
    training: bool

    @property
    def cutoff(self) -> float: ...

    def named_modules(self, *, prefix: str) -> Iterator[tuple[str, nn.Module]]: ...


class Compiler:
    """Predicts as :func:`mfpyg.models.derivatives.evaluate` does, through functions compiled on demand.

    If recording or compiling fails, one :class:`mfpyg.errors.MFPyGWarning` is issued and predictions are evaluated
    without. Threads are serialized, also for different potentials.
    """

    def __init__(self) -> None:
        self._records: dict[Any, list[_Record]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiler:
        return Compiler()  # a copy of the potential compiles its own

    def __getstate__(self) -> dict[str, Any]:
        return {"_records": {}}

    def __call__(
        self,
        potential: _Module,
        system: System,
        wanted: Mapping[str, str],
        differentiable: bool,
        replay: bool = False,
    ) -> dict[str, Prediction]:
        """See :func:`mfpyg.models.derivatives.evaluate`; positions and cells must not require a gradient.

        With ``replay``, the compiled function is replayed as a CUDA graph.
        """
        with _lock:
            return self._predict(potential, system, wanted, differentiable, replay)

    def _predict(
        self,
        potential: _Module,
        system: System,
        wanted: Mapping[str, str],
        differentiable: bool,
        replay: bool,
    ) -> dict[str, Prediction]:
        inputs = _weights(potential), flattened(system)
        key = _key(potential, system, inputs[1], wanted, differentiable)
        records = self._records.setdefault(key, [])
        record = next((record for record in records if record.fits(inputs[1])), None)
        with torch.set_grad_enabled(differentiable):
            try:
                if record is None:
                    record = _record_prediction(potential, system, inputs, wanted, differentiable)
                    records.append(record)
                function = record.replayed if replay else record.function
                outputs = function(*inputs) if function is not None else None
            except (MFPyGError, MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # torch's compiler, and the C++ compiler that it calls, raise errors of any type
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                text = f"torch.compile failed, continuing without it ({reason})"
                warnings.warn(text, MFPyGWarning, stacklevel=4)
                self._records[key], outputs = [_Record(None, {})], None
        return evaluate(potential, system, wanted, differentiable) if outputs is None else _named(outputs, wanted)


@dataclass
class _Record:
    """Compiled record of a prediction.

    Attributes:
        function: compiled function of weights and tensors of a system; ``None`` if recording or compiling failed.
        fixed: ``{(tensor, dimension): size}``, sizes of the system's tensors that are constants in the record.
        replayed: the function, replayed as CUDA graphs.
    """

    function: Compiled | None
    fixed: dict[tuple[int, int], int]
    replayed: Compiled | None = None

    def __post_init__(self) -> None:
        if self.function is not None:
            self.replayed = Replayed(self.function)

    def fits(self, tensors: list[Tensor]) -> bool:
        """True if the tensors have the sizes that are constants in the record."""
        return all(tensors[number].shape[dim] == size for (number, dim), size in self.fixed.items())


def _key(
    potential: _Module,
    system: System,
    tensors: list[Tensor],
    wanted: Mapping[str, str],
    differentiable: bool,
) -> Any:
    """Key of a record: everything it depends on. Sizes 0 and 1 are included, as torch never makes them symbolic."""
    prepared = system.prepared
    there = type(system.topology).__name__, system.topology.edge_shift is not None, system.charge is not None
    kind = (type(prepared).__name__, None if prepared is None else prepared.key, there)
    where = (system.pos.device, system.pos.dtype, potential.training)
    small = tuple(size if size < 2 else None for tensor in tensors for size in tensor.shape)
    return tuple(wanted.items()), differentiable, kind, where, small


def _record_prediction(
    potential: _Module,
    system: System,
    inputs: tuple[dict[str, Tensor], list[Tensor]],
    wanted: Mapping[str, str],
    differentiable: bool,
) -> _Record:
    """Record a prediction as a graph module of ``(weights, tensors of the system)``, to be compiled when called."""
    # Of a copy, whose weights are replaced meanwhile: other threads read the elements of the potential.
    evaluator, last_of_energies = _Energies(copy.deepcopy(potential)), [""]

    def function(weights: dict[str, Tensor], tensors: list[Tensor]) -> list[Tensor]:
        arguments = (rebuilt(system, tensors), wanted, differentiable)
        predictions, variables = torch.func.functional_call(evaluator, weights, arguments, tie_weights=False)
        mode = get_proxy_mode()
        assert mode is not None
        last_of_energies[0] = next(reversed(mode.tracer.graph.nodes)).name
        predictions = derive(predictions, variables, wanted, differentiable)
        return [value for p in predictions.values() for name in _FIELDS if (value := getattr(p, name)) is not None]

    # Without duck shaping: it would use one symbol for sizes of the batch and the network that happen to be equal.
    with torch.set_grad_enabled(differentiable), _config.patch(use_duck_shape=False):  # type: ignore[attr-defined]
        module = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*inputs)
    _join_saved_results(module, last_of_energies[0])
    return _Record(torch.compile(module, dynamic=True), _fixed_sizes(module, len(inputs[1])))


def _fixed_sizes(module: fx.GraphModule, n_tensors: int) -> dict[tuple[int, int], int]:
    """Sizes of the last ``n_tensors`` inputs that are constants in a record."""
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"][-n_tensors:]
    fixed = {}
    for number, node in enumerate(placeholders):
        for dim, size in enumerate(node.meta["val"].shape):
            constant = size if isinstance(size, int) else size.node.maybe_as_int()
            if constant is not None:
                fixed[number, dim] = constant
    return fixed


def _join_saved_results(module: fx.GraphModule, last_of_energies: str) -> None:
    """Remove the ``detach`` of results that autograd saved for the derivatives.

    If the derivative of an operation needs its result, as that of exp does, autograd records a detached copy, which
    would drop a part of the second derivatives. All users of such a copy come after the energies, unlike those of a
    ``detach`` in the network.
    """
    nodes = list(module.graph.nodes)
    place = {node: number for number, node in enumerate(nodes)}
    end = next(number for node, number in place.items() if node.name == last_of_energies)
    for node in reversed(nodes):
        if node.target is torch.ops.aten.detach.default and all(place[user] > end for user in node.users):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()


class _Energies(nn.Module):
    """``energies`` as a module, for ``torch.func.functional_call``."""

    def __init__(self, potential: _Module) -> None:
        super().__init__()
        self.potential = potential

    def forward(
        self, system: System, wanted: Mapping[str, str], differentiable: bool
    ) -> tuple[dict[str, Prediction], Variables]:
        return energies(self.potential, system, wanted, differentiable)


def _weights(potential: _Module) -> dict[str, Tensor]:
    """Parameters and buffers by their names in :class:`_Energies`.

    A weight shared by several modules is listed under all its names, so that every use is replaced; a module used in
    several places is listed once, as ``functional_call`` could not restore it otherwise.
    """
    named: dict[str, Tensor] = {}
    for name, module in potential.named_modules(prefix="potential"):
        named.update(module.named_parameters(name, recurse=False))
        named.update(module.named_buffers(name, recurse=False))
    return named


def flattened(system: System) -> list[Tensor]:
    """All tensors of a system; the number of graphs is the size of an empty one."""
    topology, lattice = system.topology, system.lattice
    tensors = [system.pos, system.species, topology.z, topology.batch, topology.edge_index]
    tensors.append(system.pos.new_empty(topology.n_graphs, 0))
    if lattice is not None and topology.edge_shift is not None:
        tensors += [topology.edge_shift, lattice.cell, lattice.pbc]
    if system.charge is not None and system.mass is not None:
        tensors += [system.charge, system.mass]
    return tensors if system.prepared is None else [*tensors, *system.prepared.tensors()]


def rebuilt(like: System, tensors: list[Tensor]) -> System:
    """Inverse of :func:`flattened`: a system like another, with these tensors."""
    pos, species, z, batch, edge_index, sizes, *rest = tensors
    topology, lattice = type(like.topology)(z, edge_index, batch, sizes.shape[0]), None
    if like.lattice is not None and like.topology.edge_shift is not None:
        topology.edge_shift, cell, pbc, *rest = rest
        lattice = Lattice(cell, pbc)
    charge = mass = None
    if like.charge is not None:
        charge, mass, *rest = rest
    prepared = None if like.prepared is None else like.prepared.with_tensors(rest)
    return System(pos, species, topology, lattice, prepared, charge, mass)


def _named(outputs: list[Tensor], wanted: Mapping[str, str]) -> dict[str, Prediction]:
    """Predictions from the outputs of a record: of each fidelity all fields that are there."""
    values = iter(outputs)
    predictions = {}
    for name, letters in wanted.items():
        there = [field for field in _FIELDS if field not in _LETTERS or _LETTERS[field] in letters]
        fields: dict[str, Any] = {**dict.fromkeys(_FIELDS), **{field: next(values) for field in there}}
        predictions[name] = Prediction(**fields)
    return predictions
