"""Processed data on disk: columns that are streamed, files that are mapped, and what is left of a failure."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from mfpyg.datasets import ANI1x, MiniCHNO
from mfpyg.datasets.processing import ColumnFiles, starts
from mfpyg.datasets.storage import fingerprint, read_processed
from mfpyg.errors import MFPyGError
from mfpyg.graph import RadiusGraph


def processed(dataset: MiniCHNO) -> Path:
    return Path(dataset.processed_paths[0])


def same(one: Any, two: Any) -> None:
    """Two data sets are the same bit by bit."""
    assert list(one._data.keys()) == list(two._data.keys())
    for key, value in one._data.to_dict().items():
        assert value.dtype == two._data[key].dtype
        torch.testing.assert_close(two._data[key], value, rtol=0, atol=0, equal_nan=True, msg=key)
    for key, value in one.slices.items():
        assert torch.equal(two.slices[key], value), key
    assert (one.molecules, one.sources, one.fingerprint) == (two.molecules, two.sources, two.fingerprint)
    assert (one.present_levels, one.incomplete) == (two.present_levels, two.incomplete)


# Columns


PIECES = {
    "z": [np.arange(4), np.arange(0), np.arange(3)],
    "pos": [np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32) for n in (4, 0, 3)],
    "mask": [np.array([[True, False]]), np.zeros((0, 2), bool), np.array([[False, False], [True, True]])],
}


@pytest.mark.parametrize("name", PIECES)
def test_column_is_its_pieces_joined(tmp_path: Path, name: str) -> None:
    with ColumnFiles(tmp_path) as files:
        for piece in PIECES[name]:
            files.append(name, piece)
            files.append("another", np.ones((2, 2)))
        expected = np.concatenate(PIECES[name])
        column = files.column(name)
        assert column.numpy().dtype == expected.dtype
        assert column.numpy().shape == expected.shape
        np.testing.assert_array_equal(column.numpy(), expected)
        assert files.column("another").shape == (6, 2)
        files.append(name, PIECES[name][0])
        np.testing.assert_array_equal(files.column(name).numpy(), np.concatenate([expected, PIECES[name][0]]))


@pytest.mark.parametrize(
    "rows", [np.zeros((2, 4), np.float32), np.zeros((2, 3)), np.zeros(6, np.float32), np.zeros((2, 3, 1), np.float32)]
)
def test_rows_of_another_type_or_width_are_refused(tmp_path: Path, rows: np.ndarray) -> None:
    with ColumnFiles(tmp_path) as files:
        files.append("pos", np.ones((2, 3), np.float32))
        with pytest.raises(TypeError, match="column pos"):
            files.append("pos", rows)
        assert files.column("pos").tolist() == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("shape", [(0,), (0, 3), (0, 2, 3), (4, 0, 3)])
def test_empty_column_keeps_its_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with ColumnFiles(tmp_path) as files:
        files.append("forces", np.zeros(shape, np.float32))
        assert files.column("forces").shape == shape
        assert files.column("forces").dtype == torch.float32


def test_strided_rows_are_written_in_their_order(tmp_path: Path) -> None:
    rows = np.arange(24.0).reshape(4, 6)
    with ColumnFiles(tmp_path) as files:
        files.append("a", rows[::-1, ::2])
        files.append("b", np.asfortranarray(rows))
        np.testing.assert_array_equal(files.column("a").numpy(), rows[::-1, ::2])
        np.testing.assert_array_equal(files.column("b").numpy(), rows)


def test_change_of_a_column_is_not_written_to_its_file(tmp_path: Path) -> None:
    with ColumnFiles(tmp_path) as files:
        files.append("a", np.zeros(5))
        files.column("a")[2] = 7.0
        assert files.column("a").tolist() == [0.0] * 5


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_columns_leave_nothing_in_the_folder(tmp_path: Path, error: type[BaseException] | None) -> None:
    def use() -> None:
        with ColumnFiles(tmp_path) as files:
            files.append("z", np.arange(1000))
            assert list(tmp_path.iterdir()) == []
            if error is not None:
                raise error

    if error is None:
        use()
    else:
        with pytest.raises(error):
            use()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", [None, slice(3, 40)])
def test_fingerprint_is_the_hash_of_sizes_geometries_labels_and_split(part: slice | None) -> None:
    dataset = MiniCHNO().copy(part)
    items = [dataset[i] for i in range(len(dataset))]
    ends = np.cumsum([0, *(len(item.z) for item in items)])
    columns = [torch.cat([item[key] for item in items]) for key in ("z", "pos", "energy", "forces", "split")]
    content = ends.astype(np.int64).tobytes() + b"".join(column.numpy().tobytes() for column in columns)
    assert fingerprint(dataset._data, dataset.slices) == hashlib.sha256(content).hexdigest()
    assert part is not None or dataset.fingerprint == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", ["slices", "z", "pos", "energy", "forces", "split"])
def test_fingerprint_sees_a_change_of_any_column(name: str) -> None:
    dataset = MiniCHNO().copy(slice(5, 9))
    before = fingerprint(dataset._data, dataset.slices)
    if name == "slices":
        dataset.slices["z"][1] += 1
    else:
        dataset._data[name].view(-1)[0] += 1
    assert fingerprint(dataset._data, dataset.slices) != before


def test_starts_are_the_sums_of_what_is_before() -> None:
    assert starts(torch.tensor([3, 0, 2])).tolist() == [0, 3, 3, 5]
    assert starts(torch.tensor([], dtype=torch.int64)).tolist() == [0]


# A full disk

LIMITED = '''
"""Process a data set where no file may grow beyond so many bytes; print the error."""
import resource, signal, sys
from pathlib import Path
from mfpyg.datasets import MiniCHNO
from mfpyg.errors import MFPyGError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
root, limit = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    MiniCHNO(root)
except MFPyGError as error:
    print(error)
print(sorted(path.name for path in (Path(root) / "processed").iterdir()))
'''


def size_of(dataset: MiniCHNO) -> int:
    return processed(dataset).stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("where", ["columns", "processed file"])
def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, where: str) -> None:
    dataset = MiniCHNO(tmp_path / "whole")
    largest = dataset._data.forces.nbytes
    assert largest < size_of(dataset) - 1000
    limit = {"columns": largest // 2, "processed file": largest + 1000}[where]
    child = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "full"), str(limit)],
        text=True, capture_output=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    error, left = child.stdout.splitlines()
    assert str(tmp_path / "full") in error
    assert "write" in error
    assert left == "[]"


# Processed files


def test_opening_maps_the_processed_file_and_does_not_read_it(tmp_path: Path) -> None:
    dataset = MiniCHNO(tmp_path)
    name = str(processed(dataset))
    with open("/proc/self/maps") as file:
        spans = [[int(x, 16) for x in line.split()[0].split("-")] for line in file if name in line]
    for key, value in dataset._data.to_dict().items():
        assert any(start <= value.data_ptr() < end for start, end in spans), f"{key} is not in the file"


def test_change_of_a_data_set_is_not_written_to_its_file(tmp_path: Path) -> None:
    dataset = MiniCHNO(tmp_path)
    before = processed(dataset).read_bytes()
    dataset._data.pos += 1.0
    dataset._data.energy.zero_()
    assert processed(dataset).read_bytes() == before
    assert MiniCHNO(tmp_path)._data.energy.nan_to_num().any()


def changed(dataset: MiniCHNO, edit: Callable[[dict[str, Any]], Any]) -> None:
    stored = torch.load(processed(dataset), weights_only=True)
    edit(stored)
    torch.save(stored, processed(dataset).with_suffix(".new"))
    processed(dataset).with_suffix(".new").replace(processed(dataset))  # the old one is mapped


def shorter(stored: dict[str, Any], part: str, key: str) -> None:
    stored[part][key] = stored[part][key][:-1].clone()


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "positions too short": lambda s: shorter(s, "data", "pos"),
    "energies too short": lambda s: shorter(s, "data", "energy"),
    "slices too short": lambda s: shorter(s, "slices", "z"),
    "slices of the energy too short": lambda s: shorter(s, "slices", "energy"),
    "last slice too large": lambda s: s["slices"]["forces"][-1].add_(1),
    "no slices of a column": lambda s: s["slices"].pop("pos"),
    "no column": lambda s: s["data"].pop("energy"),
    "slices that go back": lambda s: s["slices"].update(z=_swapped(s["slices"]["z"])),
    "edges too short": lambda s: s["data"].update(edge_index=s["data"]["edge_index"][:, :-1].clone()),
    "no format": lambda s: s.pop("format"),
    "older format": lambda s: s.update(format=1),
    "no slices": lambda s: s.pop("slices"),
    "no fingerprint": lambda s: s.pop("fingerprint"),
    "no molecules": lambda s: s.pop("molecules"),
}


def _swapped(slices: torch.Tensor) -> torch.Tensor:
    slices = slices.clone()
    slices[[3, 4]] = slices[[4, 3]]
    return slices


@pytest.mark.parametrize("damage", DAMAGES)
def test_processed_file_that_does_not_fit_together_is_refused(tmp_path: Path, damage: str) -> None:
    dataset = MiniCHNO(tmp_path, pre_transform=RadiusGraph(3.0))
    changed(dataset, DAMAGES[damage])
    with pytest.raises(MFPyGError, match="damaged; remove it to process the raw file again"):
        MiniCHNO(tmp_path, pre_transform=RadiusGraph(3.0))
    processed(dataset).unlink()
    same(MiniCHNO(tmp_path, pre_transform=RadiusGraph(3.0)), dataset)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_file_that_is_no_processed_one_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "some.pt").write_bytes(content)
    with pytest.raises(MFPyGError, match=r"some\.pt: damaged"):
        read_processed(tmp_path / "some.pt")


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_truncated_processed_file_is_refused(tmp_path: Path, share: float) -> None:
    dataset = MiniCHNO(tmp_path)
    whole = processed(dataset).read_bytes()
    del dataset
    path = next((tmp_path / "processed").glob("*.pt"))
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(MFPyGError, match="damaged"):
        MiniCHNO(tmp_path)


def test_new_format_is_a_new_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = MiniCHNO(tmp_path)
    content = processed(old).read_bytes()
    for module in ("conformations", "storage"):
        monkeypatch.setattr(f"mfpyg.datasets.{module}.FORMAT", 99)
    new = MiniCHNO(tmp_path)
    assert processed(new) != processed(old)
    same(old, new)
    assert processed(old).read_bytes() == content
    assert torch.load(processed(new), weights_only=True)["format"] == 99


# Streaming


class InterruptedAfter:
    """Shows no progress, and is interrupted after some groups."""

    def __init__(self, groups: int) -> None:
        self.groups = groups

    def __call__(self, names: Sequence[str]) -> Iterable[str]:
        for number, name in enumerate(names):
            if number == self.groups:
                raise KeyboardInterrupt
            yield name


@pytest.mark.parametrize("groups", [0, 1, 9])
def test_interrupted_streaming_leaves_nothing(tmp_path: Path, groups: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        MiniCHNO(tmp_path, track=InterruptedAfter(groups), pre_transform=RadiusGraph(3.0))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    same(MiniCHNO(tmp_path), MiniCHNO())


@pytest.mark.parametrize("options", [{}, {"pre_transform": RadiusGraph(3.0)}], ids=["plain", "edges"])
@pytest.mark.parametrize("atoms", [20, 1000])
def test_size_of_the_chunks_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atoms: int, options: dict[str, Any]
) -> None:
    whole = MiniCHNO(tmp_path / "whole", **options)
    monkeypatch.setattr("mfpyg.datasets.hdf5.ATOMS_IN_CHUNK", atoms)
    same(whole, MiniCHNO(tmp_path / "chunks", **options))
    content = [processed(MiniCHNO(tmp_path / name, **options)).read_bytes() for name in ("whole", "chunks")]
    assert len(content[0]) == len(content[1])


@pytest.mark.parametrize("atoms", [1, 9, 1 << 18])
def test_size_of_the_chunks_changes_nothing_where_labels_are_missing(
    release_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atoms: int
) -> None:
    whole = ANI1x(tmp_path / "whole", ["tz", "mp2", "dz"], file=release_file, subset="ani1ccx")
    assert 0 < len(whole) < 9
    monkeypatch.setattr("mfpyg.datasets.hdf5.ATOMS_IN_CHUNK", atoms)
    same(whole, ANI1x(tmp_path / "chunks", ["tz", "mp2", "dz"], file=release_file, subset="ani1ccx"))


@pytest.mark.parametrize("cutoff", [0.1, 1.2, 4.0, 100.0])
def test_edges_found_in_chunks_are_those_of_each_item(tmp_path: Path, cutoff: float) -> None:
    plain, edges = MiniCHNO(), MiniCHNO(tmp_path, pre_transform=RadiusGraph(cutoff))
    for row in range(0, 788, 5):
        expected = RadiusGraph(cutoff)(plain[row].clone())
        found = edges[row]
        assert sorted(found.keys()) == sorted(expected.keys())
        for key in expected.keys():  # noqa: SIM118
            assert found[key].dtype == expected[key].dtype
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0, equal_nan=True)
        assert found.num_edges == expected.num_edges
    assert edges.fingerprint == plain.fingerprint


class KeepAll:
    """A filter that keeps everything, so that each conformation becomes an object."""

    def __call__(self, data: Data) -> bool:
        return True

    def __repr__(self) -> str:
        return "KeepAll()"


def test_processing_by_objects_gives_the_same(tmp_path: Path) -> None:
    fast = MiniCHNO(tmp_path, pre_transform=RadiusGraph(3.0))
    slow = MiniCHNO(tmp_path, pre_transform=RadiusGraph(3.0), pre_filter=KeepAll())
    assert processed(fast) != processed(slow)
    for row in range(0, 788, 7):
        one, two = fast[row], slow[row]
        assert sorted(one.keys()) == sorted(two.keys())
        for key in one.keys():  # noqa: SIM118
            torch.testing.assert_close(one[key], two[key], rtol=0, atol=0, equal_nan=True)
    assert fast.fingerprint == slow.fingerprint
