"""Levels as they are written on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mfpyg.errors import MFPyGError
from mfpyg.labeling.level import LabelLevel, open_program, parse_label_levels


def test_levels() -> None:
    xtb, dz, cc = parse_label_levels(
        [
            "xtb=tblite:gfn2-xtb:FE",
            "dz=pyscf:wB97X/6-31G(d,p),grid=4:EFHD",
            "cc=pyscf:ccsd(t)/cc-pVDZ,frozen-core=false:E",
        ]
    )
    assert (xtb.program, xtb.method, xtb.letters) == ("tblite", "GFN2-xTB", "EF")
    assert xtb.settings["accuracy"] == 0.01
    assert (dz.method, dz.letters, dz.settings["grid"]) == ("wB97X/6-31G(d,p)", "EFHD", 4)
    assert (cc.method, cc.settings["frozen_core"]) == ("CCSD(T)/cc-pVDZ", False)
    assert "grid" not in cc.settings
    assert str(cc) == "cc=pyscf:CCSD(T)/cc-pVDZ:E"


def test_functionals_with_commas_and_methods_with_colons() -> None:
    assert LabelLevel.parse("a=pyscf:lda,vwn/def2-SVP,grid=5:E").method == "lda,vwn/def2-SVP"
    assert LabelLevel.parse("a=ase:my.module:Class:EF").method == "my.module:Class"
    assert LabelLevel.parse("a=mfpyg:runs/x=1@cc:EF").method == "runs/x=1@cc"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("xtb", "malformed level 'xtb': expected NAME=PROGRAM:METHOD"),
        ("xtb=tblite:EF", "malformed level"),
        ("xtb=tblte:GFN2-xTB:EF", "level 'xtb': unknown program 'tblte' .*did you mean 'tblite'"),
        ("xtb=tblite:GFN2:EF", r"level 'xtb': unknown method of tblite 'GFN2' .*did you mean 'GFN2-xTB'"),
        ("xtb=tblite:GFN2-xTB:EX", "malformed fidelity|expected letters"),
        ("xtb=tblite:GFN2-xTB:F", "letters F, expected E among them"),
        ("1=tblite:GFN2-xTB:E", "malformed fidelity name"),
        ("a=pyscf:CCSD(T):E", "expected METHOD/BASIS"),
        ("a=pyscf:HF/sto-3g,gird=3:E", "unknown setting of HF/sto-3g 'gird'"),
        ("a=pyscf:PBE/sto-3g,gird=3:E", "did you mean 'grid'"),
        ("a=pyscf:PBE/sto-3g,grid=x:E", "grid is 'x', expected a whole number above 0"),
        ("a=pyscf:MP2/sto-3g,frozen_core=1:E", "frozen_core is '1', expected true or false"),
        ("a=ase:none.yaml:E", "none.yaml: no such file"),
        ("a=ase:emt,asap=1:E", "in a YAML file"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(MFPyGError, match=message):
        LabelLevel.parse(text)


def test_names_are_given_once() -> None:
    with pytest.raises(MFPyGError, match="level 'a' is given 2 times"):
        parse_label_levels(["a=ase:emt:E", "a=ase:lj:E"])
    with pytest.raises(MFPyGError, match="no level given"):
        parse_label_levels([])


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("arguments: {}", "calculator is None, expected a name of ASE"),
        ("calculator: emt\nargument: {}", "unknown key of c.yaml 'argument' .*did you mean 'arguments'"),
        ("calculator: emt\narguments: 1", "arguments are 1, expected names and values"),
        ("calculator: emt\narguments: {1: 2}", "values or keys other than text"),
        ("calculator: emt\narguments: {a: 2020-01-01}", "values or keys other than text"),
        ("calculator: emt\ncharge: 1", "charge is 1, expected the name of the argument"),
    ],
)
def test_mistakes_in_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(contents)
    with pytest.raises(MFPyGError, match=message):
        LabelLevel.parse("a=ase:c.yaml:E")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a=ase:emtt:E", "level 'a': unknown calculator of ASE 'emtt'"),
        ("a=ase:no.such:Class:E", "calculator no.such:Class cannot be imported"),
        ("a=ase:emt:EFD", r"ase computes no dipoles with emt \(it computes energies, .*EFSH"),
        ("a=mfpyg:runs/none@cc:E", "level 'a': runs/none: no such checkpoint"),
    ],
)
def test_programs_that_cannot_be_opened(text: str, message: str) -> None:
    with pytest.raises(MFPyGError, match=message):
        LabelLevel.parse(text).open()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("emt", "malformed program 'emt': expected PROGRAM:METHOD"),
        ("orca:x", "unknown program 'orca'"),
        (
            "ase:only_energies:Energies",
            r"ase computes no forces with only_energies:Energies \(it computes energies, E\)",
        ),
    ],
)
def test_programs_without_a_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    (tmp_path / "only_energies.py").write_text("class Energies:\n    implemented_properties = ['energy']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MFPyGError, match=message):
        open_program(text)
    assert open_program("ase:emt").letters == "EFSH"


def test_missing_programs_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name, level in (("tblite.ase", "a=tblite:GFN2-xTB:E"), ("pyscf", "a=pyscf:HF/sto-3g:E")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MFPyGError, match=r"is not installed; pip install 'mfpyg\[label\]'"):
            LabelLevel.parse(level).open()
