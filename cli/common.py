"""What the commands share: how they fail, and how they check option names before anything slow."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

from jsonargparse import ArgumentParser

from mfpyg import interrupt
from mfpyg.cli.imports import end_quickly, too_late
from mfpyg.errors import ERROR_STATUS, INTERRUPT_STATUS, MFPyGError, MFPyGWarning, did_you_mean
from mfpyg.files import FULL


class Parser(ArgumentParser):
    """A parser whose every complaint is one line, with the option that may have been meant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.words: dict[str, str] = {}
        """What each typed option takes."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = " ".join(message.split())
        wrong = re.search(r'key "([^"]+)".*Got value: (.*)$', message)
        if wrong and wrong[1] in self.words:
            message = f"{wrong[1]} is {wrong[2]}, expected {self.words[wrong[1]]}"
        raise MFPyGError(message) from ex

    def check_names(self, arguments: Sequence[str]) -> None:
        """Check the names of all options given.

        Raises:
            MFPyGError: for an unknown one.
        """
        known = [option for action in self._actions for option in action.option_strings]
        for argument in arguments:
            name = argument.split("=", 1)[0]
            if name.startswith("--") and name not in known:
                raise MFPyGError(f"unknown option {name}{did_you_mean(name, known)}; see {self.prog} --help")


def given(arguments: Sequence[str], option: str) -> str | None:
    """Value of an option on the command line, the last one, before any parser exists; ``None`` if absent.

    Raises:
        MFPyGError: if the option stands there without a value.
    """
    value = None
    for number, argument in enumerate(arguments):
        if argument == option:
            following = arguments[number + 1] if number + 1 < len(arguments) else ""
            value = "" if following.startswith("--") else following
        elif argument.startswith(f"{option}="):
            value = argument.split("=", 1)[1]
        if value == "":
            raise MFPyGError(f"option {option} needs a value")
    return value


def joined(arguments: Sequence[str], *options: str) -> list[str]:
    """The arguments with options that are given several times given once, with all their values."""
    for option in options:
        arguments = _joined(arguments, option)
    return list(arguments)


def _joined(arguments: Sequence[str], option: str) -> list[str]:
    rest: list[str] = []
    values: list[str] = []
    found = collecting = False
    for argument in arguments:
        if argument == option or argument.startswith(f"{option}="):
            found, collecting = True, argument == option
            if not collecting:
                values.append(argument.removeprefix(f"{option}="))
        elif collecting and not argument.startswith("--"):
            values.append(argument)
        else:
            collecting = False
            rest.append(argument)
    return [*rest, option, *values] if found else rest


def hyphenated(arguments: Iterable[str]) -> list[str]:
    """The arguments with hyphens in the names of options where underscores were given."""
    return [re.sub(r"^--[^=]*", lambda m: m[0].replace("_", "-"), argument) for argument in arguments]


def check_json_target(name: str) -> None:
    """Check that a file can be written where ``--json`` says, before anything is computed.

    Raises:
        MFPyGError: if it can't.
    """
    target = Path(name)
    if not name or target.is_dir():
        raise MFPyGError(f"--json is '{name}', expected the name of a file, or -")
    if not target.parent.is_dir():
        raise MFPyGError(f"{target.parent}: no such folder; expected one to write {target.name} to")
    if not os.access(target.parent, os.W_OK):
        raise MFPyGError(f"{target.parent}: can't write {target.name} there; name another place with --json")


def run(name: str, command: Callable[[Sequence[str]], Any], arguments: Iterable[str] | None) -> None:
    """Run a command: the user's mistakes become one line and status 2, Ctrl-C becomes status 130.

    What the system refuses about a file, such as a name that is too long, is the user's to mend, too.
    """
    alone = arguments is None  # as the process that a shell has started
    if alone:
        end_quickly()
    try:
        with interrupt.listening(too_late if alone else None), _own_warnings_shown(name):
            command(list(sys.argv[1:] if arguments is None else arguments))
    except MFPyGError as error:
        _end(f"{name}: error: {' '.join(str(error).split())}", ERROR_STATUS)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if error.errno in FULL:
            _end(f"{name}: error: {error.filename or 'the output'}: can't write it ({reason})", ERROR_STATUS)
        if error.filename is None:
            raise
        _end(f"{name}: error: {str(error.filename)!r} can't be read or written ({reason})", ERROR_STATUS)
    except KeyboardInterrupt:
        _end(f"{name}: stopped", INTERRUPT_STATUS)


def _end(message: str, status: int) -> NoReturn:
    """Print a last line and exit; the status alone says it where there is no room for the line."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError as error:
        if error.errno not in FULL:
            raise
    _give_up_output()
    sys.exit(status)


def _give_up_output() -> None:
    """Write no more to what is full, or Python would try once more, and change the status, at its end."""
    for stream in (sys.stdout, sys.stderr):
        _give_up(stream)


def _give_up(stream: TextIO) -> None:
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def _own_warnings_shown(name: str) -> Iterator[None]:
    """Print the package's own warnings in one line each, and all others as before."""
    others, shown = warnings.showwarning, set[str]()

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if issubclass(category, MFPyGWarning):
            if str(message) in shown:
                return
            shown.add(str(message))
            print(f"{name}: note: {' '.join(str(message).split())}", file=sys.stderr)
        else:
            others(message, category, *place)

    warnings.showwarning = show  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = others
