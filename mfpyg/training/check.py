"""What can be said of the settings before any data is opened, or torch imported."""

from __future__ import annotations

import os

from mfpyg.datasets.levels import DatasetSpec
from mfpyg.engine import check_engine
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.fidelity import Fidelity, check_available, parse_fidelities, parse_weights
from mfpyg.settings import TrainSettings


def check_settings(settings: TrainSettings) -> tuple[Fidelity, ...]:
    """Everything about the settings that can be checked without opening the data; the fidelities parsed.

    Raises:
        MFPyGError: in one line, for the first thing that is wrong.
    """
    settings.check()
    fidelities = parse_fidelities(settings.fidelities)
    spec = DatasetSpec.parse(settings.dataset)
    check_available(fidelities, spec.levels, str(spec))
    check_engine(settings.engine)
    weights = parse_weights(settings.weights, fidelities)
    names = [f.name for f in fidelities]
    if settings.monitor not in ("sum", *names):
        raise unknown_name("monitor", settings.monitor, ["sum", *names])
    if not any(weight for (name, _), weight in weights.items() if settings.monitor in ("sum", name)):
        raise MFPyGError(f"monitor {settings.monitor} weighs 0 in the loss, so that no epoch is best; give it a weight")
    return fidelities


def is_main_process() -> bool:
    """Whether this is the process a user started, or the first of those that a launcher did.

    Of Lightning's own launcher, torchrun and SLURM's srun, as far as they say so in the environment.
    """
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))
