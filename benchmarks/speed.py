"""Speed and memory against hippynn, the reference implementation: the published network with the same weights.

hippynn and mfpyg take turns (A B A B …), each in a process of its own for each case, both in float32 and with their
own neighbour search in every step. Before any timing, energies, forces and the training loss of both must agree.
hippynn runs with the fastest of its kernels (compiled torch, sparse, numba where installed; Triton and CuPy on a GPU)
and of its periodic pair finders, both tried out for each case first.

    python benchmarks/speed.py [--cases train-32 liquid-2000] [--json FILE]
    python benchmarks/speed.py --device cuda

Cases (N as listed by ``--help``):

==============  =====================================================================================================
train-N         training step on N molecules: energies, forces, RMSE + MAE of both, hierarchicality, backward, Adam
predict-N       energies and forces of N molecules
liquid-N        energies and forces of N atoms of an organic liquid in a periodic cell; with their scaling exponent
md-N            step of dynamics of benzene (12 atoms) and of the liquid: mfpyg in torch-sim, hippynn in a bare loop
overhead-N      of mfpyg alone: a step of ``mfpyg-train``'s own training, and how much of it is not the network
==============  =====================================================================================================

mfpyg runs as its users get it: training steps on a CPU compiled, as ``mfpyg-train`` does in long runs, nothing else,
unless ``--compile`` says otherwise.

On a GPU the last column is the part of our time that :mod:`limits` finds necessary.

Memory is the most that was resident while measuring, less what was resident after imports (compilers included).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from jobs import our_job
from limits import least_ms
from overhead import measure_overhead
from report import exponents, machine, table
from turns import measure

CASES = {
    "cpu": [
        *("train-32", "train-256", "predict-256", "liquid-500", "liquid-2000", "liquid-8000", "overhead-256"),
    ],
    "cuda": [
        *("train-256", "train-2048", "predict-256", "liquid-2000", "liquid-32000", "md-12", "md-2000", "overhead-256"),
    ],
}


def parsed() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    listed = "; ".join(f"{device}: {', '.join(cases)}" for device, cases in CASES.items())
    parser.add_argument("--cases", nargs="+", help=f"default: all of the device ({listed})")
    parser.add_argument("--device", choices=list(CASES), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7, help="blocks of each side")
    parser.add_argument(
        "--kernel", choices=["auto", "definition", "padded", "native", "triton"], default="auto", help="ours"
    )
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto", help="ours; auto: see above")
    parser.add_argument("--peer-kernel", help="hippynn's, instead of its fastest")
    parser.add_argument("--memory-gb", type=float, default=20.0, help="of each process on a CPU; 0: no limit")
    parser.add_argument("--json", type=Path, help="where every figure goes")
    options = parser.parse_args()
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("no CUDA device found; use --device cpu")
    options.cases = options.cases or CASES[options.device]
    known = list(dict.fromkeys([*CASES["cpu"], *CASES["cuda"]]))
    unknown = [case for case in options.cases if case not in known]
    if unknown:
        from mfpyg.errors import unknown_name

        parser.error(str(unknown_name("case", unknown[0], known)))
    return options


def main() -> None:
    """Measure, and print the table."""
    options = parsed()
    where = machine(options)
    print(json.dumps(where), file=sys.stderr, flush=True)
    rows, beside = [], []
    with tempfile.TemporaryDirectory() as folder:
        for case in options.cases:
            job = our_job(case, options)
            if job.kind == "overhead":
                beside.append(measure_overhead(job))
            else:
                rows.append(measure(job, options.peer_kernel, Path(folder)))
                if job.device == "cuda":
                    rows[-1]["least_ms"] = least_ms(job, Path(folder), where["gpu"])
    grows = exponents(rows)
    if rows:
        print(table(rows))
    for side, found in grows.items():
        atoms = ", ".join(map(str, found["atoms"]))
        print(f"{side}: time grows with the power {found['exponent']:.2f} of the number of atoms ({atoms})")
    for row in beside:
        print(
            f"{row['case']}: {row['outside_ms']:.1f} ms of a training step of {row['step_ms']:.1f} ms are outside "
            f"network, loss and optimiser, {row['percent']:.1f} %"
        )
    if options.json:
        values = {"machine": where, "rows": rows, "exponents": grows, "overhead": beside}
        options.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
