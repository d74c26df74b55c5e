"""Levels of theory to compute labels at: a program, a method, its settings, and properties."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.fidelity import Fidelity
from mfpyg.properties import PROPERTIES, listed

if TYPE_CHECKING:
    from mfpyg.labeling.program import Program

PROGRAMS = {
    "tblite": "mfpyg.labeling.calculators:TBLite",
    "pyscf": "mfpyg.labeling.pyscf:PySCF",
    "ase": "mfpyg.labeling.calculators:ASECalculator",
    "mfpyg": "mfpyg.labeling.calculators:TrainedPotential",
}
"""Programs as ``module:class``, see :class:`mfpyg.labeling.program.Program`."""

GRAMMAR = "NAME=PROGRAM:METHOD[,SETTING=VALUE…]:LETTERS, as xtb=tblite:GFN2-xTB:EF or cc=pyscf:CCSD(T)/cc-pVDZ:E"

_METHOD = re.compile(r"(?P<method>.*?)(?P<settings>(?:,[A-Za-z_-]+=[^,=]*)*)", re.DOTALL)


@dataclass(frozen=True)
class LabelLevel:
    """Level of theory to compute labels at.

    Attributes:
        name: name of the fidelity.
        program: key of :data:`PROGRAMS`.
        method: method of the program.
        letters: letters of the properties to compute, with ``E``.
        settings: all settings of the program, also those that were not given.

    >>> LabelLevel.parse("xtb=tblite:gfn2-xtb,accuracy=0.1:EF").method
    'GFN2-xTB'
    """

    name: str
    program: str
    method: str
    letters: str
    settings: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> LabelLevel:
        """Parse ``NAME=PROGRAM:METHOD[,SETTING=VALUE…]:LETTERS``; the method may contain colons.

        Raises:
            MFPyGError: for a malformed text, or an unknown program, method, setting or letter.
        """
        name, equals, rest = text.partition("=")
        written, last, letters = rest.rpartition(":")
        if not (equals and last and written.partition(":")[2]):
            raise MFPyGError(f"malformed level '{text}': expected {GRAMMAR}")
        letters = Fidelity(name, letters).labels
        if "E" not in letters:
            raise MFPyGError(f"level '{name}' has letters {letters}, expected E among them, as in E{letters}")
        try:
            program, method, settings = parse_program(written)
        except MFPyGError as error:
            raise MFPyGError(f"level '{name}': {error}") from error
        return cls(name, program, method, letters, settings)

    def open(self) -> Program:
        """The program, ready to compute.

        Raises:
            MFPyGError: if it is not installed, does not know the method, or does not compute one of the properties.
        """
        try:
            return _opened(self.program, self.method, self.settings, self.letters)
        except MFPyGError as error:
            raise MFPyGError(f"level '{self.name}': {error}") from error

    def fingerprint(self, version: str) -> str:
        """Hash of everything that labels depend on besides the structure: all but the name."""
        about = {**asdict(self), "version": version}
        del about["name"]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.name}={self.program}:{self.method}:{self.letters}"


def parse_label_levels(texts: Iterable[str]) -> tuple[LabelLevel, ...]:
    """Parse levels; see :meth:`LabelLevel.parse`.

    Raises:
        MFPyGError: for no level, a malformed one, or two of one name.
    """
    levels = tuple(LabelLevel.parse(text) for text in texts)
    if not levels:
        raise MFPyGError(f"no level given: expected at least one, {GRAMMAR}")
    names = [level.name for level in levels]
    for name in names:
        if names.count(name) > 1:
            raise MFPyGError(
                f"level '{name}' is given {names.count(name)} times; different levels need different names"
            )
    return levels


def parse_program(text: str) -> tuple[str, str, dict[str, Any]]:
    """Key of :data:`PROGRAMS`, method, and all settings of ``PROGRAM:METHOD[,SETTING=VALUE…]``.

    Raises:
        MFPyGError: for a malformed text, or an unknown program, method or setting.
    """
    program, _, written = text.partition(":")
    if not written:
        raise MFPyGError(f"malformed program '{text}': expected PROGRAM:METHOD[,SETTING=VALUE…], as tblite:GFN2-xTB")
    if program not in PROGRAMS:
        raise unknown_name("program", program, PROGRAMS)
    match = _METHOD.fullmatch(written)
    assert match is not None
    pairs = [pair.partition("=") for pair in match["settings"].split(",")[1:]]
    given = {key.replace("-", "_"): value for key, _, value in pairs}
    return program, *_class_of(program).parse(match["method"], given)


def open_program(text: str, letters: str = "EF") -> Program:
    """The program of ``PROGRAM:METHOD[,SETTING=VALUE…]``, ready to compute.

    Args:
        text: program, method and settings, as in ``tblite:GFN2-xTB,accuracy=0.1``.
        letters: letters of the properties that it has to compute.

    Raises:
        MFPyGError: for a malformed text, or a program that is not installed, does not know the method, or does not
            compute one of the properties.
    """
    return _opened(*parse_program(text), letters)


def _opened(name: str, method: str, settings: Mapping[str, Any], letters: str) -> Program:
    program = _class_of(name)(method, settings)
    missing = [letter for letter in letters if letter not in program.letters]
    if missing:
        raise MFPyGError(
            f"{name} computes no {PROPERTIES[missing[0]].plural} with {method} "
            f"(it computes {listed(program.letters)}, {program.letters})"
        )
    return program


def _class_of(program: str) -> type[Program]:
    module, _, name = PROGRAMS[program].partition(":")
    found: type[Program] = getattr(importlib.import_module(module), name)
    return found
