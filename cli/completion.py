"""Completion of all commands in a shell, made by shtab from their parsers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from importlib import import_module

from mfpyg import backbones
from mfpyg.cli import COMMANDS, FURTHER, SHELLS, study_options, train_options
from mfpyg.errors import MFPyGError

PATHS = ("DATA", "FILE", "FOLDER", "OUT", "RUN", "MODEL ... FILE", "RUN POOL")
"""Values that are completed as paths."""


def completion(shell: str) -> str:
    """Script that completes the options and values of all commands in a shell that reads it.

    Args:
        shell: ``bash`` or ``zsh``.

    Raises:
        MFPyGError: if shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise MFPyGError("completion needs shtab, which is not installed; pip install 'mfpyg[completion]'") from error
    scripts = []
    for parser in _parsers():
        for action in parser._actions:
            metavar = str(action.metavar)
            if choices := re.match(r"\{(.+)\}", metavar):
                action.choices = choices[1].split(",")
            elif metavar in PATHS:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            action.metavar = None  # its colons would separate fields of zsh
        script = shtab.complete(parser, shell)
        if shell == "zsh":  # whose end is for a file of its own in fpath
            start, end, _ = script.rpartition("typeset -A opt_args\n")
            script = f"{start}{end}compdef {shtab.wordify(f'_shtab_{parser.prog}')} {parser.prog}\n"
        scripts.append(script)
    return "\n".join(scripts)


def _parsers() -> Iterator[argparse.ArgumentParser]:
    """Parsers of all commands, with the options of all built-in backbones, and those that a study passes on."""
    for module, _ in COMMANDS.values():
        if module == "train":
            yield _train_parser()
        elif module == "study":
            parser = study_options.build_parser()
            parser._actions += _not_in(parser, _train_parser())
            yield parser
        else:
            yield import_module(f"mfpyg.cli.{module}").build_parser()
    parser = argparse.ArgumentParser("mfpyg")
    parser.add_argument("--version", action="version", help="print the version")
    parser.add_argument("command", choices=[name.removeprefix("mfpyg-") for name in COMMANDS] + list(FURTHER))
    parser.add_argument("shell", choices=SHELLS)
    yield parser


def _train_parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = train_options.build_parser("hipnn")
    for name in backbones.registry.known:
        parser._actions += _not_in(parser, train_options.build_parser(name))
    return parser


def _not_in(parser: argparse.ArgumentParser, other: argparse.ArgumentParser) -> list[argparse.Action]:
    """Options of another parser that a parser does not have, except those that a study sets itself."""
    own = {option for action in parser._actions for option in action.option_strings}
    own |= {*study_options.FIXED} if parser.prog == study_options.NAME else set()
    return [action for action in other._actions if not own & {*action.option_strings}]
