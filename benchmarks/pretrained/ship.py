"""Weights and model card of a trained potential, to come with the package.

Writes ``OUT.ckpt``, weights alone without splits, paths and held-out labels, and ``OUT.yaml``, the given card with the
elements and the errors on held-out data, with bootstrap intervals over molecules:

    python benchmarks/pretrained/ship.py runs/chno card.yaml mfpyg/pretrained/chno-1 \\
        --held-out 'held-out.xyz:gfn2=gfn2_energy,gfn2_forces@eV'

The card has the fields of ``mfpyg.pretrained.card.Card`` except ``elements`` and ``errors``.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from ase.data import chemical_symbols

import mfpyg
from mfpyg.datasets.spec import open_dataset, parse_specs
from mfpyg.evaluation.ensemble import QUANTITIES, ensemble_errors, labels_of
from mfpyg.files import write_text
from mfpyg.inference.dataset import predict_rows
from mfpyg.models import Potential
from mfpyg.pretrained.card import read_card
from mfpyg.settings import TrainSettings
from mfpyg.strict_yaml import read_yaml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run folder or checkpoint")
    parser.add_argument("card", type=Path)
    parser.add_argument("out", type=Path, help="without suffix")
    parser.add_argument("--held-out", nargs="+", required=True, help="data as for mfpyg-train --dataset")
    options = parser.parse_args()
    potential = mfpyg.load(options.model)
    card = read_yaml(options.card)
    card["elements"] = [chemical_symbols[number] for number in potential.species]
    card["errors"] = errors(potential, options.held_out)
    weights, out = (options.out.with_name(f"{options.out.name}{suffix}") for suffix in (".ckpt", ".yaml"))
    write_text(out, yaml.safe_dump(card, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120))
    strip(potential, {name: level.method for name, level in read_card(out).levels.items()})
    mfpyg.save(potential, weights)
    print(f"written: {weights}, {weights.stat().st_size / 1e6:.2f} MB, and {out}")


def errors(potential: Potential, data: Sequence[str]) -> list[dict[str, Any]]:
    """Errors of all quantities with labels, rounded to three digits, as in a card."""
    names = list(potential.fidelities)
    dataset = open_dataset(parse_specs(data), [name for name in names if name in _levels(data)])
    rows = np.arange(len(dataset))
    found = ensemble_errors([predict_rows(potential, dataset, rows)], labels_of(dataset, rows))
    return [
        {
            **{"level": level, "quantity": QUANTITIES[name].plural, "unit": QUANTITIES[name].property.unit},
            "rmse": _rounded(of.ensemble_rmse.value),
            "interval": [_rounded(of.ensemble_rmse.low), _rounded(of.ensemble_rmse.high)],
            "n": of.n,
        }
        for level, quantities in found.items()
        for name, of in quantities.items()
        if name != "conformer_forces"
    ]


def _levels(data: Sequence[str]) -> list[str]:
    return [level.name for spec in parse_specs(data) for level in spec.levels]


def _rounded(value: float | None) -> float:
    assert value is not None, "held-out data of a single molecule have no interval"
    return float(f"{value:.3g}")


def strip(potential: Potential, methods: dict[str, str]) -> None:
    """Remove paths and names of the training data, and the validation labels, from a potential."""
    assert potential.settings is not None
    assert potential.dtype == torch.float32
    usual = TrainSettings()
    kept = {name: getattr(usual, name) for name in ("dataset", "split", "references", "out")}
    potential.settings = dataclasses.replace(potential.settings, **kept)
    potential.held_out = None
    potential.methods = methods


if __name__ == "__main__":
    main()
