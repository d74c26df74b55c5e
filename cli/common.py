"""The parser of the commands, and how a command ends: its errors in a line, its status, its warnings."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

from jsonargparse import ArgumentParser, Namespace

from mfpyg import interrupt
from mfpyg.cache import cache_dir
from mfpyg.errors import ERROR_STATUS, INTERRUPT_STATUS, MFPyGError, MFPyGWarning, did_you_mean
from mfpyg.files import FULL


class _Words(argparse.Action):
    """A list of words; those of data add up over several options of the name, of others the last option counts."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        before = namespace.get(self.dest) if self.dest in ("dataset", "split.files") else None
        namespace[self.dest] = [*(before or []), *values]


class Parser(ArgumentParser):
    """Options with hyphens or underscores, lists of several words, and errors in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.words: dict[str, str] = {}
        """Descriptions of the types of options, for errors."""

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """Add an option; jsonargparse does so for each field of a class, too, and copies this to groups."""
        if args[-1] == f"{args[0]}+":  # a list, which jsonargparse would take in brackets, or word by word as --name+
            kwargs = {"type": str, "nargs": "+", "action": _Words, "metavar": "ITEM", "default": kwargs["default"]}
            args = args[:1]
        if "default" in kwargs:
            args = tuple(name.replace("_", "-") for name in args)
        return super().add_argument(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = " ".join(message.split())
        wrong = re.search(r'key "([^"]+)".*Got value: (.*)$', message)
        if wrong and wrong[1] in self.words:
            message = f"{wrong[1]} is {wrong[2]}, expected {self.words[wrong[1]]}"
        raise MFPyGError(message) from ex

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Parse the options, refusing an unknown name before anything else.

        Raises:
            MFPyGError: for an unknown name, a value of the wrong kind, or a required option that is missing.
        """
        words = hyphenated(sys.argv[1:] if args is None else args)
        known = [option for action in self._actions for option in action.option_strings]
        for word in words:
            name, equals, value = word.partition("=")
            if name.startswith("--") and name not in known:
                raise MFPyGError(f"unknown option {name}{did_you_mean(name, known)}; see {self.prog} --help")
            if name.startswith("--") and equals and not value:
                raise MFPyGError(f"option {name} needs a value")
        return super().parse_args(words, *rest, **kwargs)


def hyphenated(arguments: Iterable[str]) -> list[str]:
    """The arguments with hyphens in the names of options where underscores were given."""
    return [re.sub(r"^--[^=]*", lambda m: m[0].replace("_", "-"), argument) for argument in arguments]


def quiet_frameworks() -> None:
    """Keep tips, hardware notes and deprecation warnings of Lightning and others off the terminal.

    To be called after the import of Lightning, which sets the levels of its loggers.
    """
    for logger in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", module=r"(lightning|torch_geometric|torch)(\..*)?")
    warnings.filterwarnings("always", category=MFPyGWarning)


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Run with so many threads of torch; as many as before with ``None``.

    Args:
        number: of threads, also of Lightning, which looks at ``OMP_NUM_THREADS``.
    """
    if number is None:
        yield
        return
    import torch

    before, environment = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(number)
    os.environ["OMP_NUM_THREADS"] = str(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if environment is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = environment


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

    What the system refuses about a file, such as a name that is too long, is the user's to fix, too.
    """
    quiet_frameworks()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor"))  # not in the temporary folder
    try:
        with interrupt.listening(), _own_warnings_shown(name):
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
