"""What ``artefacts.py`` damages, and what each is read by and judged by."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import io
import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import artefacts
import ase
import ase.build
import ase.io
import h5py
import mutations
import numpy as np
import oracles
import torch
import yaml
from artefacts import Random, Same, Subject
from torch_geometric.data import Data

import mfpyg
from mfpyg.cli import train, train_options
from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.minichno import bundled_file
from mfpyg.files import save_torch
from mfpyg.inference.ensemble import Ensemble
from mfpyg.inference.files import predict_file
from mfpyg.inspection import inspect
from mfpyg.interop.hippynn import load_hippynn
from mfpyg.models import DeltaPotential, MultiFidelityPotential, Potential
from mfpyg.models.build import build_delta, build_potential
from mfpyg.settings import defaults, flat, from_dict, to_dict
from mfpyg.study.plan import StudyPlan, read_plan, store
from mfpyg.training.check import check_settings
from mfpyg.training.initial import read_initial

Family = Callable[[bytes, Random], tuple[bytes, str]]
STORED = Path(__file__).resolve().parents[1] / "checkpoints"
WATER = Data(z=torch.tensor([8, 1, 1]), pos=torch.tensor([[0.0, 0, 0.1], [0, 0.8, -0.5], [0, -0.8, -0.4]]))
TINY = {"n_interactions": 1, "n_atom_layers": 1, "n_features": 4, "n_sensitivities": 3}


def make_subjects(kind: str, folder: Path) -> list[Subject]:
    """The undamaged files of a kind."""
    makers = {
        "settings": _settings,
        "study": _studies,
        "checkpoint": _checkpoints,
        "foreign": _foreign,
        "processed": _processed,
        "run": _runs,
        "frames": _frames,
    }
    place = folder / f"seeds-{kind}"
    place.mkdir()
    return list(makers[kind](place))


# --- settings and studies -------------------------------------------------------------------------------------


def _settings(folder: Path) -> list[Subject]:
    whole = to_dict(from_dict({**defaults("small", "hipnn"), "fidelities": ["dz:EF", "cc:E"]}))
    published = to_dict(
        from_dict({**defaults("published", "painn"), "fidelities": ["dz:EF", "cc:E"], "strategy": "tl"})
    )
    few = "fidelities: [dz:EF, cc:E]\nepochs: 3\noptim:\n  lr: 1e-2\n  stop_after: null\nweights: [cc:E=2]\nout: run\n"
    texts = {
        "whole": yaml.safe_dump(whole, sort_keys=False),
        "published": yaml.safe_dump(published, sort_keys=False),
        "few": few,
    }
    families: dict[str, Family] = {
        "bytes": artefacts.of_bytes(text=True),
        "values": artefacts.yaml_values,
        "lines": artefacts.yaml_lines,
    }
    if (STORED / "0.1.0").is_dir():
        texts["0.1.0"] = (STORED / "0.1.0" / "config.yaml").read_text(encoding="utf-8")
    return [
        Subject(name, {"config.yaml": text.encode()}, "config.yaml", (), families, _read_settings(text))
        for name, text in texts.items()
    ]


def _read_settings(text: str) -> Callable[[Path, int], None]:
    def act(place: Path, number: int) -> None:
        path = place / "config.yaml"
        parsed, _ = train_options.parse(["--config", str(path)])
        check_settings(parsed)
        found = flat(to_dict(parsed))
        said = flat(_plain_yaml(path.read_text(encoding="utf-8")))
        usual = flat(defaults(parsed.preset, parsed.backbone))
        for name, value in found.items():
            right = said.get(name, usual[name])
            if name == "dataset" and isinstance(right, str):
                right = [right]
            if isinstance(value, float) and isinstance(right, str):
                right = float(right)
            assert (value, isinstance(value, bool)) == (right, isinstance(right, bool)), name
        assert not {name for name, value in said.items() if name not in found and value is not None}, said
        if said == flat(_plain_yaml(text)):
            raise Same

    return act


def _plain_yaml(text: str) -> dict[str, Any]:
    """What PyYAML makes of it, each key being there once."""

    def check(node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(map(str, keys))), f"keys {keys}"
        for child in node.value if isinstance(node, yaml.CollectionNode) else ():
            for one in child if isinstance(child, tuple) else (child,):
                check(one)

    try:
        check(yaml.compose(text, yaml.SafeLoader))
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise AssertionError(f"no YAML: {error}") from error
    assert isinstance(found, dict), type(found)
    return found


def _studies(folder: Path) -> list[Subject]:
    levels = ["dz", "tz", "mp2", "cc"]
    plans = {
        "plain": StudyPlan(["SF-CC/E", "MF-DZ/EF-CC/E"], members=2, levels=levels, epochs=3),
        "ways": StudyPlan(["MF-DZ/EF-CC/E"], ["mfl", "delta"], [1.0, 0.3], 3, ["--delta.share", "0.5"], levels, 9),
    }
    families: dict[str, Family] = {
        "bytes": artefacts.of_bytes(text=True),
        "values": artefacts.yaml_values,
        "lines": artefacts.yaml_lines,
    }
    subjects = []
    for name, plan in plans.items():
        store(plan, folder / name)
        text = (folder / name / "study.yaml").read_text(encoding="utf-8")
        subjects.append(Subject(name, {"study.yaml": text.encode()}, "study.yaml", (), families, _read_study(text)))
    return subjects


def _read_study(text: str) -> Callable[[Path, int], None]:
    def act(place: Path, number: int) -> None:
        report = inspect(place)
        json.dumps(report, allow_nan=False)
        plan = read_plan(place)
        said = _plain_yaml((place / "study.yaml").read_text(encoding="utf-8"))
        assert {name: value for name, value in said.items() if name != "models"} == {
            name: value for name, value in dataclasses.asdict(plan).items() if name != "models"
        }, f"{plan}"
        for run in plan.runs(place):
            assert place.resolve() in run.folder.resolve().parents, f"{run.folder} is outside"
            plan.arguments(run)
        if said == _plain_yaml(text):
            raise Same

    return act


# --- checkpoints ----------------------------------------------------------------------------------------------


def _potential(backbone: str, seed: int, **changes: Any) -> Potential:
    """A small potential with weights and references of its own."""
    values = {**defaults("small", backbone), "fidelities": ["dz:EF", "cc:E"], **changes}
    if backbone == "hipnn":
        values["model"] = {**values["model"], **TINY}
    settings = from_dict(values)
    torch.manual_seed(seed)
    kind = build_delta if values.get("strategy") == "delta" else build_potential
    more = ("dz",) if values.get("strategy") == "delta" else ()
    names = ["cc"] if more else ["dz", "cc"]
    potential: Potential = kind(settings, (1, 6, 7, 8), names, *more)  # type: ignore[operator]
    with torch.no_grad():
        for name, buffer in potential.named_buffers():
            if name.endswith("reference"):
                buffer.copy_(-100 * torch.rand(buffer.shape, dtype=torch.float64))
    return potential.eval()


def _energies(potential: Potential) -> dict[str, tuple[float, list[list[float]]]]:
    found = potential(WATER, fidelity=list(potential.fidelities))
    return {name: (one.energy.item(), one.forces.tolist()) for name, one in found.items()}


def _of_torch(data: bytes) -> dict[str, Family]:
    hot = tuple(i for mark in (b"PK\x01\x02", b"PK\x05\x06", b"PK\x03\x04") for i in artefacts._finds(data, mark))
    return {
        "bytes": artefacts.of_bytes(hot),
        "headers": artefacts.zip_headers,
        "entries": artefacts.zip_entries,
        "values": artefacts.torch_values,
    }


def _checkpoints(folder: Path) -> list[Subject]:
    made = {
        "hipnn": _potential("hipnn", 0),
        "double": _potential("hipnn", 1, precision=64),
        "nonlinear": _potential("hipnn", 2, head={"kind": "nonlinear", "isolated": "reference"}),
        "painn": _potential("painn", 3, model={"n_features": 8, "n_interactions": 1}),
    }
    subjects = []
    for name, potential in made.items():
        mfpyg.save(potential, folder / f"{name}.ckpt")
    for path in [*sorted(folder.glob("*.ckpt")), *sorted(STORED.glob("*/*.ckpt"))]:
        data = path.read_bytes()
        name = path.stem if path.parent == folder else f"{path.parent.name}-{path.stem}"
        subjects.append(Subject(name, {"x.ckpt": data}, "x.ckpt", (), _of_torch(data), _read_checkpoint(data)))
    return subjects


def _contents(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")


def _read_checkpoint(data: bytes) -> Callable[[Path, int], None]:
    @functools.cache
    def undamaged() -> tuple[Any, Potential, dict[str, Any]]:
        before = _contents(data)
        with contextlib.suppress(FileNotFoundError):
            Path("undamaged.ckpt").unlink()
        Path("undamaged.ckpt").write_bytes(data)
        potential = mfpyg.load("undamaged.ckpt")
        Path("undamaged.ckpt").unlink()
        return before, potential, _energies(potential)

    def act(place: Path, number: int) -> None:
        path = place / "x.ckpt"
        before, right, energies = undamaged()
        if number % 5 == 3:
            report = inspect(path)
            json.dumps(report, allow_nan=False)
            after = _contents(path.read_bytes())
            assert list(report["fidelities"]) == after["mfpyg"]["fidelities"]
            assert report["config"] == after["mfpyg"]["config"]
            _raise_if_same(before, after)
            return
        if number % 5 == 4:
            initial = read_initial(path)
            _ = initial.network, initial.splits, initial.fidelities
            potential: Potential = initial.potential()
        else:
            potential = mfpyg.load(path)
        found = _energies(potential)
        after = _contents(path.read_bytes())
        _check_as_said(potential, after)
        if all(np.isfinite(np.append(forces, energy)).all() for energy, forces in found.values()):
            weights = {name.removeprefix("potential."): value for name, value in after["state_dict"].items()}
            if _networks(before) == _networks(after):
                other = copy.deepcopy(right)
                other.load_state_dict({k: v for k, v in weights.items() if k in other.state_dict()})
                names = dict(zip(other.fidelities, potential.fidelities, strict=True))
                expected = {names[name]: values for name, values in _energies(other).items()}
                assert found == expected, f"energies {found}, expected {expected}"
        if found == energies:
            raise Same

    return act


def _networks(contents: Any) -> Any:
    config = contents["mfpyg"]["config"]
    return {name: config.get(name) for name in ("backbone", "model", "head", "precision")}, contents["mfpyg"].get(
        "base_level"
    )


def _check_as_said(potential: Potential, said: Any) -> None:
    """Check that a potential has the weights of its file, and is what the file says of itself."""
    described = said["mfpyg"]
    assert list(potential.fidelities) == described["fidelities"]
    assert list(potential.species) == described["species"], f"{potential.species} {described['species']}"
    assert isinstance(potential, DeltaPotential) == (described.get("base_level") is not None)
    weights = {k.removeprefix("potential."): v for k, v in said["state_dict"].items() if k.startswith("potential.")}
    has = potential.state_dict()
    assert has.keys() == weights.keys()
    for name, value in has.items():
        assert value.dtype == weights[name].dtype, name
        assert torch.equal(value, weights[name].reshape(value.shape)), name
    for name in potential.fidelities:
        assert list(described["reference_energies"][name].values()) == potential.reference(name).tolist(), name
    assert potential.settings is not None
    has_settings = flat(to_dict(potential.settings))
    for name, value in flat(described["config"]).items():
        assert has_settings[name] == value or name == "dataset" or str(value) == str(has_settings[name]), name


def _raise_if_same(before: Any, after: Any) -> None:
    if _alike(before, after):
        raise Same


def _bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return (
            isinstance(other, torch.Tensor)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and _bytes(one) == _bytes(other)
        )
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(_alike(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(_alike, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


# --- hippynn's files, and processed data -----------------------------------------------------------------------

_THEIRS = {"mix": "res_layer", "adjust": "adjust_layer", "base": "base_layer", "self_interaction": "selfint"}


def _foreign(folder: Path) -> list[Subject]:
    potential = _potential("hipnn", 4)
    assert isinstance(potential, MultiFidelityPotential)
    state: dict[str, Any] = {"moddict.node2.species_map": torch.tensor([0, 1, 0, 0, 0, 0, 2, 3, 4])}
    for name, value in potential.backbone.state_dict().items():
        parts = [_THEIRS.get(part, part) for part in name.split(".")]
        called = ".".join(parts).replace("tensor_scales.0", "vecscales").replace("tensor_scales.1", "quadscales")
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
    state = {name: value.detach().clone() for name, value in state.items()}
    contents = {"best_model.pt": state, "best_checkpoint.pt": {"model": state, "epoch": 3}}
    subjects = []
    for name, values in contents.items():
        save_torch(folder / name, values)
        data = (folder / name).read_bytes()
        subjects.append(Subject(name, {"x.pt": data}, "x.pt", (), _of_torch(data), _read_foreign(data)))
    return subjects


def _hippynn(path: Path) -> Potential:
    return load_hippynn(path, cutoff=4.5, fidelities=["dz:EF", "cc:E"], energy_unit="kcal/mol")


def _read_foreign(data: bytes) -> Callable[[Path, int], None]:
    @functools.cache
    def undamaged() -> dict[str, Any]:
        Path("undamaged.pt").write_bytes(data)
        found = _energies(_hippynn(Path("undamaged.pt")))
        Path("undamaged.pt").unlink()
        return found

    def act(place: Path, number: int) -> None:
        right = undamaged()
        potential = _hippynn(place / "x.pt")
        found = _energies(potential)
        assert all(np.isfinite(np.append(f, e)).all() for e, f in found.values()), f"energies {found}"
        mfpyg.save(potential, place / "converted.ckpt")
        assert _energies(mfpyg.load(place / "converted.ckpt")) == found
        (place / "converted.ckpt").unlink()
        if found == right:
            raise Same
        # It is no damage that checksums would have found: the weights are others.
        assert not _alike(_contents(data), _contents((place / "x.pt").read_bytes())), f"energies {found}, not {right}"

    return act


def _tiny_file(path: Path, n: int) -> Path:
    with h5py.File(bundled_file()) as full, h5py.File(path, "w") as file:
        for name in ("H2O1", "C1H4", "C1O2", "H3N1"):
            total = len(full[name]["coordinates"])
            for key, array in full[name].items():
                whole = len(array) != total or key == "atomic_numbers"
                file.create_dataset(f"{name}/{key}", data=array[:] if whole else array[:n])
    return path


def _processed(folder: Path) -> list[Subject]:
    from mfpyg.graph import RadiusGraph

    raw = _tiny_file(folder / "tiny.h5", 3)
    subjects = []
    for name, more in (("plain", {}), ("edges", {"pre_transform": RadiusGraph(4.0)})):
        dataset = MiniCHNO(folder / name, file=raw, **more)
        data = Path(dataset.processed_paths[0]).read_bytes()
        subjects.append(Subject(name, {"x.pt": data}, "x.pt", (), _of_torch(data), _read_processed(data)))
    return subjects


def _read_processed(data: bytes) -> Callable[[Path, int], None]:
    def act(place: Path, number: int) -> None:
        report = inspect(place / "x.pt")
        json.dumps(report, allow_nan=False)
        _raise_if_same(_contents(data), _contents((place / "x.pt").read_bytes()))

    return act


# --- run folders ----------------------------------------------------------------------------------------------


_TEXTS = ("metrics.csv", "versions.json", "metrics.json")


def _runs(folder: Path) -> list[Subject]:
    raw = _tiny_file(folder / "tiny.h5", 20)
    network = [f"--model.{name}={value}" for name, value in TINY.items()]
    options = ["--dataset", f"minichno:{raw}", "--batch-size", "20", "--epochs", "2", "--accelerator", "cpu", *network]
    run = folder / "run"
    _quietly(["--fidelities", "dz:EF", "cc:E", *options, "--out", str(run)])
    files = {f"run/{path.relative_to(run)}": path.read_bytes() for path in run.rglob("*") if path.is_file()}
    files = {name: data for name, data in files.items() if "tensorboard" not in name}
    text = artefacts.of_bytes(text=True)
    families: dict[str, dict[str, Family]] = {
        "run/config.yaml": {"bytes": text, "values": artefacts.yaml_values, "lines": artefacts.yaml_lines},
        "run/splits.npz": {
            "bytes": artefacts.of_bytes(),
            "entries": artefacts.zip_entries,
            "values": artefacts.npz_arrays,
        },
        **{f"run/{name}": {"bytes": text, "lines": artefacts.text_lines} for name in _TEXTS},
        "run/last.ckpt": _of_torch(files["run/last.ckpt"]),
        "run/best.ckpt": _of_torch(files["run/best.ckpt"]),
    }
    shutil.copytree(run, folder / "whole")
    _quietly(["--resume", str(folder / "whole"), "--epochs", "3"])
    whole = _contents((folder / "whole" / "last.ckpt").read_bytes())["state_dict"]
    return [
        Subject(name, files, name, (), of_file, _resume(name, files, whole))
        for name, of_file in families.items()
        for _ in range(3 if name == "run/last.ckpt" else 1)
    ]


def _quietly(arguments: list[str]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        train.train_command(arguments)


def _resume(target: str, files: dict[str, bytes], whole: Any) -> Callable[[Path, int], None]:
    def act(place: Path, number: int) -> None:
        run = place / "run"
        if number % 3 == 2:
            json.dumps(inspect(run), allow_nan=False)
            if target.endswith(".ckpt"):
                _raise_if_same(_contents(files[target]), _contents((place / target).read_bytes()))
            return
        damaged = (place / target).read_bytes()
        _quietly(["--resume", str(run), "--epochs", "3"])
        found = _contents((run / "last.ckpt").read_bytes())["state_dict"]
        json.dumps(inspect(run), allow_nan=False)
        rows = (run / "metrics.csv").read_text(encoding="utf-8").splitlines()
        assert [rows[0].split(",")[0], rows[-1].split(",")[0]] == ["epoch", "2"], rows
        if _alike(found, whole):
            raise Same
        # Numbers in the state of the training may be others, if the checkpoint's checksums are right.
        assert target == "run/last.ckpt", "weights are not those of an undamaged run"
        assert not _alike(_contents(files[target]), _contents(damaged)), "weights are not those of an undamaged run"

    return act


# --- frames ---------------------------------------------------------------------------------------------------

_FORMATS = {
    **{"extxyz": "x.xyz", "db": "x.db", "vasp": "POSCAR", "json": "x.json", "traj": "x.traj", "cif": "x.cif"},
    "gen": "x.gen",
}
"""ASE's name of each format, and of a file of it."""


def _frames(folder: Path) -> list[Subject]:
    potential = _potential("hipnn", 5)
    molecules = [ase.build.molecule(name) for name in ("H2O", "CH4", "NH3")]
    for one in molecules:
        one.info.update(name="frame", weight=1.5)
        one.new_array("tag", np.arange(len(one)))
    cell = ase.build.molecule("H2O", vacuum=3.0, pbc=True)
    subjects = []
    for name, file in _FORMATS.items():
        several = name in ("extxyz", "db", "json", "traj")
        ase.io.write(folder / file, [*molecules, cell] if several else cell, format=name)
        _without_times(folder / file)
        text = name in ("extxyz", "vasp", "json", "cif", "gen")
        families: dict[str, Family] = {"bytes": artefacts.of_bytes(text=text)}
        if text:
            families |= {
                "lines": artefacts.text_lines,
                "numbers": xyz_lines if name == "extxyz" else artefacts.text_lines,
            }
        act = _predict(file, name, potential, (folder / file).read_bytes())
        subjects.append(Subject(name, {file: (folder / file).read_bytes()}, file, (), families, act))
    return [*subjects, *[subjects[0]] * 4]


def _without_times(path: Path) -> None:
    """Replace times and random names, which ASE puts in, as a case has to be the same again."""
    if path.suffix == ".db":
        connection = sqlite3.connect(path)
        with connection:
            connection.execute(
                "UPDATE systems SET unique_id = printf('%032d', id), ctime = 1, mtime = 1, username = 'me'"
            )
        connection.execute("VACUUM")
        connection.close()
    elif path.suffix == ".json":
        text = re.sub(r'"(unique_id|user)": "[^"]*"', r'"\1": "me"', path.read_text(encoding="utf-8"))
        path.write_text(re.sub(r'"([cm]time)": [0-9.e+]+', r'"\1": 1.0', text), encoding="utf-8")


def xyz_lines(data: bytes, random: Random) -> tuple[bytes, str]:
    lines = data.split(b"\n")
    mutation = mutations.pick(random, mutations.OF_LINES)
    what = mutation(lines, random)
    return b"\n".join(lines), f"{mutation.__name__}: {what}"


def _predict(file: str, name: str, potential: Potential, data: bytes) -> Callable[[Path, int], None]:
    def act(place: Path, number: int) -> None:
        out = place / "out.json"
        predict_file(Ensemble([potential]), place / file, out, ["dz", "cc"], unit="kcal/mol", batch_size=2)
        found = json.loads(out.read_text(encoding="utf-8"))["frames"]
        out.unlink()
        assert found
        for frame in found:
            for level in ("dz", "cc"):
                values = np.append(frame[level]["forces"], frame[level]["energy"])
                assert np.isfinite(values).all(), f"{frame}"
        if name == "extxyz":
            _check_frames(found, place / file, potential)
        if (place / file).read_bytes() == data:
            raise Same

    return act


def _check_frames(found: list[dict[str, Any]], path: Path, potential: Potential) -> None:
    """Check frames against a slow reading of extended XYZ, molecule by molecule."""
    try:
        expected = oracles.extxyz(path, [], ())
    except oracles.Unsure:
        return
    except oracles.Wrong as error:
        raise AssertionError(f"though wrong: {error}") from error
    assert len(found) == len(expected.molecules), f"{len(found)} frames, expected {len(expected.molecules)}"
    for frame, right in zip(found, expected.molecules, strict=True):
        data = Data(z=torch.tensor(right.z), pos=torch.tensor(np.array(right.pos)))
        if any(right.pbc):
            data.cell = torch.tensor(np.array(right.cell))[None]
            data.pbc = torch.tensor(right.pbc)[None]
        with torch.no_grad():
            for level, one in potential(data, fidelity=["dz", "cc"]).items():
                close = np.allclose(one.forces.numpy(), frame[level]["forces"], rtol=1e-3, atol=1e-3)
                assert close, f"forces {frame}"
                assert np.isclose(one.energy.item(), frame[level]["energy"], atol=1e-3), f"energy {frame}"
