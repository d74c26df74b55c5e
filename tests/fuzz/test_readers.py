"""Mutated data files: a correct data set or one clear line, never a traceback, a hang, or wrong numbers.

Real files are damaged in their bytes, their structure and their numbers (``mutations.py``), read by the package in a
process that may die of it (``worker.py``), and what is taken is compared with a slow reading of the same file
(``oracles.py``). The cases are the same every time.

    pytest tests/fuzz                          # a few hundred of each kind of file
    MFPYG_FUZZ_CASES=5000 pytest tests/fuzz    # more of the same series
    MFPYG_FUZZ_SEED=1 pytest tests/fuzz        # another series
    python tests/fuzz/worker.py release 1234   # one case, shown; --keep FOLDER for its file
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


def results(worker: subprocess.Popen[str], kind: str) -> Iterator[dict[str, Any]]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(json.dumps({"kind": kind, "first": 0, "cases": CASES, "seed": SEED}) + "\n")
    worker.stdin.flush()
    for line in worker.stdout:
        result = json.loads(line)
        if result["phase"] == "end":
            return
        yield result
    raise AssertionError(f"the worker ended with status {worker.wait()}")


@pytest.mark.parametrize("kind", FAMILIES)
def test_mutated_file_is_read_correctly_or_refused_in_one_line(worker: subprocess.Popen[str], kind: str) -> None:
    found = list(results(worker, kind))
    counts = Counter((result["family"], result["outcome"]) for result in found)
    print(f"{kind}, seed {SEED}: " + ", ".join(f"{of} {what} {n}" for (of, what), n in sorted(counts.items())))
    wrong = [
        f"{kind} {result['number']} --seed {SEED}: {'; '.join(result['problems'])} "
        f"[{result.get('seed')}: {', '.join(result.get('done', []))}] {result.get('message', '')}"[:600]
        for result in found
        if result["problems"]
    ]
    assert not wrong, f"{len(wrong)} of {len(found)} cases, to see one: python {WORKER} KIND NUMBER\n" + "\n".join(
        wrong
    )
    assert sorted(result["number"] for result in found) == list(range(CASES))
    for family in FAMILIES[kind]:
        total = sum(n for (of, _), n in counts.items() if of == family)
        assert total >= CASES // len(FAMILIES[kind])
        if total >= ENOUGH:  # else all of them might be refused, or none, by chance
            assert counts[family, "accepted"] >= 0.05 * total, counts
            assert counts[family, "refused"] >= 0.1 * total, counts
            assert counts[family, "unsure"] <= 0.1 * total, counts
