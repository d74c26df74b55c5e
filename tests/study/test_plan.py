"""What runs a study is made of, and what its folder remembers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mfpyg.cli.train import parse
from mfpyg.datasets.levels import MINICHNO_LEVELS
from mfpyg.errors import MFPyGError
from mfpyg.study.names import PAPER_MODELS, TARGET_WITHOUT_FORCES
from mfpyg.study.plan import StudyPlan, joined_with_stored, models_named, store

LEVELS = [level.name for level in MINICHNO_LEVELS]


def plan(*models: str, **values: object) -> StudyPlan:
    made = StudyPlan(list(models or ("SF-CC/E", "MF-DZ/EF-CC/E")), **{"members": 2, "levels": LEVELS, **values})  # type: ignore[arg-type]
    made.check()
    return made


def test_runs_are_every_combination_seed_by_seed() -> None:
    runs = plan(strategies=["mfl", "tl"], fractions=[1.0, 0.3]).runs(Path("out"))
    assert [(r.name, r.strategy, r.label_fraction, r.seed) for r in runs[:6]] == [
        ("SF-CC/E", "mfl", 1.0, 0),
        ("MF-DZ/EF-CC/E", "mfl", 1.0, 0),
        ("MF-DZ/EF-CC/E", "tl", 1.0, 0),
        ("SF-CC/E", "mfl", 0.3, 0),
        ("MF-DZ/EF-CC/E", "mfl", 0.3, 0),
        ("MF-DZ/EF-CC/E", "tl", 0.3, 0),
    ]
    assert [(r.key, 1) for r in runs[:6]] == [(r.key, r.seed) for r in runs[6:]]


def test_folders_are_different_and_tell_what_is_in_them() -> None:
    runs = plan(strategies=["mfl", "tl"], fractions=[1.0, 0.3, 0.1234567, 0.12345671]).runs(Path("out"))
    assert len({run.folder for run in runs}) == len(runs) == 24
    assert runs[2].folder == Path("out/runs/MF-DZ_EF-CC_E/tl-1/seed-0")


def test_arguments_are_settings_of_mfpyg_train() -> None:
    study = plan(strategies=["tl"], fractions=[0.3], options=["--epochs", "7", "--batch-size=64"])
    run = study.runs(Path("out"))[-1]
    settings, resumed = parse(study.arguments(run))
    assert resumed is None
    assert (settings.fidelities, settings.strategy, settings.label_fraction) == (["dz:EF", "cc:E"], "tl", ["cc=0.3"])
    assert (settings.seed, settings.split_seed, settings.epochs, settings.batch_size) == (1, 0, 7, 64)
    assert settings.out == str(run.folder)


def test_members_differ_in_the_seed_and_not_in_the_split() -> None:
    study = plan("SF-CC/E", members=3)
    found = [parse(study.arguments(run))[0] for run in study.runs(Path("out"))]
    assert [settings.seed for settings in found] == [0, 1, 2]
    assert {settings.split_seed for settings in found} == {0}


def test_options_of_a_strategy_are_given_to_its_runs_alone() -> None:
    options = ["--transfer.share", "dz=2", "cc=1", "--delta.share=0.3", "--epochs", "9"]
    study = plan(strategies=["mfl", "tl", "delta"], options=options)
    study.check_options()
    of = {run.strategy: study.arguments(run) for run in study.runs(Path("out")) if run.name == "MF-DZ/EF-CC/E"}
    assert of["mfl"][-2:] == ["--epochs", "9"]
    assert not {"--transfer.share", "dz=2", "cc=1", "--delta.share=0.3"} & set(of["mfl"])
    assert of["tl"][-5:] == ["--transfer.share", "dz=2", "cc=1", "--epochs", "9"]
    assert "--delta.share=0.3" not in of["tl"]
    assert of["delta"][-3:] == ["--delta.share=0.3", "--epochs", "9"]
    for strategy, arguments in of.items():
        assert parse(arguments)[0].strategy == strategy


def test_options_of_a_strategy_that_is_not_used_are_refused() -> None:
    with pytest.raises(
        MFPyGError, match=r"--delta.share is an option of strategy delta, but the strategies are mfl, tl"
    ):
        plan(strategies=["mfl", "tl"], options=["--delta.share", "0.3"]).check_options()


def test_sets_stand_for_the_papers_models() -> None:
    assert models_named(["table1"]) == list(PAPER_MODELS)
    assert models_named(["SF-TZ/E", "tables2-4", "SF-CC/E"]) == ["SF-TZ/E", *TARGET_WITHOUT_FORCES]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": ["SF-CCC/E"]}, "unknown level 'CCC'"),
        ({"models": ["SF-CC/E", "SF-cc/E"]}, "models are SF-CC/E, SF-CC/E, expected different ones"),
        ({"models": []}, "models are none"),
        ({"strategies": ["joint"]}, "unknown strategy 'joint'"),
        ({"strategies": ["tl", "tl"]}, "strategies are tl, tl"),
        ({"fractions": [0.0]}, "label-fraction is 0,"),
        ({"fractions": [1.5]}, "label-fraction is 1.5,"),
        ({"fractions": [float("nan")]}, "label-fraction is nan,"),
        ({"members": 0}, "members is 0, expected at least 1"),
    ],
)
def test_wrong_plans_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(MFPyGError, match=message):
        StudyPlan(**{"models": ["SF-CC/E"], "levels": LEVELS, **values}).check()  # type: ignore[arg-type]


def test_stored_study_comes_back_and_grows(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "study"
    first = plan("SF-CC/E", members=3, fractions=[1.0])
    assert joined_with_stored(first, folder) == first
    assert not folder.exists()
    store(first, folder)
    assert joined_with_stored(first, folder) == first
    more = joined_with_stored(plan("MF-DZ/EF-CC/E", strategies=["tl"], fractions=[0.1]), folder)
    assert more == plan("SF-CC/E", "MF-DZ/EF-CC/E", strategies=["mfl", "tl"], fractions=[1.0, 0.1], members=3)
    assert set(first.runs(folder)) <= set(more.runs(folder))


def test_command_makes_the_whole_study(tmp_path: Path) -> None:
    words = plan(strategies=["mfl", "tl"], fractions=[1.0, 0.3], options=["--epochs", "3"]).command(Path("out"))
    assert " ".join(words) == (
        "SF-CC/E MF-DZ/EF-CC/E --strategies mfl tl --label-fraction 1 0.3 --members 2 --out out --epochs 3"
    )


def test_other_options_or_another_folder_are_refused(tmp_path: Path) -> None:
    store(plan(options=["--epochs", "3"]), tmp_path / "study")
    with pytest.raises(MFPyGError, match="is a study with the options '--epochs 3', not '--epochs 4'"):
        joined_with_stored(plan(options=["--epochs", "4"]), tmp_path / "study")
    with pytest.raises(MFPyGError, match="exists and is not a study"):
        joined_with_stored(plan(), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(MFPyGError, match="exists and is not a study"):
        joined_with_stored(plan(), tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert joined_with_stored(plan(), tmp_path / "empty") == plan()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": "SF-CC/E"}, "models is SF-CC/E"),
        ({"fractions": ["half"]}, "fractions is"),
        ({"members": None}, "members is None"),
        ({"colour": "red"}, "holds colour, .*expected models, strategies"),
    ],
)
def test_damaged_study_file_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    store(plan(), tmp_path)
    stored = yaml.safe_load((tmp_path / "study.yaml").read_text(encoding="utf-8"))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(stored | changes), encoding="utf-8")
    with pytest.raises(MFPyGError, match=f"study.yaml: .*{message}"):
        joined_with_stored(plan(), tmp_path)


def test_a_model_of_one_fidelity_takes_as_many_steps_with_fewer_labels() -> None:
    study = plan("SF-CC/E", "MF-DZ/EF-CC/E", fractions=[1.0, 0.1], members=1, options=["--epochs", "7"], epochs=7)
    found = {run.key: parse(study.arguments(run))[0].epochs for run in study.runs(Path("out"))}
    assert found == {
        ("SF-CC/E", "mfl", 1.0): 7,
        ("MF-DZ/EF-CC/E", "mfl", 1.0): 7,
        ("SF-CC/E", "mfl", 0.1): 70,
        ("MF-DZ/EF-CC/E", "mfl", 0.1): 7,
    }
