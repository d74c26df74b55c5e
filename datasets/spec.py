"""What ``--dataset`` says: a data set by name, or a file and what its keys mean.

Plain data, importable without torch, so that a command can check its options at once.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mfpyg.datasets.levels import LEVELS
from mfpyg.errors import MFPyGError, did_you_mean, unknown_name
from mfpyg.fidelity import Fidelity, LevelOfTheory, is_name
from mfpyg.units import energy_unit, force_unit

BUNDLED = Path(__file__).parent / "data" / "minichno.h5"
"""The raw file that ships with the package."""

_PLACES = {
    "minichno": None,
    **{name: Path("data/ani1x") for name in ("ani1x", "ani1ccx")},
    **{name: Path("data") / name for name in ("ani2x", "comp6")},
}
_DEFINED = ("xyz", "ase", "npz", "npy", "pyanitools")
_BY_SUFFIX = {".xyz": "xyz", ".extxyz": "xyz", ".db": "xyz", ".npz": "npz"}
_COMPRESSED = (".gz", ".bz2", ".xz")
_NEEDS_NAME = (".h5", ".hdf5", ".npy")  # whose layout the suffix does not tell
_LEVEL = re.compile(r"(?P<name>[^=@]+)=(?P<energy>[^,@]+)(,(?P<forces>[^,@]+))?@(?P<unit>[^,@]+)(,(?P<per>[^,@]+))?")
GRAMMAR = "NAME=ENERGY[,FORCES]@UNIT, as cc=cc_energy@Hartree or dz=dft_energy,dft_forces@eV"


@dataclass(frozen=True)
class DatasetSpec:
    """A data set, where its raw file or its root is, and what its keys mean.

    Attributes:
        name: of a data set whose levels are known (``minichno``, ``ani1x``, ``ani1ccx``, ``ani2x``, ``comp6``), or of
            a format (``xyz``, ``ase``, ``npz``, ``npy``, ``pyanitools``).
        path: raw file or root folder; ``None`` for the bundled one.
        defined: levels of theory of a file, which only the user can know.
    """

    name: str
    path: Path | None = None
    defined: tuple[LevelOfTheory, ...] = ()

    @classmethod
    def parse(cls, text: str) -> DatasetSpec:
        """Read ``NAME``, ``NAME:PATH``, ``FILE:LEVEL[:LEVEL…]`` or ``FORMAT:FILE:LEVEL[:LEVEL…]``.

        A LEVEL is ``NAME=ENERGY[,FORCES]@UNIT[,FORCE_UNIT]``: the name of the fidelity, the key of its total
        energy (several whose values add up, joined by ``+``), the key of its forces (with ``-`` before
        it where it holds the gradient), and the units (see :mod:`mfpyg.units`; forces are per Å
        unless said otherwise). A key that a frame may lack is followed by ``?``.

        Levels are taken off the end, so that the path may contain colons; ``~`` at its start is the home folder.
        A file whose name is that of a data set or a format is written ``./NAME``, or with its format before it.

        Raises:
            MFPyGError: for an unknown name, a path that does not exist, or a malformed level.
        """
        start, colon, rest = text.partition(":")
        known = (*LEVELS, *_DEFINED)
        path, levels = os.path.expanduser(rest), list[str]()
        if start not in LEVELS:
            path, levels = _parted(os.path.expanduser(rest if start in _DEFINED else text))
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
                raise MFPyGError(f"{path}: its keys are not known; say what they mean, {path}:{GRAMMAR}")
            return cls(name, Path(path), parse_levels(levels))
        return cls(name, Path(path))

    @property
    def levels(self) -> tuple[LevelOfTheory, ...]:
        """Levels of theory that the data set can have."""
        return self.defined or LEVELS[self.name]

    @property
    def label(self) -> str:
        """A short name, for files and tables."""
        return self.path.stem if self.defined and self.path is not None else self.name

    def __str__(self) -> str:
        if self.path is None:
            return self.name
        path = str(self.path)
        plain = _format_of(path) == self.name and path.partition(":")[0] not in (*LEVELS, *_DEFINED)
        return ":".join([path if plain else f"{self.name}:{path}", *(level_as_text(level) for level in self.defined)])


def _check_path(name: str, path: str, meant: str) -> None:
    """Check that a path is there, and a file or a folder as the format wants it.

    Args:
        name: of the data set or the format.
        path: after the name.
        meant: what the name may have been meant to be, for the error.
    """
    try:
        found, is_file = Path(path).exists(), Path(path).is_file()
    except OSError as error:
        raise MFPyGError(f"{path}: can't be read ({error.strerror})") from error
    if not found and not (name == "npy" and _starts_files(path)):
        raise _missing(Path(path), meant)
    if name == "npy" and is_file:
        raise MFPyGError(f"{path} is a file; expected the folder that holds PREFIX-R.npy, PREFIX-Z.npy and others")
    if name in _DEFINED and name != "npy" and not is_file:
        raise MFPyGError(f"{path} is a folder; expected a file")


def _parted(text: str) -> tuple[str, list[str]]:
    """The path and the levels in ``PATH[:LEVEL…]``, either of which may contain colons that belong to the path."""
    pieces = text.split(":")
    n = len(pieces)
    while n > 1 and (not pieces[n - 1] or _LEVEL.fullmatch(pieces[n - 1])):
        n -= 1
    if not os.path.exists(":".join(pieces[:n])):  # a malformed level, or a path that looks like one
        files = (k for k in range(len(pieces), 0, -1) if os.path.isfile(":".join(pieces[:k])))
        n = next(files, n)
    return ":".join(pieces[:n]), pieces[n:]


def _format_of(path: str) -> str:
    """The format of a file by its suffix, else ``ase`` for one that is there; empty for what can't be told."""
    stem, suffix = os.path.splitext(path.lower())
    if suffix in _COMPRESSED:
        suffix = os.path.splitext(stem)[1]
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    return "ase" if suffix not in _NEEDS_NAME and os.path.isfile(path) else ""


def _starts_files(path: str) -> bool:
    """Whether it is the beginning of the names of ``.npy`` files."""
    folder, start = Path(path).parent, Path(path).name
    return any(file.name.startswith(start) for file in folder.glob("*.npy"))


def parse_specs(texts: Iterable[str]) -> tuple[DatasetSpec, ...]:
    """Read several data sets that are to be one.

    Raises:
        MFPyGError: for an empty list, anything malformed, one that stands there twice, or a fidelity
            that is not the same level of theory in all of them.
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
    """Read the data sets that a run was trained on, which may have moved since.

    Args:
        texts: as the run names them.
        otherwise: command that names them anew.

    Raises:
        MFPyGError: as :func:`parse_specs`, saying how to go on.
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
    """Levels that at least one of the data sets can have; with forces where one of them has.

    Raises:
        MFPyGError: where two data sets call different levels of theory by one name.
    """
    return merged_levels((level, str(spec)) for spec in specs for level in spec.levels)


def merged_levels(each: Iterable[tuple[LevelOfTheory, str]]) -> tuple[LevelOfTheory, ...]:
    """One level for each name, with forces where one has them, and the method that one of them says.

    Args:
        each: levels, and the data set that each is of.

    Raises:
        MFPyGError: if levels of one name are different levels of theory, as far as they say what they are.
    """
    found: dict[str, LevelOfTheory] = {}
    said: dict[str, str] = {}  # which data set said what the level is
    for level, where in each:
        known = found.setdefault(level.name, level)
        if level.method and known.method and level.method != known.method:
            raise MFPyGError(
                f"fidelity '{level.name}' is {known.method} in {said[level.name]}, but {level.method} in {where}; "
                f"different levels of theory need different names"
            )
        if level.method:
            said.setdefault(level.name, where)
        method, forces = known.method or level.method, known.forces or level.forces
        found[level.name] = replace(known, method=method, forces=forces)
    return tuple(found.values())


def parse_levels(texts: Iterable[str]) -> tuple[LevelOfTheory, ...]:
    """Read levels such as ``dz=dft_energy,dft_forces@eV``.

    Raises:
        MFPyGError: for a malformed one, an unknown unit, or a name that stands there twice.
    """
    return as_levels(list(texts))


def as_levels(given: Sequence[LevelOfTheory | str] | str) -> tuple[LevelOfTheory, ...]:
    """Levels from objects and from texts such as ``dz=dft_energy,dft_forces@eV``.

    Raises:
        MFPyGError: for a malformed one, an unknown unit, a name that stands there twice, or none at all.
    """
    each = [given] if isinstance(given, str) else given
    for level in each:
        if not isinstance(level, LevelOfTheory | str):
            raise MFPyGError(f"level is {level!r}, expected a LevelOfTheory, or a text such as dz=energies@Hartree")
    levels = tuple(level if isinstance(level, LevelOfTheory) else _parse_level(level) for level in each)
    if not levels:
        raise MFPyGError(f"no level of theory given; say what the keys mean: {GRAMMAR}")
    names = [level.name for level in levels]
    for name in names:
        if names.count(name) > 1:
            raise MFPyGError(f"fidelity '{name}' is defined {names.count(name)} times; define it once")
    return levels


def _parse_level(text: str) -> LevelOfTheory:
    match = _LEVEL.fullmatch(text)
    if match is None:
        raise MFPyGError(f"malformed level '{text}': expected {GRAMMAR}")
    name, unit, forces = match["name"], match["unit"], match["forces"]
    Fidelity(name)  # checks the name
    keys = match["energy"].split("+")
    gradient = forces is not None and forces.startswith("-")
    if gradient:
        forces = forces[1:]
    every = keys if forces is None else [*keys, forces]
    if not all(key.removesuffix("?") for key in every):
        raise MFPyGError(f"malformed level '{text}': a key is empty; expected {GRAMMAR}")
    if forces is None and match["per"] is not None:
        raise MFPyGError(f"malformed level '{text}': it has a unit of forces, but no key of forces")
    return LevelOfTheory(
        name,
        tuple(key.removesuffix("?") for key in keys),
        None if forces is None else forces.removesuffix("?"),
        method="",
        energy_unit=energy_unit(unit),
        forces_unit=force_unit(match["per"] or f"{unit}/Å"),
        gradient=gradient,
        optional=tuple(key.removesuffix("?") for key in every if key.endswith("?")),
    )


def level_as_text(level: LevelOfTheory) -> str:
    """The inverse of :func:`parse_levels` for one level."""

    def written(key: str) -> str:
        return f"{key}?" if key in level.optional else key

    text = f"{level.name}={'+'.join(written(key) for key in level.energy)}"
    if level.forces is not None:
        text += f",{'-' if level.gradient else ''}{written(level.forces)}"
    text += f"@{level.energy_unit}"
    default = f"{level.energy_unit}/Å"
    return text if level.forces_unit == default else f"{text},{level.forces_unit}"
