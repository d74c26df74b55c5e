"""Products of matrices in TF32 and bfloat16: what training and prediction with them cost in accuracy.

On any processor: both factors of each product of float32 matrices are rounded as tensor cores round them, to 10 and 7
binary digits after the first, and sums stay in float32. Trains on the bundled data with each precision, and predicts
the test split with the precision of the training and with float32:

    python benchmarks/precision.py --seeds 0 --out runs/precision

RMSE in kcal/mol and kcal/mol/Å, means over the seeds. Options after ``--`` go to mfpyg-train.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claim import parted
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mfpyg
from mfpyg.cli import train
from mfpyg.datasets import MiniCHNO
from mfpyg.evaluation.evaluate import evaluate

DIGITS = {"float32": 23, "tf32": 10, "bf16": 7}
SHOWN = (("cc", "energy"), ("cc", "forces"), ("dz", "energy"), ("dz", "forces"))
PRODUCTS = {torch.ops.aten.mm.default: 0, torch.ops.aten.bmm.default: 0, torch.ops.aten.addmm.default: 1}
"""Products, and the number of their first factor."""


class Rounded(TorchDispatchMode):
    """Context manager in which the factors of products of float32 matrices are rounded.

    Args:
        digits: binary digits kept after the first.
    """

    def __init__(self, digits: int) -> None:
        super().__init__()
        self.digits = digits

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        first = PRODUCTS.get(function)
        if first is not None and self.digits < 23 and args[first].dtype == torch.float32:
            factors = [rounded(x, self.digits) for x in args[first : first + 2]]
            args = (*args[:first], *factors, *args[first + 2 :])
        return function(*args, **(kwargs or {}))


def rounded(x: Tensor, digits: int) -> Tensor:
    """Round float32 numbers to the nearest with so many binary digits after the first, ties to even."""
    bits, dropped = x.contiguous().view(torch.int32), 23 - digits
    up = (1 << (dropped - 1)) - 1 + ((bits >> dropped) & 1)
    return ((bits + up) & -(1 << dropped)).view(torch.float32)


def main() -> None:
    own, extra = parted(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/precision"))
    options = parser.parse_args(own)
    heads = ["training", "prediction", *(" ".join(one) for one in SHOWN)]
    print("\n".join(["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]))
    for precision, digits in DIGITS.items():
        runs = [trained(options.out / f"{precision}-{seed}", digits, seed, extra) for seed in options.seeds]
        for other in dict.fromkeys([precision, "float32"]):
            found = np.mean([errors(run, DIGITS[other]) for run in runs], axis=0)
            print(f"| {precision} | {other} | " + " | ".join(f"{value:.3f}" for value in found) + " |", flush=True)


def trained(run: Path, digits: int, seed: int, extra: Sequence[str]) -> Path:
    """Folder of a training, unless it is done."""
    if not (run / "metrics.json").is_file():
        command = ["--fidelities", "dz:EF", "cc:E", "--seed", str(seed), "--out", str(run)]
        with Rounded(digits):
            train.main([*command, "--model.kernel", "padded", "--compile", "off", "--accelerator", "cpu", *extra])
    return run


def errors(run: Path, digits: int) -> list[float]:
    """RMSE of the test split."""
    splits = {"test": np.load(run / "splits.npz")["test"]}
    with Rounded(digits):
        found = evaluate(mfpyg.load(run), MiniCHNO(fidelities=["dz", "cc"]), splits).metrics["test"]
    return [found[level][name]["rmse"] for level, name in SHOWN]


if __name__ == "__main__":
    main()
