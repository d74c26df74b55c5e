"""Under every global setting of torch: the numbers that come without, or a line that says what to do."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch_geometric.data import Data

import mfpyg
from mfpyg import settings
from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.batches import BatchLoader
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.evaluate import evaluate
from mfpyg.inference.ensemble import Ensemble
from mfpyg.inference.frames import predict_frames
from mfpyg.interop.ase import MFPyGCalculator, data_of
from mfpyg.models import Potential
from mfpyg.models.build import build_potential
from mfpyg.torch_defaults import default_torch_settings, matmul_precision

SMALL: dict[str, dict[str, Any]] = {
    "hipnn": {"n_features": 8, "n_sensitivities": 6, "n_atom_layers": 1},
    "schnet": {"n_interactions": 2, "n_features": 8, "n_filters": 6, "n_gaussians": 12},
    "painn": {"n_interactions": 2, "n_features": 8, "n_radial": 6},
    "dimenet++": {"n_features": 8, "n_triplet": 6, "n_basis": 4, "n_out": 10, "n_spherical": 3, "n_radial": 4},
    "visnet": {"n_interactions": 3, "n_features": 8, "n_heads": 2, "n_radial": 6},
    "nequip": {"n_interactions": 2, "n_features": 4, "radial_width": 8},
    "mace": {"n_features": 4, "l_max": 2, "radial_width": 8, "radial_layers": 1},
}
TRAINED = ("hipnn", "nequip")


@contextmanager
def _set(setter: Callable[[Any], None], value: Any, before: Any) -> Iterator[None]:
    setter(value)
    try:
        yield
    finally:
        setter(before)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64 by default": lambda: _set(torch.set_default_dtype, torch.float64, torch.float32),
    "float16 by default": lambda: _set(torch.set_default_dtype, torch.float16, torch.float32),
    "meta by default": lambda: _set(torch.set_default_device, "meta", None),
    "meta within": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "deterministic": lambda: _set(torch.use_deterministic_algorithms, True, False),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no gradients": torch.no_grad,
}


def _built(backbone: str) -> Potential:
    values = settings.defaults("small", backbone)
    values["model"].update(SMALL[backbone], cutoff=4.0)
    values["fidelities"] = ["dz", "cc"]
    torch.manual_seed(0)
    return build_potential(settings.from_dict(values), [1, 6, 7, 8], ["dz", "cc"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("ambient")

    def make(backbone: str) -> Path:
        path = folder / f"{backbone}.ckpt"
        if not path.is_file():
            potential = _built(backbone)
            for head in potential.heads:  # else no larger than rounding errors
                for layer in head.levels:
                    layer.reset_parameters()
            mfpyg.save(potential, path)
        return path

    return make


def _crystal() -> Atoms:
    atoms = bulk("C", "diamond", a=3.6) * (2, 2, 1)
    atoms.rattle(0.1, seed=0)
    return atoms


def _assert_same(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        one, other = (np.asarray(torch.as_tensor(value, device="cpu").detach()) for value in (one, other))
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6 * abs(other).max())


def _through_everything(path: Path, dataset: MiniCHNO, train: bool = True) -> list[Any]:
    """Energies and forces by all ways, and the gradient of a step of training."""
    atoms, frames = _crystal(), [_crystal(), molecule("CH3CHO")]
    atoms.calc = MFPyGCalculator(path, "cc")
    found = [atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()]
    for one in predict_frames(Ensemble([path, path]), frames, ["cc", "dz"]):
        found += [value for of in one.of.values() for value in (of.energy, of.forces)]
    potential = mfpyg.load(path)
    if not torch.is_inference_mode_enabled():
        one = potential(data_of(frames[1]), fidelity="cc")
        found += [one.energy, one.forces]
    if train:
        batch, potential = next(iter(BatchLoader(dataset, 8))), potential.train()
        with torch.inference_mode(False), torch.enable_grad():
            one = potential.predict(batch, {"cc": "EF"})["cc"]
            loss = one.forces.square().mean() + one.energy.sum() * 1e-6
            with default_torch_settings():  # torch's own advice is not to go backwards in autocast
                loss.backward()
        found += [loss, *(p.grad for p in potential.parameters() if p.grad is not None)]
    return found


@pytest.fixture(scope="module")
def minichno() -> MiniCHNO:
    return MiniCHNO()


@pytest.fixture(scope="module")
def plain(checkpoint: Callable[[str], Path], minichno: MiniCHNO) -> Callable[[str], list[Any]]:
    """What a network gives where nothing is set; computed once."""
    return functools.cache(lambda backbone: _through_everything(checkpoint(backbone), minichno, backbone in TRAINED))


@pytest.mark.parametrize("state", STATES)
def test_every_way_gives_the_same_numbers(
    checkpoint: Callable[..., Path], minichno: MiniCHNO, plain: Callable[[str], list[Any]], state: str
) -> None:
    expected = list(plain("hipnn"))
    if state == "inference mode":  # in which potential(data) is refused
        del expected[11:13]
    with STATES[state]():
        found = _through_everything(checkpoint("hipnn"), minichno)
    _assert_same(found, expected)


@pytest.mark.parametrize("backbone", [name for name in SMALL if name != "hipnn"])
@pytest.mark.parametrize("state", ["float16 by default", "autocast"])
def test_every_network_gives_the_same_numbers(
    checkpoint: Callable[..., Path], minichno: MiniCHNO, plain: Callable[[str], list[Any]], state: str, backbone: str
) -> None:
    with STATES[state]():
        found = _through_everything(checkpoint(backbone), minichno, backbone in TRAINED)
    _assert_same(found, plain(backbone))


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("backbone", ["hipnn", "nequip", "mace"])
def test_a_network_is_built_the_same(backbone: str, state: str) -> None:
    expected = _built(backbone).state_dict()
    before = torch.get_default_dtype(), torch.get_default_device()
    with STATES[state]():
        found = _built(backbone).state_dict()
    assert (torch.get_default_dtype(), torch.get_default_device()) == before
    for name, value in expected.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype


@pytest.mark.parametrize("state", STATES)
def test_data_sets_and_evaluation_are_the_same(checkpoint: Callable[..., Path], tmp_path: Path, state: str) -> None:
    expected = MiniCHNO(tmp_path / "plain")
    potential, rows = mfpyg.load(checkpoint("hipnn")), np.arange(0, 788, 40)
    metrics = evaluate(potential, expected, {"test": rows}).metrics["test"]["cc"]["energy"]["rmse"]
    with STATES[state]():
        dataset = MiniCHNO(tmp_path / "within")
        part = dataset.copy([3, 1])
        found = evaluate(potential, dataset, {"test": rows}).metrics["test"]["cc"]["energy"]["rmse"]
    assert dataset.fingerprint == expected.fingerprint
    assert part.fingerprint == expected.copy([3, 1]).fingerprint
    assert found == pytest.approx(metrics, rel=1e-6)


def test_what_was_made_in_inference_mode_can_be_used_after_it(checkpoint: Callable[..., Path]) -> None:
    expected = mfpyg.load(checkpoint("hipnn"))(data_of(_crystal()), fidelity="cc")
    with torch.inference_mode():
        potential, data = mfpyg.load(checkpoint("hipnn")), data_of(_crystal()).clone()
        data.pos = data.pos.float()
    assert data.pos.is_inference()
    found = potential(data, fidelity="cc")
    torch.testing.assert_close(found.forces, expected.forces, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        potential.double()
    with pytest.raises(MFPyGError, match=r"weights .*inference_mode.*deepcopy"):
        potential(data, fidelity="cc")
    found = copy.deepcopy(potential)(data, fidelity="cc")
    torch.testing.assert_close(found.forces.float(), expected.forces, rtol=1e-4, atol=1e-5)


def test_data_on_another_device_are_refused_with_both(checkpoint: Callable[..., Path]) -> None:
    potential = mfpyg.load(checkpoint("hipnn"))
    with torch.device("meta"):
        data = Data(z=torch.tensor([8, 1, 1]), pos=torch.rand(3, 3))
    with pytest.raises(MFPyGError, match=r"data are on meta.*potential is on cpu.*to\('cpu'\)"):
        potential(data, fidelity="cc")


def test_neutral_costs_nothing_where_nothing_is_set() -> None:
    assert default_torch_settings() is default_torch_settings()


def test_a_precision_that_was_set_by_an_attribute_is_restored() -> None:
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this version of torch has no such attribute")
    try:
        matmul.fp32_precision = "tf32"
        with matmul_precision("highest"):
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
