"""Hooks of the site's build: pages made from parsers and settings, notebooks, and equations as MathML."""

from __future__ import annotations

import html
import logging
import re
from pathlib import PurePosixPath
from typing import Any

import models
import notebooks
import reference
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

log = logging.getLogger("mkdocs.hooks.build")

GENERATED = {
    "<!-- commands -->": reference.commands_page,
    "<!-- settings -->": reference.settings_page,
    "<!-- models -->": models.models_page,
}
"""Functions that make the parts of pages that comments stand for."""

_MATH = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\(?P<kind>[(\[])(?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL)


class Notebook(File):
    """A notebook whose content is Markdown already."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Make pages of the notebooks."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            text, others = notebooks.as_markdown(file.content_string, file.name)
            files.remove(file)
            files.append(Notebook.generated(config, file.src_uri, content=text))
            for name, content in others.items():
                files.append(File.generated(config, f"{PurePosixPath(file.src_uri).parent}/{name}", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the generated parts in their places."""
    for comment, make in GENERATED.items():
        if comment in markdown:
            markdown = markdown.replace(comment, make())
    return markdown


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Turn equations into MathML, which browsers show without scripts and fonts from elsewhere."""
    return _MATH.sub(lambda found: _mathml(found, page.file.src_uri), html)


def _mathml(found: re.Match[str], where: str) -> str:
    tex = html.unescape(found["tex"]).strip()
    block = found["tag"] == "div" or found["kind"] == "["
    try:
        result = convert(tex, display="block" if block else "inline")
    except Exception as error:
        log.warning("%s: equation %s cannot be read (%s: %s)", where, tex, type(error).__name__, error)
        return found[0]
    if "\\" in result:
        log.warning("%s: equation %s has a command that is not known", where, tex)
    return f'<div class="equation">{result}</div>' if block else str(result)
