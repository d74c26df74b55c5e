"""``mfpyg``: the commands, their completion in shells, and the JSON schema of the settings."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib import import_module

from mfpyg import __version__
from mfpyg.cli import COMMANDS, FURTHER, SHELLS
from mfpyg.errors import MFPyGError, unknown_name

NAME = "mfpyg"
DOCUMENTATION = "docs/ in the repository, as a site with: pip install '.[docs]' && mkdocs serve"


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
    """One line for each command, and the place of the documentation."""
    lines = {name: what for name, (_, what) in COMMANDS.items()} | {
        f"{NAME} {name}": what for name, what in FURTHER.items()
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
    if command not in FURTHER:
        raise unknown_name("command", command, [*(name.removeprefix("mfpyg-") for name in COMMANDS), *FURTHER])
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
