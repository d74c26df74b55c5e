"""Progress bars for reading data in groups or batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.progress import track


def shown_on(console: Console, description: str = "processing") -> Callable[[Sequence[str]], Iterable[str]]:
    """Return a function that iterates over the names of groups and shows the progress on a terminal."""

    def progress(names: Sequence[str]) -> Iterable[str]:
        return track(names, description=description, console=console, transient=True, disable=not console.is_terminal)

    return progress
