"""ANI-2x: where its file is, its level, and the sign of its forces against the energies."""

from __future__ import annotations

import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest

from mfpyg.cache import cache_dir
from mfpyg.datasets.ani import ANI2X_RAW_NAME as RAW_NAME
from mfpyg.datasets.ani import ANI2X_URL as URL
from mfpyg.datasets.ani import ANI2x
from mfpyg.datasets.pyanitools import Pyanitools
from mfpyg.datasets.spec import DatasetSpec, available_fidelities, combined_levels, open_dataset, parse_specs
from mfpyg.errors import MFPyGError

HARTREE = 627.5094740631


def write_file(path: Path, sign: float = 1.0, n: int = 60) -> Path:
    """The release's layout and types: hydrogen chloride and fluorine in turn, as springs, near each other."""
    random = np.random.default_rng(4)
    path.parent.mkdir(parents=True, exist_ok=True)
    length = 1.2 + 0.05 * random.normal(size=n)
    pos = np.zeros((n, 2, 3))
    pos[:, 1, 2] = length
    force = np.zeros((n, 2, 3))
    force[:, 1, 2] = -0.5 * (length - 1.2)
    force[:, 0] = -force[:, 1]
    with h5py.File(path, "w") as file:
        group = file.create_group("002")
        group["species"] = np.array([[17, 1], [9, 9]])[np.arange(n) % 2]
        group["coordinates"] = pos.astype(np.float32)
        group["energies"] = np.array([-460.7, -199.4])[np.arange(n) % 2] + 0.25 * (length - 1.2) ** 2
        group["forces"] = sign * force
    return path


def test_forces_are_true_forces_in_hartree(tmp_path: Path) -> None:
    file = write_file(tmp_path / "some.h5")
    dataset = ANI2x(file)
    assert dataset.fidelities == ("dz",)
    assert dataset.present_levels[0].method == "ωB97X/6-31G(d)"
    assert dataset.molecules == ["Cl1H1", "F2"]
    with h5py.File(file) as opened:
        np.testing.assert_allclose(dataset._data.energy[:, 0], opened["002/energies"][:] * HARTREE, rtol=1e-12)
        expected = opened["002/forces"][:].reshape(-1, 3) * HARTREE
        np.testing.assert_allclose(dataset._data.forces[:, 0], expected, rtol=1e-6)


def test_gradients_are_refused_and_can_be_read_as_such(tmp_path: Path) -> None:
    file = write_file(tmp_path / "negated.h5", sign=-1)
    with pytest.raises(MFPyGError) as error:
        ANI2x(file)
    assert f"{file}: the forces are gradients, not true forces" in str(error.value)
    level = str(error.value).rpartition("pyanitools:FILE:")[2]
    right = ANI2x(write_file(tmp_path / "right.h5"))
    assert Pyanitools(file, [level]).fingerprint == right.fingerprint


@pytest.mark.parametrize("place", [".", "final_h5"])
def test_file_is_found_in_a_root(place: str, tmp_path: Path) -> None:
    write_file(tmp_path / "root" / "raw" / place / RAW_NAME)
    dataset = open_dataset(DatasetSpec.parse(f"ani2x:{tmp_path / 'root'}"), ["dz"])
    assert type(dataset) is ANI2x
    assert Path(dataset.processed_paths[0]).parent == tmp_path / "root" / "processed"


def test_file_alone_is_processed_in_the_cache(tmp_path: Path) -> None:
    spec = DatasetSpec.parse(f"ani2x:{write_file(tmp_path / 'some.h5')}")
    assert cache_dir() in Path(open_dataset(spec).processed_paths[0]).parents
    assert available_fidelities(spec) == ("dz",)


def test_missing_file_is_said_to_be_downloadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MFPyGError) as error:
        open_dataset(DatasetSpec.parse("ani2x"))
    assert URL in str(error.value)
    assert shlex.quote(str(Path("data/ani2x/raw"))) in str(error.value)


def test_its_level_is_that_of_ani_1x(tmp_path: Path, release_file: Path) -> None:
    specs = parse_specs([f"ani1x:{release_file}", f"ani2x:{write_file(tmp_path / 'some.h5')}"])
    assert [level.method for level in combined_levels(specs) if level.name == "dz"] == ["ωB97X/6-31G(d)"]
    assert len(open_dataset(specs, ["dz"])) == len(open_dataset(specs[0], ["dz"])) + 60
