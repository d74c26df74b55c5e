"""Errors that users can fix, and helpers for their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

_MAX_LENGTH = 1500
"""Maximum number of characters of a message; longer ones are cut."""


ERROR_STATUS = 2
INTERRUPT_STATUS = 130
"""Exit statuses of the commands after a user error, and after Ctrl-C or SIGTERM."""


class MFPyGError(ValueError):
    """Error in the input or settings: what was found, what was expected, what to do, in one line.

    The commands print only the message and exit with status 2.
    """

    def __init__(self, message: str) -> None:
        # Names may come from files: line ends, control and unprintable characters are escaped.
        text = str(message) if len(str(message)) <= _MAX_LENGTH else f"{str(message)[: _MAX_LENGTH - 1]}…"
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


class UnreadableError(MFPyGError):
    """The system cannot read a file (permissions, locks, limits, a failing disk); its contents may be intact."""


class MFPyGWarning(RuntimeWarning):
    """Something works, but not as well as it could: what, and what to do. The commands print it in one line."""


def shortened(names: Iterable[str]) -> list[str]:
    """Names from a file, cut to 24 characters each, for errors."""
    return [name if len(name) <= 24 else f"{name[:23]}…" for name in names]


def shown(value: Any) -> str:
    """``repr`` of a value from a file, cut to 80 characters, for errors."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'hipnn'?"`` if a known name is close to ``name``, else an empty string."""
    lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name[:200].lower(), list(lower), n=1, cutoff=0.6)
    return f"; did you mean '{lower[close[0]][:60]}'?" if close else ""


_MAX_LISTED = 20
"""Maximum number of names listed in an error; the rest are counted."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> MFPyGError:
    """Error for an unknown name; lists the known ones and suggests the closest."""
    names = list(known)
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    listed = ", ".join(names[:_MAX_LISTED]) + more if names else "none"
    return MFPyGError(
        f"unknown {kind} '{name if len(name) <= 80 else name[:79] + '…'}' (known: {listed}){did_you_mean(name, names)}"
    )
