"""Models of hippynn as potentials and back: against hippynn's own predictions with the same weights."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import ase.io
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.utils import to_dense_batch

import mfpyg
from mfpyg.cli.convert import main as convert
from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.references import as_text
from mfpyg.errors import MFPyGError, MFPyGWarning
from mfpyg.interop.hippynn import export_hippynn, load_hippynn
from mfpyg.models import HIPNN, MultiFidelityPotential
from mfpyg.units import HARTREE_TO_KCAL_MOL

pytest.importorskip("hippynn")

from hippynn.graphs import GraphModule, inputs, networks, physics, targets

pytestmark = pytest.mark.usefixtures("plain_hippynn")

NETWORKS = (networks.Hipnn, networks.HipnnVec, networks.HipnnQuad)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
CUTOFF = 4.5
SIZES = {
    "n_features": 8,
    "n_sensitivities": 6,
    "n_interaction_layers": 2,
    "n_atom_layers": 1,
    "dist_soft_min": 0.75,
    "dist_soft_max": 3.8,
    "dist_hard_max": CUTOFF,
}
REFERENCES = {1: -13.0, 6: -148.0, 7: -113.0, 8: -101.0}  # as energies of atomisation have
ATOMS = {1: -313.0, 6: -23_735.0, 7: -34_230.0, 8: -47_060.0}
SAID: dict[str, Any] = {"cutoff": CUTOFF, "energy_unit": "kcal/mol"}


@dataclass
class Peer:
    """A graph of hippynn, with a head of energies and forces for each name."""

    model: GraphModule
    heads: dict[str, Any]

    def state(self) -> dict[str, Any]:
        return dict(self.model.state_dict())

    def nodes(self) -> dict[str, str]:
        return {name: self.model.names_dict[node] for name, node in self.heads.items()}

    def predict(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """{head: energies (n_graphs,) and forces (n_atoms, 3)}."""
        z, real = to_dense_batch(batch.z, batch.batch)
        pos, _ = to_dense_batch(
            batch.pos.to(next(p for p in self.model.parameters() if p.requires_grad).dtype), batch.batch
        )
        found = self.model(z, pos)
        return {
            name: (found[2 * i].detach().squeeze(1), found[2 * i + 1].detach()[real])
            for i, name in enumerate(self.heads)
        }


def peer(
    order: int = 2,
    names: Sequence[str] = ("dz",),
    dtype: torch.dtype = torch.float64,
    species: Sequence[int] = (1, 6, 7, 8),
    extra: Callable[..., list[Any]] = lambda network, positions: [],
    first_is_interacting: bool = False,
    **options: Any,
) -> Peer:
    """A network with weights of an ordinary size, references, and ``extra(network, positions)`` in its graph."""
    torch.manual_seed(order)
    z, pos = inputs.SpeciesNode(db_name="Z"), inputs.PositionsNode(db_name="R")
    sizes = {**SIZES, "possible_species": [0, *species], **options}
    network = NETWORKS[order]("network", (z, pos), module_kwargs=sizes)
    heads = {
        name: targets.HEnergyNode(name, network, first_is_interacting=first_is_interacting, db_name=name)
        for name in names
    }
    outputs = []
    for name, node in heads.items():
        outputs += [node.mol_energy, physics.GradientNode(f"forces {name}", (node, pos), sign=-1)]
    model = GraphModule([z, pos], [*outputs, *extra(network, pos)]).to(dtype)
    with torch.no_grad():
        for layer in network.torch_module.sensitivity_layers:
            layer.mu.mul_(1 + 0.03 * torch.rand_like(layer.mu))
            layer.sigma.mul_(1 + 0.03 * torch.rand_like(layer.sigma))
        for i, node in enumerate([] if first_is_interacting else heads.values()):
            node.torch_module.layers[0].weight.copy_(torch.tensor([[REFERENCES[number] - i for number in species]]))
    return Peer(model, heads)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Molecules of several sizes, and an atom alone."""
    dataset = MiniCHNO()
    molecules = [dataset[i] for i in (0, 100, 300, 500, 700)]
    atom = Data(z=torch.tensor([8]), pos=torch.zeros(1, 3))
    return Batch.from_data_list([Data(z=one.z, pos=one.pos) for one in (*molecules, atom)])


def assert_same(potential: MultiFidelityPotential, expected: dict[str, Any], batch: Batch, unit: float = 1.0) -> None:
    """Energies and forces as hippynn's, times a unit, relative to the largest."""
    tolerance = TOLERANCE[potential.dtype]
    with_dtype = batch.clone()
    with_dtype.pos = batch.pos.to(potential.dtype)
    found = potential(with_dtype, fidelity=list(expected))
    for name, both in expected.items():
        for ours, theirs in zip((found[name].energy, found[name].forces), both, strict=True):
            theirs = unit * theirs.double()
            torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance * theirs.abs().max().item())


# From hippynn


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("names", [("dz",), ("cc", "dz")], ids=" ".join)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_energies_and_forces_are_hippynns(
    order: int, names: tuple[str, ...], dtype: torch.dtype, batch: Batch, tmp_path: Path
) -> None:
    trained = peer(order, names, dtype)
    torch.save(trained.model.state_dict(), tmp_path / "best_model.pt")
    potential = load_hippynn(tmp_path / "best_model.pt", fidelities=names, **SAID)
    assert (potential.dtype, potential.fidelities, potential.training) == (dtype, names, False)
    assert_same(potential, trained.predict(batch), batch)
    assert potential.reference("dz").tolist() == [REFERENCES[z] - names.index("dz") for z in (1, 6, 7, 8)]


@pytest.mark.parametrize("setting", ["float64", "meta", "inference mode"])
def test_global_settings_of_torch_change_nothing(setting: str, batch: Batch, tmp_path: Path) -> None:
    trained = peer(2, ("dz",), torch.float32)
    torch.save(trained.model.state_dict(), tmp_path / "best_model.pt")
    within = {"float64": nullcontext(), "meta": torch.device("meta"), "inference mode": torch.inference_mode()}
    expected = trained.predict(batch)
    torch.set_default_dtype(torch.float64 if setting == "float64" else torch.float32)
    try:
        with within[setting]:
            potential = load_hippynn(tmp_path / "best_model.pt", fidelities=["dz"], **SAID)
            exported = export_hippynn(potential, trained.model.state_dict())
    finally:
        torch.set_default_dtype(torch.float32)
    assert potential.dtype == torch.float32
    assert_same(potential, expected, batch)
    for name, value in trained.model.state_dict().items():
        if torch.is_tensor(value):
            torch.testing.assert_close(exported[name], value)


def with_everything(network: Any, positions: Any) -> list[Any]:
    """Nodes before, between and after the heads."""
    charges = targets.HChargeNode("charges", network)
    bonds = targets.HBondNode(
        "bonds",
        network,
        module_kwargs={
            "feature_sizes": network.torch_module.feature_sizes,
            **{"n_dist": 4, "dist_soft_min": 0.7, "dist_soft_max": 3.0, "dist_hard_max": CUTOFF},
        },
    )
    atomization = targets.AtomizationEnergyNode("alone", network)
    dipole = physics.DipoleNode("dipole", (charges, positions))
    return [dipole, charges.atom_charges, bonds.bonds, atomization.mol_energy]


def test_nodes_are_found_whatever_their_numbers_and_others_are_named(batch: Batch) -> None:
    plain, full = peer(names=("a", "z")), peer(names=("a", "z"), extra=with_everything)
    assert plain.nodes() != full.nodes()
    with pytest.raises(
        MFPyGError, match=r"heads are node\d+ with references H -13, .*, but fidelities are dz, cc; name all"
    ):
        load_hippynn(full.state(), fidelities=["dz", "cc"], **SAID)  # charges look like energies
    with pytest.warns(MFPyGWarning, match=r"ignored .*node\d+\.sensitivity\.mu, .*charges"):
        potential = load_hippynn(full.state(), fidelities={"cc": full.nodes()["z"], "dz": full.nodes()["a"]}, **SAID)
    expected = full.predict(batch)
    assert potential.fidelities == ("cc", "dz")
    assert_same(potential, {"cc": expected["z"], "dz": expected["a"]}, batch)


def test_names_with_something_before_the_node(batch: Batch) -> None:
    trained = peer()
    parallel = torch.nn.DataParallel(trained.model).state_dict()
    assert all(name.startswith("module.moddict.") for name in parallel)
    assert_same(load_hippynn(parallel, fidelities="dz", **SAID), trained.predict(batch), batch)


@pytest.mark.parametrize("cusp", [1e-6, 1e-3, 1e-30])
def test_the_stored_cusp_constant_is_used_and_that_of_old_files(cusp: float, batch: Batch, tmp_path: Path) -> None:
    trained = peer(cusp_reg=cusp)
    state = trained.state()
    if cusp == 1e-30:
        state = {name: value for name, value in state.items() if not name.endswith("_extra_state")}
    potential = load_hippynn(state, fidelities=["dz"], **SAID)
    assert_same(potential, trained.predict(batch), batch)
    mfpyg.save(potential, tmp_path / "model.ckpt")
    again = mfpyg.load(tmp_path / "model.ckpt")
    assert isinstance(again, MultiFidelityPotential)
    assert again.backbone.cusp == cusp  # type: ignore[union-attr]
    assert_same(again, trained.predict(batch), batch)


def test_units_of_energy_and_length_and_the_sign(batch: Batch) -> None:
    trained = peer()
    with torch.no_grad():
        trained.heads["dz"].torch_module.layers[0].weight.div_(-100)
    energy, forces = trained.predict(batch)["dz"]
    potential = load_hippynn(trained.state(), cutoff=CUTOFF, fidelities=["dz"], energy_unit="Hartree", sign=-1)
    assert_same(potential, {"dz": (energy, forces)}, batch, -HARTREE_TO_KCAL_MOL)
    # A network of lengths in bohr sees a molecule in Å as it sees one with as many bohr.
    in_bohr = load_hippynn(
        trained.state(), cutoff=CUTOFF, fidelities=["dz"], energy_unit="kcal/mol", sign=-1, length_unit="bohr"
    )
    bohr = 0.529177210903
    scaled = batch.clone()
    scaled.pos = batch.pos.double() * bohr
    assert in_bohr.cutoff == pytest.approx(CUTOFF * bohr)
    assert_same(in_bohr, {"dz": (-energy, -forces / bohr)}, scaled)


def test_elements_in_any_order_and_given_by_the_user(batch: Batch) -> None:
    trained = peer(species=(8, 1, 7, 6), names=("a", "b"))
    potential = load_hippynn(trained.state(), fidelities=["a", "b"], **SAID)
    assert potential.species == (1, 6, 7, 8)
    assert_same(potential, trained.predict(batch), batch)
    without = {name: value for name, value in trained.state().items() if not name.endswith("species_map")}
    with pytest.raises(MFPyGError, match="does not say which 4 elements it knows"):
        load_hippynn(without, fidelities=["a", "b"], **SAID)
    given = load_hippynn(without, fidelities=["a", "b"], species=[0, 8, 1, 7, 6], **SAID)
    assert_same(given, trained.predict(batch), batch)
    with pytest.raises(MFPyGError, match=r"species are \[1, 8\], but this state dictionary has \[8, 1, 7, 6\]"):
        load_hippynn(trained.state(), fidelities=["a", "b"], species=[1, 8], **SAID)
    with pytest.raises(MFPyGError, match="for 4 elements, but species are"):
        load_hippynn(without, fidelities=["a", "b"], species=[1, 8], **SAID)


def test_elements_as_many_as_features(batch: Batch) -> None:
    trained = peer(n_features=4)
    assert_same(load_hippynn(trained.state(), fidelities=["dz"], **SAID), trained.predict(batch), batch)
    with pytest.raises(MFPyGError, match="not in ascending order"):
        load_hippynn(peer(n_features=4, species=(8, 1, 7, 6)).state(), fidelities=["dz"], **SAID)


def test_heads_without_references_and_with_other_biases(batch: Batch) -> None:
    interacting = peer(first_is_interacting=True)
    potential = load_hippynn(interacting.state(), fidelities=["dz"], **SAID)
    assert not potential.reference("dz").any()
    assert_same(potential, interacting.predict(batch), batch)
    biased = peer()
    layers = biased.heads["dz"].torch_module.layers
    layers[0].bias = torch.nn.Parameter(torch.tensor([3.5], dtype=torch.float64))
    layers[1].bias = None
    assert_same(load_hippynn(biased.state(), fidelities=["dz"], **SAID), biased.predict(batch), batch)


# What does not fit


def altered(state: dict[str, Any], old: str, new: Any) -> dict[str, Any]:
    """The state with other values, or without those, whose names end so."""
    kept = {name: new(value) if name.endswith(old) and new is not None else value for name, value in state.items()}
    return {name: value for name, value in kept.items() if new is not None or not name.endswith(old)}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"cutoff": 3.0},
            r"outermost sensitivity is centred at 3\.\d+, far beyond cutoff 3; give the dist_hard_max",
        ),
        ({"cutoff": 0}, "cutoff is 0, expected"),
        ({"cutoff": float("nan")}, "cutoff is nan, expected"),
        ({"cutoff": "4.5"}, "cutoff is '4.5', expected"),
        ({"energy_unit": "hartre"}, "unknown energy unit 'hartre'.*did you mean 'Hartree'"),
        ({"length_unit": "nm"}, "unknown length unit 'nm'"),
        ({"sign": 0}, "sign is 0, expected 1, or -1"),
        ({"fidelities": []}, "but fidelities are none; name all"),
        ({"fidelities": ["dz", "cc"]}, "heads are node.*, but fidelities are dz, cc; name all"),
        ({"fidelities": {"dz": "node99"}}, "'node99' is not an energy head with one output; expected one of node"),
        ({"fidelities": ["d z"]}, "malformed fidelity name 'd z'"),
        ({"fidelities": ["dz:X"]}, "malformed fidelity 'dz:X'"),
    ],
)
def test_what_is_said_is_checked(said: dict[str, Any], message: str) -> None:
    with pytest.raises(MFPyGError, match=message):
        load_hippynn(peer().state(), **{**SAID, "fidelities": ["dz"], **said})


def test_a_name_or_a_node_twice_is_refused() -> None:
    state, nodes = peer(names=("a", "b")), peer(names=("a", "b")).nodes()
    for fidelities in (["dz", "dz"], ["dz:E", "dz:EF"], {"dz": nodes["a"], "cc": nodes["a"]}):
        with pytest.raises(MFPyGError, match="repeat a name or node"):
            load_hippynn(state.state(), fidelities=fidelities, **SAID)


@pytest.mark.parametrize(
    ("said", "factor", "message"),
    [
        ({"cutoff": 3.7}, 1.0, "beyond cutoff 3.7; make sure"),
        ({"cutoff": 8.5}, 1.0, "but cutoff is 8.5; make sure"),
        (
            {},
            -1.0,
            r"reference energies of 'dz' are H 13, .*; if binding energies are positive in the file, give the other",
        ),
        ({"sign": -1}, 1.0, "give the other sign"),
    ],
)
def test_what_is_unlikely_is_said(said: dict[str, Any], factor: float, message: str) -> None:
    trained = peer()
    with torch.no_grad():
        trained.heads["dz"].torch_module.layers[0].weight.mul_(factor)
        for layer in trained.model.node_from_name("network").torch_module.sensitivity_layers:
            layer.mu.clamp_(max=3.8)
    with pytest.warns(MFPyGWarning, match=message):
        load_hippynn(trained.state(), **{**SAID, "fidelities": ["dz"], **said})


@pytest.mark.parametrize(("unit", "expected"), [("Hartree", None), ("kcal/mol", "Hartree"), ("eV", "Hartree")])
def test_total_energies_tell_their_unit(unit: str, expected: str | None) -> None:
    trained = peer()
    with torch.no_grad():  # fitted to coupled-cluster energies of molecules of H, C, N, O
        trained.heads["dz"].torch_module.layers[0].weight.copy_(torch.tensor([[-0.60, -38.06, -54.71, -75.18]]))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        load_hippynn(trained.state(), cutoff=CUTOFF, fidelities=["dz"], energy_unit=unit)
    messages = [str(one.message) for one in found if issubclass(one.category, MFPyGWarning)]
    if expected is None:
        assert not messages
    else:
        assert len(messages) == 1
        assert f"in {expected} instead of {unit}; check energy_unit" in messages[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resnet": False}, "without residual layers .resnet=False"),
        (
            {"resnet": 5},
            r"weight 'blocks.0.0.\w+.*' has shape .*, expected .*, as in mfpyg all layers have the same width",
        ),
        (
            {"n_features": (8, 6), "n_interaction_layers": None},
            "has shape .*, as in mfpyg all layers have the same width",
        ),
        ({"activation": torch.nn.PReLU}, "a network with an activation with weights"),
    ],
)
def test_networks_that_mfpyg_has_not_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MFPyGError, match=message):
        load_hippynn(peer(**options).state(), fidelities=["dz"], **SAID)


def test_an_ensemble_and_other_sensitivities_are_refused() -> None:
    one, other = peer().state(), peer(names=("dz", "cc"), order=1).state()
    both = {**one, **{name.replace(".node", ".node1"): value for name, value in other.items()}}
    with pytest.raises(MFPyGError, match="holds 2 networks, as ensembles"):
        load_hippynn(both, fidelities=["dz"], **SAID)
    node = next(name for name in one if "sensitivity.mu" in name).removesuffix("mu")
    behind = {**one, f"{node}matching": torch.ones(6, 6)}
    with pytest.raises(MFPyGError, match="sensitivities behind a bottleneck"):
        load_hippynn(behind, fidelities=["dz"], **SAID)


@pytest.mark.parametrize(
    ("end", "change", "message"),
    [
        ("res_layer.bias", lambda x: x * float("nan"), "holds NaN or infinite numbers"),
        ("res_layer.bias", lambda x: x.float(), "is torch.float32, expected all weights in"),
        ("blocks.1.1.res_layer.bias", None, r"'blocks.1.1.mix.bias' has shape none, expected \(8,\)"),
        ("blocks.1.0.base_layer.vecscales", None, "'tensor_scales.0' has shape none|has shape none, expected"),
        ("blocks.1.0.base_layer._extra_state", lambda x: {"cusp_reg": 1e-3}, "different cusp constants 1e-06, 0.001"),
        ("_extra_state", lambda x: {"cusp_reg": "much"}, "is dict, expected a tensor or a cusp constant"),
        ("sensitivity.mu", lambda x: -x, "r_soft_min"),
        ("species_map", lambda x: x * 2, "species_map is damaged"),
        ("species_map", lambda x: x[:7], "its network is for 4 elements, but species are"),
        ("layers.0.weight", lambda x: x[:, :3], r"'node\d+.layers.0' has shape \(1, 3\), expected \(1, 4\)"),
    ],
)
def test_damaged_states_are_refused(end: str, change: Any, message: str) -> None:
    with pytest.raises(MFPyGError, match=message):
        load_hippynn(altered(peer().state(), end, change), fidelities=["dz"], **SAID)


class Code:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch made",)


@pytest.mark.parametrize("save", [torch.save, lambda code, path: Path(path).write_bytes(pickle.dumps(code))])
@pytest.mark.parametrize("place", ["model", "metric_tracker"])
def test_code_in_a_file_is_never_run(save: Any, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save({"model": peer().state(), place: Code()}, "best_checkpoint.pt")
    with pytest.raises(MFPyGError, match=r"best_checkpoint.pt: damaged, or not best_model.pt or .*\)$"):
        load_hippynn("best_checkpoint.pt", fidelities=["dz"], **SAID)
    assert not Path("made").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged, or not best_model.pt"),
        (b"words", "damaged, or not best_model.pt"),
        (bytes(range(256)) * 20, "damaged, or not best_model.pt"),
        (b"PK\x03\x04" + bytes(100), "damaged, or not best_model.pt"),
        (b"\x80\x02.", "damaged, or not best_model.pt"),
        ([1, 2], "holds list, expected a state dictionary"),
        ({}, "no network of hippynn found"),
        ({"state_dict": {"a": torch.ones(1)}, "mfpyg": 1, 3: 4}, "no network of hippynn found"),
        (None, "no such file"),
    ],
)
def test_files_that_are_none_of_hippynn_are_named(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(MFPyGError, match=f"x.pt: {message}") as error:
        load_hippynn(path, fidelities=["dz"], **SAID)
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    torch.save(peer().state(), tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    for share in (0.1, 0.5, 0.99):
        (tmp_path / "part.pt").write_bytes(content[: int(share * len(content))])
        with pytest.raises(MFPyGError, match=r"part\.pt: damaged"):
            load_hippynn(tmp_path / "part.pt", fidelities=["dz"], **SAID)


# To hippynn


@pytest.mark.filterwarnings("ignore:.*ignored node")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_hippynn_loads_what_is_exported_and_predicts_the_same(
    order: int, dtype: torch.dtype, batch: Batch, tmp_path: Path
) -> None:
    options = {"n_features": 8, "n_sensitivities": 6, "n_atom_layers": 1, "cutoff": CUTOFF, "r_soft_max": 3.8}
    torch.manual_seed(order)
    backbone = HIPNN([1, 6, 7, 8], tensor_order=order, cusp=1e-4, **options)  # type: ignore[arg-type]
    potential = MultiFidelityPotential(backbone, ["dz", "cc"]).to(dtype).eval()
    for head in potential.heads:
        head.reference.copy_(torch.tensor([REFERENCES[z] for z in (1, 6, 7, 8)]))  # type: ignore[operator, union-attr]
        for level in head.levels:  # type: ignore[union-attr]
            torch.nn.init.normal_(level.weight)
    other = peer(order, ("cc", "dz"), dtype, species=(8, 6, 7, 1), extra=with_everything, n_features=8)
    state = export_hippynn(
        potential, other.model.state_dict(), tmp_path / "best_model.pt", heads=other.nodes(), energy_unit="eV"
    )
    charges = f"moddict.{other.model.names_dict[other.model.node_from_name('charges')]}.layers.1.weight"
    assert torch.equal(state[charges], other.state()[charges])
    other.model.load_state_dict(torch.load(tmp_path / "best_model.pt", weights_only=True), strict=True)
    assert_same(potential, other.predict(batch), batch, 23.060547830619)
    back = load_hippynn(state, cutoff=CUTOFF, fidelities=other.nodes(), energy_unit="eV")
    assert_same(back, other.predict(batch), batch, 23.060547830619)


def test_what_hippynn_has_not_is_not_exported() -> None:
    other = peer(names=("cc", "dz"))
    state, heads = other.state(), other.nodes()

    def potential(width: int = 8, species: Sequence[int] = (1, 6, 7, 8), **options: Any) -> MultiFidelityPotential:
        sizes = {"n_features": width, "n_sensitivities": 6, "n_atom_layers": 1}
        return MultiFidelityPotential(HIPNN(species, **sizes), ["dz", "cc"], **options)  # type: ignore[arg-type]

    for wrong, message in (
        (potential(head="nonlinear"), "nonlinear heads"),
        (potential(private_blocks=1), "private blocks"),
        (potential(isolated="reference"), "relative to isolated atoms"),
        (potential(further={"dz": "Q"}), "charges of dz"),
        (potential(repulsion="zbl"), "has a repulsion or a baseline"),
        (potential(width=9), r"the graph's 'blocks.0.0.*' has shape .*, but the potential's"),
        (potential(species=(1, 6)), r"the graph has elements \[1, 6, 7, 8\], but the potential \[1, 6\]"),
    ):
        with pytest.raises(MFPyGError, match=message):
            export_hippynn(wrong, state, heads=heads)
    with pytest.raises(MFPyGError, match="say which node is which"):
        export_hippynn(potential(), state)
    with pytest.raises(MFPyGError, match="unknown fidelity 'tz'"):
        export_hippynn(potential(), state, heads={"tz": heads["cc"]})
    interacting = peer(names=("cc", "dz"), first_is_interacting=True)
    with pytest.raises(MFPyGError, match="not an HEnergyNode with default options"):
        export_hippynn(potential(), interacting.state(), heads=interacting.nodes())


# The whole way: a training of hippynn, its files, and what becomes of them


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GraphModule]:
    """Folder and graph of two epochs of hippynn's own training on two levels, forces of one of them."""
    from hippynn.databases import Database
    from hippynn.experiment import SetupParams, assemble_for_training
    from hippynn.experiment.routines import setup_training, training_loop
    from hippynn.graphs import loss

    torch.manual_seed(0)
    z, pos = inputs.SpeciesNode(db_name="Z"), inputs.PositionsNode(db_name="R")
    sizes = {**SIZES, "possible_species": [0, 1, 6, 7, 8]}
    network = networks.HipnnQuad("HIPNN", (z, pos), module_kwargs=sizes)
    low, high = (targets.HEnergyNode(name, network, db_name=name) for name in ("low", "high"))
    force = physics.GradientNode("forces", (low, pos), sign=-1, db_name="F")
    total = sum((loss.MSELoss.of_node(node) for node in (low.mol_energy, high.mol_energy)), loss.MSELoss.of_node(force))
    modules, info = assemble_for_training(total, {"Loss": total})
    dataset = MiniCHNO()
    rows = [dataset[i] for i in range(0, 120, 5)]
    n_atoms = max(len(row.z) for row in rows)

    def padded(values: Sequence[Tensor]) -> Tensor:
        return torch.stack([torch.cat([v, v.new_zeros(n_atoms - len(v), *v.shape[1:])]) for v in values])

    dz = dataset.fidelities.index("dz")
    arrays = {
        "Z": padded([row.z for row in rows]),
        "R": padded([row.pos for row in rows]),
        "F": padded([row.forces[:, dz] for row in rows]),
        "low": torch.randn(len(rows), 1),
        "high": torch.randn(len(rows), 1),
    }
    folder = tmp_path_factory.mktemp("hippynn")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        database = Database(arrays, seed=0, test_size=0.2, valid_size=0.2, quiet=True, pin_memory=False, **info)
        params = SetupParams(device="cpu", stopping_key="Loss", batch_size=8, max_epochs=2, learning_rate=1e-3)
        modules, controller, metrics = setup_training(modules, params)
        training_loop(modules, database, controller, metrics, [], [], False, True, 0, True)
        modules.model.load_state_dict(torch.load("best_model.pt", weights_only=True))
    return folder, modules.model


@pytest.mark.parametrize("file", ["best_model.pt", "best_checkpoint.pt"])
def test_a_training_of_hippynn(file: str, training: tuple[Path, GraphModule], batch: Batch, tmp_path: Path) -> None:
    folder, model = training
    assert {node.name for node in model.names_dict} >= {"low", "high", "forces"}
    potential = load_hippynn(folder / file, fidelities=["cc:E", "dz:EF"], **SAID)  # "high" is before "low"
    mfpyg.save(potential, tmp_path / "model.ckpt", source="hippynn, a test")
    again = mfpyg.load(tmp_path / "model.ckpt")
    assert isinstance(again, MultiFidelityPotential)
    z, real = to_dense_batch(batch.z, batch.batch)
    pos, _ = to_dense_batch(batch.pos, batch.batch)
    values = model(*({"Z": z, "R": pos}[node.db_name] for node in model.input_nodes))
    found = dict(zip((node.name for node in model.nodes_to_compute), values, strict=True))
    ours = again(batch, fidelity=["dz", "cc"])
    for mine, theirs in (
        (ours["dz"].energy, found["low.mol_energy"].detach().squeeze(1)),
        (ours["cc"].energy, found["high.mol_energy"].detach().squeeze(1)),
        (ours["dz"].forces, found["forces"].detach()[real]),
    ):
        torch.testing.assert_close(mine.float(), theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())
    described = torch.load(tmp_path / "model.ckpt", weights_only=True)["mfpyg"]
    assert described["config"]["fidelities"] == ["cc:E", "dz:EF"]
    assert described["data"]["source"] == "hippynn, a test"
    assert described["splits"] == {}


@pytest.mark.slow
def test_the_command_needs_no_hippynn(training: tuple[Path, GraphModule], batch: Batch, tmp_path: Path) -> None:
    without = "import sys; sys.modules['hippynn'] = None; from mfpyg.cli.convert import main; main()"
    file, said = str(training[0] / "best_checkpoint.pt"), ["--cutoff", str(CUTOFF), "--energy-unit", "kcal/mol"]
    command = [sys.executable, "-c", without, file, "model.ckpt", "--fidelities", "cc:E", "dz:EF", *said]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "written: model.ckpt, fidelities cc, dz\n"
    expected = load_hippynn(file, fidelities=["cc", "dz"], **SAID)
    found = mfpyg.load(tmp_path / "model.ckpt")
    assert torch.equal(found(batch, fidelity="cc").forces, expected(batch, fidelity="cc").forces)


@pytest.mark.slow
def test_the_command_gives_formation_energies_the_zero_of_total_energies(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a file of the energies of atoms exactly, and from labels that are hippynn's own energies plus these."""
    monkeypatch.chdir(tmp_path)
    trained = peer()
    torch.save(trained.state(), "best_model.pt")
    said = ["--cutoff", str(CUTOFF), "--energy-unit", "kcal/mol", "--fidelities", "dz:EF"]
    energy, forces = trained.predict(batch)["dz"]
    counts = torch.stack([torch.bincount(batch.batch, batch.z == z, batch.num_graphs) for z in ATOMS], dim=1)
    totals = energy.double() + counts.double() @ torch.tensor(list(ATOMS.values())).double()

    Path("atoms.yaml").write_text(as_text({"dz": ATOMS}))
    convert(["best_model.pt", "file.ckpt", *said, "--references", "atoms.yaml"])
    assert_same(mfpyg.load("file.ckpt"), {"dz": (totals, forces)}, batch)

    frames = []
    for one in MiniCHNO()[::40]:
        atoms = ase.Atoms(one.z.numpy(), one.pos.numpy())
        of_model, _ = trained.predict(Batch.from_data_list([Data(z=one.z, pos=one.pos)]))["dz"]
        atoms.info["e"] = float(of_model) + sum(ATOMS[z] for z in one.z.tolist())
        frames.append(atoms)
    ase.io.write("labels.xyz", frames, format="extxyz")
    capsys.readouterr()
    convert(["best_model.pt", "fit.ckpt", *said, "--references=fit", "--dataset", "labels.xyz:dz=e@kcal/mol"])
    printed = capsys.readouterr().out
    assert "dz: reference energies fitted to 20 energies of labels.xyz:dz=e@kcal/mol; RMSE " in printed
    assert " -> 0.0 kcal/mol" in printed
    assert_same(mfpyg.load("fit.ckpt"), {"dz": (totals, forces)}, batch)

    convert(["best_model.pt", "keep.ckpt", *said, "--references=keep"])
    assert_same(mfpyg.load("keep.ckpt"), {"dz": (energy, forces)}, batch)


def test_the_command_refuses_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(peer(names=("a", "b")).state(), tmp_path / "in.pt")
    node = peer(names=("a", "b")).nodes()["b"]
    said = ["--cutoff", str(CUTOFF), "--energy-unit", "kcal/mol", "--fidelities"]
    file, out = str(tmp_path / "in.pt"), str(tmp_path / "out.ckpt")
    for arguments, message in (
        ([file, out, *said, "cc"], "heads are node"),
        ([file, out, "--cutoff", "3", *said[2:], "dz", "cc"], "far beyond cutoff 3"),
        ([file, out, *said, f"cc={node}", "dz"], "fidelity 'dz' has no node"),
        ([file, out, *said, f"cc={node}", f"cc={node}"], "fidelity 'cc' is given twice"),
        ([file, out, "--cutoff", "4", "--energy-unit", "kcal", "--fidelities", "cc"], "unknown energy unit 'kcal'"),
        ([file, out, "--cutof", "4"], "unknown option --cutof; did you mean '--cutoff'?"),
        ([f"{file}x", out, *said, "cc"], "in.ptx: no such file"),
        ([file, file, *said, "cc"], "in.pt exists; choose another name"),
        ([file, f"{out}/x", *said, "cc"], "no such folder"),
        ([file, out], "cutoff"),
        ([file, out, *said, f"cc={node}", "--references=fit"], "--references is fit, but no --dataset"),
        ([file, out, *said, f"cc={node}", "--dataset=minichno"], "--references is keep; leave it out"),
        ([file, out, *said, f"cc={node}", "--references=fti"], "fti: no such file; expected a YAML file, fit or keep"),
        ([file, out, *said, f"xx={node}", "--references=fit", "--dataset=minichno"], "none of the potential's fidel"),
    ):
        with pytest.raises(SystemExit) as stopped:
            convert(arguments)
        error = capsys.readouterr().err
        assert stopped.value.code == 2
        assert message in error
        assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]
    convert([file, out, *said, f"cc={node}"])
    assert mfpyg.load(out).fidelities == ("cc",)
    with pytest.raises(SystemExit):
        convert([file, out, *said, f"cc={node}"])
    assert "out.ckpt exists" in capsys.readouterr().err


# Saving


def test_what_was_put_together_by_hand_is_not_saved(tmp_path: Path) -> None:
    potential = MultiFidelityPotential(HIPNN([1, 8], n_features=4), ["dz"])
    with pytest.raises(MFPyGError, match="assembled by hand"):
        mfpyg.save(potential, tmp_path / "model.ckpt")
    imported = load_hippynn(peer().state(), fidelities=["dz"], **SAID)
    with pytest.raises(MFPyGError, match="unknown precision '16'"):
        mfpyg.save(imported.half(), tmp_path / "model.ckpt")
    with pytest.raises(MFPyGError, match="cannot write there"):
        mfpyg.save(imported.double(), tmp_path / "none" / "model.ckpt")
    assert not list(tmp_path.iterdir())
