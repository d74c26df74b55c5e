"""Options of the optimiser; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from mfpyg.errors import MFPyGError
from mfpyg.options import setting


@dataclass
class OptimSettings:
    """Optimiser and learning-rate schedule."""

    lr: float = setting(1e-3, "initial learning rate of Adam", low=1e-12, high=10.0)
    schedule: str = setting(
        "plateau",
        "plateau: raise the batch size, then lower the rate; cosine: to a hundredth over all epochs; constant",
        choices=("plateau", "cosine", "constant"),
    )
    warmup: float = setting(
        0.0,
        "epochs, or a part of one, over which the learning rate rises linearly to that of the schedule; the plateau "
        "schedule waits until then",
        low=0.0,
    )
    patience: int = setting(20, "epochs without improvement before the plateau schedule acts", low=0)
    factor: float = setting(0.5, "what the plateau schedule multiplies the rate by", low=0.01, high=0.99)
    max_batch_size: int | None = setting(
        None, "batch size to which the plateau schedule goes before it lowers the rate; null: as given", low=1
    )
    stop_after: int | None = setting(40, "epochs without improvement before training stops; null: never", low=1)
    clip: float | None = setting(None, "largest norm of the gradient; null: any", low=1e-12)
    accumulate: int = setting(
        1,
        "batches per optimiser step, for want of memory; it averages the gradients of their losses, which is not the "
        "gradient of one large batch, as the loss holds root-mean-square errors",
        low=1,
    )
    weight_decay: float = setting(
        0.0,
        "decoupled weight decay (AdamW) of weight matrices and embeddings; biases, normalisation, radial functions "
        "and reference energies do not decay",
        low=0.0,
    )
    ema: float | None = setting(
        None,
        "decay of an exponential moving average of the weights, such as 0.999; the averaged weights are validated, "
        "chosen and saved; null: no average",
        low=0.0,
        high=0.999999,
    )

    def check(self, batch_size: int, epochs: int, strategy: str) -> None:
        """Check what depends on other settings.

        Raises:
            MFPyGError: in one line, for the first thing that is wrong.
        """
        if self.max_batch_size is not None and self.max_batch_size < batch_size:
            raise MFPyGError(f"optim.max_batch_size {self.max_batch_size} is less than batch_size {batch_size}")
        if self.warmup > epochs:
            raise MFPyGError(f"optim.warmup is {self.warmup:g} epochs, but there are only {epochs}; shorten it")
        if strategy != "meta":
            return
        # Reptile moves the weights itself, after runs of steps on one level after the other.
        for name, value, only in (("ema", self.ema, None), ("accumulate", self.accumulate, 1)):
            if value != only:
                raise MFPyGError(f"optim.{name} is {value}, which does not go with strategy meta; leave it out")
