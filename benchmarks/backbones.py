"""Every backbone with and without cheap forces, on the bundled data: coupled-cluster errors, time and size.

Trains each with ``cc:E`` and with ``dz:EF cc:E``, with the same seeds, splits and epochs, and prints a table:

    python benchmarks/backbones.py --seeds 0 1 2 --out runs/backbones

Runs that are there already are not repeated. Options after ``--`` go to mfpyg-train.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from claim import parted, spread

import mfpyg
from mfpyg import backbones

MODELS = ("cc:E", "dz:EF cc:E")


def main() -> None:
    own, extra = parted(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=list(backbones.names()))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/backbones"))
    parser.add_argument("--json", type=Path, help="where every number goes")
    options = parser.parse_args(own)
    cases = [(name, model, seed) for seed in options.seeds for name in options.backbones for model in MODELS]
    extra = ["--epochs", str(options.epochs), *extra]
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda case: trained(*case, options.out, extra), cases))
    print(table(results, options.backbones))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def trained(backbone: str, model: str, seed: int, out: Path, extra: list[str]) -> dict[str, Any]:
    """Errors at the cc level of one model, trained if it is not there yet."""
    run = out / f"{backbone}-{model.replace(':', '_').replace(' ', '-')}-seed{seed}"
    clock = out / f"{run.name}.seconds"
    if not (run / "metrics.json").is_file():
        command = ["mfpyg-train", "--backbone", backbone, "--fidelities", *model.split(), "--seed", str(seed)]
        begin = time.perf_counter()
        subprocess.run([*command, "--out", str(run), *extra], check=True, stdout=subprocess.DEVNULL)
        clock.write_text(str(time.perf_counter() - begin))
    cc = json.loads((run / "metrics.json").read_text())["test"]["cc"]
    return {
        "backbone": backbone,
        "model": model,
        "seed": seed,
        "energy": cc["energy"]["rmse"],
        "forces": cc["forces"]["rmse"],
        "seconds": float(clock.read_text()),
        "parameters": sum(p.numel() for p in mfpyg.load(run).parameters() if p.requires_grad),
    }


def table(results: list[dict[str, Any]], names: list[str]) -> str:
    """Markdown: a row a backbone, mean ± standard deviation over the seeds."""
    lines = [
        "| backbone | parameters | time | cc energy | cc forces | cc forces, `cc:E` alone | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        alone, both = ([r for r in results if r["backbone"] == name and r["model"] == m] for m in MODELS)
        forces, without = ([r["forces"] for r in runs] for runs in (both, alone))
        cells = [
            f"`{name}`",
            f"{both[0]['parameters']:,}",
            f"{statistics.mean(r['seconds'] for r in both):.0f} s",
            spread([r["energy"] for r in both]),
            spread(forces),
            spread(without),
            f"{statistics.mean(forces) / statistics.mean(without):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
