"""Runs many cases of every kind of file, and prints what came of them as a table.

    python tests/fuzz/campaign.py --cases 600             # of each kind
    python tests/fuzz/campaign.py --cases 100 --seed 7 --kinds settings checkpoint

Ends with status 1 if anything was a traceback, a hang, a crash or a wrong answer; those cases are listed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # it forks

import artefacts
import worker

KINDS = (*worker.KINDS, *artefacts.KINDS)
NAMES = {
    "release": "HDF5, layout of ANI-1x",
    "pyanitools": "HDF5, layout of COMP6",
    "extxyz": "extended XYZ",
    "database": "ASE databases",
    "settings": "YAML, settings of `mfpyg-train`",
    "study": "YAML, `study.yaml`",
    "checkpoint": "checkpoints: `mfpyg.load`, `mfpyg-inspect`, `--init`",
    "foreign": "hippynn's models: `mfpyg-convert`",
    "processed": "processed data sets (`.pt`)",
    "run": "run folders, each file: `--resume`, `mfpyg-inspect`",
    "frames": "frames for `mfpyg-predict` in seven formats",
}
GOOD = {"same": "same", "other": "as it says", "accepted": "as it says", "refused": "refused", "unsure": "not judged"}
BAD = ("raised", "hung", "crashed", "wrong")
COLUMNS = {
    "same": "same answer",
    "as it says": "answer of the changed file",
    "refused": "refused in one line",
    "not judged": "oracle unsure",
    "raised": "traceback",
    "hung": "hang",
    "crashed": "crash",
    "wrong": "wrong answer or message",
}


def outcome(result: Mapping[str, Any]) -> str:
    """The column of a case."""
    found = str(result["outcome"])
    if found in BAD:
        return found
    return "wrong" if result["problems"] else GOOD[found]


def table(counts: Mapping[str, Counter[str]]) -> str:
    """Cases by kind and outcome, in Markdown."""
    rows = [["files", "mutated", *COLUMNS.values()]]
    for kind, of_kind in counts.items():
        rows.append([NAMES[kind], str(sum(of_kind.values())), *[str(of_kind[name]) for name in COLUMNS]])
    sums: Counter[str] = sum(counts.values(), Counter())
    rows.append(["all", str(sum(sums.values())), *[str(sums[name]) for name in COLUMNS]])
    rows.insert(1, ["---", *["---:"] * (len(COLUMNS) + 1)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: Iterable[str] | None = None) -> None:
    """Run, print, and say by the status whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    asked = parser.parse_args(None if arguments is None else list(arguments))
    counts: dict[str, Counter[str]] = {}
    bad = 0
    folder = worker.prepared()
    try:
        for kind in asked.kinds:
            seeds, counts[kind] = worker.make_seeds(kind, folder), Counter()
            for result in worker.run_cases(kind, list(range(asked.cases)), asked.seed, seeds, folder):
                counts[kind][outcome(result)] += 1
                if result["problems"]:
                    bad += 1
                    what = (
                        f"{'; '.join(result['problems'])} [{result.get('seed')}: {', '.join(result.get('done', []))}]"
                    )
                    print(f"{kind} {result['number']} --seed {asked.seed}: {what} {result.get('message', '')}"[:900])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(counts))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
