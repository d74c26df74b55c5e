"""From the command line of ``mfpyg-train``, a file of settings or a run to the settings of a training."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfpyg import backbones
from mfpyg import settings as s
from mfpyg.cli.common import Parser, given
from mfpyg.cli.imports import slow_imports
from mfpyg.datasets.spec import parse_specs
from mfpyg.errors import MFPyGError
from mfpyg.finetune_options import KEPT_LR, keeps
from mfpyg.options import alternatives, choices_of, in_words
from mfpyg.strict_yaml import read_yaml
from mfpyg.training.folder import RunFolder

if TYPE_CHECKING:
    from mfpyg.training.initial import InitialModel

NAME = "mfpyg-train"
DESCRIPTION = (
    "Train one network on several levels of theory at once, and report the errors of energies and forces of each. "
    "Example: mfpyg-train --fidelities dz:EF cc:E"
)


def parse(arguments: Sequence[str]) -> tuple[s.TrainSettings, Path | None]:
    """Settings from the command line, the file of ``--config`` or the run of ``--resume``, and the presets.

    Returns:
        The settings, and the run folder to resume, if any.

    Raises:
        MFPyGError: for an unknown name or a value of the wrong kind.
    """
    resumed, config, stored = _stored(arguments)

    def chosen(name: str, otherwise: str) -> str:
        return given(arguments, f"--{name}") or str(stored.get(name) or otherwise)

    for name in ("preset", "backbone"):
        wanted, written = given(arguments, f"--{name}"), stored.get(name)
        if wanted is not None and written is not None and wanted != written:
            raise MFPyGError(
                f"--{name} is {wanted}, but the settings in {config} were made for {written}; give one of them"
            )
    if resumed is not None and stored.get("backbone", "hipnn") not in backbones.names():
        package = RunFolder(Path(resumed)).read_versions().get("backbone_package")
        if package is not None:
            raise MFPyGError(f"{resumed}: {backbones.missing(stored['backbone'], package)}")
    model = None if resumed is not None else _initial(arguments, stored)
    network = {} if model is None else model.network
    backbone = chosen("backbone", network.get("backbone", "hipnn"))
    if backbone != network.get("backbone", backbone):
        raise MFPyGError(f"{model} has backbone {network['backbone']}, not {backbone}; leave backbone out")
    files = _files(arguments, stored)
    sources = [spec for _, spec in s.SplitSettings(files=files).sources]
    dataset = sources or _values(arguments, "--dataset") or stored.get("dataset") or ["minichno"]
    preset = chosen("preset", s.default_preset(dataset if isinstance(dataset, list) else []))
    values = _merged(s.defaults(preset, backbone), network)
    if files:
        values["dataset"] = []
    parser = build_parser(backbone)
    parser.check_names(arguments)
    try:
        s.from_dict({"backbone": backbone, **stored})
    except MFPyGError as error:
        raise MFPyGError(f"{config}: {error}") from error
    if model is not None:
        values["optim"]["lr"] *= _share_of_rate(arguments, stored)
    parser.set_defaults(s.flat(_merged(values, stored)))
    parsed = parser.parse_args(_without(arguments, ("--config", "--resume"))).as_dict()
    parsed.pop("config", None), parsed.pop("resume", None)
    settings = s.from_dict(parsed)
    return _completed(settings, model), None if resumed is None else Path(resumed)


def _stored(arguments: Sequence[str]) -> tuple[str | None, str | None, dict[str, Any]]:
    """The run to resume, the file of settings, each if any, and what that file says.

    Raises:
        MFPyGError: if there is no such run or file, or both are given.
    """
    resumed = given(arguments, "--resume")
    config = given(arguments, "--config")
    if resumed is not None and config is not None:
        raise MFPyGError("--resume takes the settings of its run; leave --config out")
    if resumed is not None and given(arguments, "--out") is not None:
        raise MFPyGError("--resume goes on in the folder of its run; leave --out out")
    if resumed is not None:
        RunFolder(Path(resumed)).check_resumable()
        config = str(RunFolder(Path(resumed)).config)
    return resumed, config, {} if config is None else s.with_dataset_list(read_yaml(Path(config)))


def _initial(arguments: Sequence[str], stored: dict[str, Any]) -> InitialModel | None:
    """The potential that a new run begins with, if any; torch is imported only then."""
    path = given(arguments, "--init") or stored.get("init")
    if path is None:
        return None
    with slow_imports():
        from mfpyg.training.initial import read_initial

    return read_initial(str(path))


def _share_of_rate(arguments: Sequence[str], stored: dict[str, Any]) -> float:
    """What the default learning rate is multiplied by for the way in which a potential is trained further."""
    old = given(arguments, "--finetune.old") or (stored.get("finetune") or {}).get("old", "auto")
    adds = given(arguments, "--add-fidelity") is not None or bool(stored.get("add_fidelity"))
    return KEPT_LR if keeps(old, adds) else 1.0


def _completed(settings: s.TrainSettings, model: InitialModel | None) -> s.TrainSettings:
    if model is None:
        return settings
    from mfpyg.training.initial import completed

    return completed(settings, model)


def build_parser(backbone: str) -> Parser:
    """The parser of all settings, with the options of one backbone."""
    usage = f"{NAME} --fidelities NAME:LABELS [NAME:LABELS ...] [options]"
    parser = Parser(prog=NAME, usage=usage, description=DESCRIPTION, print_config="--print-%s")
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below")
    parser.add_argument(
        "--resume", metavar="RUN", default=argparse.SUPPRESS, help="continue a stopped run in its folder"
    )
    _add(parser, s.TrainSettings(model=backbones.find(backbone).options()), parser.words)
    return parser


def _add(parser: Any, settings: Any, words: dict[str, str], prefix: str = "") -> None:
    """An option for each field of a settings class, groups below it."""
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            _add(parser.add_argument_group(f"{name}: {field.metadata['help']}"), value, words, f"{name}.")
            continue
        kind = hints[field.name]
        options: dict[str, Any] = {"type": kind, "help": field.metadata.get("help", ""), "default": value}
        if typing.get_origin(kind) is list:
            options |= {"type": typing.get_args(kind)[0], "nargs": "+", "metavar": "ITEM"}
        else:
            options["metavar"] = _kind(kind, choices_of(field))
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
        words[name] = in_words(kind)


def _kind(kind: Any, choices: tuple[str, ...]) -> str:
    if choices:
        return "{" + ",".join(map(str, choices)) + "}"
    kinds = [k for k in alternatives(kind) if k is not type(None)]
    return "|".join({"int": "N", "float": "X", "bool": "{true,false}"}.get(kind.__name__, "TEXT") for kind in kinds)


def _values(arguments: Sequence[str], option: str) -> list[str]:
    """What follows an option that is given once, with all its values."""
    following = arguments[arguments.index(option) + 1 :] if option in arguments else []
    return list(itertools.takewhile(lambda word: not word.startswith("--"), following))


def _files(arguments: Sequence[str], stored: dict[str, Any]) -> list[str]:
    """What is given for ``split.files``, or written in the settings, which are not checked yet."""
    written = stored.get("split")
    found = _values(arguments, "--split.files") or (written.get("files") if isinstance(written, dict) else None)
    return [str(text) for text in found] if isinstance(found, list) else []


def new_data(settings: s.TrainSettings) -> str:
    """The option that says where the data of a run are, in words for the user."""
    return "--split.files train=NEW …" if settings.split.files else "--dataset NEW"


def _merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    return {k: _merged(v, over.get(k) or {}) if isinstance(v, dict) else over.get(k, v) for k, v in values.items()}


def _without(arguments: Sequence[str], options: tuple[str, ...]) -> list[str]:
    """The arguments less some options and their values, which have been read already."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in options:
            skip = True
        elif not argument.startswith(tuple(f"{option}=" for option in options)):
            kept.append(argument)
    return kept


def default_out(settings: s.TrainSettings) -> str:
    """Name of the run folder: data set, backbone and strategy if not the default ones, whether a potential is trained
    further, fidelities, their labels' parts and seed."""
    labels = "+".join(spec.label for spec in parse_specs(settings.sources))
    backbone = [] if settings.backbone == "hipnn" else [settings.backbone]
    strategy = [] if settings.strategy == "mfl" else [settings.strategy]
    further = [] if settings.init is None else ["init", settings.finetune.old]
    parts = [*further, *settings.fidelities, *settings.label_fraction, f"seed{settings.seed}"]
    name = "-".join([labels, *backbone, *strategy, *parts])
    return f"runs/{name.replace(':', '_')}"
