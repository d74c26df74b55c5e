"""Docstrings as Markdown: their cross-references, tables, equations and literal blocks are reStructuredText."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import griffe

_ROLE = re.compile(r":(class|func|meth|mod|data|attr|exc|math):`([^`]+)`")
_EQUATION = re.compile(r"^(?P<indent> *)\.\. math::(?P<first>.*)\n(?P<rest>(?:(?P=indent) +.*\n|\n)*)", re.MULTILINE)
_SEVERAL = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): (?P<text>.*(?:\n(?P=indent) +.*)*)", re.MULTILINE)
_BORDER = re.compile(r"^ *=+(?: +=+)+ *$")


class AsMarkdown(griffe.Extension):
    """Rewrites the docstrings of a package when it has been loaded."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for thing in _everything(pkg):
            if thing.docstring is not None:
                thing.docstring.value = as_markdown(thing.docstring.value, lambda name, at=thing: _path(name, at))


def _everything(thing: Any) -> Iterator[Any]:
    yield thing
    for member in thing.members.values():
        if not member.is_alias:
            yield from _everything(member)


def _path(name: str, at: Any) -> str:
    """Full path of a name as it is used in a docstring."""
    if name.startswith("mfpyg"):
        return name
    try:
        return str(at.resolve(name))
    except griffe.NameResolutionError:
        return name


def as_markdown(text: str, path: Callable[[str], str]) -> str:
    """Convert the reStructuredText in a docstring, whose sections Griffe reads.

    Args:
        text: docstring without its common indentation.
        path: full path of a name.
    """

    def role(found: re.Match[str]) -> str:
        kind, name = found.groups()
        if kind == "math":
            return f"${name}$"
        shown = name.rpartition(".")[2] if name.startswith("~") else name
        target = path(name.lstrip("~"))
        return f'<autoref optional identifier="{target}"><code>{shown}</code></autoref>'

    text = _ROLE.sub(role, text + "\n")
    text = _EQUATION.sub(_equation, text)
    text = "\n".join(_tables(text.split("\n")))
    text = _SEVERAL.sub(_each, text)
    text = re.sub(r"^(>>> (?:.+\n)+)", r"```python\n\1```\n", text, flags=re.MULTILINE)
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE).rstrip()


def _each(found: re.Match[str]) -> str:
    """An entry for each of several parameters that are described together."""
    return "\n".join(f"{found['indent']}{name}: {found['text']}" for name in found["names"].split(", "))


def _equation(found: re.Match[str]) -> str:
    body = " ".join(f"{found['first']}\n{found['rest']}".split())
    return f"{found['indent']}$$\n{found['indent']}{body}\n{found['indent']}$$\n\n"


def _tables(lines: list[str]) -> Iterator[str]:
    """Lines with simple tables of reStructuredText as tables of Markdown."""
    rows: list[list[str]] = []
    columns: list[slice] = []
    headed = False
    for number, line in enumerate(lines):
        if not columns:
            if _BORDER.match(line):
                starts = [found.start() for found in re.finditer("=+", line)]
                columns = [slice(a, b) for a, b in zip(starts, [*starts[1:], None], strict=True)]
                rows, headed = [], False
            else:
                yield line
        elif not _BORDER.match(line):
            cells = [line[column].strip() for column in columns]
            if cells[0] or not rows:
                rows.append(cells)
            else:  # the row goes on
                rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
        elif not headed and any(_BORDER.match(later) for later in _table_end(lines[number + 1 :])):
            headed = True
        else:
            yield from _markdown_table(rows, headed, " " * columns[0].start)
            columns = []


def _table_end(lines: list[str]) -> Iterator[str]:
    """Lines of the same table, up to an empty one."""
    for line in lines:
        if not line.strip():
            return
        yield line


def _markdown_table(rows: list[list[str]], headed: bool, indent: str) -> Iterator[str]:
    head, body = (rows[0], rows[1:]) if headed else ([""] * len(rows[0]), rows)
    for cells in (head, ["---"] * len(head), *body):
        yield f"{indent}| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
