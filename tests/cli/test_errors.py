"""What the user does wrong on the command line: one line, status 2, nothing written; and how settings are read."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mfpyg import settings as s
from mfpyg.cli import evaluate, inspection, preprocess, train
from mfpyg.cli.train import parse
from mfpyg.datasets.levels import MINICHNO_LEVELS
from mfpyg.datasets.minichno import bundled_file


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in an empty folder, and none of them trains."""

    def fit(*arguments: Any) -> None:
        raise AssertionError("training was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning.Trainer.fit", fit)


class Refused:
    """Runs a command that must fail, and gives its one line."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, command: Any, *arguments: str) -> str:
        before = sorted(Path().rglob("*"))
        with pytest.raises(SystemExit) as stop:
            command.main(arguments)
        out, err = self.capsys.readouterr()
        assert stop.value.code == 2
        assert err.startswith(f"{command.NAME}: error: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err + out
        assert sorted(Path().rglob("*")) == before, "something was written"
        return err


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(capsys)


def config(text: str) -> str:
    Path("config.yaml").write_text(text, encoding="utf-8")
    return "config.yaml"


# Fidelities


def test_unknown_fidelity_lists_those_there_are(refused: Refused) -> None:
    message = refused(train, "--fidelities", "dz:E", "ccc:E")
    assert "'ccc'" in message
    for level in MINICHNO_LEVELS:
        assert level.name in message


@pytest.mark.parametrize(
    ("fidelities", "message"),
    [
        (["dz:EX"], "malformed fidelity 'dz:EX'"),
        (["dz"], "malformed fidelity 'dz'"),
        (["dz:E", "dz:F"], "'dz' is given 2 times"),
        (["mp2:F"], "no forces of 'mp2'"),
        (["dz:E", "cc:EF"], "conformations of the training split has forces of 'cc'"),
    ],
)
def test_wrong_fidelities_are_refused(refused: Refused, fidelities: list[str], message: str) -> None:
    assert message in refused(train, "--fidelities", *fidelities)


@pytest.mark.parametrize("arguments", [[], ["--epochs", "3"], ["--fidelities"], ["--fidelities", "--epochs", "3"]])
def test_missing_fidelities_are_asked_for(refused: Refused, arguments: list[str]) -> None:
    assert "fidelit" in refused(train, *arguments)


# Options and their values


def test_unknown_backbone_offers_the_one_meant(refused: Refused) -> None:
    assert "did you mean 'hipnn'?" in refused(train, "--fidelities", "dz:E", "--backbone", "hipn")


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("--epohcs", "--epochs"),
        ("--epohcs=3", "--epochs"),
        ("--model.n-featurs", "--model.n-features"),
        ("--monitr", "--monitor"),
    ],
)
def test_unknown_option_offers_the_one_meant(refused: Refused, argument: str, meant: str) -> None:
    assert f"did you mean '{meant}'?" in refused(train, "--fidelities", "dz:E", argument, "3")


@pytest.mark.parametrize("option", ["--epochs", "--config", "--resume", "--out", "--dataset", "--optim.lr"])
def test_option_without_a_value_is_refused(refused: Refused, option: str) -> None:
    assert option in refused(train, "--fidelities", "dz:E", option)
    assert option in refused(train, option, "--fidelities", "dz:E")


@pytest.mark.parametrize("option", ["--config", "--resume", "--dataset", "--backbone", "--preset", "--out"])
def test_option_with_an_empty_value_is_refused(refused: Refused, option: str) -> None:
    message = refused(train, "--fidelities", "dz:E", f"{option}=")
    assert option.strip("-") in message.replace("data set", "dataset")


def test_word_that_belongs_to_no_option_is_refused(refused: Refused) -> None:
    assert "extra" in refused(train, "extra", "--fidelities", "dz:E")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("epochs", "0"),
        ("epochs", "1.5"),
        ("epochs", "many"),
        ("epochs", "null"),
        ("batch-size", "-1"),
        ("seed", "-1"),
        ("seed", "999999999999999999999"),
        ("optim.lr", "nan"),
        ("optim.lr", "inf"),
        ("optim.lr", "0"),
        ("optim.lr", "fast"),
        ("model.tensor-order", "3"),
        ("split.val", "0"),
        ("accelerator", "tpu"),
        ("precision", "16"),
        ("monitor", "cc"),
        ("weights", "dz:E"),
        ("weights", "dz:E=x"),
        ("weights", "dz:F=1"),
        ("weights", "dz:E=-1"),
    ],
)
def test_wrong_value_is_refused_by_the_name_of_its_option(refused: Refused, option: str, value: str) -> None:
    message = refused(train, "--fidelities", "dz:E", f"--{option}", value)
    assert option.removesuffix("s").replace("-", "_") in message.replace("-", "_")
    assert "<class" not in message, "Python's words for a type are not the user's"


# Data sets and folders


def test_unknown_data_set_offers_the_one_meant(refused: Refused) -> None:
    assert "did you mean 'minichno'?" in refused(train, "--fidelities", "dz:E", "--dataset", "minchno")


def test_path_that_does_not_exist_is_named(refused: Refused) -> None:
    assert "no/such.h5: no such file" in refused(train, "--fidelities", "dz:E", "--dataset", "minichno:no/such.h5")


def test_file_that_is_no_hdf5_is_named(refused: Refused) -> None:
    Path("notes.h5").write_text("notes")
    assert "notes.h5: not an HDF5 file" in refused(train, "--fidelities", "dz:E", "--dataset", "minichno:notes.h5")


def test_missing_official_file_says_where_to_get_it(refused: Refused) -> None:
    message = refused(train, "--fidelities", "dz:E", "--dataset", "ani1x")
    assert "data/ani1x/raw/ani1x-release.h5" in message
    assert "https://" in message


def test_run_folder_that_holds_something_is_left_alone(refused: Refused) -> None:
    Path("full").mkdir()
    Path("full/notes").write_text("mine")
    for out in ("full", "full/notes"):
        assert f"{out} exists" in refused(train, "--fidelities", "dz:E", "--out", out)
    assert Path("full/notes").read_text() == "mine"


def test_run_folder_that_is_no_folder_is_not_offered_to_resume(refused: Refused) -> None:
    Path("notes").write_text("mine")
    assert "--resume" not in refused(train, "--fidelities", "dz:E", "--out", "notes")


def test_run_folder_that_cannot_be_made_is_named(refused: Refused) -> None:
    Path("notes").write_text("mine")
    assert "notes/run" in refused(train, "--fidelities", "dz:E", "--out", "notes/run")


def test_resume_wants_a_run(refused: Refused) -> None:
    Path("empty").mkdir()
    for folder in ("empty", "none"):
        assert f"{folder} is not a run folder" in refused(train, "--resume", folder)


def test_resume_and_config_exclude_each_other(refused: Refused) -> None:
    assert "--config" in refused(train, "--resume", "run", "--config", config("fidelities: [dz:E]"))


# Configuration files


@pytest.mark.parametrize(
    ("text", "found", "meant"),
    [
        ("epohcs: 3", "'epohcs'", "'epochs'"),
        ("model: {n_featurs: 3}", "'model.n_featurs'", "'model.n_features'"),
        ("optim: {lrr: 3}", "'optim.lrr'", "'optim.lr'"),
        ("backbone: hipn", "'hipn'", "'hipnn'"),
        ("preset: smal", "'smal'", "'small'"),
        ("repulsion: ZBL", "'ZBL'", "'zbl'"),
    ],
)
def test_unknown_name_in_a_config_offers_the_one_meant(refused: Refused, text: str, found: str, meant: str) -> None:
    message = refused(train, "--config", config(f"fidelities: [dz:E]\n{text}\n"))
    assert found in message
    assert f"did you mean {meant}?" in message


@pytest.mark.parametrize(
    "text", ["a: [1, 2\n b: }", "\t- x: :", "x: !!python/object/apply:os.getcwd []", "- 1\n- 2", "just words", "3", ""]
)
def test_config_that_is_no_mapping_of_settings_is_named(refused: Refused, text: str) -> None:
    assert "config.yaml: " in refused(train, "--fidelities", "dz:E", "--config", config(text))


def test_config_that_is_no_text_or_no_file_is_named(refused: Refused) -> None:
    Path("config.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert "config.yaml: " in refused(train, "--config", "config.yaml")
    Path("folder").mkdir()
    for path in ("folder", "none.yaml"):
        assert path in refused(train, "--config", path)


def test_config_runs_no_code(refused: Refused) -> None:
    refused(train, "--config", config('fidelities: [dz:E]\nout: !!python/object/apply:os.system ["touch made"]'))
    assert not Path("made").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("epochs", "epochs: many"),
        ("epochs", "epochs: 1.5"),
        ("epochs", "epochs: [3]"),
        ("epochs", "epochs: null"),
        ("epochs", "epochs: true"),
        ("fidelities", "fidelities: null"),
        ("fidelities", "fidelities: {dz: EF}"),
        ("dataset", "dataset: 3"),
        ("out", "out: [a]"),
        ("model", "model: 3"),
        ("optim", "optim: [1]"),
        ("model.n_features", "model: {n_features: wide}"),
        ("optim.lr", "optim: {lr: fast}"),
        ("weights", "weights: {dz: 3}"),
        ("backbone", "backbone: [hipnn]"),
    ],
)
def test_value_of_the_wrong_kind_in_a_config_is_refused_by_its_name(refused: Refused, name: str, text: str) -> None:
    path = config(text if name == "fidelities" else f"fidelities: [dz:E]\n{text}\n")
    message = refused(train, "--config", path)
    assert name in message
    assert "object" not in message
    assert "<class" not in message


def test_single_fidelity_without_a_list_is_read_or_refused_by_its_name(refused: Refused) -> None:
    try:
        assert parse(["--config", config("fidelities: dz:E")])[0].fidelities == ["dz:E"]
    except ValueError:
        assert "fidelities" in refused(train, "--config", "config.yaml")


def test_precision_may_be_written_as_a_number() -> None:
    assert parse(["--config", config("fidelities: [dz:E]\nprecision: 64")])[0].precision == 64


def test_learning_rate_in_exponent_notation_is_a_number() -> None:
    # YAML 1.1 reads 1e-3 without a dot as a word.
    assert parse(["--config", config("fidelities: [dz:E]\noptim: {lr: 1e-3}")])[0].optim.lr == pytest.approx(1e-3)


# Evaluation and preprocessing


def test_evaluate_wants_a_run(refused: Refused) -> None:
    Path("empty").mkdir()
    assert "none: no such" in refused(evaluate, "none")
    assert "empty/best.ckpt: no such checkpoint" in refused(evaluate, "empty")
    assert "run" in refused(evaluate).lower()


@pytest.mark.parametrize("content", [b"", b"words", bytes(range(256)) * 20, b"PK\x03\x04" + bytes(100)])
def test_file_that_is_no_checkpoint_is_named(refused: Refused, content: bytes) -> None:
    Path("x.ckpt").write_bytes(content)
    message = refused(evaluate, "x.ckpt")
    assert "x.ckpt: damaged, or not a checkpoint" in message
    assert "weights_only" not in message


class Code:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch made",)


@pytest.mark.parametrize("save", [torch.save, lambda code, path: Path(path).write_bytes(pickle.dumps(code))])
def test_code_in_a_checkpoint_is_never_run(refused: Refused, save: Any) -> None:
    save({"mfpyg": Code(), "state_dict": {}}, "evil.ckpt")
    message = refused(evaluate, "evil.ckpt")
    assert not Path("made").exists()
    assert "evil.ckpt" in message
    assert "weights_only" not in message


def test_foreign_checkpoint_is_refused(refused: Refused) -> None:
    torch.save({"state_dict": {}}, "foreign.ckpt")
    assert "foreign.ckpt: not a checkpoint of mfpyg" in refused(evaluate, "foreign.ckpt")
    torch.save(torch.zeros(3), "foreign.ckpt")
    assert "foreign.ckpt: not a checkpoint of mfpyg" in refused(evaluate, "foreign.ckpt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "tset"], "did you mean 'test'?"),
        (["--splt", "test"], "did you mean '--split'?"),
        (["--split"], "--split"),
        (["--dataset", "minchno"], "did you mean 'minichno'?"),
        (["--json", "none/x.json"], "none: no such folder"),
    ],
)
def test_wrong_option_of_evaluate_is_refused(refused: Refused, arguments: list[str], message: str) -> None:
    Path("run").mkdir()
    assert message in refused(evaluate, "run", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "dataset"),
        (["minchno"], "did you mean 'minichno'?"),
        (["minichno:none.h5"], "none.h5: no such file"),
        (["minichno", "--fidelities", "ddz"], "did you mean 'dz'?"),
        (["minichno", "--fidelities", "dz", "dz"], "dz"),
        (["minichno", "--cutof", "3"], "did you mean '--cutoff'?"),
        (["minichno", "--cutoff", "wide"], "cutoff"),
        (["minichno", "--cutoff", "nan"], "cutoff"),
        (["minichno", "--cutoff", "-1"], "cutoff"),
        (["minichno", "--cutoff", "0"], "cutoff"),
    ],
)
def test_wrong_option_of_preprocess_is_refused(refused: Refused, arguments: list[str], message: str) -> None:
    assert message in refused(preprocess, *arguments)


def test_preprocess_shows_what_is_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(bundled_file(), "mine.h5")
    preprocess.main(["minichno:mine.h5", "--fidelities", "dz", "cc"])
    out = capsys.readouterr().out
    assert "788 conformations of 21 molecules" in out
    row = next(line.split() for line in out.splitlines() if line.split()[:1] == ["cc"])
    assert row[-3:-1] == ["788", "80"]


# Reading settings


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    assert stop.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--fidelities", "dz:EF", "cc:E"],
        [
            "--fidelities",
            "dz:EF",
            "--weights",
            "dz:F=0.5",
            "--model.n-features",
            "32",
            "--optim.clip",
            "2.5",
            "--precision",
            "64",
        ],
        ["--fidelities", "dz:EF", "--preset", "published", "--seed", "5", "--out", "runs/x", "--optim.lr", "1e-5"],
        ["--fidelities", "dz:EF", "--dataset", "ani1x", "--split.method", "random", "--optim.stop-after", "null"],
    ],
)
def test_printed_config_gives_the_same_settings(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    text = shown(capsys, *arguments, "--print-config")
    assert yaml.safe_load(text)["fidelities"][0] == "dz:EF"
    assert parse(["--config", config(text)]) == parse(arguments)


def test_printed_config_is_that_of_the_file_with_the_changes(capsys: pytest.CaptureFixture[str]) -> None:
    path = config("fidelities: [dz:E]\nepochs: 7\nseed: 3")
    printed = yaml.safe_load(shown(capsys, "--config", path, "--seed", "4", "--print-config"))
    assert (printed["epochs"], printed["seed"]) == (7, 4)


def names(settings: Any, prefix: str = "") -> list[str]:
    found = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        nested = dataclasses.is_dataclass(value)
        found += names(value, f"{prefix}{field.name}.") if nested else [prefix + field.name]
    return found


@pytest.mark.parametrize("option", ["--help", "--help-all"])
def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str], option: str) -> None:
    words = shown(capsys, option).split()
    for name in [*names(s.TrainSettings()), "config", "resume", "print-config"]:
        assert f"--{name.replace('_', '-')}" in words, name


def test_help_explains_common_options_and_names_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    short, whole = shown(capsys, "--help"), shown(capsys, "--help-all")
    assert short.count("\n") < 120
    assert "more options, which mfpyg-train --help-all explains:\n  split into training" in short
    assert short.index("\ndata and levels of theory:\n  --fidelities NAME:LABELS ...\n") < short.index("\nhardware:\n")
    assert ("weight decay" in short, "weight decay" in whole) == (False, True)
    for said in ("(default: 160)", "(default: minichno)", "N      epochs without improvement before training stops"):
        assert said in whole
    for noise in ("type:", "(default: [])", "(default: None)", "other options:"):
        assert noise not in whole


@pytest.mark.parametrize("command", [evaluate, inspection, preprocess])
def test_help_of_the_other_commands_ends_well(capsys: pytest.CaptureFixture[str], command: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    assert stop.value.code == 0
    assert command.NAME in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--epochs", "3", "--config", "config.yaml"],
        ["--config", "config.yaml", "--epochs", "3"],
        ["--config=config.yaml", "--epochs=3"],
    ],
)
def test_command_line_wins_over_the_config_wherever_it_stands(arguments: list[str]) -> None:
    config("fidelities: [dz:E]\nepochs: 7\nseed: 3\nmodel: {n_features: 5}")
    settings, resumed = parse(arguments)
    assert resumed is None
    assert (settings.epochs, settings.seed, settings.model.n_features, settings.fidelities) == (3, 3, 5, ["dz:E"])


def test_config_wins_over_the_preset() -> None:
    settings, _ = parse(["--config", config("fidelities: [dz:E]\nbatch_size: 99"), "--preset", "published"])
    assert (settings.preset, settings.batch_size, settings.model.n_features) == ("published", 99, 120)


def test_preset_of_the_config_is_used() -> None:
    settings, _ = parse(["--config", config("fidelities: [dz:E]\npreset: published")])
    assert (settings.preset, settings.model.n_features) == ("published", 120)


def test_list_on_the_command_line_replaces_that_of_the_config() -> None:
    settings, _ = parse(["--config", config("fidelities: [dz:E, cc:E]"), "--fidelities", "tz:EF"])
    assert settings.fidelities == ["tz:EF"]


@pytest.mark.parametrize(
    "options",
    [
        ["--batch-size", "8", "--model.n-features", "7", "--optim.max-batch-size=64"],
        ["--batch_size", "8", "--model.n_features", "7", "--optim.max_batch_size=64"],
    ],
)
def test_underscores_and_dashes_name_the_same_option(monkeypatch: pytest.MonkeyPatch, options: Sequence[str]) -> None:
    seen = []
    monkeypatch.setattr(train, "_train", lambda settings, *_: seen.append(settings))
    train.main(["--fidelities", "mp2_dz:E", *options, "--out=my_run"])
    settings = seen[0]
    assert (settings.batch_size, settings.model.n_features, settings.optim.max_batch_size) == (8, 7, 64)
    assert (settings.fidelities, settings.out) == (["mp2_dz:E"], "my_run")


def test_monitor_that_weighs_nothing_is_refused(refused: Refused) -> None:
    options = ["--fidelities", "dz:EF", "cc:E", "--weights", "cc:E=0"]
    assert "monitor cc has weight 0" in refused(train, *options, "--monitor", "cc")
    assert "monitor sum has weight 0" in refused(train, *options, "dz:EF=0")


def test_engine_that_is_not_installed_is_refused_before_torch_is_imported() -> None:
    script = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'torch_cluster' else find(name, *a)\n"
        "from mfpyg.cli import train\n"
        "try:\n"
        "    train.main(['--fidelities', 'dz:E', '--engine', 'torch-cluster'])\n"
        "finally:\n"
        "    print('torch' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stdout.strip() == "False"
    assert "pip install 'mfpyg[cluster]'" in run.stderr
