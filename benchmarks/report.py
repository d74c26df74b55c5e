"""Report of the speed benchmark: the table, the growth of time, the machine."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from jobs import OUT_OF_MEMORY, SIDES

REPOSITORY = Path(__file__).resolve().parents[1]


def exponents(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the time with the number of atoms of the liquids, by least squares of the logarithms, of each side."""
    found = {}
    for side in SIDES:
        points = [
            (int(row["case"].split("-")[1]), row[side]["ms"])
            for row in rows
            if row["case"].startswith("liquid") and row[side]["ms"] is not None
        ]
        if len(points) > 1:
            n, ms = np.log(np.array(points)).T
            found[side] = {"exponent": float(np.polyfit(n, ms, 1)[0]), "atoms": [p[0] for p in points]}
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row a case."""
    heads = ["case", "hippynn (kernel) ms", "mfpyg ms", "times faster", "hippynn MiB", "mfpyg MiB", "times less"]
    heads += ["needed at least"] * any("least_ms" in row for row in rows)
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in rows:
        theirs, ours = row["hippynn"], row["mfpyg"]
        how = ", ".join(filter(None, [theirs["kernel"], theirs["pairs"]]))
        left = OUT_OF_MEMORY if theirs["ms"] is None else f"{theirs['ms']:.1f} ({how})"
        right = OUT_OF_MEMORY if ours["ms"] is None else f"{ours['ms']:.1f}"
        both = theirs["ms"] is not None and ours["ms"] is not None
        ratio = [f"{theirs[key] / ours[key]:.1f}" if both else "" for key in ("ms", "peak_mib")]
        mib = [f"{side['peak_mib']:.0f}" if side["ms"] is not None else "" for side in (theirs, ours)]
        cells = [row["case"], left, right, ratio[0], *mib, ratio[1]]
        if "least_ms" in row:
            known = row["least_ms"] is not None and ours["ms"] is not None
            cells.append(f"{row['least_ms'] / ours['ms']:.0%}" if known else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Machine and versions of a measurement."""
    names = r"torch|hippynn|mfpyg|torch-geometric|lightning|numba|triton|cupy.*|vesin"
    versions = {d.name: d.version for d in importlib.metadata.distributions() if re.fullmatch(names, d.name)}
    git = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    found = {"cpu": model[1] if model else platform.processor(), "threads": options.threads, "commit": commit}
    if options.device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    return {**found, "device": options.device, "repeats": options.repeats, "versions": versions}
