"""Imports within the package, those for types included: no circle, and only downwards."""

from __future__ import annotations

import ast
import functools
import graphlib
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "mfpyg"  # with datasets/ and cli/ as links in it

LAYERS = (
    {"cli"},
    {"study", "inspection", "growth"},
    {"training", "labeling", "sampling", "selection"},
    {"inference", "evaluation", "interop"},
    {"doctor", "testing"},
    {"models", "datasets"},
    {"kernels", "graph", "properties", "fidelity", "units"},
)


def _modules() -> dict[str, Path]:
    """Every module of the package by its full name."""
    folders = [PACKAGE, PACKAGE / "cli", PACKAGE / "datasets"]  # which older Pythons do not follow links to
    files = {path for folder in folders for path in folder.rglob("*.py")}
    names = {path: [*path.relative_to(PACKAGE.parent).with_suffix("").parts] for path in files}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in names.items()}


@functools.lru_cache
def _imports() -> dict[str, set[str]]:
    """For each module the modules of the package that it imports, wherever in it."""
    modules = _modules()
    found: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.module is not None, f"{name} has a relative import"
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= whole & set(modules) or {node.module}
    return {name: targets & set(modules) for name, targets in found.items()}


def test_no_circle() -> None:
    try:
        graphlib.TopologicalSorter(_imports()).prepare()
    except graphlib.CycleError as error:
        raise AssertionError(f"import circle: {' <- '.join(error.args[1])}") from None


def test_only_downwards() -> None:
    level = {room: number for number, layer in enumerate(LAYERS) for room in layer}
    for name, targets in _imports().items():
        for target in targets:
            rooms = [level.get(module.partition(".")[2].partition(".")[0]) for module in (name, target)]
            assert None in rooms or rooms[0] <= rooms[1], f"{name} imports {target}"
