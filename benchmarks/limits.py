"""FLOPs and bytes of a step, and the least time that a GPU needs for them.

Counted are products of matrices and the sums over neighbours, each with its inputs and results read and written once;
everything else is taken to be fused with them, and to cost nothing. The least time of a step is the sum over these
operations of the larger of FLOPs over peak and bytes over bandwidth.

    python benchmarks/limits.py [--cases train-256 liquid-2000] [--gpu H100] [--tf32]

needs no GPU: it counts on the CPU. ``speed.py --device cuda`` prints which part of its times these are.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import Job, our_job
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

CASES = ("train-256", "train-2048", "predict-256", "liquid-2000", "liquid-32000", "md-12", "md-2000")


@dataclass(frozen=True)
class Card:
    """A GPU: FLOP/s of products in float32 and TF32 without sparsity, and bytes/s of its memory."""

    float32: float
    tf32: float
    bandwidth: float


CARDS = {
    "A100": Card(19.5e12, 156e12, 2.04e12),
    "H100": Card(66.9e12, 494e12, 3.35e12),
    "H200": Card(66.9e12, 494e12, 4.8e12),
}
"""By a part of the name; SXM modules with 80 GB and more, from NVIDIA's data sheets."""


class Count(TorchDispatchMode):
    """Context manager that counts the operations within.

    Attributes:
        operations: FLOPs and bytes of each operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[float, float]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = function(*args, **(kwargs or {}))
        flops = flops_of(function, args, kwargs or {}, results)
        if flops is not None:
            arrays = [x for x in (*args, *(results if isinstance(results, tuple) else (results,))) if is_array(x)]
            self.operations.append((flops, float(sum(x.numel() * x.element_size() for x in arrays))))
        return results

    @property
    def flops(self) -> float:
        return sum(flops for flops, _ in self.operations)

    @property
    def bytes(self) -> float:
        return sum(size for _, size in self.operations)

    def seconds(self, peak: float, bandwidth: float) -> float:
        """Least time in seconds with so many FLOP/s and bytes/s."""
        return sum(max(flops / peak, size / bandwidth) for flops, size in self.operations)


def is_array(value: Any) -> bool:
    return isinstance(value, Tensor)


def flops_of(function: Any, args: Sequence[Any], kwargs: dict[str, Any], results: Any) -> float | None:
    """FLOPs of a product of matrices or a sum over neighbours; ``None`` for anything else."""
    packet = function._overloadpacket
    if function.namespace == "mfpyg":
        return flops_of_sum(packet.__name__.partition("_")[2].removeprefix("triton_").removeprefix("triton"), args)
    if packet in flop_registry:
        return float(flop_registry[packet](*args, **kwargs, out_val=results))
    return None


def flops_of_sum(derivative: str, args: Sequence[Any]) -> float:
    """FLOPs of the moments, their gradient or its derivative, see :mod:`mfpyg.kernels.triton_programs`."""
    s, y, q = args[:3]
    product, turn = (2.0 * len(s) * width * q.shape[2] for width in (s.shape[1], y.shape[1]))  # s q, and Σ Y G
    if derivative == "gradient":
        return product * (3 if args[4] else 2) + 2 * turn
    if derivative == "second":
        return product * (7 if args[6] is not None else 5) + 5 * turn
    return product + turn


def step_of(job: Job, folder: Path) -> Callable[[], Any]:
    """Function that makes a step of our side, through operators that can be counted."""
    from sides import Hippynn, MFPyG

    job = dataclasses.replace(job, weights=str(folder / "weights.pt"), compile=False)
    Hippynn(dataclasses.replace(job, case="predict-1", kernel="pytorch"))  # writes the weights
    side = MFPyG(job)
    side.potential.train()  # differentiable, so not evaluated as a whole in C
    return (lambda: side.train(0)) if job.kind == "train" else (lambda: side.predict(0))


def count(step: Callable[[], Any]) -> Count:
    """Operations of a step."""
    with Count() as counted:
        step()
    return counted


def least_ms(job: Job, folder: Path, gpu: str) -> float | None:
    """Least time of a step of our side in float32 on a GPU of this name; ``None`` for one that is not in CARDS."""
    card = next((card for name, card in CARDS.items() if name in gpu), None)
    return None if card is None else 1e3 * count(step_of(job, folder)).seconds(card.float32, card.bandwidth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--gpu", choices=list(CARDS), default="H100")
    parser.add_argument("--tf32", action="store_true", help="peak of TF32 in place of float32")
    options = parser.parse_args()
    options.__dict__.update(device="cpu", threads=1, repeats=1, memory_gb=0, kernel="native", compile="off")
    card = CARDS[options.gpu]
    peak = card.tf32 if options.tf32 else card.float32
    print(f"| case | GFLOP | GB | least ms on one {options.gpu} |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for case in options.cases:
            counted = count(step_of(our_job(case, options), Path(folder)))
            ms = 1e3 * counted.seconds(peak, card.bandwidth)
            print(f"| {case} | {counted.flops / 1e9:.3g} | {counted.bytes / 1e9:.3g} | {ms:.3g} |", flush=True)


if __name__ == "__main__":
    main()
