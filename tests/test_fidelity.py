"""Fidelities and loss weights as the user writes them."""

from __future__ import annotations

import pytest

from mfpyg.datasets.levels import ANI1X_LEVELS, MINICHNO_LEVELS, levels_named
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import Fidelity, check_available, parse_fidelities, parse_weights


@pytest.mark.parametrize(("text", "labels"), [("dz:E", "E"), ("dz:F", "F"), ("dz:EF", "EF"), ("dz:EFHD", "EFHD")])
def test_fidelity_is_read_and_written_back(text: str, labels: str) -> None:
    fidelity = Fidelity.parse(text)
    assert fidelity == Fidelity("dz", labels)
    assert str(fidelity) == text
    assert Fidelity.parse(str(fidelity)) == fidelity


def test_order_of_the_labels_does_not_matter() -> None:
    assert Fidelity.parse("mp2_dz:FE") == Fidelity.parse("mp2_dz:EF")
    assert str(Fidelity("dz", "DHFE")) == "dz:EFHD"


@pytest.mark.parametrize(
    "text", ["dz", "dz:EX", "dz:", ":E", "", ":", "dz:EE", "dz:ef", "dz:E:F", "d z:E", "1z:E", "dz :E"]
)
def test_malformed_fidelity_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(MFPyGError, match="malformed fidelity") as error:
        Fidelity.parse(text)
    assert f"'{text.partition(':')[0]}" in str(error.value)
    assert "dz:EF" in str(error.value)
    assert "\n" not in str(error.value)


def test_fidelity_without_any_label_is_refused() -> None:
    with pytest.raises(MFPyGError, match="malformed fidelity 'dz:': expected letters of properties"):
        Fidelity("dz", "")


def test_fidelities_keep_their_order() -> None:
    assert [str(f) for f in parse_fidelities(["cc:E", "dz:EF", "tz:F"])] == ["cc:E", "dz:EF", "tz:F"]


def test_same_fidelity_twice_is_refused() -> None:
    with pytest.raises(MFPyGError, match="'dz' is given 2 times"):
        parse_fidelities(["dz:E", "cc:E", "dz:F"])


def test_no_fidelity_is_refused() -> None:
    with pytest.raises(MFPyGError, match="--fidelities dz:EF cc:E"):
        parse_fidelities([])


def test_weights_are_those_of_the_property_unless_given() -> None:
    weights = {("dz", "energy"): 1.0, ("dz", "hessian"): 0.01, ("dz", "dipole"): 1.0}
    assert parse_weights([], parse_fidelities(["dz:EHD"])) == weights
    fidelities = parse_fidelities(["dz:EF", "cc:E"])
    every = {("dz", "energy"): 1.0, ("dz", "forces"): 1.0, ("cc", "energy"): 1.0}
    assert parse_weights([], fidelities) == every
    assert parse_weights(["dz:F=0.5", "cc:E=2e1"], fidelities) == {
        **every,
        ("dz", "forces"): 0.5,
        ("cc", "energy"): 20.0,
    }
    assert parse_weights(["dz:EF=0"], fidelities) == {**every, ("dz", "energy"): 0.0, ("dz", "forces"): 0.0}


def test_weights_without_a_fidelity_are_those_of_all_that_have_the_labels() -> None:
    fidelities = parse_fidelities(["dz:EF", "tz:EF", "cc:E"])
    weights = parse_weights(["FE=10", "tz:F=2", "H=3"], fidelities)
    assert weights == {
        **{(name, "energy"): 10.0 for name in ("dz", "tz", "cc")},
        **{("dz", "forces"): 10.0, ("tz", "forces"): 2.0},
    }
    assert parse_weights(["tz:F=2", "F=1"], fidelities)["tz", "forces"] == 1.0


@pytest.mark.parametrize(
    "text",
    ["dz:E", "dz:E=", "dz:E=x", "dz:E=-1", "dz:E=nan", "dz:E=inf", "dz=1", "=1", "", "dz:X=1", "d z:E=1", ":E=1"],
)
def test_malformed_weight_is_refused(text: str) -> None:
    with pytest.raises(MFPyGError, match=f"^malformed weight '{text}': expected NAME:LABELS=NUMBER, or LABELS="):
        parse_weights([text], parse_fidelities(["dz:EF"]))


@pytest.mark.parametrize("text", ["cc:F=1", "tz:E=1", "cc:EF=1"])
def test_weight_of_a_label_not_trained_on_is_refused(text: str) -> None:
    with pytest.raises(MFPyGError, match=r"not trained on \(fidelities: dz:EF cc:E\)"):
        parse_weights([text], parse_fidelities(["dz:EF", "cc:E"]))


def test_available_fidelities_pass() -> None:
    assert check_available(parse_fidelities(["dz:EF", "cc:EF", "mp2:E"]), MINICHNO_LEVELS, "minichno") is None


def test_missing_property_lists_the_levels_of_the_bundled_data_that_have_it() -> None:
    for letter, what in (("D", "dipoles"), ("H", "Hessians")):
        with pytest.raises(MFPyGError, match=f"minichno has no {what} of 'cc' \\(levels with {what}: dz\\); use cc:E$"):
            check_available(parse_fidelities([f"cc:E{letter}"]), MINICHNO_LEVELS, "minichno")


def test_unknown_fidelity_lists_those_there_are() -> None:
    with pytest.raises(MFPyGError, match="unknown fidelity of minichno 'mp3'") as error:
        check_available(parse_fidelities(["dz:E", "mp3:E"]), MINICHNO_LEVELS, "minichno")
    for level in MINICHNO_LEVELS:
        assert level.name in str(error.value)
    assert "did you mean 'mp2'?" in str(error.value)


def test_forces_of_a_level_without_any_name_those_with() -> None:
    with pytest.raises(MFPyGError, match=r"no forces of 'cc' \(levels with forces: dz, tz\); use cc:E"):
        check_available(parse_fidelities(["cc:EF"]), ANI1X_LEVELS, "ani1x")


def test_levels_are_found_by_name_in_the_order_asked_for() -> None:
    assert [level.name for level in levels_named(("cc", "dz"), ANI1X_LEVELS, "ani1x")] == ["cc", "dz"]
    with pytest.raises(MFPyGError, match="unknown fidelity of ani1x 'ccc'"):
        levels_named(("ccc",), ANI1X_LEVELS, "ani1x")
