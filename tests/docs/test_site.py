"""The documentation site: links, the pages that are generated, and a strict build where mkdocs is installed."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\((?P<target>[^()\s]+)\)|!\[[^\]]*\]\((?P<picture>[^()\s]+)\)")
ELSEWHERE = re.compile(r"[a-z]+:")


@cache
def _hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return _hook("reference")


@cache
def _text(page: Path) -> str:
    """Markdown of a page, with what is generated, and without code blocks."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    for name, make in (("reference", "commands_page"), ("reference", "settings_page"), ("models", "models_page")):
        comment = f"<!-- {make.removesuffix('_page')} -->"
        if comment in text:
            text = text.replace(comment, getattr(_hook(name), make)())
    return re.sub(r"^ *(`{3,}).*?^ *\1", "", text, flags=re.DOTALL | re.MULTILINE)


@cache
def _anchors(page: Path) -> tuple[str, ...]:
    """Anchors of headings, as GitHub and mkdocs make them, and those that are given."""
    text, found = _text(page), []
    for heading in re.findall(r"^#+ (.+?)(?: \{ #\S+ \})?$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        found.append(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
        ascii_only = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
        found.append(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip()))
    return (*found, *re.findall(r"\{ ?#(\S+) ?\}", text), *re.findall(r'\bid="([^"]+)"', text))


def _broken(page: Path) -> Iterator[str]:
    for link in LINK.finditer(re.sub(r"`[^`\n]*`", "code", _text(page))):
        target = link["target"] or link["picture"]
        if ELSEWHERE.match(target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            yield f"{target}: no such file"
        elif anchor and file.suffix in (".md", ".ipynb"):
            objects = re.findall(r"^::: (\S+)$", _text(file), re.MULTILINE)
            if anchor not in _anchors(file) and not any(anchor.startswith(one) for one in objects):
                yield f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    assert list(_broken(page)) == []


def test_every_option_of_every_command_is_on_its_page(reference: ModuleType) -> None:
    page = reference.commands_page()
    for name, module in reference.scripts().items():
        assert f"## {name} {{ #{name} }}" in page
        parser = reference.parser_of(module)
        if parser is None:
            continue
        options = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", parser.format_help())) - {"--help"}
        own = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
        assert options & own, name
        for option in options & own:
            assert f"#{name}{option} }}" in page, option


def test_every_setting_is_on_its_page(reference: ModuleType) -> None:
    from mfpyg.options import flat
    from mfpyg.settings import defaults

    page = reference.settings_page()
    for setting in flat(defaults("published", "hipnn")):
        assert f"{{ #{setting.replace('model.', 'hipnn.')} }}" in page, setting


def test_pages_are_generated_without_torch() -> None:
    pages = "reference.commands_page(); reference.settings_page(); models.models_page()"
    code = f"import sys, models, reference; {pages}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=DOCS / "hooks", check=True)


def test_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs pip install 'mfpyg[docs]'; .ci/run builds the site in its own step")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert 'id="mfpyg-train--finetune.old"' in (tmp_path / "reference/commands/index.html").read_text(encoding="utf-8")
