"""Studies: many runs named as in the paper, and tables, figures and a report of their errors.

A study is a list of :class:`mfpyg.study.plan.StudyRun`; ``collect`` turns it into a ``StudyResult``, which
``write_tables``, ``write_figures`` and ``write_report`` write. Everything that needs torch is imported lazily.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mfpyg.study.names import PAPER_MODELS, TARGET_WITHOUT_FORCES, model_name, parse_model

if TYPE_CHECKING:
    from mfpyg.study.figures import write_figures
    from mfpyg.study.plan import StudyRun
    from mfpyg.study.report import write_report
    from mfpyg.study.results import StudyResult, collect
    from mfpyg.study.tables import write_tables

__all__ = [
    "PAPER_MODELS",
    "TARGET_WITHOUT_FORCES",
    "StudyResult",
    "StudyRun",
    "collect",
    "model_name",
    "parse_model",
    "write_figures",
    "write_report",
    "write_tables",
]

_MODULES = {
    "StudyResult": "results",
    "StudyRun": "plan",
    "collect": "results",
    "write_figures": "figures",
    "write_report": "report",
    "write_tables": "tables",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
