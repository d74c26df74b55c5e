"""Data sets in the ANI-1x release layout: content, units, masks, processed files, names."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from mfpyg.cache import cache_dir
from mfpyg.datasets import ANI1x, MiniCHNO, ReleaseDataset
from mfpyg.datasets.ani import ANI1X_URL as URL
from mfpyg.datasets.levels import ANI1X_LEVELS
from mfpyg.datasets.minichno import bundled_file
from mfpyg.datasets.spec import DatasetSpec, available_fidelities, open_dataset
from mfpyg.errors import MFPyGError
from mfpyg.graph import RadiusGraph

HARTREE = 627.5094740631


@pytest.fixture(scope="module")
def minichno() -> ReleaseDataset:
    return MiniCHNO()


@pytest.fixture(scope="module")
def raw() -> Iterator[h5py.File]:
    with h5py.File(bundled_file()) as file:
        yield file


@pytest.fixture(scope="module")
def excerpt(data_folder: Path) -> Path:
    path = data_folder / "ani1x_excerpt.h5"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


def joined(file: h5py.File, key: str) -> np.ndarray:
    """An array of all groups, conformations or atoms after one another."""
    arrays = [group[key][:].astype(np.float64) for group in file.values()]
    return np.concatenate([array.reshape(-1, 3) if array.ndim == 3 else array for array in arrays])


def processed(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "processed").glob("*")) if (root / "processed").exists() else []


# What the bundled set holds


def test_minichno_holds_what_its_description_says(minichno: ReleaseDataset) -> None:
    counts = {row["name"]: (row["energies"], row["forces"]) for row in minichno.label_counts()}
    assert len(minichno) == 788
    assert len(set(minichno.molecules)) == len(minichno.molecules) == 21
    assert counts == {"dz": (788, 788), "tz": (184, 184), "mp2": (788, 0), "cc": (788, 80)}
    assert torch.bincount(minichno._data.split).tolist() == [671, 72, 45]
    assert torch.bincount(minichno._data.molecule).min() > 0


def test_force_components_are_three_an_atom(minichno: ReleaseDataset) -> None:
    rows = {row["name"]: row["force_components"] for row in minichno.label_counts()}
    atoms = sum(len(data.z) for data in minichno if data.forces_mask[0, 3])
    assert rows == {"dz": 3 * len(minichno._data.z), "tz": rows["tz"], "mp2": 0, "cc": 3 * atoms}


@pytest.mark.parametrize("index", [0, 400, -1])
def test_item_has_the_documented_shapes_and_types(minichno: ReleaseDataset, index: int) -> None:
    data = minichno[index]
    n = data.num_nodes
    found = {name: (tuple(value.shape), value.dtype) for name, value in data.to_dict().items()}
    assert found == {
        "z": ((n,), torch.int64),
        "pos": ((n, 3), torch.float32),
        "energy": ((1, 4), torch.float64),
        "energy_mask": ((1, 4), torch.bool),
        "forces": ((n, 4, 3), torch.float32),
        "forces_mask": ((1, 4), torch.bool),
        "molecule": ((1,), torch.int64),
        "conformation": ((1,), torch.int64),
        "split": ((1,), torch.int64),
        "source": ((1,), torch.int64),
    }


def test_energies_are_kcal_mol_in_double_precision(minichno: ReleaseDataset, raw: h5py.File) -> None:
    keys = ("wb97x_dz.energy", "wb97x_tz.energy", None, "ccsd(t)_dz.energy")
    for column, key in enumerate(keys):
        if key is not None:
            expected = joined(raw, key) * HARTREE
            np.testing.assert_allclose(minichno._data.energy[:, column].numpy(), expected, rtol=1e-14)


def test_mp2_is_the_sum_of_two_keys(minichno: ReleaseDataset, raw: h5py.File) -> None:
    correlation = joined(raw, "mp2_tz.corr_energy")
    expected = (joined(raw, "hf_tz.energy") + correlation) * HARTREE
    np.testing.assert_allclose(minichno._data.energy[:, 2].numpy(), expected, rtol=1e-14)
    assert np.abs(correlation * HARTREE).min() > 10


def test_forces_and_positions_are_those_of_the_file(minichno: ReleaseDataset, raw: h5py.File) -> None:
    np.testing.assert_array_equal(minichno._data.pos.numpy(), joined(raw, "coordinates").astype(np.float32))
    for column, key in ((0, "wb97x_dz.forces"), (1, "wb97x_tz.forces"), (3, "ccsd(t)_dz.forces")):
        expected = joined(raw, key) * HARTREE
        np.testing.assert_allclose(minichno._data.forces[:, column].numpy(), expected, rtol=1e-6)


def test_atoms_and_molecules_are_in_the_order_of_the_file(minichno: ReleaseDataset, raw: h5py.File) -> None:
    row = 0
    for group in raw.values():
        names = group["molecule"].asstr()[:]
        for number in range(len(group["coordinates"])):
            data = minichno[row]
            assert data.z.tolist() == group["atomic_numbers"][:].tolist()
            assert data.conformation.item() == number
            assert minichno.molecules[data.molecule.item()] == names[number]
            assert data.split.item() == group["split"][number]
            row += 1
    assert row == len(minichno)


def test_masks_are_false_exactly_where_there_is_nan(minichno: ReleaseDataset) -> None:
    data = minichno._data
    assert torch.equal(data.energy_mask, ~data.energy.isnan())
    owner = torch.repeat_interleave(torch.arange(len(minichno)), minichno.slices["z"].diff())
    assert torch.equal(data.forces_mask[owner], ~data.forces.isnan().any(dim=2))


def test_dz_forces_are_minus_the_gradient_of_the_dz_energy(minichno: ReleaseDataset) -> None:
    # Between two near conformations ΔE = −½(F₁ + F₂)·ΔR up to third order; a gradient would give the slope −1.
    rows = []
    for molecule in range(len(minichno.molecules)):
        items = [minichno[i] for i in np.flatnonzero(minichno._data.molecule.numpy() == molecule)]
        pos = np.stack([item.pos.numpy().astype(np.float64) for item in items])
        forces = np.stack([item.forces[:, 0].numpy() for item in items])
        energy = np.array([item.energy[0, 0].item() for item in items])
        i, j = np.triu_indices(len(items), 1)
        step = pos[j] - pos[i]
        work = -0.5 * ((forces[i] + forces[j]) * step).sum(axis=(1, 2))
        rows.append(np.stack([np.sqrt((step**2).sum(axis=2).mean(axis=1)), work, energy[j] - energy[i]], axis=1))
    distance, work, difference = np.concatenate(rows).T
    near = np.argsort(distance)[:100]
    assert distance[near].max() < 0.2
    assert difference[near].std() > 1
    assert (work[near] @ difference[near]) / (work[near] @ work[near]) == pytest.approx(1, abs=0.1)
    assert np.corrcoef(work[near], difference[near])[0, 1] > 0.95


@pytest.mark.parametrize("name", ["tz", "cc"])
def test_forces_of_all_levels_have_the_same_sign_and_unit(minichno: ReleaseDataset, name: str) -> None:
    column = minichno.fidelities.index(name)
    forces = minichno._data.forces.double()
    there = ~forces[:, column].isnan().any(dim=1)
    low, high = forces[there, 0].flatten(), forces[there, column].flatten()
    assert (low @ high) / (low @ low) == pytest.approx(1, abs=0.1)


# How it behaves as a PyG data set


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (slice(3, 9, 2), [3, 5, 7]),
        ([5, 1], [5, 1]),
        (torch.tensor([7, 7, 0]), [7, 7, 0]),
        (np.array([2, 4]), [2, 4]),
        (torch.arange(788) < 3, [0, 1, 2]),
        (slice(-2, None), [786, 787]),
    ],
)
def test_indexing_gives_the_rows_asked_for(minichno: ReleaseDataset, index: Any, rows: list[int]) -> None:
    part = minichno[index]
    assert len(part) == len(rows)
    for data, row in zip(part, rows, strict=True):
        assert torch.equal(data.energy, minichno[row].energy) or data.energy.isnan().any()
        assert torch.equal(data.pos, minichno[row].pos)
    assert part.fidelities == minichno.fidelities


def test_copies_hold_the_same(minichno: ReleaseDataset) -> None:
    for copied in (minichno[5:8].copy(), copy.copy(minichno[5:8]), copy.deepcopy(minichno[5:8])):
        assert len(copied) == 3
        assert torch.equal(copied[1].pos, minichno[6].pos)
        assert copied.fidelities == minichno.fidelities


def test_change_of_a_copy_leaves_the_original(minichno: ReleaseDataset) -> None:
    before = minichno[5].pos.clone()
    minichno[5:8].copy()[0].pos.zero_()
    assert torch.equal(minichno[5].pos, before)


def test_transform_is_applied_on_access() -> None:
    def flip(data: Data) -> Data:
        data.pos = -data.pos
        return data

    assert torch.equal(MiniCHNO(transform=flip)[3].pos, -MiniCHNO()[3].pos)


def test_loader_stacks_energies_and_joins_forces(minichno: ReleaseDataset) -> None:
    chosen = [0, 100, 300, 700]
    batch = next(iter(DataLoader(minichno[chosen], batch_size=4)))
    n = sum(minichno[i].num_nodes for i in chosen)
    assert batch.energy.shape == batch.energy_mask.shape == batch.forces_mask.shape == (4, 4)
    assert batch.forces.shape == (n, 4, 3)
    assert batch.pos.shape == (n, 3)
    assert batch.molecule.tolist() == [minichno[i].molecule.item() for i in chosen]
    assert torch.equal(batch[2].pos, minichno[300].pos)


def test_repr_is_one_line(minichno: ReleaseDataset) -> None:
    assert repr(minichno) == "MiniCHNO(788, fidelities=[dz, tz, mp2, cc])"
    assert repr(minichno[:3]) == "MiniCHNO(3, fidelities=[dz, tz, mp2, cc])"


def test_fidelities_come_in_the_order_asked_for(tmp_path: Path, minichno: ReleaseDataset) -> None:
    dataset = MiniCHNO(tmp_path, ["cc", "mp2_dz", "dz"])
    assert dataset.fidelities == ("cc", "mp2_dz", "dz")
    assert torch.equal(dataset._data.energy[:, 0], minichno._data.energy[:, 3])
    assert torch.equal(dataset._data.forces[:, 2], minichno._data.forces[:, 0])


def test_fidelity_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MFPyGError, match="dz"):
        MiniCHNO(tmp_path, ["dz", "dz"])


# The official file


def counted(path: Path, level: Any) -> tuple[int, int]:
    """Energies and conformations with forces of a level, counted in the file."""
    energies = forces = 0
    with h5py.File(path) as file:
        for group in file.values():
            energies += int((~np.isnan(sum(group[key][:] for key in level.labels["E"].keys))).sum())
            if "F" in level.labels:
                forces += int((~np.isnan(group[level.labels["F"].keys[0]][:])).all(axis=(1, 2)).sum())
    return energies, forces


def test_ani1x_labels_are_those_counted_in_the_file(excerpt: Path, tmp_path: Path) -> None:
    names = [level.name for level in ANI1X_LEVELS]
    assert len(names) == 12
    dataset = ANI1x(tmp_path, names, file=excerpt)
    assert (len(dataset), len(dataset.molecules)) == (96, 50)
    for level, row in zip(ANI1X_LEVELS, dataset.label_counts(), strict=True):
        assert (row["name"], row["method"]) == (level.name, level.method)
        assert (row["energies"], row["forces"]) == counted(excerpt, level)
    assert (dataset._data.split == -1).all()


def test_ani1ccx_keeps_exactly_those_with_cc(excerpt: Path, tmp_path: Path) -> None:
    everything, subset = ANI1x(tmp_path, file=excerpt), ANI1x(tmp_path, file=excerpt, subset="ani1ccx")
    column = everything.fidelities.index("cc")
    there = everything._data.energy_mask[:, column]
    assert 0 < len(subset) == int(there.sum()) < 96
    assert torch.equal(subset._data.energy[:, column], everything._data.energy[there, column])
    assert torch.equal(subset._data.conformation, everything._data.conformation[there])
    chosen = [subset.molecules[i] for i in subset._data.molecule]
    assert chosen == [everything.molecules[i] for i in everything._data.molecule[there]]
    dataset = ANI1x(tmp_path, ["dz"], file=excerpt, subset="ani1ccx")
    assert dataset.fidelities == ("dz",)
    assert len(dataset) == len(subset)


def test_subset_leaves_out_conformations_without_cc(release_file: Path, tmp_path: Path) -> None:
    everything = ANI1x(tmp_path / "root", file=release_file)
    subset = ANI1x(tmp_path / "root", file=release_file, subset="ani1ccx")
    assert (len(everything), len(subset)) == (9, 6)
    assert subset._data.energy_mask[:, 3].all()
    for data in subset:
        with h5py.File(release_file) as file:
            group = file[subset.molecules[data.molecule.item()]]
            energy = group["ccsd(t)_cbs.energy"][data.conformation.item()] * HARTREE
            expected = group["coordinates"][data.conformation.item()]
        assert data.energy[0, 3].item() == pytest.approx(energy)
        np.testing.assert_array_equal(data.pos.numpy(), expected)


def test_level_that_is_a_sum_needs_every_summand(release_file: Path, tmp_path: Path) -> None:
    dataset = ANI1x(tmp_path / "root", ["hf_tz", "mp2"], file=release_file)
    assert dataset._data.energy_mask.sum(dim=0).tolist() == [9, 6]


def test_unknown_subset_is_refused(release_file: Path, tmp_path: Path) -> None:
    with pytest.raises(MFPyGError, match=r"'ccx' \(known: ani1ccx"):
        ANI1x(tmp_path, file=release_file, subset="ccx")


def test_official_file_is_found_in_the_raw_folder(release_file: Path, tmp_path: Path) -> None:
    (tmp_path / "root" / "raw").mkdir(parents=True)
    release_file.rename(tmp_path / "root" / "raw" / "ani1x-release.h5")
    assert len(ANI1x(tmp_path / "root")) == 9
    assert len(processed(tmp_path / "root")) == 1


def test_missing_official_file_says_where_it_goes_and_comes_from(tmp_path: Path) -> None:
    with pytest.raises(MFPyGError) as error:
        ANI1x(tmp_path / "root")
    assert f"{tmp_path}/root/raw/ani1x-release.h5: no such file" in str(error.value)
    assert URL in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "root" / "processed").exists()


def test_download_command_offered_can_write_its_file(tmp_path: Path) -> None:
    # curl -o does not make folders; the folder must be there, or be made by the command.
    with pytest.raises(MFPyGError) as error:
        ANI1x(tmp_path / "root")
    message = str(error.value)
    assert (tmp_path / "root" / "raw").is_dir() or "--create-dirs" in message or "mkdir" in message


def test_level_that_the_file_lacks_is_named_with_its_key(release_file: Path, tmp_path: Path) -> None:
    with pytest.raises(MFPyGError, match=r"no level 'npno_dz'.*levels in the file: dz, tz, mp2, cc, hf_tz") as error:
        ANI1x(tmp_path / "root", ["npno_dz"], file=release_file)
    assert str(release_file) in str(error.value)


def test_key_said_to_be_missing_is_one_that_is(release_file: Path, tmp_path: Path) -> None:
    with h5py.File(release_file, "r+") as file:
        for group in file.values():
            del group["hf_tz.energy"]
    with pytest.raises(MFPyGError, match=r"'hf_tz\.energy'"):
        ANI1x(tmp_path / "root", ["mp2"], file=release_file)


# Processed files


@pytest.mark.parametrize(
    "settings",
    [
        {"pre_transform": RadiusGraph(3.0)},
        {"pre_transform": RadiusGraph(3.5)},
        {"fidelities": ["dz"]},
        {"fidelities": ["tz", "dz", "mp2", "cc"]},
        {"subset": "ani1ccx"},
    ],
)
def test_changed_settings_give_a_new_processed_file(
    release_file: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    root = tmp_path / "root"
    first = ANI1x(root, file=release_file, pre_transform=RadiusGraph(4.0))
    second = ANI1x(root, file=release_file, **settings)
    assert first.processed_paths != second.processed_paths
    assert len(processed(root)) == 2


def test_same_settings_use_the_old_processed_file(release_file: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    first = ANI1x(root, file=release_file, pre_transform=RadiusGraph(4.0))
    written = os.stat(first.processed_paths[0]).st_mtime_ns
    again = ANI1x(root, file=release_file, pre_transform=RadiusGraph(4.0), track=fails_at_once(RuntimeError))
    assert again.processed_paths == first.processed_paths
    assert os.stat(again.processed_paths[0]).st_mtime_ns == written
    assert torch.equal(again[0].edge_index, first[0].edge_index)


def test_reload_processes_again(release_file: Path, tmp_path: Path) -> None:
    first = ANI1x(tmp_path / "root", file=release_file)
    inode = os.stat(first.processed_paths[0]).st_ino
    assert len(ANI1x(tmp_path / "root", file=release_file, force_reload=True)) == 9
    assert os.stat(first.processed_paths[0]).st_ino != inode
    assert processed(tmp_path / "root") == [Path(first.processed_paths[0]).name]


def test_raw_file_of_another_date_is_processed_anew(release_file: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    first = ANI1x(root, file=release_file)
    with h5py.File(release_file, "r+") as file:
        file["H2O1"]["wb97x_dz.energy"][0] = -1.0
    os.utime(release_file, ns=(1, 1))
    second = ANI1x(root, file=release_file)
    assert len(processed(root)) == 2
    assert second.fingerprint != first.fingerprint
    assert sorted(second._data.energy[:, 0].tolist())[-1] == pytest.approx(-HARTREE)


def test_file_of_another_size_and_the_same_date_is_processed_anew(release_file: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    os.utime(release_file, ns=(1, 1))
    first = ANI1x(root, file=release_file)
    with h5py.File(release_file, "r+") as file:
        file["H2O1"].copy(file["H2O1"], file, name="H2O1b")
    os.utime(release_file, ns=(1, 1))
    assert len(ANI1x(root, file=release_file)) == 13
    assert len(first) == 9
    assert len(processed(root)) == 2


def test_stored_edges_are_those_of_the_cutoff(release_file: Path, tmp_path: Path) -> None:
    dataset = ANI1x(tmp_path / "root", file=release_file, pre_transform=RadiusGraph(1.2))
    for data in dataset:
        distance = torch.cdist(data.pos, data.pos).fill_diagonal_(torch.inf)
        assert data.edge_index.shape[1] == int((distance <= 1.2).sum())
    batch = next(iter(DataLoader(dataset, batch_size=9)))
    assert torch.equal(batch.batch[batch.edge_index[0]], batch.batch[batch.edge_index[1]])


@pytest.mark.parametrize("role", ["pre_transform", "pre_filter"])
def test_function_that_does_not_say_its_settings_is_refused(release_file: Path, tmp_path: Path, role: str) -> None:
    with pytest.raises(MFPyGError, match=f"{role}.*__repr__"):
        ANI1x(tmp_path / "root", file=release_file, **{role: lambda data: data})
    assert processed(tmp_path / "root") == []


class AtLeast:
    """A filter by the number of atoms."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, data: Data) -> bool:
        return data.num_nodes >= self.n

    def __repr__(self) -> str:
        return f"AtLeast({self.n})"


def test_filter_keeps_what_it_lets_through(release_file: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    large = ANI1x(root, file=release_file, pre_filter=AtLeast(4))
    assert [data.num_nodes for data in large] == [5, 5, 5, 4, 4]
    assert [row["energies"] for row in large.label_counts()] == [5, 3, 3, 3]
    assert len(ANI1x(root, file=release_file, pre_filter=AtLeast(5))) == 3
    both = ANI1x(root, file=release_file, pre_filter=AtLeast(5), pre_transform=RadiusGraph(9.0))
    assert both[0].edge_index.shape == (2, 20)


def test_filter_that_lets_nothing_through_is_refused(release_file: Path, tmp_path: Path) -> None:
    with pytest.raises(MFPyGError, match="pre_filter"):
        ANI1x(tmp_path / "root", file=release_file, pre_filter=AtLeast(99))
    assert processed(tmp_path / "root") == []


def test_filtered_data_have_a_fingerprint_of_their_own(release_file: Path, tmp_path: Path) -> None:
    # Splits are numbers of conformations: they hold only for the very same list of them.
    whole = ANI1x(tmp_path / "root", file=release_file)
    large = ANI1x(tmp_path / "root", file=release_file, pre_filter=AtLeast(4))
    assert whole.fingerprint != large.fingerprint


def fails_at_once(error: type[BaseException]) -> Callable[[Sequence[str]], Iterable[str]]:
    def track(groups: Sequence[str]) -> Iterable[str]:
        yield groups[0]
        raise error("in the middle")

    return track


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_interrupted_reading_leaves_nothing(release_file: Path, tmp_path: Path, error: type[BaseException]) -> None:
    root = tmp_path / "root"
    with pytest.raises((error, MFPyGError)):
        ANI1x(root, file=release_file, track=fails_at_once(error))
    assert processed(root) == []
    assert len(ANI1x(root, file=release_file)) == 9


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_interrupted_writing_leaves_nothing(
    release_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def save(stored: Any, name: str) -> None:
        Path(name).write_bytes(b"half")
        raise error("in the middle")

    root = tmp_path / "root"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises((error, MFPyGError)):
            ANI1x(root, file=release_file)
    assert processed(root) == []
    assert len(ANI1x(root, file=release_file)) == 9


def test_interrupted_reload_keeps_the_old_file(release_file: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    before = processed_of(ANI1x(root, file=release_file))
    with pytest.raises(KeyboardInterrupt):
        ANI1x(root, file=release_file, force_reload=True, track=fails_at_once(KeyboardInterrupt))
    assert processed_of(ANI1x(root, file=release_file)) == before


def test_error_of_the_progress_display_is_not_blamed_on_the_file(release_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="in the middle") as error:
        ANI1x(tmp_path / "root", file=release_file, track=fails_at_once(RuntimeError))
    assert not isinstance(error.value, MFPyGError)


def processed_of(dataset: ReleaseDataset) -> tuple[str, bytes]:
    return dataset.processed_paths[0], Path(dataset.processed_paths[0]).read_bytes()


# Names of data sets


def test_package_data_are_found_as_resources() -> None:
    folder = files("mfpyg.datasets") / "data"
    assert (folder / "minichno.h5").is_file()
    assert "CC0" in (folder / "minichno.md").read_text(encoding="utf-8")
    assert bundled_file().is_file()


@pytest.mark.parametrize(
    ("text", "path"), [("minichno", None), ("ani1x", Path("data/ani1x")), ("ani1ccx", Path("data/ani1x"))]
)
def test_name_alone_has_a_usual_place(text: str, path: Path | None) -> None:
    assert DatasetSpec.parse(text) == DatasetSpec(text, path)


def test_name_with_a_path_is_written_back(release_file: Path) -> None:
    spec = DatasetSpec.parse(f"ani1x:{release_file}")
    assert spec == DatasetSpec("ani1x", release_file)
    assert str(spec) == f"ani1x:{release_file}"
    assert spec.levels == ANI1X_LEVELS
    assert str(DatasetSpec.parse("minichno")) == "minichno"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("minchno", "unknown data set 'minchno'.*did you mean 'minichno'"),
        ("", "unknown data set ''"),
        (":x.h5", "unknown data set ''"),
        ("qm9:x.h5", "unknown data set 'qm9' .known: minichno, ani1x, ani1ccx"),
        ("ani1x:", "'ani1x:' has no path.*ani1x:PATH"),
        ("ani1x:/no/such.h5", "/no/such.h5: no such file or folder"),
    ],
)
def test_wrong_name_or_path_is_refused(text: str, message: str) -> None:
    with pytest.raises(MFPyGError, match=message):
        DatasetSpec.parse(text)


def test_bundled_set_is_processed_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFPYG_CACHE", str(tmp_path / "cache"))
    dataset = open_dataset(DatasetSpec.parse("minichno"), ["dz"])
    assert Path(dataset.processed_paths[0]).parent == tmp_path / "cache" / "minichno" / "processed"


def test_cache_is_the_users_unless_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MFPYG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "mfpyg"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "mfpyg"


def test_given_file_is_processed_in_the_cache_and_not_beside_it(
    release_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MFPYG_CACHE", str(tmp_path / "cache"))
    spec = DatasetSpec.parse(f"ani1x:{release_file}")
    dataset = open_dataset(spec, ["dz", "cc"])
    assert (type(dataset), len(dataset), dataset.fidelities) == (ANI1x, 9, ("dz", "tz", "mp2", "cc"))
    assert Path(dataset.processed_paths[0]).is_relative_to(tmp_path / "cache" / "files")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "tiny.h5"]
    assert len(open_dataset(DatasetSpec.parse(f"ani1ccx:{release_file}"))) == 6


def test_given_root_is_processed_in_place(release_file: Path, tmp_path: Path) -> None:
    raw = tmp_path / "root" / "raw"
    raw.mkdir(parents=True)
    release_file.rename(raw / "ani1x-release.h5")
    spec = DatasetSpec.parse(f"ani1x:{tmp_path / 'root'}")
    dataset = open_dataset(spec)
    assert Path(dataset.processed_paths[0]).parent == tmp_path / "root" / "processed"
    assert available_fidelities(spec) == ("dz", "tz", "mp2", "cc", "hf_tz")


def test_root_without_its_file_names_the_missing_path(tmp_path: Path) -> None:
    for name, file in (("minichno", "minichno.h5"), ("ani1x", "ani1x-release.h5")):
        with pytest.raises(MFPyGError, match=f"{tmp_path}/raw/{file}: no such file"):
            open_dataset(DatasetSpec.parse(f"{name}:{tmp_path}"))


def test_trainings_on_usual_fidelities_share_a_processed_file(release_file: Path) -> None:
    spec = DatasetSpec.parse(f"ani1x:{release_file}")
    paths = {open_dataset(spec, names).processed_paths[0] for names in ((), ["dz"], ["cc", "tz"])}
    assert len(paths) == 1
    assert open_dataset(spec, ["hf_tz", "dz"]).fidelities == ("hf_tz", "dz")


def test_fidelity_that_the_file_lacks_is_refused(release_file: Path) -> None:
    with h5py.File(release_file, "r+") as file:
        for group in file.values():
            del group["ccsd(t)_cbs.energy"]
    spec = DatasetSpec.parse(f"ani1x:{release_file}")
    assert open_dataset(spec).fidelities == ("dz", "tz", "mp2")
    with pytest.raises(MFPyGError, match=r"no level 'cc', its key 'ccsd\(t\)_cbs.energy' is missing"):
        open_dataset(spec, ["dz", "cc"])


def test_damaged_processed_file_is_named(tmp_path: Path) -> None:
    processed = Path(MiniCHNO(tmp_path).processed_paths[0])
    processed.write_bytes(processed.read_bytes()[:5000])
    with pytest.raises(MFPyGError, match=r"minichno-\w+\.pt: damaged; remove it"):
        MiniCHNO(tmp_path)
    assert len(MiniCHNO(tmp_path, force_reload=True)) == 788


def test_items_of_a_large_data_set_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = MiniCHNO()
    items = {i: kept[i] for i in (0, 787)}
    monkeypatch.setattr("mfpyg.datasets.conformations.KEEP_ITEMS_UP_TO", 100)
    dataset = MiniCHNO()
    for i, item in items.items():
        for key, value in item.to_dict().items():
            assert torch.equal(torch.nan_to_num(dataset[i][key]), torch.nan_to_num(value)), key
    assert kept._data_list is not None
    assert dataset._data_list is None


def test_axes_of_length_one_change_nothing(release_file: Path) -> None:
    expected = ANI1x(release_file.parent / "before", file=release_file)._data
    with h5py.File(release_file, "r+") as file:
        for group in file.values():
            for key in ("wb97x_dz.energy", "mp2_tz.corr_energy", "wb97x_dz.forces"):
                values = group[key][:]
                del group[key]
                group[key] = values[:, None]
    found = ANI1x(release_file.parent / "after", file=release_file)._data
    assert torch.equal(found.energy.nan_to_num(), expected.energy.nan_to_num())
    assert torch.equal(found.forces.nan_to_num(), expected.forces.nan_to_num())
