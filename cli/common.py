"""Argument parser of the commands, and their errors, exit statuses and warnings."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

from jsonargparse import ArgumentParser, Namespace

from mfpyg import __version__, interrupt
from mfpyg.cache import cache_dir
from mfpyg.errors import ERROR_STATUS, INTERRUPT_STATUS, MFPyGError, MFPyGWarning, did_you_mean
from mfpyg.files import FULL


class _Words(argparse.Action):
    """List of words; repeated options of data sets add up, of other repeated options the last one counts."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        before = namespace.get(self.dest) if self.dest in ("dataset", "split.files") else None
        namespace[self.dest] = [*(before or []), *values]


class HelpFormatter(argparse.HelpFormatter):
    """Help with lists as ``ITEM ...``, descriptions of several paragraphs, and no defaults such as None or []."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, max_help_position=28, **kwargs)

    def _expand_help(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        told = default not in (None, argparse.SUPPRESS, []) or (default is None and "null: " in text)
        return (
            f"{text} (default: {_as_typed(default)})"
            if told and action.nargs != 0 and "default: " not in text
            else text
        )

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == argparse.ONE_OR_MORE:
            return f"{self._metavar_formatter(action, default_metavar)(1)[0]} ..."
        return super()._format_args(action, default_metavar)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(
            textwrap.fill(line, width, subsequent_indent="    " * line.startswith(" "), break_on_hyphens=False)
            for line in text.splitlines()
        )


def _as_typed(value: Any) -> str:
    """A default value as it is given on the command line."""
    if isinstance(value, list):
        return " ".join(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


class Parser(ArgumentParser):
    """Argument parser with hyphens or underscores in option names, lists of words, and errors in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, formatter_class=HelpFormatter, **kwargs)
        self.add_argument("--version", action="version", version=f"%(prog)s {__version__}", help="print the version")
        self.words: dict[str, str] = {}
        """Descriptions of the types of options, for errors."""

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """Add an option; jsonargparse also calls this for each field of a class."""
        if args[-1] == f"{args[0]}+":  # a list, which jsonargparse expects in brackets or as repeated --name+
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
        """Parse the options; unknown names are refused first.

        Raises:
            MFPyGError: for an unknown name, a value of the wrong type, or a missing required option.
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
    """Replace underscores in the names of options by hyphens."""
    return [re.sub(r"^--[^=]*", lambda m: m[0].replace("_", "-"), argument) for argument in arguments]


def quiet_frameworks() -> None:
    """Suppress tips, hardware notes and deprecation warnings of Lightning and others.

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
    """Import torch, and run with a number of its threads.

    Args:
        number: number of threads, also for Lightning, which reads ``OMP_NUM_THREADS``; ``None``: unchanged.
    """
    with interrupt.uninterrupted():  # a KeyboardInterrupt in its initialisation would abort the process
        import torch
    if number is None:
        yield
        return
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


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress bar on a terminal; yields a function that sets how many are done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console()
    columns = [TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done)


def check_json_target(name: str) -> None:
    """Check that the file of ``--json`` can be written, before anything is computed.

    Raises:
        MFPyGError: if it cannot.
    """
    target = Path(name)
    if not name or target.is_dir():
        raise MFPyGError(f"--json is '{name}', expected the name of a file, or -")
    if not target.parent.is_dir():
        raise MFPyGError(f"{target.parent}: no such folder; create it, or write {target.name} elsewhere")
    if not os.access(target.parent, os.W_OK):
        raise MFPyGError(f"{target.parent}: cannot write {target.name} there; name another place with --json")


def run(name: str, command: Callable[[Sequence[str]], Any], arguments: Iterable[str] | None) -> None:
    """Run a command: a user error prints one line and gives status 2, Ctrl-C gives status 130.

    Errors of the system about a file, such as a name that is too long, count as user errors.
    """
    quiet_frameworks()
    if not sys.stdout.isatty():
        os.environ.pop("FORCE_COLOR", None)  # Jupyter sets it for its cells, where progress bars become many lines
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor"))  # not in the temporary folder
    try:
        with interrupt.listening(), _own_warnings_shown(name):
            command(list(sys.argv[1:] if arguments is None else arguments))
    except MFPyGError as error:
        _end(f"{name}: error: {' '.join(str(error).split())}", ERROR_STATUS)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if error.errno in FULL:
            _end(f"{name}: error: {error.filename or 'the output'}: cannot write it ({reason})", ERROR_STATUS)
        if error.filename is None:
            raise
        _end(f"{name}: error: {str(error.filename)!r} cannot be read or written ({reason})", ERROR_STATUS)
    except KeyboardInterrupt:
        _end(f"{name}: stopped", INTERRUPT_STATUS)


def _end(message: str, status: int) -> NoReturn:
    """Print a last line and exit; on a full disk, only the status is left."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError as error:
        if error.errno not in FULL:
            raise
    _discard_unwritable_output()
    sys.exit(status)


def _discard_unwritable_output() -> None:
    """Stop writing to a full disk, as Python would try again at exit and change the status."""
    for stream in (sys.stdout, sys.stderr):
        _discard_if_unwritable(stream)


def _discard_if_unwritable(stream: TextIO) -> None:
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def _own_warnings_shown(name: str) -> Iterator[None]:
    """Print the package's own warnings in one line each, and all others as usual."""
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
