"""``mfpyg-train --init`` on the command line: what it takes from the model, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mfpyg.cli import study, train
from mfpyg.cli.train import default_out, parse

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, where nothing is trained."""

    def fit(*arguments: Any) -> None:
        raise AssertionError("training was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning.Trainer.fit", fit)


def refused(capsys: pytest.CaptureFixture[str], command: Any, *arguments: str) -> str:
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2, err
    assert err.count("\n") == 1
    assert "Traceback" not in err + out
    assert sorted(Path().rglob("*")) == before, "something was written"
    return err


def test_network_is_that_of_the_model_whatever_the_preset(untrained: Make) -> None:
    untrained("dz:EF", kind="nonlinear", width=3, precision=64)
    for preset in ([], ["--preset=published"]):
        settings, _ = parse(["--init", "model.ckpt", "--add-fidelity", "cc:E", *preset])
        assert (settings.model.n_features, settings.model.cutoff, settings.precision) == (6, 4.5, 64)
        assert (settings.head.kind, settings.head.width) == ("nonlinear", 3)
    assert settings.batch_size == 256
    same = parse(["--init", "model.ckpt", "--add-fidelity", "cc:E", "--model.n-features=6", "--backbone=hipnn"])[0]
    assert same.model == settings.model


def test_defaults_are_written_out(untrained: Make) -> None:
    untrained("dz:EF", "mp2:E")
    settings, _ = parse(["--init", "model.ckpt", "--add-fidelity", "cc:E"])
    assert settings.fidelities == ["dz:EF", "mp2:E", "cc:E"]
    assert (settings.finetune.old, settings.finetune.head_from) == ("replayed", "mp2")
    assert default_out(settings) == "runs/minichno-init-replayed-dz_EF-mp2_E-cc_E-seed0"
    named, _ = parse(["--init", "model.ckpt", "--add-fidelity", "cc:E", "--fidelities", "dz:E"])
    assert named.fidelities == ["dz:E", "cc:E"]
    further, _ = parse(["--init", "model.ckpt"])
    assert (further.fidelities, further.finetune.old, further.finetune.head_from) == (["dz:EF", "mp2:E"], "kept", None)
    Path("config.yaml").write_text(
        yaml.safe_dump({"init": "model.ckpt", "add_fidelity": ["cc:E"], "fidelities": named.fidelities})
    )
    assert parse(["--config", "config.yaml"])[0] == named


def test_learning_rate_is_lower_where_new_labels_alone_move_the_network(untrained: Make) -> None:
    untrained("dz:EF")

    def rate(*options: str) -> float:
        return float(parse(["--init", "model.ckpt", *options])[0].optim.lr)

    add = ("--add-fidelity", "cc:E")
    assert (rate(*add), rate(*add, "--finetune.old=frozen")) == (1e-3, 1e-3)
    assert rate(*add, "--finetune.old=kept") == rate() == pytest.approx(1e-4)
    assert rate(*add, "--finetune.old=kept", "--optim.lr=0.01") == 0.01
    Path("kept.yaml").write_text("init: model.ckpt\nadd_fidelity: [cc:E]\nfinetune: {old: kept}\n")
    assert parse(["--config", "kept.yaml"])[0].optim.lr == pytest.approx(1e-4)
    Path("whole.yaml").write_text("init: model.ckpt\nfinetune: {old: kept}\noptim: {lr: 0.002}\n")
    assert parse(["--config", "whole.yaml"])[0].optim.lr == 0.002


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--init none --add-fidelity cc:E", "none: no such checkpoint"),
        ("--init notes --add-fidelity cc:E", "notes: damaged, or not a checkpoint"),
        ("--init= --add-fidelity cc:E", "option --init needs a value"),
        ("ADD --finetune.old=frozen --references=fit", "no fidelity of init is trained; leave references out"),
        ("--fidelities dz:EF --references=keep", "references is keep, but there is no init"),
        ("--add-fidelity cc:E --fidelities dz:E", "add_fidelity is given, but no init"),
        ("--fidelities dz:E --finetune.old kept", "finetune.old is given, but no init"),
        ("MODEL --add-fidelity cc", "malformed fidelity 'cc'"),
        ("ADD cc:E", "'cc' is given 2 times"),
        ("MODEL --add-fidelity dz:E", "model.ckpt has 'dz' already (it has dz, mp2)"),
        ("MODEL --add-fidelity ccc:E", "unknown fidelity of minichno 'ccc'"),
        ("MODEL --add-fidelity cc:EF", "has forces of 'cc'"),
        ("MODEL --fidelities cc:E", "has no fidelity 'cc' to train further (it has dz, mp2); add a new one"),
        ("ADD --fidelities cc:EF", "fidelities say cc:EF, add_fidelity says cc:E"),
        ("ADD --fidelities dz:E --finetune.old kept", "finetune.old is kept; leave them out"),
        ("MODEL --finetune.old replayed", "finetune.old is replayed, but no fidelity is added"),
        ("ADD --finetune.old frozn", "did you mean 'frozen'?"),
        ("ADD --finetune.head-from dzz", "did you mean 'dz'?"),
        ("MODEL --finetune.head-from dz", "finetune.head_from is dz, but no fidelity is added"),
        ("ADD --finetune.sha256 abc", "is not the checkpoint that the settings were made for"),
        ("ADD --backbone painn", "model.ckpt has backbone hipnn, not painn"),
        ("ADD --model.n-features 64", "has model.n_features 6, but the settings say 64"),
        ("ADD --model.cutoff 5", "has model.cutoff 4.5, but the settings say 5"),
        ("ADD --head.kind nonlinear", "has head.kind linear"),
        ("ADD --precision 64", "has precision 32"),
        ("ADD --strategy tl", "init works only with strategy mfl, not with tl"),
        ("ADD --monitor tz", "unknown monitor 'tz'"),
        ("ADD --epohcs 3", "did you mean '--epochs'?"),
        ("ADD --split.test 0.3", "split.val and split.test have no effect"),
        ("ADD --finetune.old frozen --label-fraction dz=0.1", "unknown fidelity of label_fraction"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], untrained: Make, options: str, message: str) -> None:
    untrained("dz:EF", "mp2:E")
    Path("notes").write_text("notes")
    whole = options.replace("ADD", "MODEL --add-fidelity cc:E").replace("MODEL", "--init model.ckpt")
    assert message in refused(capsys, train, *whole.split())


def test_study_has_no_use_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--init cannot be given" in refused(capsys, study, "SF-CC/E", "--out", "new", "--init", "x")


def test_difference_learning_is_refused(capsys: pytest.CaptureFixture[str], untrained: Make) -> None:
    untrained("dz:EF")
    checkpoint = torch.load("model.ckpt", weights_only=True)
    checkpoint["mfpyg"]["base_level"] = "dz"
    torch.save(checkpoint, "model.ckpt")
    message = refused(capsys, train, "--init", "model.ckpt", "--add-fidelity", "cc:E")
    assert "a potential of strategy delta, the sum of two networks, cannot be trained further" in message


WATER = '3\nProperties=species:S:1:pos:R:3 {} pbc="F F F"\nO 0 0 {}\n{} 0.96 0 0\nH -0.24 0.93 0\n'


def frames(path: str, element: str = "H") -> str:
    """A file of eight molecules with a level cc, in eV."""
    lines = [WATER.format(f"cc_energy={-2000 - i / 10}", i / 100, element) for i in range(8)]
    Path(path).write_text("".join(lines))
    return f"{path}:cc=cc_energy@eV"


def test_labels_that_the_data_lack_are_named(capsys: pytest.CaptureFixture[str], untrained: Make) -> None:
    untrained("dz:EF", "mp2:E")
    data = frames("mine.xyz")
    message = refused(capsys, train, "--init", "model.ckpt", "--add-fidelity", "cc:E", "--dataset", data)
    assert "has no labels of dz:EF mp2:E, which init was trained on (it has levels cc)" in message
    assert "use finetune.old frozen or kept" in message
    message = refused(capsys, train, "--init", "model.ckpt", "--dataset", data)
    assert "has no labels of dz:EF mp2:E" in message


def test_unknown_element_is_named(capsys: pytest.CaptureFixture[str], untrained: Make) -> None:
    untrained("dz:EF")
    options = ["--init", "model.ckpt", "--add-fidelity", "cc:E", "--finetune.old=frozen", "--dataset"]
    message = refused(capsys, train, *options, frames("salt.xyz", "Na"))
    assert "element Na of split" in message
    assert "is unknown to init (it knows H, C, N, O)" in message
