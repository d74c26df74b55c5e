"""Damaged files of every format that is read: they are read, or refused by an ``MFPyGError`` in one line.

    pytest tests/test_fuzz.py                             # few damages of each kind, the same every time
    MFPYG_FUZZ_EXAMPLES=2000 pytest tests/test_fuzz.py    # more of them

Damages of HDF5 files are made through libhdf5, or cut them: bytes changed at random can crash the library itself.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ase
import ase.calculators.singlepoint
import ase.io
import h5py
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import mfpyg
from mfpyg.cli.train import train_command
from mfpyg.datasets import COMP6, ExtXYZ, MiniCHNO, PaddedNPY, PaddedNPZ, Pyanitools
from mfpyg.datasets.minichno import bundled_file
from mfpyg.datasets.storage import read_processed
from mfpyg.errors import MFPyGError
from mfpyg.inference.ensemble import Ensemble
from mfpyg.inference.files import predict_file
from mfpyg.inspection import inspect
from mfpyg.interop.hippynn import load_hippynn
from mfpyg.models import MultiFidelityPotential
from mfpyg.models.build import build_potential
from mfpyg.settings import defaults, from_dict, to_dict
from mfpyg.study.plan import StudyPlan, read_plan, store

EXAMPLES = int(os.environ.get("MFPYG_FUZZ_EXAMPLES", "25"))
LONGEST_MESSAGE = 500

fuzz = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

SYMBOLS = {1: b"H", 6: b"C", 7: b"N", 8: b"O"}
WATER = {"z": np.array([8, 1, 1]), "pos": np.array([[0.0, 0, 0.1], [0, 0.8, -0.5], [0, -0.8, -0.4]])}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@contextlib.contextmanager
def fresh_folder() -> Iterator[Path]:
    """A folder for one example, which the function-scoped ``tmp_path`` is not."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def assert_read_or_refused(read: Callable[[], Any]) -> None:
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            read()
    except MFPyGError as error:
        assert_one_line(str(error))


def assert_one_line(message: str) -> None:
    assert message
    assert message.splitlines() == [message], message
    assert len(message) <= LONGEST_MESSAGE, message


# Damage


@st.composite
def damaged_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes cut off, overwritten, inserted, left out, or zeroed as a block of a disk."""
    at, n = draw(st.integers(0, len(data) - 1)), draw(st.integers(1, 64))
    return draw(
        st.sampled_from(
            [
                data[:at],
                data[:at] + draw(st.binary(min_size=n, max_size=n)) + data[at + n :],
                data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at:],
                data[:at] + data[at + n :],
                data[:at] + bytes(min(512, len(data) - at)) + data[at + 512 :],
                data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :],
            ]
        )
    )


WORDS = ["", "nan", "inf", "-1", "1e400", "x", "Xx", "0", "T", "1.5", "[", '"', "=", ":", "a: b", "\t", "é"]


@st.composite
def damaged_lines(draw: st.DrawFn, text: str) -> str:
    """A line left out, doubled or swapped with another, or a word of it replaced."""
    lines = text.split("\n")
    at, other = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
    words = lines[at].split(" ")
    words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from(WORDS))
    changed = {
        "drop": [*lines[:at], *lines[at + 1 :]],
        "double": [*lines[:at], lines[at], *lines[at:]],
        "swap": [lines[other] if i == at else lines[at] if i == other else line for i, line in enumerate(lines)],
        "word": [*lines[:at], " ".join(words), *lines[at + 1 :]],
    }
    return "\n".join(changed[draw(st.sampled_from(list(changed)))])


@st.composite
def damaged_array(draw: st.DrawFn, array: np.ndarray) -> np.ndarray:
    """Another number, shape or type."""
    numbers = st.sampled_from([np.nan, np.inf, -1.0, 0.0, 1e30, 119.0])
    kind = draw(st.sampled_from(["number", "number", "all", "fewer", "more", "flat", "axis", "dtype", "empty"]))
    if kind in ("number", "all") and array.dtype.kind in "fiu" and array.size:
        value = draw(numbers)
        if array.dtype.kind != "f":
            value = int(np.clip(np.nan_to_num(value), np.iinfo(array.dtype).min, 10**6))
        changed = array.copy()
        with np.errstate(all="ignore"):
            changed.reshape(-1)[slice(None) if kind == "all" else draw(st.integers(0, array.size - 1))] = np.array(
                value
            ).astype(array.dtype)
        return changed
    if kind == "dtype":
        dtype = draw(st.sampled_from(["f4", "f8", "i8", "u1", "S8", "c16", "?"]))
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return array.astype(dtype) if array.dtype.kind in "fiu" else np.zeros(array.shape, dtype)
    changes: dict[str, Callable[[], np.ndarray]] = {
        "fewer": lambda: array[:-1] if array.ndim else array,
        "more": lambda: np.concatenate([array, array]) if array.ndim else array,
        "flat": lambda: array.reshape(-1),
        "axis": lambda: array[None],
        "empty": lambda: array[:0] if array.ndim else np.zeros(0, array.dtype),
    }
    return changes.get(kind, lambda: array[::-1] if array.ndim else array)()


ODD = [None, True, -1, 0, 10**9, 0.5, float("nan"), "", "x", "dz:EF", "a\nb", "../../x", [], {}, ["x"], {"x": 1}]


def places_in(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all values in nested dictionaries and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:3]) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places_in(value, (*path, key))


@st.composite
def damaged_tree(draw: st.DrawFn, tree: Any) -> Any:
    """A key left out, renamed or added, or a value replaced by another of its kind or of none."""
    tree = copy.deepcopy(tree)
    *path, key = draw(st.sampled_from(list(places_in(tree))))
    holder = tree
    for step in path:
        holder = holder[step]
    before, kind = holder[key], draw(st.sampled_from(["change", "change", "odd", "drop", "rename"]))
    if kind == "drop":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif kind == "change" and isinstance(before, torch.Tensor):
        holder[key] = torch.from_numpy(draw(damaged_array(before.numpy()).filter(lambda a: a.dtype.kind != "S")).copy())
    elif kind == "change" and isinstance(before, int | float) and not isinstance(before, bool):
        holder[key] = draw(st.sampled_from([-before, before + 1, before * 1000, str(before), float(before)]))
    elif kind == "change" and isinstance(before, str):
        holder[key] = draw(st.sampled_from([before + "x", before[:-1], before.upper(), before + " "]))
    elif kind == "change" and isinstance(before, list):
        holder[key] = draw(st.sampled_from([before[::-1], before[:-1], before + before, [before]]))
    else:
        holder[key] = draw(st.sampled_from(ODD))
    return tree


@st.composite
def damaged_hdf5(draw: st.DrawFn, data: bytes) -> bytes:
    """An array or group left out, renamed, put elsewhere or replaced; or the file cut."""
    if draw(st.integers(0, 4)) == 0:
        return data[: draw(st.integers(0, len(data) - 1))]
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = draw(st.sampled_from(names))
        kind = draw(st.sampled_from(["array", "array", "array", "drop", "rename", "group", "text"]))
        if kind == "array" and isinstance(file[name], h5py.Group):
            name = f"{name}/{draw(st.sampled_from(sorted(file[name])))}"
        value = file[name][()] if isinstance(file[name], h5py.Dataset) else None
        if kind == "rename":
            file.move(name, f"{name}x")
        else:
            del file[name]
        if kind == "array" and isinstance(value, np.ndarray):
            file[name] = draw(damaged_array(value))
        elif kind == "group":
            file.create_group(name)
        elif kind == "text":
            file[name] = "text"
    return buffer.getvalue()


# Data sets


def release_bytes() -> bytes:
    buffer = io.BytesIO()
    with h5py.File(bundled_file()) as full, h5py.File(buffer, "w") as file:
        for name in ("H2O1", "C1H4"):
            total = len(full[name]["coordinates"])
            for key, array in full[name].items():
                per_row = len(array) == total and key != "atomic_numbers"
                file.create_dataset(f"{name}/{key}", data=array[:3] if per_row else array[:])
    return buffer.getvalue()


def pyanitools_bytes() -> bytes:
    buffer = io.BytesIO()
    with h5py.File(bundled_file()) as full, h5py.File(buffer, "w") as file:
        for formula, name in (("H2O1", "set/mol0"), ("C1H4", "set/mol1")):
            source, group = full[formula], file.create_group(name)
            group["species"] = np.array([SYMBOLS[z] for z in source["atomic_numbers"]])
            group["coordinates"] = source["coordinates"][:3]
            group["energies"] = source["wb97x_dz.energy"][:3]
            group["forces"] = -source["wb97x_dz.forces"][:3]
    return buffer.getvalue()


def frames() -> list[ase.Atoms]:
    found = []
    for row in range(3):
        atoms = ase.Atoms(WATER["z"], WATER["pos"] * (1 + 0.01 * row))
        atoms.calc = ase.calculators.singlepoint.SinglePointCalculator(
            atoms, energy=-100.0 - row, forces=0.1 * WATER["pos"]
        )
        atoms.info["cc_energy"] = -101.0
        found.append(atoms)
    return found


def arrays() -> dict[str, np.ndarray]:
    pos = np.stack([frame.positions for frame in frames()])
    return {"Z": np.tile(WATER["z"], (3, 1)), "R": pos, "E": np.array([-1.0, -2, -3]), "F": 0.1 * pos}


def extxyz_text() -> str:
    text = io.StringIO()
    ase.io.write(text, frames(), format="extxyz")
    return text.getvalue()


LEVELS = ["dz=energy,forces@eV", "cc=cc_energy?@eV"]
HDF5: dict[str, tuple[Callable[[], bytes], Callable[[Path, Path], Any]]] = {
    "release": (release_bytes, lambda path, root: MiniCHNO(root, file=path)),
    "pyanitools": (pyanitools_bytes, lambda path, root: Pyanitools(path, ["dz=energies,-forces@Hartree"], root=root)),
    "comp6": (pyanitools_bytes, lambda path, root: COMP6(path)),
}


@pytest.mark.parametrize("layout", HDF5)
@fuzz
@given(data=st.data())
def test_hdf5(layout: str, data: st.DataObject) -> None:
    make, read = HDF5[layout]
    with fresh_folder() as folder:
        path = folder / "file.h5"
        path.write_bytes(data.draw(damaged_hdf5(make())))
        assert_read_or_refused(lambda: read(path, folder / "root"))


@fuzz
@given(data=st.data())
def test_extxyz(data: st.DataObject) -> None:
    with fresh_folder() as folder:
        damage = st.one_of(damaged_bytes(extxyz_text().encode()), damaged_lines(extxyz_text()).map(str.encode))
        (folder / "file.xyz").write_bytes(data.draw(damage))
        assert_read_or_refused(lambda: ExtXYZ(folder / "file.xyz", LEVELS, root=folder / "root"))


@pytest.fixture(scope="module")
def database(place: Path) -> bytes:
    ase.io.write(place / "file.db", frames(), format="db")
    return (place / "file.db").read_bytes()


@fuzz
@given(data=st.data())
def test_ase_database(database: bytes, data: st.DataObject) -> None:
    with fresh_folder() as folder:
        path = folder / "file.db"
        path.write_bytes(data.draw(damaged_bytes(database)))
        assert_read_or_refused(lambda: ExtXYZ(path, LEVELS, root=folder / "root"))


@pytest.mark.parametrize("layout", ["npz", "npy"])
@fuzz
@given(data=st.data())
def test_numpy(layout: str, data: st.DataObject) -> None:
    values = arrays()
    key = data.draw(st.sampled_from(list(values)))
    change_bytes = data.draw(st.booleans())
    if not change_bytes:
        values[key] = data.draw(damaged_array(values[key]))
    with fresh_folder() as folder:
        if layout == "npz":
            path = folder / "file.npz"
            np.savez(path, **values)
        else:
            for name, value in values.items():
                np.save(folder / f"x-{name}.npy", value)
            path = folder / f"x-{key}.npy"
        if change_bytes:
            path.write_bytes(data.draw(damaged_bytes(path.read_bytes())))
        cls, source = (PaddedNPZ, path) if layout == "npz" else (PaddedNPY, folder)
        assert_read_or_refused(lambda: cls(source, ["dz=E,F@kcal/mol"], root=folder / "root"))


@pytest.fixture(scope="module")
def processed(place: Path) -> bytes:
    (place / "raw.h5").write_bytes(release_bytes())
    return Path(MiniCHNO(place / "root", file=place / "raw.h5").processed_paths[0]).read_bytes()


@fuzz
@given(data=st.data())
def test_processed_data(processed: bytes, data: st.DataObject) -> None:
    with fresh_folder() as folder:
        (folder / "x.pt").write_bytes(data.draw(damaged_torch(processed)))
        assert_read_or_refused(lambda: read_processed(folder / "x.pt"))


# Checkpoints


@st.composite
def damaged_torch(draw: st.DrawFn, data: bytes) -> bytes:
    """Damaged bytes, or other values in a file whose checksums are right."""
    if draw(st.booleans()):
        return draw(damaged_bytes(data))
    buffer = io.BytesIO()
    torch.save(draw(damaged_tree(torch.load(io.BytesIO(data), weights_only=True))), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def potential() -> MultiFidelityPotential:
    tiny = {"n_interactions": 1, "n_atom_layers": 1, "n_features": 4, "n_sensitivities": 3}
    values = {**defaults("small", "hipnn"), "fidelities": ["dz:EF", "cc:E"]}
    torch.manual_seed(0)
    return build_potential(from_dict({**values, "model": {**values["model"], **tiny}}), (1, 6, 7, 8), ["dz", "cc"])


@pytest.fixture(scope="module")
def checkpoint(potential: MultiFidelityPotential, place: Path) -> bytes:
    mfpyg.save(potential, place / "model.ckpt")
    return (place / "model.ckpt").read_bytes()


@fuzz
@given(data=st.data())
def test_checkpoint(checkpoint: bytes, data: st.DataObject) -> None:
    with fresh_folder() as folder:
        path = folder / "model.ckpt"
        path.write_bytes(data.draw(damaged_torch(checkpoint)))
        assert_read_or_refused(lambda: mfpyg.load(path))
        assert_read_or_refused(lambda: inspect(path))


THEIRS = {"mix": "res_layer", "adjust": "adjust_layer", "base": "base_layer", "self_interaction": "selfint"}


@pytest.fixture(scope="module")
def hippynn_file(potential: MultiFidelityPotential) -> bytes:
    """A potential under the names of a graph of hippynn."""
    state: dict[str, Any] = {"moddict.node2.species_map": torch.tensor([0, 1, 0, 0, 0, 0, 2, 3, 4])}
    for name, value in potential.backbone.state_dict().items():
        called = ".".join(THEIRS.get(part, part) for part in name.split("."))
        called = called.replace("tensor_scales.0", "vecscales").replace("tensor_scales.1", "quadscales")
        if value.dim() == 3:
            called = called.replace("base_layer.weight", "base_layer.int_weights")
        if name.startswith("blocks."):
            state[f"moddict.node9.{called}"] = value.reshape(1, -1) if "sensitivity" in name else value
    for number, name in enumerate(potential.fidelities):
        head: Any = potential.head(name)
        node = f"moddict.node{12 + number}"
        state[f"{node}.layers.0.weight"] = head.reference.float()[None]
        for level, layer in enumerate(head.levels, 1):
            state |= {f"{node}.layers.{level}.weight": layer.weight, f"{node}.layers.{level}.bias": layer.bias}
    buffer = io.BytesIO()
    torch.save({name: value.detach().clone() for name, value in state.items()}, buffer)
    return buffer.getvalue()


@fuzz
@given(data=st.data())
def test_hippynn_state(hippynn_file: bytes, data: st.DataObject) -> None:
    def read(path: Path) -> None:
        load_hippynn(path, cutoff=4.5, fidelities=["dz:EF", "cc:E"], energy_unit="kcal/mol")

    with fresh_folder() as folder:
        (folder / "x.pt").write_bytes(hippynn_file)
        read(folder / "x.pt")
        (folder / "x.pt").write_bytes(data.draw(damaged_torch(hippynn_file)))
        assert_read_or_refused(lambda: read(folder / "x.pt"))


# Settings and studies


@st.composite
def damaged_yaml(draw: st.DrawFn, values: dict[str, Any]) -> bytes:
    text = yaml.safe_dump(values, sort_keys=False)
    changed = damaged_tree(values).map(lambda tree: yaml.safe_dump(tree, sort_keys=False).encode())
    return draw(st.one_of(changed, damaged_lines(text).map(str.encode), damaged_bytes(text.encode())))


def print_config(path: Path) -> None:
    """``mfpyg-train --config PATH --print-config``: ends with 0, or with an error in one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            train_command(["--config", str(path), "--print-config"])
    except SystemExit as end:
        if end.code not in (None, 0):
            assert_one_line(said.getvalue().strip())


@fuzz
@given(data=st.data())
def test_settings(data: st.DataObject) -> None:
    values = to_dict(from_dict({**defaults("small", "hipnn"), "fidelities": ["dz:EF", "cc:E"]}))
    with fresh_folder() as folder:
        (folder / "config.yaml").write_bytes(data.draw(damaged_yaml(values)))
        assert_read_or_refused(lambda: print_config(folder / "config.yaml"))


@fuzz
@given(data=st.data())
def test_study(data: st.DataObject) -> None:
    levels = ["dz", "tz", "mp2", "cc"]
    plan = StudyPlan(["MF-DZ/EF-CC/E"], ["mfl", "delta"], [1.0, 0.3], 3, ["--delta.share", "0.5"], levels, 9)
    with fresh_folder() as folder:
        store(plan, folder)
        values = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
        (folder / "study.yaml").write_bytes(data.draw(damaged_yaml(values)))
        assert_read_or_refused(lambda: read_plan(folder))
        assert_read_or_refused(lambda: inspect(folder))


# Frames to predict

FRAMES = {"extxyz": "x.xyz", "vasp": "POSCAR"}


@pytest.mark.parametrize("layout", FRAMES)
@fuzz
@given(data=st.data())
def test_frames(potential: MultiFidelityPotential, layout: str, data: st.DataObject) -> None:
    molecules = frames()[: 2 if layout == "extxyz" else 1]
    for one in molecules:
        one.calc = None
        one.set_cell([6.0, 6.0, 6.0])
    with fresh_folder() as folder:
        path = folder / FRAMES[layout]
        ase.io.write(path, molecules, format=layout)
        text = path.read_text(encoding="utf-8")
        path.write_bytes(data.draw(st.one_of(damaged_bytes(text.encode()), damaged_lines(text).map(str.encode))))
        assume(path.stat().st_size)
        assert_read_or_refused(
            lambda: predict_file(
                Ensemble([potential]), path, folder / "out.json", ["dz", "cc"], unit="kcal/mol", batch_size=2
            )
        )
