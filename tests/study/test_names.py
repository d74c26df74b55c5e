"""The paper's names of models."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mfpyg.errors import MFPyGError
from mfpyg.study import PAPER_MODELS, TARGET_WITHOUT_FORCES, model_name, parse_model
from mfpyg.study.names import baseline_of, target_of


@pytest.mark.parametrize(
    ("name", "fidelities"),
    [
        ("SF-CC/E", ["cc:E"]),
        ("MF-DZ/EF-CC/E", ["dz:EF", "cc:E"]),
        ("MF-DZ/EF-TZ/EF-CC/E", ["dz:EF", "tz:EF", "cc:E"]),
        ("SF-DZ/F", ["dz:F"]),
        ("MF-DZ/EFHD-CC/E", ["dz:EFHD", "cc:E"]),
        ("SF-TZ/ESQ", ["tz:ESQ"]),
        ("MF-NPNO_DZ/E-MP2_QZ/E", ["npno_dz:E", "mp2_qz:E"]),
    ],
)
def test_name_and_fidelities_are_each_others_inverse(name: str, fidelities: list[str]) -> None:
    assert parse_model(name) == fidelities
    assert model_name(fidelities) == name


def test_every_model_of_the_paper_goes_there_and_back() -> None:
    assert len(PAPER_MODELS) == len(set(PAPER_MODELS)) == 17
    for name in PAPER_MODELS:
        assert model_name(parse_model(name)) == name
    lists = {tuple(parse_model(name)) for name in PAPER_MODELS}
    assert len(lists) == 17


def test_nine_models_aim_at_a_level_without_forces_each_with_its_baseline() -> None:
    assert len(TARGET_WITHOUT_FORCES) == 9
    assert {target_of(parse_model(name)).name for name in TARGET_WITHOUT_FORCES} == {"mp2", "cc"}
    assert {baseline_of(name) for name in TARGET_WITHOUT_FORCES} == {"SF-MP2/E", "SF-CC/E"}
    assert {"SF-MP2/E", "SF-CC/E"} < set(TARGET_WITHOUT_FORCES)


def test_names_of_levels_are_written_in_either_case() -> None:
    assert parse_model("MF-dz/FE-cc/E") == ["dz:EF", "cc:E"]
    assert parse_model("MF-dz/DHFE-cc/E") == ["dz:EFHD", "cc:E"]


def test_levels_of_ones_own_data_keep_their_spelling() -> None:
    known = ["PBE", "rpa-cbs"]
    assert parse_model("MF-PBE/EF-RPA-CBS/E", known) == ["PBE:EF", "rpa-cbs:E"]
    assert model_name(["PBE:EF", "rpa-cbs:E"]) == "MF-PBE/EF-RPA-CBS/E"
    assert parse_model("MF-PBE/EFS-RPA-CBS/EHQ", known) == ["PBE:EFS", "rpa-cbs:EHQ"]


@pytest.mark.parametrize(
    ("name", "baseline"), [("MF-DZ/E-TZ/EF", "SF-TZ/EF"), ("SF-CC/E", "SF-CC/E"), ("MF-CC/E-DZ/EFD", "SF-DZ/EFD")]
)
def test_baseline_has_the_same_labels_of_the_same_target(name: str, baseline: str) -> None:
    assert baseline_of(name) == baseline


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MF-DZ/EF-CC", "malformed model 'MF-DZ/EF-CC'.*did you mean 'MF-DZ/EF-CC/E'"),
        ("MFDZ/EF-CC/E", "malformed model.*did you mean 'MF-DZ/EF-CC/E'"),
        ("", "malformed model '': expected"),
        ("SF-", "malformed model"),
        ("MF-DZ/EF--CC/E", "malformed model"),
        ("MF-DZ/G-CC/E", "malformed model"),
        ("MF-DZ/EF CC/E", "malformed model"),
        ("SF-DZ/EFX", "malformed model"),
        ("SF-DZ/", "malformed model"),
        ("SF-DZ/EHH", "malformed fidelity 'dz:EHH'"),
        ("MF-DZ/EF-CC/E\n", r"malformed model 'MF-DZ/EF-CC/E\\n'"),
        ("SF-DZ/EF-CC/E", "single-fidelity by its SF, but has 2 fidelities; did you mean 'MF-DZ/EF-CC/E'"),
        ("MF-CC/E", "multi-fidelity by its MF, but has 1 fidelity; did you mean 'SF-CC/E'"),
        ("SF-MP3/E", "unknown level 'MP3' in model 'SF-MP3/E' .known: DZ, TZ, .*did you mean 'MP2'"),
        ("MF-CC/E-cc/EF", "fidelity 'cc' is given 2 times"),
    ],
)
def test_wrong_name_is_one_line_with_what_is_right(name: str, message: str) -> None:
    with pytest.raises(MFPyGError, match=message) as error:
        parse_model(name)
    assert "\n" not in str(error.value)


def test_names_need_no_torch() -> None:
    code = "import sys, mfpyg.study as s; s.parse_model('SF-CC/E'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
