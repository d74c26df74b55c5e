"""Checkpoints that are damaged, foreign or made to do harm: one line, nothing run, no memory taken."""

from __future__ import annotations

import contextlib
import os
import pickle
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mfpyg
from mfpyg.checkpoint import describe
from mfpyg.cli import evaluate
from mfpyg.errors import MFPyGError
from mfpyg.models.build import build_delta, build_potential
from mfpyg.settings import defaults, from_dict

SPECIES, FIDELITIES = (1, 8), ("dz", "cc")
SPLITS = {"train": np.arange(5), "val": np.arange(5, 7)}
DATA = {"name": ["minichno"], "fingerprint": "ab", "methods": {"dz": "ωB97X/6-31G(d)"}}


def contents(backbone: str = "hipnn", delta: bool = False, **changes: Any) -> dict[str, Any]:
    """What a training would have written of a tiny network."""
    values = {**defaults("small", backbone), "fidelities": ["dz:EF", "cc:E"], **changes}
    narrow = {"n_features": 8, "n_sensitivities": 3, "n_interactions": 3, "n_atom_layers": 1}
    values["model"] = {name: narrow.get(name, value) for name, value in values["model"].items()}
    settings = from_dict(values)
    torch.manual_seed(0)
    if delta:
        potential = build_delta(settings, SPECIES, FIDELITIES, "dz")
    else:
        potential = build_potential(settings, SPECIES, FIDELITIES)
    return {
        "epoch": 3,
        "state_dict": {f"potential.{name}": value for name, value in potential.state_dict().items()},
        "mfpyg": describe(potential, settings, DATA, SPLITS),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(contents(), tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt"


def refusal(path: Path) -> str:
    with pytest.raises(MFPyGError) as refused:
        mfpyg.load(path)
    message = str(refused.value)
    assert "\n" not in message
    assert str(path.name) in message
    assert len(message) < 400
    return message


def with_change(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    checkpoint = contents()
    change(checkpoint)
    torch.save(checkpoint, path)
    return path


# The file


@pytest.mark.parametrize("delta", [False, True])
def test_a_good_one_is_loaded(tmp_path: Path, delta: bool) -> None:
    checkpoint = contents(delta=delta)
    torch.save(checkpoint, tmp_path / "x.ckpt")
    loaded = mfpyg.load(tmp_path / "x.ckpt")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, checkpoint["state_dict"][f"potential.{name}"])


def test_truncated_file_is_refused_wherever_it_ends(path: Path) -> None:
    whole = path.read_bytes()
    for length in [0, 1, 2, 3, 4, 30, 100, *range(200, len(whole), len(whole) // 60), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "x.ckpt: damaged" in refusal(path)


def test_flipped_byte_is_found_or_changes_nothing(path: Path) -> None:
    whole, expected = path.read_bytes(), mfpyg.load(path).state_dict()
    found = 0
    for place in np.linspace(0, len(whole) - 1, 150).astype(int):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        weights = _weights(path)
        found += weights is None
        # What is not found is in the padding between entries.
        assert weights is None or all(torch.equal(weights[name], value) for name, value in expected.items())
    assert found > 50


def test_entry_that_passes_for_a_folder_is_refused(path: Path) -> None:
    whole, attributes = bytearray(path.read_bytes()), 38
    last = whole.rindex(b"PK\x01\x02")
    whole[last + attributes] |= 0x10
    path.write_bytes(whole)
    assert "it contains folders" in refusal(path)


def _weights(path: Path) -> dict[str, torch.Tensor] | None:
    """Of a file; nothing if it is refused."""
    with contextlib.suppress(MFPyGError):
        return mfpyg.load(path).state_dict()
    return None


def test_file_with_rubbish_in_the_middle_or_at_the_end_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    half = len(whole) // 2
    for content in (
        whole[:half] + bytes(1000) + whole[half + 1000 :],
        whole[half:],
        os.urandom(5000),
        whole[:half] * 2,
    ):
        path.write_bytes(content)
        assert "x.ckpt: damaged" in refusal(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_another_zip_file_is_refused(path: Path, compression: int) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("word/document.xml", "<w>" + "a" * 100 + "</w>")
    assert "not a checkpoint of mfpyg" in refusal(path)


def test_file_that_would_unpack_to_more_than_it_is_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(1 << 24))
    assert "its entries are larger than the file" in refusal(path)


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


@pytest.mark.parametrize("place", ["all", "mfpyg", "config", "weight", "beside"])
@pytest.mark.parametrize("kind", ["torch", "legacy", "pickle"])
def test_code_is_never_run(path: Path, kind: str, place: str) -> None:
    made = path.with_name("made")
    checkpoint: Any = contents()
    if place == "all":
        checkpoint = Code(made)
    elif place in ("mfpyg", "beside"):
        checkpoint[place] = Code(made)
    elif place == "config":
        checkpoint["mfpyg"]["config"]["seed"] = Code(made)
    else:
        checkpoint["state_dict"]["potential.heads.0.reference"] = Code(made)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(checkpoint))
    else:
        torch.save(checkpoint, path, _use_new_zipfile_serialization=kind == "torch")
    message = refusal(path)
    assert "damaged, or not a checkpoint of mfpyg" in message
    assert not made.exists()
    with pytest.raises(SystemExit) as stop:
        evaluate.main([str(path)])
    assert stop.value.code == 2
    assert not made.exists()
    os.mkdir(made)  # which would have been seen


def test_missing_files_are_named(tmp_path: Path) -> None:
    assert "no such checkpoint" in refusal(tmp_path / "none.ckpt")
    with pytest.raises(MFPyGError, match=r"best\.ckpt: no such checkpoint; expected a run folder"):
        mfpyg.load(tmp_path)
    assert "cannot be read" in refusal(tmp_path / ("x" * 300))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_named(path: Path) -> None:
    path.chmod(0)
    assert "cannot be read (Permission denied)" in refusal(path)
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    path.parent.chmod(0)
    try:
        assert "cannot be read (Permission denied)" in refusal(path)
    finally:
        path.parent.chmod(stat.S_IRWXU)


def test_permission_denied_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*arguments: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile, "ZipFile", denied)
    assert "x.ckpt: cannot be read (Permission denied)" in refusal(path)


# What it says of itself

WRONG = [None, 7, -1.5, float("nan"), "text", True, [], {}, [1], {"a": 1}, [None], {1: 2}, torch.zeros(3), {"a": [{}]}]
OF_DESCRIPTION = [
    "format",
    "config",
    "fidelities",
    "units",
    "species",
    "reference_energies",
    "data",
    "splits",
    "versions",
]


@pytest.mark.parametrize("field", OF_DESCRIPTION)
def test_missing_or_wrong_field_is_refused_by_its_name(path: Path, field: str) -> None:
    name = "format" if field == "format" else field
    missing = refusal(with_change(path, lambda c: c["mfpyg"].pop(field)))
    assert name in missing
    for value in WRONG:
        if (field, value) in (("versions", {}), ("splits", {}), ("config", {})):
            continue  # nothing wrong: there is no need of any
        message = refusal(with_change(path, lambda c, v=value: c["mfpyg"].update({field: v})))
        assert "x.ckpt: " in message


@pytest.mark.parametrize("field", ["base_level", "backbone_package"])
def test_wrong_optional_field_is_refused(path: Path, field: str) -> None:
    for value in (7, [], {}, torch.zeros(2), "cc"):
        refusal(with_change(path, lambda c, v=value: c["mfpyg"].update({field: v})))


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("field", ["mfpyg", "state_dict"])
def test_anything_else_in_its_place_is_refused(path: Path, field: str, value: Any) -> None:
    refusal(with_change(path, lambda c: c.update({field: value})))


def _settings() -> list[tuple[str, Any]]:
    settings = from_dict({**defaults("small", "hipnn"), "fidelities": ["dz:EF"]})
    return [(name, None) for name in vars(settings)] + [("model", name) for name in vars(settings.model)]


@pytest.mark.parametrize(("group", "name"), _settings())
def test_wrong_setting_is_refused_by_its_name(path: Path, group: str, name: str | None) -> None:
    for value in ({"a": 1}, torch.zeros(2), [[1]], 10**30, float("nan")):

        def change(checkpoint: dict[str, Any], value: Any = value) -> None:
            config = checkpoint["mfpyg"]["config"]
            if name is None:
                config[group] = value
            else:
                config[group][name] = value

        assert "x.ckpt: " in refusal(with_change(path, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["config"].update(nonsense=1), "unknown setting 'nonsense'"),
        (lambda m: m["config"]["model"].update(widht=1), "unknown setting 'model.widht'"),
        (lambda m: m["config"].update(backbone="hipn"), "unknown backbone 'hipn'.*did you mean 'hipnn'"),
        (lambda m: m["config"]["model"].update(n_features=-4), "n_features is -4, expected a number of at least 1"),
        (lambda m: m["config"]["model"].update(n_features=5), r"has shape .* expected"),
        (lambda m: m["config"].update(precision=64), r"of float32, expected .* of float64"),
        (lambda m: m["fidelities"].append("tz"), "weight 'heads.2"),
        (lambda m: m["species"].append(9), "has shape"),
        (lambda m: m["species"].append(10**9), "species is list, expected ascending atomic numbers"),
        (lambda m: m["species"].reverse(), "species"),
        (lambda m: m["reference_energies"]["cc"].update(H=1.0), "different reference energies of 'cc'"),
        (lambda m: m["units"].update(energy="eV"), "units .* expected"),
        (lambda m: m.update(format=2), "format 2, expected 1; use the version of mfpyg that wrote it"),
        (lambda m: m.update(base_level="mp2"), "unknown fidelity 'mp2'"),
        (lambda m: m.update(base_level="cc"), "unknown fidelity 'cc'"),
        (lambda m: m["splits"].update(train=torch.tensor([-1])), "splits"),
        (lambda m: m["splits"].update(train=torch.zeros(1, dtype=torch.int64).expand(10**12)), "splits"),
        (lambda m: m.update(backbone_package="elsewhere"), "backbone 'hipnn' comes from package elsewhere"),
    ],
)
def test_description_that_does_not_fit_is_refused(
    path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(MFPyGError, match=rf"x\.ckpt: .*{message}"):
        mfpyg.load(with_change(path, lambda c: change(c["mfpyg"])))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.full((1, 8), float("nan")), "is NaN or infinite"),
        (torch.full((1, 8), float("-inf")), "is NaN or infinite"),
        (torch.zeros(2, 8), r"has shape \(2, 8\) of float32, expected \(1, 8\) of float32"),
        (torch.zeros(1, 8, dtype=torch.float16), r"of float16, expected \(1, 8\) of float32"),
        (torch.zeros(1, 8, dtype=torch.int64), r"of int64, expected \(1, 8\) of float32"),
        (torch.zeros(1, 8, dtype=torch.complex64), "expected an array of numbers"),
        (torch.zeros(1, 8).to_sparse(), "expected an array of numbers"),
        (torch.zeros(1, 1).expand(10**9, 10**9), "expected an array of numbers"),
        (torch.zeros(1, 8, device="meta"), "expected an array of numbers"),
        ([0.0] * 8, "expected an array of numbers"),
        (None, "expected an array of numbers"),
    ],
)
def test_wrong_weight_is_refused_by_its_name(path: Path, weight: Any, message: str) -> None:
    name = "heads.0.levels.0.weight"
    with pytest.raises(MFPyGError, match=rf"x\.ckpt: .*weight '(potential\.)?{name}' .*{message}"):
        mfpyg.load(with_change(path, lambda c: c["state_dict"].update({f"potential.{name}": weight})))


def test_weight_that_is_missing_or_too_much_is_refused(path: Path) -> None:
    with pytest.raises(MFPyGError, match=r"weight 'heads\.0\.reference' has shape none, expected \(2,\)"):
        mfpyg.load(with_change(path, lambda c: c["state_dict"].pop("potential.heads.0.reference")))
    with pytest.raises(MFPyGError, match=r"weight 'more' has shape \(1,\) of float32, expected none"):
        mfpyg.load(with_change(path, lambda c: c["state_dict"].update({"potential.more": torch.zeros(1)})))
