"""From a file of frames to a file of predictions, in memory that does not grow with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from mfpyg.datasets.formats import frames_of
from mfpyg.errors import MFPyGError, MFPyGWarning, shown
from mfpyg.files import replace_file
from mfpyg.interop.ensemble import Ensemble
from mfpyg.interop.predict import BATCH_SIZE, FramePrediction, names_of, predict_frames
from mfpyg.interop.writing import WRITERS, format_of, output_of

_NAMED = 10
"""Values in the warning about those that are not kept; more are counted."""

Track = Callable[[Iterator[FramePrediction]], Iterable[FramePrediction]]


def predict_file(
    ensemble: Ensemble,
    source: Path,
    target: Path,
    fidelities: Sequence[str] | str | None = None,
    *,
    forces: bool | None = None,
    stress: bool = False,
    unit: str = "eV",
    batch_size: int = BATCH_SIZE,
    input_format: str | None = None,
    output_format: str | None = None,
    track: Track = iter,
) -> int:
    """Predict all frames of a file; the target is replaced in one step when the last one is written.

    Args:
        ensemble: one potential or several.
        source: what ASE reads, see :func:`mfpyg.datasets.formats.frames_of`.
        target: see :mod:`mfpyg.interop.writing`; may exist, but not be the source.
        fidelities: a name or several; may be left out only where there is a single one.
        forces: whether forces are wanted; if not given, in all formats but CSV.
        stress: whether stresses are wanted, of frames that repeat in all directions.
        unit: of energies, see :data:`mfpyg.units.ENERGY_UNITS`; forces are per Å.
        batch_size: most frames predicted at once.
        input_format: ASE's name of it, where the file does not say.
        output_format: ``extxyz``, ``json``, ``jsonl`` or ``csv``; if not given, by the target's suffix.
        track: shows the progress.

    Returns:
        The number of frames.

    Warns:
        MFPyGWarning: naming what frames came with that extended XYZ can't hold or that is predicted anew.

    Raises:
        MFPyGError: if either file or a name is not as it should be, or a frame can't be read or predicted, which it
            names; nothing is left at the target's place then but what was there before.
    """
    format_name = format_of(target, output_format)
    if target.exists() and source.exists() and target.samefile(source):
        raise MFPyGError(f"{target} is the input; choose another name for the output")
    if forces is None:
        forces = format_name != "csv"
    names = names_of(ensemble, fidelities)
    output = output_of(names, unit, len(ensemble.members) > 1, forces, stress)
    frames = frames_of(source, input_format)
    found = predict_frames(
        ensemble, frames, names, forces=forces, stress=stress, unit=unit, batch_size=batch_size, source=str(source)
    )
    n_frames = 0

    def counted() -> Iterator[FramePrediction]:
        nonlocal n_frames
        for one in track(found):
            n_frames += 1
            yield one

    def write(name: str) -> None:
        with open(name, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(WRITERS[format_name](counted(), output))

    replace_file(target, write)
    if output.lost:
        more = f" and {len(output.lost) - _NAMED} more" if len(output.lost) > _NAMED else ""
        listed = ", ".join(f"{shown(name)} ({reason})" for name, reason in list(output.lost.items())[:_NAMED])
        warnings.warn(f"{target} is without some of what frames came with: {listed}{more}", MFPyGWarning, stacklevel=2)
    return n_frames
