"""Help of ``mfpyg-train``: options grouped by what they are for, the common ones first."""

from __future__ import annotations

import argparse
from typing import Any

from mfpyg.cli.common import Parser

COMMON = {
    "data and levels of theory": ("fidelities", "dataset"),
    "training": ("epochs", "batch_size", "optim.lr", "weights", "strategy", "target", "seed", "preset"),
    "network": ("backbone", "model."),
    "from a trained network": ("init", "add_fidelity"),
    "output, settings and resuming": ("out", "resume", "config", "print_config"),
    "hardware": ("accelerator", "devices", "threads"),
    "help": ("help", "help_all", "version"),
}
"""Destinations of the options that ``--help`` explains; ``model.`` stands for all that begin with it."""

ADVANCED = {
    "split into training, validation and test": ("split.",),
    "labels and reference energies": ("label_fraction", "references"),
    "known interactions": ("repulsion", "baseline"),
    "optimiser and schedule": ("optim.",),
    "loss": ("hierarchicality", "pair_weight", "difference_weight", "hessian_directions", "monitor"),
    "sampling of epochs": ("sampling.",),
    "output layers of each fidelity": ("head.",),
    "strategy tl": ("transfer.",),
    "strategy delta": ("delta.",),
    "strategy meta": ("meta.",),
    "third-party strategy": ("strategy_options",),
    "fine-tuning (init)": ("finetune.",),
    "logs and checkpoints": ("logger", "checkpoint_minutes"),
    "speed, precision and several nodes": ("precision", "matmul_precision", "compile", "engine", "edges", "nodes"),
}
"""Destinations of the other options, which ``--help-all`` explains."""

METAVARS = {
    **{"fidelities": "NAME:LABELS", "add_fidelity": "NAME:LABELS", "weights": "NAME:LABELS=X"},
    **{
        "dataset": "DATA",
        "split.files": "SPLIT=DATA",
        "split.file": "FILE",
        "references": "FILE|fit|keep",
        "config": "FILE",
    },
    **{"label_fraction": "NAME=X", "transfer.share": "NAME=X", "sampling.minimum": "NAME=N"},
    **{"out": "FOLDER", "init": "RUN", "resume": "RUN", "strategy_options": "NAME=VALUE"},
    **{"target": "NAME", "monitor": "NAME", "logger": "NAME", "delta.base": "NAME", "finetune.head_from": "NAME"},
    **{"transfer.frozen": "{none,backbone}|N", "finetune.sha256": "HEX"},
}
"""Names of the values of options that are texts or lists."""


class _CommonHelp(argparse._HelpAction):
    """Explain the common options, and list the others by name."""

    def __call__(self, parser: Any, *rest: Any, **kwargs: Any) -> None:
        others = [group for group in parser._action_groups if group.title not in COMMON]
        parser._action_groups = [group for group in parser._action_groups if group.title in COMMON]
        listed = [f"  {group.title}: {' '.join(map(_longest, group._group_actions))}" for group in others]
        parser.epilog = "\n".join([f"more options, which {parser.prog} --help-all explains:", *listed])
        super().__call__(parser, *rest, **kwargs)


def _longest(action: argparse.Action) -> str:
    return max(action.option_strings, key=len)


def add_help(parser: Parser) -> None:
    """Add ``--help`` and ``--help-all``."""
    parser.add_argument("-h", "--help", action=_CommonHelp, help="show the common options")
    parser.add_argument("--help-all", action="help", help="show all options")


def group_options(parser: Parser) -> None:
    """Move all options to the groups of :data:`COMMON` and :data:`ADVANCED`, each to the first one that names it."""
    left = {_longest(action)[2:].replace("-", "_"): action for action in parser._actions}
    parser._action_groups = []
    for title, wanted in {**COMMON, **ADVANCED, "other options": ("",)}.items():
        names = [
            name
            for start in wanted
            for name in left
            if name == start or (start[-1:] in (".", "") and name.startswith(start))
        ]
        if names:
            parser.add_argument_group(title)._group_actions = [left.pop(name) for name in names]
