"""Model cards: purpose, training data, and errors of shipped models on molecules that they were not trained on.

A card is a YAML file beside the weights, with the fields of :class:`Card`. ``mfpyg-inspect`` and the documentation
show it; figures stand nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfpyg.pretrained import is_shipped
from mfpyg.strict_yaml import read_yaml


@dataclass(frozen=True)
class Level:
    """Training data of one level of theory.

    Attributes:
        method: level of theory, such as ``CCSD(T)/cc-pVDZ``.
        labels: letters of its labels, such as ``EF``.
        conformations, molecules: numbers of them with labels, for training.
        source: origin of the labels.
    """

    method: str
    labels: str
    conformations: int
    molecules: int
    source: str


@dataclass(frozen=True)
class Error:
    """Root mean square error of one quantity on molecules that are not in the training data.

    Attributes:
        level: name of the level of theory.
        quantity: what is compared, such as ``forces`` or ``energy differences of conformations``.
        unit: unit of the error and of its interval.
        rmse: root mean square error.
        interval: ends of its 95 % interval.
        n: number of labels; of forces, of their components; of energy differences, of pairs of conformations.
    """

    level: str
    quantity: str
    unit: str
    rmse: float
    interval: list[float]
    n: int


@dataclass(frozen=True)
class Card:
    """Model card.

    Attributes:
        title: what it is, in one line.
        licence: licence of the weights, as an SPDX identifier.
        elements: symbols of the elements that it knows.
        use: what it is meant for.
        not_for: what it must not be used for.
        levels: training data of each level of theory, by name.
        tested_on: molecules that the errors are of, and how the intervals were found.
        errors: errors on them.
        recipe: command, or place of the commands, that made it.
    """

    title: str
    licence: str
    elements: list[str]
    use: str
    not_for: list[str]
    levels: dict[str, Level]
    tested_on: str
    errors: list[Error]
    recipe: str


def card_of(path: Path) -> Card | None:
    """Card of the checkpoint of a shipped model; ``None`` for other checkpoints.

    Raises:
        MFPyGError: if there is none, or it is not YAML.
    """
    return read_card(path.with_suffix(".yaml")) if is_shipped(path) else None


def read_card(path: Path) -> Card:
    """Read a card.

    Raises:
        MFPyGError: if it is missing, or not YAML.
        TypeError, KeyError: if a field is missing, or is not one of a card.
    """
    values = read_yaml(path, "a model card", "'title: …'")
    levels = {name: Level(**level) for name, level in values["levels"].items()}
    return Card(**{**values, "levels": levels, "errors": [Error(**error) for error in values["errors"]]})


def level_rows(card: Mapping[str, Any]) -> list[list[str]]:
    """Table of the training data of each level, for people: header and rows.

    Args:
        card: card as a dictionary, see :func:`dataclasses.asdict`.
    """
    rows = [["level", "level of theory", "labels", "conformations", "molecules", "origin of the labels"]]
    for name, of in card["levels"].items():
        numbers = [f"{of[key]:,}" for key in ("conformations", "molecules")]
        rows.append([name, of["method"], of["labels"], *numbers, of["source"]])
    return rows


def error_rows(card: Mapping[str, Any]) -> list[list[str]]:
    """Table of the errors, for people: header and rows; see :func:`level_rows`."""
    rows = [["level", "quantity", "RMSE", "95 % interval", "unit", "n"]]
    for of in card["errors"]:
        low, high = of["interval"]
        rows.append(
            [of["level"], of["quantity"], f"{of['rmse']:g}", f"{low:g} to {high:g}", of["unit"], f"{of['n']:,}"]
        )
    return rows
