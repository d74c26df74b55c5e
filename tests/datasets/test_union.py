"""Several data sets as one: labels, masks, names, sources, and what is refused."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from mfpyg.cli import train
from mfpyg.datasets import ExtXYZ, MiniCHNO, ReleaseDataset, UnionDataset
from mfpyg.datasets.minichno import bundled_file
from mfpyg.datasets.spec import open_dataset, parse_specs
from mfpyg.errors import MFPyGError
from mfpyg.graph import RadiusGraph

KEYS = {
    "dz": ("wb97x_dz.energy", "wb97x_dz.forces"),
    "tz": ("wb97x_tz.energy", "wb97x_tz.forces"),
    "cc": ("ccsd(t)_dz.energy", "ccsd(t)_dz.forces"),
}


def reduced(path: Path, levels: str, groups: slice, every: int = 1) -> Path:
    """A copy of some groups of the bundled file, with these levels only, and one conformation in so many."""
    with h5py.File(bundled_file()) as whole, h5py.File(path, "w") as part:
        for name in list(whole)[groups]:
            group = part.create_group(name)
            group["atomic_numbers"] = whole[name]["atomic_numbers"][:]
            for key in ("coordinates", "split", "molecule", *(k for level in levels.split() for k in KEYS[level])):
                group[key] = whole[name][key][::every]
    return path


def small(path: Path, **options: Any) -> MiniCHNO:
    """The data set of a reduced file, processed beside it."""
    return MiniCHNO(path.parent / path.stem, file=path, **{"whole_only": True, **options})


@pytest.fixture
def members(tmp_path: Path) -> list[MiniCHNO]:
    """Overlapping in one group, and in the fidelity ``cc``."""
    return [
        small(reduced(tmp_path / "one.h5", "cc dz", slice(0, 4), every=3)),
        small(reduced(tmp_path / "two.h5", "tz cc", slice(3, 7), every=2)),
        small(reduced(tmp_path / "three.h5", "dz", slice(8, 9))),
    ]


@pytest.fixture
def union(tmp_path: Path, members: list[MiniCHNO]) -> UnionDataset:
    return UnionDataset(tmp_path / "union", members)


# What it holds


def test_union_is_its_members_one_after_the_other(union: UnionDataset, members: list[MiniCHNO]) -> None:
    assert [member.fidelities for member in members] == [("dz", "cc"), ("tz", "cc"), ("dz",)]
    assert len(union) == sum(map(len, members))
    row = 0
    for number, member in enumerate(members):
        for item in member:
            found = union[row]
            for key in ("z", "pos", "conformation", "split"):
                assert torch.equal(found[key], item[key]), key
            assert union.molecules[int(found.molecule)] == member.molecules[int(item.molecule)]
            assert found.source.tolist() == [number]
            for t, name in enumerate(union.fidelities):
                if name in member.fidelities:
                    own = member.fidelities.index(name)
                    for key in ("energy", "energy_mask", "forces_mask"):
                        expected = item[key][:, own]
                        torch.testing.assert_close(found[key][:, t], expected, rtol=0, atol=0, equal_nan=True)
                    expected = item.forces[:, own]
                    torch.testing.assert_close(found.forces[:, t], expected, rtol=0, atol=0, equal_nan=True)
                else:
                    assert found.energy[:, t].isnan().all()
                    assert found.forces[:, t].isnan().all()
                    assert not found.energy_mask[:, t].any()
                    assert not found.forces_mask[:, t].any()
            row += 1
    assert [row["energies"] for row in union.label_counts()] == [
        sum(r["energies"] for m in members for r in m.label_counts() if r["name"] == name) for name in union.fidelities
    ]


def test_items_have_the_shapes_and_types_of_any_data_set(union: UnionDataset) -> None:
    def kinds(data: Any) -> dict[str, Any]:
        return {key: (value.dtype, value.dim()) for key, value in data.to_dict().items()}

    assert kinds(union[0]) == kinds(MiniCHNO()[0])
    assert list(union[0].keys()) == list(MiniCHNO()[0].keys())
    assert union[0].energy.shape == (1, 3)


def test_fidelities_are_in_the_order_in_which_members_bring_them(union: UnionDataset, members: list[MiniCHNO]) -> None:
    assert union.fidelities == ("dz", "cc", "tz")
    assert UnionDataset(Path(union.root) / "other", members[::-1]).fidelities == ("dz", "tz", "cc")
    asked = UnionDataset(union.root, members, fidelities=["tz", "dz"])
    assert asked.fidelities == ("tz", "dz")
    torch.testing.assert_close(asked._data.energy, union._data.energy[:, [2, 0]], rtol=0, atol=0, equal_nan=True)
    with pytest.raises(MFPyGError, match="unknown fidelity of UnionDataset 'mp2'"):
        UnionDataset(union.root, members, fidelities=["mp2"])


def test_sources_are_named_by_their_files(union: UnionDataset) -> None:
    assert union.sources == ["one.h5", "two.h5", "three.h5"]
    assert torch.equal(union._data.source.unique(), torch.arange(3))


def test_molecule_in_two_members_has_one_name(union: UnionDataset, members: list[MiniCHNO]) -> None:
    common = set(members[0].molecules) & set(members[1].molecules)
    assert common
    assert len(set(union.molecules)) == len(union.molecules)
    assert set(union.molecules) == {name for member in members for name in member.molecules}


def test_union_of_a_union_keeps_all_sources(union: UnionDataset, members: list[MiniCHNO], tmp_path: Path) -> None:
    shutil.copy(members[0].files[0], tmp_path / "four.h5")
    fourth = MiniCHNO(tmp_path, file=tmp_path / "four.h5")
    flat = UnionDataset(union.root, [*members, fourth])
    nested = UnionDataset(union.root, [union, fourth])
    assert nested.sources == flat.sources == ["one.h5", "two.h5", "three.h5", "four.h5"]
    assert torch.equal(nested._data.source, flat._data.source)
    assert nested.fingerprint == flat.fingerprint


def test_file_that_is_in_two_members_is_refused(union: UnionDataset, members: list[MiniCHNO]) -> None:
    with pytest.raises(MFPyGError, match=r"one\.h5 is in two of the data sets, Union.* and Mini.*; give it once"):
        UnionDataset(union.root, [union, members[0]])


def test_union_with_a_copied_part_is_another_union(union: UnionDataset, members: list[MiniCHNO]) -> None:
    part = members[0].copy(range(10))
    assert part.fingerprint != members[0].fingerprint
    assert members[0].copy().fingerprint == members[0].fingerprint
    assert len(UnionDataset(union.root, [part, *members[1:]])) == len(union) - len(members[0]) + 10


def test_required_fidelity_and_stored_edges_are_those_of_the_members(
    union: UnionDataset, members: list[MiniCHNO]
) -> None:
    edges = UnionDataset(union.root, members, pre_transform=RadiusGraph(3.0))
    for row in (0, len(union) // 2, -1):
        assert torch.equal(edges[row].edge_index, RadiusGraph(3.0)(union[row]).edge_index)
    assert edges.fingerprint == union.fingerprint
    both = UnionDataset(union.root, members, required=["tz", "cc"])
    assert len(both) == int(union._data.energy_mask[:, 1:].all(dim=1).sum()) > 0
    assert both.fidelities == union.fidelities


@pytest.mark.parametrize("atoms", [1, 50, 333])
def test_size_of_the_chunks_changes_nothing(
    union: UnionDataset, members: list[MiniCHNO], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, atoms: int
) -> None:
    monkeypatch.setattr("mfpyg.datasets.union.ATOMS_IN_CHUNK", atoms)
    again = UnionDataset(tmp_path / "again", members)
    assert again.fingerprint == union.fingerprint
    assert again.molecules == union.molecules
    for key, value in union._data.to_dict().items():
        torch.testing.assert_close(again._data[key], value, rtol=0, atol=0, equal_nan=True)


def test_a_members_transform_is_not_applied(members: list[MiniCHNO], union: UnionDataset, tmp_path: Path) -> None:
    def fail(data: Any) -> Any:
        raise AssertionError("applied")

    members[0].transform = fail
    assert torch.equal(UnionDataset(tmp_path / "again", members)._data.pos, union._data.pos)


def test_member_that_leaves_forces_out_and_one_that_has_them_are_one_level(tmp_path: Path) -> None:
    path = reduced(tmp_path / "energies.h5", "dz", slice(0, 1))
    with h5py.File(path, "a") as file:
        for group in file.values():
            del group["wb97x_dz.forces"]
    without, having = small(path), small(reduced(tmp_path / "forces.h5", "dz", slice(1, 2)))
    assert without.present_levels[0].letters == "E"
    for members in ([without, having], [having, without]):
        both = UnionDataset(tmp_path / "union", members)
        assert both.present_levels[0].labels["F"].keys == ("wb97x_dz.forces",)
        assert both.label_counts()[0]["forces"] == len(having)
        assert both.label_counts()[0]["energies"] == len(both)


def periodic(path: Path) -> ExtXYZ:
    """Two periodic frames and a molecule."""
    start, frame = 'Lattice="4 0 0 1 5 0 0 0 6" pbc="T T F" e=-1.0', "H 0 0 0\nH 0 0 0.7\n"
    path.write_text(f"2\n{start}\n{frame}1\ne=-0.5\nH 0 0 0\n2\n{start.replace('T T F', 'F T T')}\n{frame}")
    return ExtXYZ(path, ["dz=e@eV"], root=path.parent / path.stem)


@pytest.mark.parametrize("atoms", [1 << 18, 2])
def test_molecules_beside_periodic_conformations_have_cells_of_zeros(
    tmp_path: Path, members: list[MiniCHNO], monkeypatch: pytest.MonkeyPatch, atoms: int
) -> None:
    monkeypatch.setattr("mfpyg.datasets.union.ATOMS_IN_CHUNK", atoms)
    crystal = periodic(tmp_path / "crystal.xyz")
    for number, order in enumerate(([members[0], crystal], [crystal, members[0]])):
        union = UnionDataset(tmp_path / str(number), order)
        own = union._data.source == order.index(crystal)
        for key in ("cell", "pbc"):
            assert torch.equal(union._data[key][own], crystal._data[key])
            assert not union._data[key][~own].any()
        assert union[0].cell.shape == (1, 3, 3)
        assert "cell" in UnionDataset(tmp_path / "nested", [union, members[1]])[0]
        edges = RadiusGraph(3.0)
        with pytest.raises(MFPyGError, match=r"conformation 0 of H2 is periodic; stored edges are for molecules"):
            UnionDataset(tmp_path / "edges", order, pre_transform=edges)
    assert "cell" not in UnionDataset(tmp_path / "part", [members[0], crystal.copy([1])])[0]


# What is refused


def xyz(path: Path, level: str = "dz=e@eV") -> ExtXYZ:
    path.write_text("2\ne=-1.0\nH 0 0 0\nH 0 0 0.7\n1\ne=-0.5\nH 0 0 0\n")
    return ExtXYZ(path, [level], root=path.parent / path.stem)


def test_one_name_of_two_methods_is_refused_with_both_named(
    release_file: Path, tmp_path: Path, members: list[MiniCHNO]
) -> None:
    official = open_dataset(parse_specs([f"ani1x:{release_file}"]), ["cc"])
    with pytest.raises(MFPyGError) as refused:
        UnionDataset(tmp_path / "union", [members[0], official])
    for part in ("'cc'", "CCSD(T)/cc-pVDZ in one.h5", "CCSD(T)*/CBS in tiny.h5", "different names"):
        assert part in str(refused.value)
    with pytest.raises(MFPyGError, match="different levels of theory need different names"):
        parse_specs(["minichno", f"ani1x:{release_file}"])


def test_method_that_only_one_member_knows_is_that_of_both(tmp_path: Path, members: list[MiniCHNO]) -> None:
    user = xyz(tmp_path / "mine.xyz")
    for order in ([user, members[0]], [members[0], user]):
        union = UnionDataset(tmp_path / "union", order)
        assert union.present_levels[union.fidelities.index("dz")].method == "ωB97X/6-31G(d)"
        row = list(union.sources).index("mine.xyz")
        energy = union._data.energy[union._data.source == row][:, union.fidelities.index("dz")]
        np.testing.assert_allclose(energy.numpy(), [-23.060548, -11.530274], rtol=1e-6)


def test_union_of_nothing_or_of_parts_is_refused(tmp_path: Path, members: list[MiniCHNO]) -> None:
    with pytest.raises(MFPyGError, match="a union of no data sets"):
        UnionDataset(tmp_path / "union", [])
    with pytest.raises(MFPyGError, match="a part of a data set; a union takes whole ones"):
        UnionDataset(tmp_path / "union", [members[0][:5], members[1]])
    assert not (tmp_path / "union").exists()


# Processed files


def touched(path: Path) -> None:
    info = path.stat()
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns + 1_000_000_000))


def label_changed(path: Path) -> None:
    with h5py.File(path, "a") as file:
        next(iter(file.values()))["wb97x_dz.energy"][0] += 1.0


def conformation_moved(path: Path) -> None:
    with h5py.File(path, "a") as file:
        next(iter(file.values()))["coordinates"][0, 0, 0] += 0.1


@pytest.mark.parametrize("change", [label_changed, conformation_moved])
def test_changed_member_changes_the_name_and_the_fingerprint(
    union: UnionDataset, members: list[MiniCHNO], change: Callable[[Path], None]
) -> None:
    name = union.processed_file_names
    assert UnionDataset(union.root, members).processed_file_names == name
    change(members[0].files[0])
    touched(members[0].files[0])
    again = UnionDataset(union.root, [small(members[0].files[0]), *members[1:]])
    assert again.processed_file_names != name
    assert again.fingerprint != union.fingerprint
    assert again[len(members[0])].pos.equal(union[len(members[0])].pos)


def test_order_and_levels_of_the_members_change_the_name(union: UnionDataset, members: list[MiniCHNO]) -> None:
    other = [small(members[0].files[0], fidelities=["cc"]), *members[1:]]
    names = [
        UnionDataset(union.root, each, **options).processed_file_names[0]
        for each, options in (
            (members, {}),
            (members[::-1], {}),
            (other, {}),
            (members[:2], {}),
            (members, {"fidelities": ["dz"]}),
            (members, {"required": ["dz"]}),
        )
    ]
    assert len(set(names)) == len(names)


# From the command line


def specs(tmp_path: Path) -> list[str]:
    one = reduced(tmp_path / "one.h5", "dz tz", slice(0, 4), every=2)
    two = reduced(tmp_path / "two.h5", "cc", slice(0, 6), every=3)
    return [f"minichno:{one}", f"minichno:{two}"]


def test_specifications_are_opened_as_one(tmp_path: Path) -> None:
    texts = specs(tmp_path)
    union = open_dataset(parse_specs(texts), ["dz", "cc"])
    assert isinstance(union, UnionDataset)
    assert union.fidelities == ("dz", "tz", "cc")
    assert union.sources == ["one.h5", "two.h5"]
    alone = open_dataset(parse_specs(texts[:1]), ["dz"])
    assert isinstance(alone, ReleaseDataset)
    assert not any(path.is_dir() for path in tmp_path.iterdir()), "something was put beside the files"


def test_specification_without_any_fidelity_asked_for_is_refused(tmp_path: Path) -> None:
    texts = specs(tmp_path)
    with pytest.raises(MFPyGError) as refused:
        open_dataset(parse_specs(texts), ["dz"])
    assert str(refused.value) == f"{texts[1]} has none of the fidelities dz (it has cc); leave it out"
    with pytest.raises(MFPyGError, match="has the fidelity 'mp2'"):
        open_dataset(parse_specs(texts), ["dz", "cc", "mp2"])


def test_specification_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    texts = specs(tmp_path)
    with pytest.raises(MFPyGError) as refused:
        parse_specs([*texts, texts[0]])
    assert str(refused.value) == f"data set {texts[0]} is given 2 times; give it once"


@pytest.mark.slow
def test_training_on_a_union_counts_the_labels_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = specs(tmp_path)
    train.main(
        ["--dataset", *texts, "--fidelities", "dz:EF", "cc:E", "--epochs=1", "--out=run", "--split.method=random",
         "--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--batch-size=64"]
    )  # fmt: skip
    output = capsys.readouterr().out
    assert " + ".join(texts) in output
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    union = open_dataset(parse_specs(texts), ["dz", "cc"])
    with np.load(tmp_path / "run" / "splits.npz") as splits:
        rows = splits["train"]
    data = union._data
    dz, cc = union.fidelities.index("dz"), union.fidelities.index("cc")
    assert float(row["train/dz/energy_labels"]) == data.energy_mask[rows, dz].sum() > 0
    assert float(row["train/cc/energy_labels"]) == data.energy_mask[rows, cc].sum() > 0
    atoms = union.slices["z"].diff()[rows]
    assert float(row["train/dz/forces_labels"]) == 3 * (atoms * data.forces_mask[rows, dz]).sum()
    assert "train/cc/forces_labels" not in row
    assert (tmp_path / "run" / "metrics.json").is_file()
