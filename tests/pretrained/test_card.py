"""Model cards: what mfpyg-inspect and the documentation show is what the file says."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from mfpyg.cli import inspection
from mfpyg.inspection import inspect
from mfpyg.pretrained.card import Error, card_of, read_card

HOOK = Path(__file__).parents[2] / "docs" / "hooks" / "models.py"
SHOWN = ("CC0-1.0", "Tests.", "crystals", "1,234", "604", "bundled data", "6.25", "5.5 to 7", "1.2 to 1.75", "1,500")


def test_values_are_those_of_the_file(shipped: Path) -> None:
    card = card_of(shipped)
    assert card is not None
    assert list(card.levels) == ["dz", "cc"]
    assert (card.levels["cc"].method, card.levels["cc"].conformations) == ("CCSD(T)/cc-pVDZ", 604)
    assert card.errors[1] == Error("cc", "energy", "kcal/mol", 1.5, [1.2, 1.75], 150)
    assert inspect("tiny-1")["card"] == dataclasses.asdict(card)


def test_other_checkpoints_have_none(shipped: Path, tmp_path: Path) -> None:
    assert inspect(tmp_path / "model.ckpt")["card"] is None


@pytest.mark.parametrize("line", ["licence: CC0-1.0\n", "not_for: [molecules, crystals]\n"])
def test_a_missing_field_is_an_error(shipped: Path, line: str) -> None:
    path = shipped.with_suffix(".yaml")
    path.write_text(path.read_text(encoding="utf-8").replace(line, ""), encoding="utf-8")
    with pytest.raises(TypeError, match=line.partition(":")[0]):
        read_card(path)


def test_inspect_shows_it_last(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspection.main(["tiny-1"])
    usual, _, card = capsys.readouterr().out.partition("model card")
    assert "settings that differ" in usual
    words = " ".join(card.split())
    assert [one for one in SHOWN if one not in words] == []
    inspection.main(["tiny-1", "--json", "-"])
    assert json.loads(capsys.readouterr().out)["card"]["errors"][0]["rmse"] == 6.25


def test_page_of_the_documentation(shipped: Path) -> None:
    spec = importlib.util.spec_from_file_location("docs_models", HOOK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.models_page()
    assert "## tiny-1 { #tiny-1 }" in page
    assert "| dz | forces | 6.25 | 5.5 to 7 | kcal/mol/Å | 1,500 |" in page
    assert [one for one in SHOWN if one not in page] == []
