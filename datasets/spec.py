"""Data sets as given to ``--dataset``: a known one, or a file and the meaning of its keys. Importable without torch."""

from __future__ import annotations

import os.path
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfpyg.cache import cache_dir, cached_root
from mfpyg.datasets.levels import (
    BUNDLED,
    DEFAULT_LEVELS,
    GRAMMAR,
    LEVEL,
    LEVELS,
    level_as_text,
    merged_levels,
    parse_levels,
)
from mfpyg.errors import MFPyGError, did_you_mean, unknown_name
from mfpyg.fidelity import LevelOfTheory, is_name

if TYPE_CHECKING:
    from mfpyg.datasets.conformations import ConformationDataset

_PLACES = {
    "minichno": None,
    **{name: Path("data/ani1x") for name in ("ani1x", "ani1ccx")},
    **{name: Path("data") / name for name in ("ani2x", "comp6")},
}
_CLASSES = {
    **{"minichno": "MiniCHNO", "ani1x": "ANI1x", "ani1ccx": "ANI1ccx", "ani2x": "ANI2x", "comp6": "COMP6"},
    **{"xyz": "ExtXYZ", "ase": "ASEFile", "npz": "PaddedNPZ", "npy": "PaddedNPY", "pyanitools": "Pyanitools"},
}
_RELEASES = {"minichno": "minichno.h5", "ani1x": "ani1x-release.h5", "ani1ccx": "ani1x-release.h5"}
"""Data sets in the layout of the ANI-1x release, and the names of their raw files."""

_DEFINED = ("xyz", "ase", "npz", "npy", "pyanitools")
_BY_SUFFIX = {".xyz": "xyz", ".extxyz": "xyz", ".db": "xyz", ".npz": "npz"}
_COMPRESSED = (".gz", ".bz2", ".xz")
_NEEDS_NAME = (".h5", ".hdf5", ".npy")  # suffixes of several layouts


@dataclass(frozen=True)
class DatasetSpec:
    """A data set: its name or format, its raw file or root, and the levels of theory of its keys.

    Attributes:
        name: known data set (``minichno``, ``ani1x``, ``ani1ccx``, ``ani2x``, ``comp6``) or format (``xyz``, ``ase``,
            ``npz``, ``npy``, ``pyanitools``).
        path: raw file or root folder; ``None`` for the bundled data set.
        defined: user-defined levels of theory of a file.
    """

    name: str
    path: Path | None = None
    defined: tuple[LevelOfTheory, ...] = ()

    @classmethod
    def parse(cls, text: str) -> DatasetSpec:
        """Parse ``NAME``, ``NAME:PATH``, ``FILE:LEVEL[:LEVEL…]`` or ``FORMAT:FILE:LEVEL[:LEVEL…]``.

        A LEVEL is ``NAME=ENERGY[,FORCES][,LETTER=KEY…]@UNIT[,FORCE_UNIT][,LETTER=UNIT…]``: the name of the fidelity,
        the key of its total energy (several whose values add up, joined by ``+``), the key of its forces (with ``-``
        before it where it holds the gradient), keys of other properties by their letters (see :mod:`mfpyg.properties`;
        ``V`` is the virial −V·stress), and the units (see :mod:`mfpyg.units`; by default those of the energies and Å).
        ``?`` follows an optional key.

        Levels are parsed from the end, so that the path may contain colons; a leading ``~`` is the home folder.
        A file whose name is that of a data set or a format is written ``./NAME``, or with its format before it.

        Raises:
            MFPyGError: for an unknown name, a path that does not exist, or a malformed level.
        """
        start, colon, rest = text.partition(":")
        known = (*LEVELS, *_DEFINED)
        path, levels = os.path.expanduser(rest), list[str]()
        if start not in LEVELS:
            path, levels = _split_levels(os.path.expanduser(rest if start in _DEFINED else text))
        name = start if start in known else _format_of(path)
        if not name:
            wrong = unknown_name("data set", start if not start or is_name(start) else path, known)
            missing = f"; or is the file {path} missing?" if levels and not os.path.isfile(path) else ""
            examples = f"ani1x:FILE.h5, pyanitools:FILE.h5:LEVEL, or FILE.xyz:{GRAMMAR}"
            raise MFPyGError(f"{wrong}{missing}; a file is named as {examples}")
        if name in LEVELS and not colon:
            return cls(name, _PLACES[name])
        if not path:
            raise MFPyGError(f"data set '{text}' has no path after the colon: expected {name}:PATH")
        _check_path(name, path, did_you_mean(start, known) if is_name(start) and start not in known else "")
        if name in _DEFINED:
            if not levels:
                raise MFPyGError(f"{path}: its levels of theory are not known; define them as {path}:{GRAMMAR}")
            return cls(name, Path(path), parse_levels(levels))
        return cls(name, Path(path))

    @property
    def levels(self) -> tuple[LevelOfTheory, ...]:
        """Levels of theory that the data set may have."""
        return self.defined or LEVELS[self.name]

    @property
    def label(self) -> str:
        """Short name for files and tables."""
        return self.path.stem if self.defined and self.path is not None else self.name

    def __str__(self) -> str:
        if self.path is None:
            return self.name
        path = str(self.path)
        plain = _format_of(path) == self.name and path.partition(":")[0] not in (*LEVELS, *_DEFINED)
        return ":".join([path if plain else f"{self.name}:{path}", *(level_as_text(level) for level in self.defined)])


def _check_path(name: str, path: str, meant: str) -> None:
    """Check that a path exists, and is a file or a folder as the format requires.

    Args:
        name: data set or format.
        path: file or folder after the name.
        meant: suggestion of another name, for the error message.
    """
    try:
        found, is_file = Path(path).exists(), Path(path).is_file()
    except OSError as error:
        raise MFPyGError(f"{path}: cannot be read ({error.strerror})") from error
    if not found and not (name == "npy" and _is_prefix(path)):
        raise _missing(Path(path), meant)
    if name == "npy" and is_file:
        raise MFPyGError(f"{path} is a file; expected the folder that holds PREFIX-R.npy, PREFIX-Z.npy and others")
    if name in _DEFINED and name != "npy" and not is_file:
        raise MFPyGError(f"{path} is a folder; expected a file")


def _split_levels(text: str) -> tuple[str, list[str]]:
    """Split ``PATH[:LEVEL…]`` into the path, which may contain colons, and the levels."""
    pieces = text.split(":")
    n = len(pieces)
    while n > 1 and (not pieces[n - 1] or LEVEL.fullmatch(pieces[n - 1])):
        n -= 1
    if not os.path.exists(":".join(pieces[:n])):  # a malformed level, or a path that looks like one
        files = (k for k in range(len(pieces), 0, -1) if os.path.isfile(":".join(pieces[:k])))
        n = next(files, n)
    return ":".join(pieces[:n]), pieces[n:]


def _format_of(path: str) -> str:
    """Format of a file by its suffix, else ``ase`` for an existing file; empty if the suffix is of several layouts."""
    stem, suffix = os.path.splitext(path.lower())
    if suffix in _COMPRESSED:
        suffix = os.path.splitext(stem)[1]
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    return "ase" if suffix not in _NEEDS_NAME and os.path.isfile(path) else ""


def _is_prefix(path: str) -> bool:
    """True if a path is the beginning of names of ``.npy`` files."""
    folder, start = Path(path).parent, Path(path).name
    return any(file.name.startswith(start) for file in folder.glob("*.npy"))


def parse_specs(texts: Iterable[str]) -> tuple[DatasetSpec, ...]:
    """Parse data sets that are to be combined into one.

    Raises:
        MFPyGError: for an empty list, a malformed or repeated data set, or a fidelity that is not the same level of
            theory in all of them.
    """
    specs = tuple(DatasetSpec.parse(text) for text in texts)
    if not specs:
        raise MFPyGError("no data set given: expected at least one, as in --dataset minichno")
    places: dict[Path, DatasetSpec] = {}
    for spec in specs:
        first = places.setdefault((spec.path or BUNDLED).resolve(), spec)
        if first is not spec:
            again = "" if first == spec else f", again as {spec}"
            raise MFPyGError(f"data set {first} is given 2 times{again}; give it once")
    combined_levels(specs)
    return specs


def recorded_specs(texts: Iterable[str], otherwise: str) -> tuple[DatasetSpec, ...]:
    """Parse the data sets that a run was trained on, which may have moved since.

    Args:
        texts: data sets as recorded by the run.
        otherwise: command to give their new location.

    Raises:
        MFPyGError: as :func:`parse_specs`, with the command.
    """
    try:
        specs = parse_specs(texts)
        for spec in specs:
            if spec.path is not None and not spec.path.exists():  # the usual place of a data set
                raise _missing(spec.path)
    except MFPyGError as error:
        raise MFPyGError(f"{error}; if the data have moved, say where they are now: {otherwise}") from error
    return specs


def _missing(path: Path, meant: str = "") -> MFPyGError:
    where = "" if path.is_absolute() else f" in the current folder, {Path.cwd()}"
    return MFPyGError(f"{path}: no such file or folder{where}; expected a raw file or a data-set root{meant}")


def combined_levels(specs: Sequence[DatasetSpec]) -> tuple[LevelOfTheory, ...]:
    """Levels that any of the data sets may have, merged by :func:`mfpyg.datasets.levels.merged_levels`.

    Raises:
        MFPyGError: if two data sets use one name for different levels of theory.
    """
    return merged_levels((level, str(spec)) for spec in specs for level in spec.levels)


def open_dataset(
    spec: DatasetSpec | Sequence[DatasetSpec], fidelities: Sequence[str] = (), **kwargs: Any
) -> ConformationDataset:
    """Open a data set, or the union of several, with at least these fidelities.

    If the usual levels suffice, all of them are read, so that runs on different ones share one processed file.

    Args:
        spec: data set to open; several are combined into one.
        fidelities: names of the required levels.
        kwargs: as in :class:`ConformationDataset`.

    Raises:
        MFPyGError: if a file is missing or invalid, or lacks one of these fidelities.
    """
    from mfpyg import datasets

    if isinstance(spec, DatasetSpec):
        return _open(spec, fidelities, kwargs)
    if len(spec) == 1:
        return _open(spec[0], fidelities, kwargs)
    for_members: dict[str, Any] = {
        name: kwargs[name] for name in ("track", "force_reload", "properties") if name in kwargs
    }
    members = []
    for member in spec:
        wanted = [name for name in available_fidelities(member) if name in fidelities]
        if fidelities and not wanted:
            raise MFPyGError(
                f"{member} has none of the fidelities {', '.join(fidelities)} "
                f"(it has {', '.join(available_fidelities(member))}); leave it out"
            )
        members.append(_open(member, wanted, for_members))
    having = {name for member in members for name in member.fidelities}
    for name in fidelities:
        if name not in having:
            raise MFPyGError(f"none of {', '.join(map(str, spec))} has the fidelity '{name}'")
    root = cached_root("unions", [file for member in members for file in member.files])
    return datasets.UnionDataset(root, members, **kwargs)


def available_fidelities(spec: DatasetSpec) -> tuple[str, ...]:
    """Names of the levels whose keys the raw file has.

    Raises:
        MFPyGError: if the file is missing or invalid.
    """
    if spec.name not in _RELEASES:
        return tuple(level.name for level in spec.levels)
    from mfpyg.datasets.release import levels_in

    raw = _raw_file(spec)
    if not raw.is_file():
        _construct(spec, None, {})  # raises, with the command that downloads it
    return tuple(level.name for level in levels_in(raw, spec.levels))


def _open(spec: DatasetSpec, fidelities: Sequence[str], kwargs: dict[str, Any]) -> ConformationDataset:
    if spec.name in _RELEASES and set(fidelities) <= set(DEFAULT_LEVELS):
        usual = _construct(spec, None, {**kwargs, "whole_only": True})
        if set(fidelities) <= set(usual.fidelities):
            return usual
    return _construct(spec, tuple(fidelities) if spec.name in _RELEASES else None, kwargs)


def _construct(spec: DatasetSpec, fidelities: tuple[str, ...] | None, kwargs: dict[str, Any]) -> ConformationDataset:
    from mfpyg import datasets

    dataset = getattr(datasets, _CLASSES[spec.name])
    if spec.name not in _RELEASES:
        return dataset(spec.path, *([spec.defined] if spec.defined else []), fidelities, **kwargs)
    if spec.path is None:
        root = cache_dir() / "minichno"
    else:
        root = cached_root("files", [spec.path]) if spec.path.is_file() else spec.path
    return dataset(root, fidelities, file=_raw_file(spec), **kwargs)


def _raw_file(spec: DatasetSpec) -> Path:
    if spec.path is None:
        return BUNDLED
    return spec.path if spec.path.is_file() else spec.path / "raw" / _RELEASES[spec.name]
