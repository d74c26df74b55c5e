"""The COMP6 benchmark."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.cache import cached_root
from mfpyg.datasets.chunks import Chunk
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.consistency import negated_forces
from mfpyg.datasets.hdf5 import open_hdf5, reading
from mfpyg.datasets.levels import COMP6_LEVELS
from mfpyg.datasets.pyanitools import LAYOUT, check_keys, chunks_of_file
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.fidelity import LevelOfTheory

URL = "https://github.com/isayev/COMP6"
"""Repository of the official files."""

SETS = {
    "ANI-MD": ("ANI-MD", ("ani_md_bench.h5",)),
    "DrugBank": ("DrugBank", ("drugbank_testset.h5",)),
    "GDB07to09": ("GDB07to09", ("gdb11_07_test500.h5", "gdb11_08_test500.h5", "gdb11_09_test500.h5")),
    "GDB10to13": (
        "GDB10to13",
        ("gdb11_10_test500.h5", "gdb11_11_test500.h5", "gdb13_12_test1000.h5", "gdb13_13_test1000.h5"),
    ),
    "Tripeptides": ("Tripeptides", ("tripeptide_full.h5",)),
    "S66x8": ("s66x8", ("s66x8_wb97x6-31gd.h5",)),
}
"""Folder in the repository's ``COMP6v1/``, and file names, of each set."""

_PLACES = ("raw", "raw/COMP6v1", "raw/COMP6/COMP6v1", "COMP6v1", ".")
"""Folders below the root that are searched for the files, or for the folders of the sets."""


class COMP6(ConformationDataset):
    """COMP6, a benchmark of transferability; see :class:`mfpyg.datasets.ConformationDataset`.

    ======== ================= ======== ======== ===========================================
    name     level of theory   energies forces   in the files
    ======== ================= ======== ======== ===========================================
    dz       ωB97X/6-31G(d)    all      all      Hartree; ``forces`` are gradients, Hartree/Å
    ======== ================= ======== ======== ===========================================

    =========== ==========================================================================
    set         molecules of C, H, N, O
    =========== ==========================================================================
    ANI-MD      14 drugs and 2 small proteins, frames of molecular dynamics at 300 K
    DrugBank    837 drugs, by normal-mode sampling, as the next three
    GDB07to09   1,500 of GDB-11 with 7 to 9 heavy atoms
    GDB10to13   3,000 of GDB-11 and GDB-13 with 10 to 13 heavy atoms
    Tripeptides 248 random tripeptides
    S66x8       66 dimers at 8 separations each, 528 conformations
    =========== ==========================================================================

    ``source`` numbers the sets in the order of ``sources``. A molecule's name is the path of its group, after the
    file's stem if there are several files, as two files may share a path.
    Smith, Nebgen, Lubbers, Isayev, Roitberg, J. Chem. Phys. 148, 241733 (2018).

    Args:
        root: folder that holds the official files in ``raw/`` (directly, in one folder per set, or in ``COMP6v1/`` as
            in the repository), or a clone of the repository; or one file of a set, which is processed in the cache.
        fidelities: as in :class:`mfpyg.datasets.ConformationDataset`.
        sets: names of the sets to read, in this order; by default all whose files are found.
        kwargs: as in :class:`mfpyg.datasets.ConformationDataset`.

    Raises:
        MFPyGError: for an unknown set; if a file of a set is missing, saying where to download it; or if the forces
            have the wrong sign.

    Example:
        >>> COMP6("data/comp6", sets=["GDB10to13", "S66x8"])                     # doctest: +SKIP
    """

    levels = COMP6_LEVELS

    def __init__(
        self,
        root: str | os.PathLike[str],
        fidelities: Sequence[str] | None = None,
        *,
        sets: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        path = Path(root)
        asked = None if sets is None else _checked_sets(sets)
        if path.is_file():
            self._files_of = {_set_of(path, asked): [path]}
        elif path.suffix.lower() in (".h5", ".hdf5") and not path.is_dir():
            raise MFPyGError(f"{path}: no such file; expected a file of COMP6 ({URL}), or a folder of them")
        else:
            self._files_of = {name: _files_in(path, name) for name in asked or _sets_in(path)}
        files = [file for of_set in self._files_of.values() for file in of_set]
        super().__init__(cached_root("files", [path]) if path.is_file() else path, fidelities, files=files, **kwargs)

    def source_names(self) -> list[str]:
        """Names of the sets."""
        return list(self._files_of)

    def find_levels(self, asked: Sequence[LevelOfTheory] | None) -> tuple[LevelOfTheory, ...]:
        levels = super().find_levels(asked)
        check_keys(self.files, levels)
        return levels

    def chunks(self, levels: Sequence[LevelOfTheory]) -> Iterator[Chunk]:
        for number, files in enumerate(self._files_of.values()):
            for file in files:
                prefix = f"{file.stem}/" if len(self.files) > 1 else ""
                yield from chunks_of_file(file, levels, self._track, source=number, prefix=prefix)

    def check_content(self, data: Data, slices: Mapping[str, Tensor], levels: Sequence[LevelOfTheory]) -> None:
        """Check by finite differences that the files' ``forces`` are gradients, which are read with the sign changed.

        Raises:
            MFPyGError: if they are true forces.
        """
        for number, name in enumerate(self._files_of):
            slope = negated_forces(data, slices["z"].numpy(), np.flatnonzero(data.source.numpy() == number))
            if slope is not None:
                raise MFPyGError(
                    f"{self._files_of[name][0]}: the forces are true forces, not gradients as in the official files of "
                    f"{name} (slope of dE against work {slope.value:.3f} over {slope.n_pairs} pairs); "
                    f"read it as pyanitools:FILE:dz=energies,forces@Hartree"
                )

    def download(self) -> None:
        """Raise with the missing files and the commands that download them.

        Raises:
            MFPyGError: always.
        """
        for name, files in self._files_of.items():
            missing = [file for file in files if not file.is_file()]
            if missing:
                count = f"; {name} has {len(files)} files, {len(missing)} of them missing" if len(files) > 1 else ""
                commands = " && ".join(_command(file, name) for file in missing)
                raise MFPyGError(f"{missing[0]}: no such file{count}; download from {URL}: {commands}")


def _command(file: Path, name: str) -> str:
    """Shell command that downloads a file of a set."""
    address = f"{URL}/raw/master/COMP6v1/{SETS[name][0]}/{file.name}"
    return f"curl -L --create-dirs -o {shlex.quote(str(file))} {address}"


def _checked_sets(sets: Sequence[str]) -> list[str]:
    names = [sets] if isinstance(sets, str) else list(sets)
    if not names:
        raise MFPyGError(f"no set of COMP6 given: expected at least one of {', '.join(SETS)}")
    for name in names:
        if name not in SETS:
            raise unknown_name("set of COMP6", name, SETS)
        if names.count(name) > 1:
            raise MFPyGError(f"set '{name}' of COMP6 is given {names.count(name)} times; give it once")
    return names


def _find(root: Path, name: str, file: str) -> Path | None:
    """Path of a file of a set below the root, ``None`` if it is missing."""
    folder = SETS[name][0]
    candidates = (root / place / inner / file for place in _PLACES for inner in (folder, "."))
    return next((path for path in candidates if path.is_file()), None)


def _files_in(root: Path, name: str) -> list[Path]:
    """Files of a set; missing ones at the path where they are to be downloaded."""
    folder, files = SETS[name]
    return [_find(root, name, file) or root / "raw" / folder / file for file in files]


def _sets_in(root: Path) -> list[str]:
    """Sets with at least one file below the root."""
    names = [name for name, (_, files) in SETS.items() if any(_find(root, name, file) for file in files)]
    if not names:
        smallest = _command(_files_in(root, "S66x8")[0], "S66x8")
        raise MFPyGError(
            f"{root}: no file of {', '.join(SETS)} found; download from {URL}, S66x8 for instance: {smallest}"
        )
    return names


def _set_of(file: Path, asked: Sequence[str] | None) -> str:
    """Set of a single file, by the name of the file or of its only group; else the file's stem."""
    official = {name for name, (_, files) in SETS.items() if file.name.lower() in files}
    if not official:
        with open_hdf5(file, LAYOUT) as opened, reading(file):
            groups = list(opened)
        official = {name for name in SETS if len(groups) == 1 and groups[0].lower() == name.lower()}
    found = official.pop() if official else file.stem
    if asked is not None and list(asked) != [found]:
        raise MFPyGError(f"{file} is a file of set {found}, but 'sets' is {', '.join(asked)}; leave out 'sets'")
    return found
