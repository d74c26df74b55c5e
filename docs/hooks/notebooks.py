"""Executed notebooks as Markdown, so that their links, code and equations are those of any other page."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def as_markdown(text: str, name: str) -> tuple[str, dict[str, bytes]]:
    """Convert a notebook, without executing it.

    Args:
        text: contents of the ``.ipynb`` file.
        name: its name.

    Returns:
        The Markdown, and the other files of the page by their names: pictures, and the notebook itself.
    """
    pictures: dict[str, bytes] = {}
    blocks: list[str] = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            blocks.append(source)
        elif cell["cell_type"] == "code" and source:
            blocks.append(_fenced(source, "python"))
            for output in cell["outputs"]:
                blocks.extend(_output(output, name, pictures))
    download = f"[Download this page as a notebook]({name}/{name}.ipynb)"
    markdown = re.sub(r"^# .*", rf"\g<0>\n\n{download}", "\n\n".join(blocks), count=1, flags=re.MULTILINE)
    return f"{markdown}\n", {**pictures, f"{name}/{name}.ipynb": text.encode()}


def _output(output: dict[str, Any], name: str, pictures: dict[str, bytes]) -> Iterator[str]:
    """Markdown of what a cell has printed, returned or drawn; warnings and progress on stderr are left out."""
    data = output.get("data", {})
    if "image/png" in data:
        picture = f"{name}-{len(pictures) + 1}.png"
        pictures[picture] = base64.b64decode("".join(data["image/png"]))
        yield f"![Picture drawn by the code above]({picture})"
    elif output["output_type"] == "error":
        raise ValueError(f"notebook {name}: a cell ended with {output['ename']}: {output['evalue']}")
    elif output.get("name") != "stderr":
        text = _ESCAPES.sub("", "".join(output.get("text", data.get("text/plain", "")))).rstrip()
        if text:
            yield _fenced(text, "{ .text .no-copy }")


def _fenced(text: str, language: str) -> str:
    return f"````{language}\n{text}\n````"
