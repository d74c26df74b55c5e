"""Page of the shipped models, generated from their cards. Importable without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from mfpyg import pretrained
from mfpyg.pretrained.card import error_rows, level_rows, read_card


def models_page() -> str:
    """Markdown of the cards of all models."""
    cards = {name: dataclasses.asdict(read_card(pretrained.FOLDER / f"{name}.yaml")) for name in pretrained.names()}
    lines: list[str] = []
    for name, card in cards.items():
        lines += [f"## {name} {{ #{name} }}", "", f"{card['title']}. Licence of the weights: {card['licence']}.", ""]
        lines += [f"**Elements.** {' '.join(card['elements'])}", "", f"**Use.** {card['use']}", ""]
        lines += ["**Not for:**", "", *(f"- {one}" for one in card["not_for"]), ""]
        lines += ["### Trained on", "", *_table(level_rows(card)), ""]
        lines += ["### Errors", "", card["tested_on"], "", *_table(error_rows(card)), ""]
        lines += [f"Made by `{card['recipe']}`.", ""]
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    header, *others = rows
    yield from (f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}")
    for row in others:
        yield f"| {' | '.join(row)} |"
