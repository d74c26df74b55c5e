"""What --dataset says: every text is read, written back the same, or refused in one line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from mfpyg.datasets.levels import ANI1X_LEVELS, MINICHNO_LEVELS, as_levels, level_as_text, level_of, parse_levels
from mfpyg.datasets.spec import DatasetSpec, combined_levels, parse_specs
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import LabelKeys, LevelOfTheory


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and folders to name; nothing here opens them."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.xyz", "b.extxyz", "c.db", "UPPER.XYZ", "plain.h5", "no_suffix", "with space.xyz", "a=b@c,d.xyz"):
        (tmp_path / name).touch()
    for name in ("md.traj", "OUTCAR", "e.xyz.gz", "f.npz", r"C:\data\t.xyz", "C:x.h5", "t:a=b@c.xyz", "npz:t.xyz"):
        (tmp_path / name).touch()
    (tmp_path / "12:30").mkdir()
    for name in ("t.xyz", "t.npz", "x.h5", "p-R.npy"):
        (tmp_path / "12:30" / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "d.xyz").touch()
    (tmp_path / "folder.xyz").mkdir()


LEVELS = [
    "dz=e@eV",
    "dz=e,f@eV",
    "dz=e,-f@eV",
    "dz=e,f@Hartree,Hartree/bohr",
    "dz=e,-f@Hartree,eV/Å",
    "dz=e?,f@eV",
    "dz=e,f?@eV",
    "dz=e?,-f?@kcal/mol,kcal/mol/Å".removesuffix(",kcal/mol/Å"),
    "mp2=hf+corr@kJ/mol",
    "mp2=hf+corr?,f@meV,eV/bohr",
    "w-1_b=E tot@Rydberg",
    "dz=a.b/c(d)@Hartree",
]


@pytest.mark.parametrize(
    "text",
    [
        "minichno",
        "minichno:plain.h5",
        "ani1x:plain.h5",
        "ani1x:folder",
        "ani1ccx:folder",
        "comp6:folder",
        *(f"a.xyz:{level}" for level in LEVELS),
        *(f"pyanitools:plain.h5:{level}" for level in LEVELS),
        "b.extxyz:dz=e@eV",
        "c.db:dz=e@eV:tz=e2,f2@eV",
        "UPPER.XYZ:dz=e@eV",
        "xyz:no_suffix:dz=e,f@eV",
        "xyz:plain.h5:dz=e@eV:cc=e2@eV",
        "with space.xyz:dz=e@eV",
        "a=b@c,d.xyz:dz=e@eV",
        "folder/d.xyz:dz=e@eV",
        "md.traj:dz=energy,forces@eV",
        "OUTCAR:dz=energy,forces@eV",
        "e.xyz.gz:dz=e@eV",
        "f.npz:dz=E,-F@kcal/mol:cc=E2@eV",
        "ase:a.xyz:dz=e@eV",
        "xyz:md.traj:dz=e@eV",
        "npy:folder:dz=E@eV",
        "ani2x:plain.h5",
        # Colons in paths
        "12:30/t.xyz:dz=e,f@eV",
        "12:30/t.xyz:dz=e@eV:cc=e2@eV,eV/bohr".replace("e2@", "e2,f2@"),
        "12:30/t.npz:dz=E@eV",
        "ani1x:12:30/x.h5",
        "ani1x:C:x.h5",
        "pyanitools:12:30/x.h5:dz=e@eV",
        "npy:12:30:dz=E@eV",
        "npy:12:30/p-:dz=E@eV",
        r"C:\data\t.xyz:dz=e@eV",
        "t:a=b@c.xyz:dz=e@eV",
        "xyz:npz:t.xyz:dz=e@eV",
    ],
)
def test_text_is_written_back_as_it_was(text: str) -> None:
    spec = DatasetSpec.parse(text)
    assert str(spec) == text
    assert DatasetSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("ani1x", "ani1x:data/ani1x"),
        ("comp6", "comp6:data/comp6"),
        ("xyz:a.xyz:dz=e@eV", "a.xyz:dz=e@eV"),
        ("a.xyz:dz=e,f@eV,eV/Å", "a.xyz:dz=e,f@eV"),
        ("ase:md.traj:dz=e@eV", "md.traj:dz=e@eV"),
        ("npz:f.npz:dz=E@eV", "f.npz:dz=E@eV"),
        ("./npz:t.xyz:dz=e@eV", "xyz:npz:t.xyz:dz=e@eV"),
    ],
)
def test_two_texts_that_mean_the_same_are_written_alike(text: str, written: str) -> None:
    assert str(DatasetSpec.parse(text)) == written
    os.makedirs("data/ani1x")
    os.makedirs("data/comp6")
    assert DatasetSpec.parse(written) == DatasetSpec.parse(text)


@pytest.mark.parametrize("text", ["{}/12:30/t.xyz:dz=e@eV", "ani1x:{}/plain.h5", "npy:{}/folder:dz=E@eV", "comp6:{}"])
def test_tilde_is_the_home_folder(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = DatasetSpec.parse(text.format("~"))
    assert spec == DatasetSpec.parse(text.format(tmp_path)) == DatasetSpec.parse(str(spec))
    assert parse_specs([text.format("~")]) == (spec,)


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("dz=e@eV", level_of("dz", "", "eV", E="e")),
        (
            "dz=e,-f?@Hartree,eV/bohr",
            LevelOfTheory(
                "dz", {"E": LabelKeys(("e",), "Hartree"), "F": LabelKeys(("f",), "eV/bohr", True)}, "", ("f",)
            ),
        ),
        (
            "dz=e,f,H=hess,D=mu,Q=q@eV,D=Debye",
            LevelOfTheory(
                "dz",
                {
                    "E": LabelKeys(("e",), "eV"),
                    "F": LabelKeys(("f",), "eV/Å"),
                    "H": LabelKeys(("hess",), "eV/Å²"),
                    "D": LabelKeys(("mu",), "Debye"),
                    "Q": LabelKeys(("q",), "e"),
                },
            ),
        ),
        (
            "dz=e,V=-w@eV",
            LevelOfTheory("dz", {"E": LabelKeys(("e",), "eV"), "S": LabelKeys(("w",), "eV", True, True)}),
        ),
        ("mp2=hf+c?@kcal/mol", LevelOfTheory("mp2", {"E": LabelKeys(("hf", "c"), "kcal/mol")}, "", ("c",))),
        ("dz=energy of it,f@Hartree", level_of("dz", "", E="energy of it", F="f")),
    ],
)
def test_level_is_read_as_it_is_meant(text: str, level: LevelOfTheory) -> None:
    assert parse_levels([text]) == (level,)
    assert level_as_text(level) == text
    assert as_levels(text) == as_levels([text]) == as_levels([level]) == (level,)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("minichnoo", ["unknown data set 'minichnoo'", "did you mean 'minichno'?", "FILE.xyz:NAME=ENERGY"]),
        ("a.txt:dz=e@eV", ["unknown data set 'a.txt'"]),
        ("", ["unknown data set ''"]),
        (":", ["unknown data set ''"]),
        ("minichno:", ["'minichno:' has no path after the colon: expected minichno:PATH"]),
        ("xyz:", ["'xyz:' has no path after the colon: expected xyz:PATH"]),
        ("xyz", ["'xyz' has no path", "expected xyz:PATH"]),
        ("pyanitools", ["'pyanitools' has no path"]),
        ("ani1x:none.h5", ["none.h5: no such file or folder"]),
        ("none.xyz:dz=e@eV", ["none.xyz: no such file or folder"]),
        ("xyz:folder:dz=e@eV", ["folder is a folder; expected a file"]),
        ("folder.xyz:dz=e@eV", ["folder.xyz is a folder; expected a file"]),
        ("a.xyz", ["a.xyz: its levels of theory are not known; define them as a.xyz:NAME=ENERGY"]),
        ("pyanitools:plain.h5", ["plain.h5: its levels of theory are not known"]),
        ("a.xyz:", ["malformed level ''"]),
        ("a.xyz:dz", ["malformed level 'dz': expected NAME=ENERGY", "D=dipole@eV", "Q charges, V virials"]),
        ("a.xyz:dz=e", ["malformed level 'dz=e'"]),
        ("a.xyz:dz=@eV", ["malformed level 'dz=@eV'"]),
        ("a.xyz:=e@eV", ["malformed level '=e@eV'"]),
        ("a.xyz:dz=e@", ["malformed level 'dz=e@'"]),
        ("a.xyz:dz=e,@eV", ["malformed level 'dz=e,@eV'"]),
        ("a.xyz:dz=e,f,g@eV", ["malformed level 'dz=e,f,g@eV'"]),
        ("a.xyz:dz=e,f@eV,eV/Å,x", ["malformed level"]),
        ("a.xyz:dz=e@eV@eV", ["malformed level"]),
        ("a.xyz:dz=e+@eV", ["a key is empty"]),
        ("a.xyz:dz=+e@eV", ["a key is empty"]),
        ("a.xyz:dz=?@eV", ["a key is empty"]),
        ("a.xyz:dz=e,-@eV", ["a key is empty"]),
        ("a.xyz:dz=e,-?@eV", ["a key is empty"]),
        ("a.xyz:dz=e@eV,eV/Å", ["it has a unit of forces, but no key of forces"]),
        ("a.xyz:d z=e@eV", ["malformed fidelity name 'd z'"]),
        ("a.xyz:2z=e@eV", ["malformed fidelity name '2z'"]),
        ("a.xyz:dz=e@volt", ["unknown energy unit 'volt'"]),
        ("a.xyz:dz=e@Hartre", ["unknown energy unit 'Hartre'", "did you mean 'Hartree'?"]),
        ("a.xyz:dz=e,f@eV,eV", ["unknown force unit 'eV': expected an energy per length"]),
        ("a.xyz:dz=e,f@eV,kcal/mol", ["unknown force unit 'kcal/mol'"]),
        ("a.xyz:dz=e,f@eV,eV/mile", ["unknown length unit 'mile'"]),
        ("a.xyz:dz=e@eV:dz=e2@eV", ["fidelity 'dz' is defined 2 times; define it once"]),
        ("a.xyz:dz=e@eV:", ["malformed level ''"]),
        ("a.xyz:dz:cc=e@eV", ["malformed level 'dz'"]),
        ("12:30/t.xyz:dz=e,f,g@eV", ["malformed level 'dz=e,f,g@eV'"]),
        ("12:30/t.xyz", ["12:30/t.xyz: its levels of theory are not known"]),
        ("12:30/none.xyz:dz=e@eV", ["12:30/none.xyz: no such file or folder"]),
        ("none.traj:dz=e@eV", ["unknown data set 'none.traj'", "is the file none.traj missing?"]),
        ("plain.h5:dz=e@eV", ["unknown data set 'plain.h5'", "pyanitools:FILE.h5:LEVEL"]),
        ("md.traj", ["md.traj: its levels of theory are not known"]),
        ("npy:plain.h5:dz=E@eV", ["plain.h5 is a file; expected the folder"]),
        ("npy:folder/x-:dz=E@eV", ["folder/x-: no such file or folder"]),
        ("npz:folder:dz=E@eV", ["folder is a folder; expected a file"]),
        ("npzz:f.npz:dz=E@eV", ["npzz:f.npz: no such file", "did you mean 'npz'?"]),
        ("~/nothing.xyz:dz=e@eV", ["/nothing.xyz: no such file"]),
    ],
)
def test_wrong_text_is_refused_in_one_line(text: str, messages: Sequence[str]) -> None:
    with pytest.raises(MFPyGError) as refused:
        DatasetSpec.parse(text)
    for message in messages:
        assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_level_that_is_neither_a_level_nor_a_text_is_refused() -> None:
    with pytest.raises(MFPyGError, match="level is 3, expected a LevelOfTheory"):
        as_levels(["dz=e@eV", 3])  # type: ignore[list-item]
    with pytest.raises(MFPyGError, match="no level of theory given"):
        as_levels([])


@pytest.mark.parametrize(
    ("text", "label", "levels"),
    [
        ("minichno", "minichno", MINICHNO_LEVELS),
        ("ani1x:plain.h5", "ani1x", ANI1X_LEVELS),
        ("a.xyz:dz=e@eV", "a", parse_levels(["dz=e@eV"])),
        ("pyanitools:plain.h5:cc=e@eV", "plain", parse_levels(["cc=e@eV"])),
    ],
)
def test_label_and_levels_of_a_specification(text: str, label: str, levels: tuple[LevelOfTheory, ...]) -> None:
    spec = DatasetSpec.parse(text)
    assert (spec.label, spec.levels) == (label, levels)


# Several


def test_several_have_the_levels_of_all_in_order() -> None:
    specs = parse_specs(["a.xyz:cc=e@eV:new=e2,f2@eV", "minichno", "b.extxyz:new=x@eV:last=y@eV"])
    assert [level.name for level in combined_levels(specs)] == [
        *("cc", "new"), *(level.name for level in MINICHNO_LEVELS if level.name != "cc"), "last",
    ]  # fmt: skip


@pytest.mark.parametrize("order", [1, -1])
def test_level_has_forces_where_one_of_several_has(order: int) -> None:
    specs = parse_specs(["a.xyz:dz=e@eV", "b.extxyz:dz=x,f@eV"][::order])
    assert combined_levels(specs)[0].labels["F"].keys == ("f",)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no data set given: expected at least one, as in --dataset minichno"),
        (["minichno", "minichno"], "data set minichno is given 2 times"),
        (["a.xyz:dz=e@eV", "minichno", "xyz:a.xyz:dz=e@eV"], "data set a.xyz:dz=e@eV is given 2 times"),
        (["minichno", "ani1x:plain.h5"], "'cc' is CCSD(T)/cc-pVDZ in minichno, but CCSD(T)*/CBS in ani1x:plain.h5"),
        (["minichno", "qm9"], "unknown data set 'qm9'"),
    ],
)
def test_wrong_several_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(MFPyGError) as refused:
        parse_specs(texts)
    assert message in str(refused.value)


@pytest.mark.parametrize("other", ["minichno:bundled", "minichno:folder/../plain.h5", "minichno:{}/plain.h5"])
def test_one_file_under_two_names_is_still_one_file(other: str, tmp_path: Path) -> None:
    first = "minichno:plain.h5"
    if other == "minichno:bundled":
        from mfpyg.datasets.minichno import bundled_file

        first, other = "minichno", f"minichno:{bundled_file()}"
    with pytest.raises(MFPyGError, match="is given 2 times"):
        parse_specs([first, other.format(tmp_path)])


def test_the_suffix_of_a_missing_file_is_not_taken_for_a_mistyped_name() -> None:
    with pytest.raises(MFPyGError, match=r"x\.xyz: no such file") as error:
        DatasetSpec.parse("x.xyz:dft=energy@eV")
    assert "did you mean" not in str(error.value)
