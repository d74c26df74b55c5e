"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mfpyg.doctor.view import View
from mfpyg.errors import unknown_name

SEVERITIES = ("certain", "suspect", "note")
"""``certain``: wrong, training would be ruined; ``suspect``: look at it; ``note``: nothing to mend, but to know."""

EXAMPLES = 10
"""Rows that a finding names at most."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check has found.

    Attributes:
        check: name of the check.
        severity: one of ``SEVERITIES``.
        fidelity: whose labels, or ``None`` where it is about geometries.
        evidence: one line with the numbers, and where.
        fix: one line.
        rows: numbers of example conformations in the data set.
    """

    check: str
    severity: str
    fidelity: str | None
    evidence: str
    fix: str
    rows: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise unknown_name("severity", self.severity, SEVERITIES)
        object.__setattr__(self, "rows", tuple(int(row) for row in self.rows[:EXAMPLES]))

    def as_dict(self, view: View) -> dict[str, Any]:
        """Plain values for JSON, with molecule, conformation and source of the example rows."""
        return {
            "check": self.check,
            "severity": self.severity,
            "fidelity": self.fidelity,
            "evidence": self.evidence,
            "fix": self.fix,
            "rows": list(self.rows),
            "examples": [view.address(row) for row in self.rows],
        }
