"""Settings of ``mfpyg-select``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mfpyg.datasets.spec import DatasetSpec
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import is_name
from mfpyg.options import check, setting
from mfpyg.strict_yaml import read_yaml

METHODS = ("multi-fidelity", "diverse", "uncertainty", "random")


@dataclass(frozen=True)
class SelectSettings:
    """Settings of a selection; budget and costs of a label of each level have the same unit, such as seconds."""

    costs: dict
    method: str = setting("multi-fidelity", "how frames are chosen", choices=METHODS)
    target: str | None = setting(
        None, "level whose forces are to become accurate; required unless the choice is random"
    )
    budget: float = setting(0.0, "largest sum of the costs of all labels, in the unit of --cost; required", low=0)
    max: int | None = setting(None, "number of frames at most", low=1)
    seed: int = setting(0, "seed of all random numbers", low=0)

    def check(self) -> None:
        """Check all values.

        Raises:
            MFPyGError: naming the setting, what was found and what is allowed.
        """
        check(self)
        if self.target is None and self.method != "random":
            raise MFPyGError(f"no target is given; method {self.method} needs the level whose forces are wanted")
        if not 0 < self.budget < math.inf:
            raise MFPyGError(f"budget is {self.budget:g}, expected a number above 0, in the unit of the costs")
        cheapest = min(self.costs, key=self.costs.__getitem__)
        if self.budget < self.costs[cheapest]:
            raise MFPyGError(
                f"budget is {self.budget:g}, below one label: the cheapest, of '{cheapest}', costs "
                f"{self.costs[cheapest]:g}"
            )


def read_costs(texts: Iterable[str], levels: Iterable[str] | None = None) -> dict[str, float]:
    """Cost of a label of each level.

    Args:
        texts: ``NAME=NUMBER``, and YAML files of ``mfpyg-label``, whose mean seconds count; later ones replace earlier
            ones.
        levels: names of the levels to choose from; all with a cost if not given.

    Raises:
        MFPyGError: for a malformed text or file, a cost that is not above 0, a repeated level, or one without a cost.
    """
    costs: dict[str, float] = {}
    for text in texts:
        name, equals, number = text.partition("=")
        costs.update({name: _number(number, text)} if equals and is_name(name) else _costs_of_file(text))
    if not costs:
        raise MFPyGError("no cost is given; expected NAME=NUMBER, as in --cost cc=12.5 dz=1, or a file of mfpyg-label")
    chosen = list(costs if levels is None else levels)
    for name in chosen:
        if chosen.count(name) > 1:
            raise MFPyGError(f"level '{name}' is given {chosen.count(name)} times; give it once")
        if name not in costs:
            raise MFPyGError(f"level '{name}' has no cost (there are those of {', '.join(costs)}); add {name}=NUMBER")
    return {name: costs[name] for name in chosen}


def _number(text: str, whole: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise MFPyGError(f"cost is '{whole}', expected NAME=NUMBER with a number above 0, as cc=12.5")
    return number


def _costs_of_file(text: str) -> dict[str, float]:
    path = Path(text)
    if not path.is_file() and path.suffix not in (".yaml", ".yml"):
        raise MFPyGError(f"cost is '{text}', expected NAME=NUMBER, as cc=12.5, or the YAML file of mfpyg-label")
    levels = read_yaml(path, "labels written by mfpyg-label", "'levels: …'").get("levels")
    if not isinstance(levels, Mapping) or not all(isinstance(about, Mapping) for about in levels.values()):
        raise MFPyGError(f"{path}: no levels; expected a YAML file that mfpyg-label has written beside its output")
    seconds = {str(name): about.get("seconds") for name, about in levels.items()}
    found = {name: float(value) for name, value in seconds.items() if isinstance(value, int | float) and value > 0}
    if not found:
        raise MFPyGError(f"{path}: no level has seconds above 0; give costs as NAME=NUMBER")
    return found


def labelled_spec(text: str) -> DatasetSpec:
    """Data set of an output of ``mfpyg-label``, or of text as for ``--dataset``.

    Raises:
        MFPyGError: if it is neither.
    """
    beside = Path(f"{text}.yaml")
    if not beside.is_file():
        return DatasetSpec.parse(text)
    dataset = read_yaml(beside, "labels written by mfpyg-label", "'dataset: …'").get("dataset")
    if not isinstance(dataset, str):
        raise MFPyGError(f"{beside}: no dataset; expected a file that mfpyg-label has written beside {text}")
    _, _, levels = dataset.partition(f"{Path(text).name}:")
    start = "pyanitools:" if dataset.startswith("pyanitools:") else ""
    return DatasetSpec.parse(f"{start}{text}:{levels}")  # the file may have moved since
