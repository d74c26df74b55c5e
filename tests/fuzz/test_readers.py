"""Mutated files: the right answer or one clear line, never a traceback, a hang, or wrong numbers.

Real files are damaged in their bytes, their structure and their numbers (``mutations.py``), read by the package in a
process that may die of it (``worker.py``), and what is taken is compared with a slow reading of the same file
(``oracles.py``). Settings, checkpoints, run folders and all else that is read are damaged and judged by
``artefacts.py`` and ``subjects.py``. The cases are the same every time.

    pytest tests/fuzz                          # a few hundred of each kind of file
    MFPYG_FUZZ_CASES=5000 pytest tests/fuzz    # more of the same series
    MFPYG_FUZZ_SEED=1 pytest tests/fuzz        # another series
    python tests/fuzz/worker.py release 1234   # one case, shown; --keep FOLDER for its file
    python tests/fuzz/campaign.py --cases 500  # of each kind of file, and a table of what came of them
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("MFPYG_FUZZ_CASES", "400"))
SEED = int(os.environ.get("MFPYG_FUZZ_SEED", "0"))
WORKER = Path(__file__).with_name("worker.py")

FAMILIES = {
    "release": ("bytes", "names", "arrays", "values"),
    "pyanitools": ("bytes", "names", "arrays", "values"),
    "extxyz": ("bytes", "lines", "encoding"),
    "database": ("bytes", "rows"),
}
SHARES = {
    **{"settings": 0.3, "study": 0.15, "checkpoint": 0.3, "foreign": 0.15, "processed": 0.15, "frames": 0.15},
    "run": 0.06,  # of which each is trained
}
"""Kinds of files besides raw data, and how many cases of each, as a share of those of the readers."""

ENOUGH = 40
"""Cases of a group of mutations from which on some of them have to be taken, and some refused."""


@pytest.fixture(scope="module")
def worker() -> Iterator[subprocess.Popen[str]]:
    """The process that runs cases, for all kinds: importing the package takes longer than many of them."""
    process = subprocess.Popen(
        [sys.executable, str(WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # it forks
    )
    yield process
    process.communicate(timeout=60)


def results(worker: subprocess.Popen[str], kind: str, cases: int) -> Iterator[dict[str, Any]]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(json.dumps({"kind": kind, "first": 0, "cases": cases, "seed": SEED}) + "\n")
    worker.stdin.flush()
    for line in worker.stdout:
        result = json.loads(line)
        if result["phase"] == "end":
            return
        yield result
    raise AssertionError(f"the worker ended with status {worker.wait()}")


def assert_all_well(kind: str, found: list[dict[str, Any]]) -> None:
    wrong = [
        f"{kind} {result['number']} --seed {SEED}: {'; '.join(result['problems'])} "
        f"[{result.get('seed')}: {', '.join(result.get('done', []))}] {result.get('message', '')}"[:600]
        for result in found
        if result["problems"]
    ]
    assert not wrong, f"{len(wrong)} of {len(found)} cases, to see one: python {WORKER} KIND NUMBER\n" + "\n".join(
        wrong
    )


@pytest.mark.parametrize("kind", FAMILIES)
def test_mutated_file_is_read_correctly_or_refused_in_one_line(worker: subprocess.Popen[str], kind: str) -> None:
    found = list(results(worker, kind, CASES))
    counts = Counter((result["family"], result["outcome"]) for result in found)
    print(f"{kind}, seed {SEED}: " + ", ".join(f"{of} {what} {n}" for (of, what), n in sorted(counts.items())))
    assert_all_well(kind, found)
    assert sorted(result["number"] for result in found) == list(range(CASES))
    for family in FAMILIES[kind]:
        total = sum(n for (of, _), n in counts.items() if of == family)
        assert total >= CASES // len(FAMILIES[kind])
        if total >= ENOUGH:  # else all of them might be refused, or none, by chance
            assert counts[family, "accepted"] >= 0.05 * total, counts
            assert counts[family, "refused"] >= 0.1 * total, counts
            assert counts[family, "unsure"] <= 0.1 * total, counts


@pytest.mark.parametrize("kind", SHARES)
def test_other_mutated_file_is_what_it_says_or_refused_in_one_line(worker: subprocess.Popen[str], kind: str) -> None:
    cases = max(int(SHARES[kind] * CASES), 1)
    found = list(results(worker, kind, cases))
    counts = Counter(result["outcome"] for result in found)
    print(f"{kind}, seed {SEED}: " + ", ".join(f"{what} {n}" for what, n in sorted(counts.items())))
    assert_all_well(kind, found)
    assert sorted(result["number"] for result in found) == list(range(cases))
    if cases >= ENOUGH:
        assert counts["refused"] >= 0.3 * cases, counts
        assert counts["same"] + counts["other"] >= 0.05 * cases, counts
