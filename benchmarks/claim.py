"""The claim of multi-fidelity learning on the bundled data: coupled-cluster forces that nobody trained on.

Trains three models with the same seeds, splits, network and epochs, and prints the in-sample and out-of-sample
errors of energies and forces at the coupled-cluster level, mean and spread over the seeds:

    python benchmarks/claim.py --seeds 0 1 2 --out runs/claim

Runs that are there already are not repeated. Options after ``--`` go to mfpyg-train.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

MODELS = ("cc:E", "dz:E cc:E", "dz:EF cc:E")


def main() -> None:
    own, extra = parted(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/claim"))
    parser.add_argument("--json", type=Path, help="where every number goes")
    options = parser.parse_args(own)
    results = {model: [trained(model, seed, options.out, extra) for seed in options.seeds] for model in MODELS}
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def parted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments before and after ``--``; those after it are mfpyg-train's."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:end], arguments[end + 1 :]


def trained(model: str, seed: int, out: Path, extra: list[str]) -> dict[str, dict[str, float]]:
    """Errors at the cc level of one model, trained if it is not there yet."""
    run = out / f"{model.replace(':', '_').replace(' ', '-')}-seed{seed}"
    if not (run / "metrics.json").is_file():
        command = ["mfpyg-train", "--fidelities", *model.split(), "--seed", str(seed), "--out", str(run), *extra]
        subprocess.run(command, check=True)
    metrics = json.loads((run / "metrics.json").read_text())
    return {
        split: {
            "energy": metrics[split]["cc"]["energy"]["rmse"],
            "forces": metrics[split]["cc"]["forces"]["rmse"],
        }
        for split in ("test", "ood")
    }


def table(results: dict[str, list[dict[str, dict[str, float]]]]) -> str:
    """Markdown: a row a model, mean ± standard deviation over the seeds."""
    baseline = statistics.mean(r["test"]["forces"] for r in results[MODELS[0]])
    lines = [
        "| trained on | cc energy, test | cc forces, test | ratio to `cc:E` | cc energy, ood | cc forces, ood |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for model, runs in results.items():
        cells = [spread([r[split][kind] for r in runs]) for split in ("test", "ood") for kind in ("energy", "forces")]
        ratio = statistics.mean(r["test"]["forces"] for r in runs) / baseline
        lines.append(f"| `{model}` | {cells[0]} | {cells[1]} | {ratio:.2f} | {cells[2]} | {cells[3]} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"


if __name__ == "__main__":
    main()
