"""Resident memory of this process."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


def now() -> float:
    """Resident memory in MiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def forget_peak() -> None:
    """Set the highest resident memory to that of now, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        print("the peak of memory includes warming up: this system can't forget it", file=sys.stderr)


def peak() -> float:
    """Highest resident memory in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s*(\d+)", status)
    kib = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 1024
