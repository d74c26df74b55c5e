"""Registry of baselines for ``--baseline``, built-in and third-party; importable without torch.

A baseline gives energies and forces of molecules that need not be learnt. It is named by a text such as ``d3bj:b3lyp``
or ``tblite:GFN2-xTB``, a registered name and a method; ``factory(method)`` creates a
:class:`mfpyg.models.baseline.Baseline`. Third-party baselines are added with :func:`register` or, to be available in
every command, by an entry point of an installed package in the group ``mfpyg.baselines``::

    [project.entry-points."mfpyg.baselines"]
    mine = "my_package:MyBaseline"
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mfpyg.errors import MFPyGError
from mfpyg.fidelity import is_name
from mfpyg.plugins import Plugin, Registry


@dataclass
class _NoOptions:
    pass


_BUILT_IN = [
    Plugin("d3bj", "mfpyg.models.dispersion:D3BJ", _NoOptions),
    Plugin("tblite", "mfpyg.models.xtb:XTB", _NoOptions),
]
registry = Registry("baseline", "method", Plugin, _BUILT_IN)
names, register = registry.names, registry.register


_made: dict[str, tuple[Plugin, Any]] = {}


def make(text: str) -> Any:
    """Return the baseline of a text such as ``d3bj:b3lyp``; it is created once per process, and shared.

    Raises:
        MFPyGError: for an unknown baseline or method, or if a package that it needs is not installed.
    """
    name, _, method = text.partition(":")
    plugin = registry.find(name)
    if text not in _made or _made[text][0] is not plugin:
        _made[text] = plugin, plugin.load()(method)
    return _made[text][1]


def parse(texts: Iterable[str]) -> dict[str, str]:
    """Baselines by fidelity: ``{"cc": "d3bj:b3lyp"}`` of ``["cc=d3bj:b3lyp"]``.

    Raises:
        MFPyGError: for a malformed entry, or a fidelity that is named twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, _, baseline = text.partition("=")
        if not is_name(name) or not baseline or name in found:
            raise MFPyGError(
                f"baseline has '{text}', expected each fidelity once and its baseline, as cc=d3bj:b3lyp (known: "
                f"{', '.join(names())})"
            )
        found[name] = baseline
    return found
