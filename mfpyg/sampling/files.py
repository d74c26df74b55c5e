"""Sampling of many molecules to a file, in parallel, with a recipe beside it; finished molecules survive a kill."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import multiprocessing
import platform
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mfpyg import __version__
from mfpyg.datasets.frames import Frame
from mfpyg.errors import MFPyGError
from mfpyg.files import append_text, replace_file, sidecar, write_text
from mfpyg.inference.extxyz import choose_digits, frame_as_text, pair
from mfpyg.labeling.level import open_program
from mfpyg.sampling.molecules import Molecule
from mfpyg.sampling.sampler import Geometry, sample
from mfpyg.sampling.settings import SampleSettings

PACKAGES = ("ase", "numpy", "scipy", "rdkit", "torch")
"""Packages whose versions a recipe states, beside that of the program."""


@dataclass
class Finished:
    """Geometries of a molecule, as text.

    Attributes:
        text: extended XYZ.
        counts: number of geometries by origin.
        dropped: number of refused geometries by reason.
        error: why there are none.
    """

    text: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    error: str = ""


Track = Callable[[Iterator[tuple[Molecule, Finished]]], Iterable[tuple[Molecule, Finished]]]


def sample_file(
    molecules: Sequence[Molecule], target: Path, settings: SampleSettings, *, jobs: int = 1, track: Track = iter
) -> list[Finished]:
    """Sample molecules and write extended XYZ, with a recipe in ``TARGET.yaml``.

    Finished molecules are saved in ``TARGET.part``, and taken from there by a later call with the same settings
    and versions. At the end, the files are written in one step each.

    Args:
        molecules: molecules to sample, in the order in which they are written.
        target: output file, which must not exist.
        settings: what to sample.
        jobs: molecules at a time, each in a process of its own if there are several.
        track: wraps the finished molecules, in any order, to show progress.

    Returns:
        What was sampled of each molecule; some have errors.

    Raises:
        MFPyGError: if the target exists, no molecule could be sampled, or a process has died.
    """
    recipe, part = sidecar(target), target.with_name(f"{target.name}.part")
    for path in (target, recipe):
        if path.exists():
            raise MFPyGError(f"{path} exists; choose another name, or remove it")
    stated: dict[str, Any] = {
        "settings": _plain(settings),
        "calculator": _described(settings.calculator),
        "versions": _versions(),
    }
    keys = {_key(molecule, stated): molecule for molecule in molecules}
    saved = _read_part(part)
    found = {key: saved[key] for key in keys if key in saved}
    missing = {key: molecule for key, molecule in keys.items() if key not in found}

    def all_finished() -> Iterator[tuple[Molecule, Finished]]:
        for key, finished in found.items():
            yield keys[key], finished
        for key, finished in _sampled(missing, settings, jobs):
            found[key] = finished
            if not finished.error:
                append_text(part, json.dumps({"key": key, **dataclasses.asdict(finished)}) + "\n")
            yield keys[key], finished

    for _ in track(all_finished()):
        pass
    results = [found[key] for key in keys]
    if all(finished.error for finished in results):
        none = "no molecule could be sampled; the first: " if len(results) > 1 else ""
        raise MFPyGError(f"{none}{molecules[0].name}: {results[0].error}")
    stated["molecules"] = [_stated(*one) for one in zip(keys.values(), results, strict=True)]
    replace_file(target, lambda name: Path(name).write_text("".join(f.text for f in results), encoding="utf-8"))
    write_text(recipe, yaml.safe_dump(stated, sort_keys=False, allow_unicode=True))
    part.unlink(missing_ok=True)
    return results


def _sampled(molecules: dict[str, Molecule], settings: SampleSettings, jobs: int) -> Iterator[tuple[str, Finished]]:
    """Sample molecules here, or in processes, which are ended when this generator is."""
    if jobs == 1 or len(molecules) < 2:
        for key, molecule in molecules.items():
            yield key, _finish(molecule, settings)
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(min(jobs, len(molecules)), context, initializer=_ignore_interrupts)
    try:
        futures = {executor.submit(_finish, molecule, settings): key for key, molecule in molecules.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise MFPyGError("a process has died, perhaps for lack of memory; run again with fewer --jobs") from error
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()


def _ignore_interrupts() -> None:
    """Leave Ctrl-C, which a terminal sends to all processes, to the first one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _finish(molecule: Molecule, settings: SampleSettings) -> Finished:
    try:
        sampled = sample(molecule, settings)
    except MFPyGError as error:
        return Finished(error=str(error))
    counts = Counter(geometry.origin for geometry in sampled.geometries)
    text = "".join(as_extxyz(geometry, molecule) for geometry in sampled.geometries)
    return Finished(text, dict(counts), dict(sampled.dropped))


def as_extxyz(geometry: Geometry, molecule: Molecule) -> str:
    """A frame with its ``molecule``, ``origin``, ``temperature`` and ``pair``, and the total charge and multiplicity.

    A charge of 0, a multiplicity of 1, and what a geometry does not have, are left out.
    """
    values = {
        "molecule": molecule.name,
        "charge": molecule.charge or None,
        "multiplicity": molecule.multiplicity if molecule.multiplicity > 1 else None,
        "origin": geometry.origin,
        "temperature": geometry.temperature,
        "pair": geometry.pair,
    }
    atoms = geometry.atoms
    frame = Frame(0, atoms.numbers.astype(np.int64), atoms.positions, atoms.cell.array, atoms.pbc, {})
    columns = {"pos": (atoms.positions, "")}
    choose_digits(columns)
    return frame_as_text(frame, columns, [pair(key, value) or "" for key, value in values.items() if value is not None])


def _described(calculator: str) -> dict[str, Any]:
    """Entry of a calculator in a recipe; the version of a trained potential has the hash of its checkpoint."""
    program = open_program(calculator)
    about = {"version": program.version, "method": program.method, "settings": program.settings}
    return {"name": calculator, **about}


def _versions() -> dict[str, str]:
    found = {"mfpyg": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _plain(settings: SampleSettings) -> dict[str, Any]:
    values = dataclasses.asdict(settings)
    return {**values, "temperature": list(values["temperature"])}


def _stated(molecule: Molecule, finished: Finished) -> dict[str, Any]:
    about = {"molecule": molecule.name, "charge": molecule.charge, "multiplicity": molecule.multiplicity}
    if finished.error:
        return {**about, "error": finished.error}
    return {**about, "geometries": dict(finished.counts), "dropped": dict(finished.dropped)}


def _key(molecule: Molecule, stated: dict[str, Any]) -> str:
    """Hash of everything that the geometries of a molecule depend on."""
    structures = [
        (a.numbers.tolist(), a.positions.tolist(), a.cell.tolist(), a.pbc.tolist()) for a in molecule.structures
    ]
    about = [molecule.name, molecule.charge, molecule.multiplicity, molecule.smiles, structures, stated]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _read_part(part: Path) -> dict[str, Finished]:
    """Finished molecules of an earlier command; a damaged line is sampled again."""
    found: dict[str, Finished] = {}
    if part.is_file():
        for line in part.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                values = json.loads(line)
                key = values.pop("key")
                found[key] = Finished(**values)
    return found
