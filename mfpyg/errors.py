"""The errors that are the user's to fix, and their wording."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

_LONGEST = 1500
"""Letters of a message; what is longer has its start."""


ERROR_STATUS = 2
INTERRUPT_STATUS = 130
"""Exit statuses of the commands after the user's mistakes, and after Ctrl-C or SIGTERM."""


class MFPyGError(ValueError):
    """A mistake in input or settings: what was found, what was expected, what to do, in one line.

    The commands print the message alone and exit with status 2; nothing else in the package exits.
    """

    def __init__(self, message: str) -> None:
        # Names come from files: line ends, control characters and what can't be printed are written as escapes.
        text = str(message) if len(str(message)) <= _LONGEST else f"{str(message)[: _LONGEST - 1]}…"
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


class UnreadableError(MFPyGError):
    """The system does not let a file be read: permissions, locks, limits, a failing disk. Its contents may be sound."""


class MFPyGWarning(RuntimeWarning):
    """Something works, but not as well as it could: what, and what to do. The commands print it in a line."""


def shortened(names: Iterable[str]) -> list[str]:
    """Names from a file as an error lists them: not more than 24 letters of each."""
    return [name if len(name) <= 24 else f"{name[:23]}…" for name in names]


def shown(value: Any) -> str:
    """A value from a file as an error shows it: not more than 80 letters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'hipnn'?"`` where a known name is close to ``name``, else an empty string."""
    close = difflib.get_close_matches(name[:200], list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0][:60]}'?" if close else ""


_LISTED = 20
"""Names in an error; more are counted."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> MFPyGError:
    """The error for a name that is none of the known ones: lists them and offers the closest."""
    names = list(known)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    listed = ", ".join(names[:_LISTED]) + more if names else "none"
    return MFPyGError(
        f"unknown {kind} '{name if len(name) <= 80 else name[:79] + '…'}' (known: {listed}){did_you_mean(name, names)}"
    )
