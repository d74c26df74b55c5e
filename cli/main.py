"""``mfpyg``: the commands, their completion in shells, and the JSON schema of the settings."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib import import_module

from mfpyg import __version__
from mfpyg.errors import MFPyGError, unknown_name

NAME = "mfpyg"
DOCUMENTATION = "docs/ in the repository, as a site with: pip install '.[docs]' && mkdocs serve"
COMMANDS = {
    "mfpyg-train": ("train", "train one network on several levels of theory"),
    "mfpyg-evaluate": ("evaluate", "print and plot the errors of a trained potential"),
    "mfpyg-predict": ("predict", "predict energies, forces and other properties of the frames of a file"),
    "mfpyg-study": ("study", "train and compare ensembles of models, with tables, figures and a report"),
    "mfpyg-doctor": ("doctor", "check data for errors that ruin training"),
    "mfpyg-preprocess": ("preprocess", "process data once, so that training opens them quickly"),
    "mfpyg-inspect": ("inspection", "show the contents of a checkpoint, a run, a study or a data set"),
    "mfpyg-label": ("label", "compute labels of geometries at several levels of theory"),
    "mfpyg-convert": ("convert", "convert a trained hippynn model to a checkpoint"),
}
"""Modules of the commands, and what the commands do."""
OWN = {
    "completion": "print the completion of all commands for a shell: mfpyg completion bash (or zsh)",
    "schema": "print the JSON schema of the settings of mfpyg-train, for editors of YAML files",
}
SHELLS = ("bash", "zsh")


def main(arguments: Iterable[str] | None = None) -> None:
    """Entry point; nothing that takes long is imported for an overview or the version."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = f"{NAME}-{words[0]}" if words else ""
    if not words or words[0] in ("-h", "--help"):
        print(overview())
    elif words[0] == "--version":
        print(NAME, __version__)
    elif command in COMMANDS:  # "mfpyg train" is mfpyg-train
        import_module(f"mfpyg.cli.{COMMANDS[command][0]}").main(words[1:])
    else:
        from mfpyg.cli.common import run

        run(NAME, mfpyg_command, words)


def overview() -> str:
    """What each command does, in a line, and where the documentation is."""
    lines = {name: what for name, (_, what) in COMMANDS.items()} | {
        f"{NAME} {name}": what for name, what in OWN.items()
    }
    listed = "\n".join(f"  {name:18}{what}" for name, what in lines.items())
    return (
        f"mfpyg {__version__}: multi-fidelity learning for interatomic potentials\n\n{listed}\n\n"
        f"Each mfpyg-COMMAND explains its options with --help.\nDocumentation: {DOCUMENTATION}"
    )


def mfpyg_command(words: Sequence[str]) -> None:
    """Print a completion or the schema.

    Raises:
        MFPyGError: for an unknown command or shell.
    """
    command, *rest = words
    if command not in OWN:
        raise unknown_name("command", command, [*(name.removeprefix("mfpyg-") for name in COMMANDS), *OWN])
    if command == "schema":
        import json

        from mfpyg.settings_schema import settings_schema

        print(json.dumps(settings_schema(), indent=2, ensure_ascii=False))
        return
    from mfpyg.cli.completion import completion

    if len(rest) != 1 or rest[0] not in SHELLS:
        raise MFPyGError(f"mfpyg completion {' '.join(rest)}: expected the name of a shell, {' or '.join(SHELLS)}")
    print(completion(rest[0]))


if __name__ == "__main__":
    main()
