"""What ruins training, found before training starts."""

from __future__ import annotations

from mfpyg.doctor.checks import CHECKS, diagnose, examine
from mfpyg.doctor.findings import SEVERITIES, Finding
from mfpyg.doctor.view import View

__all__ = ["CHECKS", "SEVERITIES", "Finding", "View", "diagnose", "examine"]
