"""Parts of an HTML page that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 90rem;
       padding: 1.5rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
td { white-space: nowrap; } td.text { white-space: normal; overflow-wrap: anywhere; }
th { border-bottom: 2px solid #999; vertical-align: bottom; }
th:first-child, td:first-child, .text { text-align: left; }
p, figcaption, caption { max-width: 60rem; }
caption { text-align: left; padding-bottom: 0.5rem; font-size: 0.9rem; color: #444; }
.wide { overflow-x: auto; margin: 1.5rem 0; } img { max-width: 100%; height: auto; }
figure { margin: 1.5rem 0; } figcaption { color: #444; font-size: 0.9rem; }
pre { background: #f5f5f5; padding: 0.8rem; overflow-x: auto; font-size: 0.85rem; }
summary { cursor: pointer; margin: 1.5rem 0; }
.failed { border-left: 4px solid #c0392b; padding-left: 1rem; }
"""


def page(title: str, body: str) -> str:
    """The whole page; the body is HTML already."""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what is below it, HTML already."""
    return f"<h2>{escape(title)}</h2>\n{''.join(parts)}"


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{escape(text)}</p>\n"


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str, text: tuple[int, ...] = ()) -> str:
    """An HTML table; columns in ``text`` are of words and may wrap."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = [' class="text"' if i in text else "" for i in range(len(cells))]
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    head, body = line("th", header), "".join(f"<tr>{line('td', row)}</tr>\n" for row in rows)
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>\n"
    )
