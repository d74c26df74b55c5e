"""Options of ``mfpyg-train``, and settings from the command line, a YAML file or a run."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mfpyg import backbones
from mfpyg import settings as s
from mfpyg.cli.common import Parser, hyphenated
from mfpyg.cli.train_help import METAVARS, add_help, group_options
from mfpyg.datasets.spec import parse_specs
from mfpyg.errors import MFPyGError
from mfpyg.old_settings import updated
from mfpyg.options import alternatives, choices_of, flat, in_words, merged
from mfpyg.strict_yaml import read_yaml
from mfpyg.training.folder import RunFolder

if TYPE_CHECKING:
    from mfpyg.training.initial import InitialModel

NAME = "mfpyg-train"
DESCRIPTION = (
    "Train one network on several levels of theory, and print the errors of each.\n\n"
    "Example: mfpyg-train --fidelities dz:EF cc:E"
)


def parse(arguments: Sequence[str]) -> tuple[s.TrainSettings, Path | None]:
    """Settings from the command line, the file of ``--config`` or the run of ``--resume``, and the preset.

    Returns:
        The settings, and the run folder to resume, if any.

    Raises:
        MFPyGError: for an unknown name or a value of the wrong type.
    """
    first = _first(arguments)
    resumed, path, stored = _stored(first)
    model = _initial(first.init or stored.get("init")) if resumed is None else None
    network = {} if model is None else model.network
    backbone = str(first.backbone or stored.get("backbone") or network.get("backbone") or "hipnn")
    if backbone != network.get("backbone", backbone):
        raise MFPyGError(f"{model} has backbone {network['backbone']}, not {backbone}; leave backbone out")
    parser = build_parser(backbone, str(first.preset or stored.get("preset") or s.default_preset(first.dataset or [])))
    given = parser.parse_args(arguments, defaults=False).as_dict()
    if resumed is not None and "out" in given:
        raise MFPyGError("--resume continues in the folder of its run; leave --out out")
    for name in ("preset", "backbone"):
        if given.get(name, stored.get(name)) != stored.get(name, given.get(name)):
            raise MFPyGError(
                f"--{name} is {given[name]}, but the settings in {path} were made for {stored[name]}; give one of them"
            )
    try:
        s.from_dict({**stored, "backbone": backbone})
    except MFPyGError as error:
        raise MFPyGError(f"{path}: {error}") from error
    printed = given.pop("print_config", False)
    for name in ("config", "resume"):
        given.pop(name, None)
    values = merged(stored, {**given, "backbone": backbone})
    # A run has all settings; those that its version did not have yet are off, whatever the preset is now.
    settings = s.completed(values, network) if resumed is None else s.from_dict(values)
    if printed:
        print(yaml.safe_dump(s.to_dict(settings), sort_keys=False, allow_unicode=True), end="")
        raise SystemExit(0)
    return _completed(settings, model), resumed


def _first(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments that determine the other options and the defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--config", "--resume", "--init", "--backbone", "--preset"):
        parser.add_argument(name, nargs="?")
    parser.add_argument("--dataset", nargs="*")
    return parser.parse_known_args(hyphenated(arguments))[0]


def _stored(first: argparse.Namespace) -> tuple[Path | None, Path | None, dict[str, Any]]:
    """Run to resume and file of settings, each if any, and the contents of the file.

    Raises:
        MFPyGError: if the run or the file does not exist, or both are given.
    """
    if not first.resume:
        path = Path(first.config) if first.config else None
        return None, path, {} if path is None else updated(read_yaml(path))
    if first.config:
        raise MFPyGError("--resume takes the settings of its run; leave --config out")
    folder = RunFolder(Path(first.resume))
    folder.check_resumable()
    stored = updated(read_yaml(folder.config))
    if stored.get("backbone", "hipnn") not in backbones.names():
        package = folder.read_versions().get("backbone_package")
        if package is not None:
            raise MFPyGError(f"{folder.path}: {backbones.missing(stored['backbone'], package)}")
    return folder.path, folder.config, stored


def _initial(path: Any) -> InitialModel | None:
    """Initial potential of a new run, if any; torch is imported only then."""
    if path is None:
        return None
    from mfpyg.training.initial import read_initial

    return read_initial(str(path))


def _completed(settings: s.TrainSettings, model: InitialModel | None) -> s.TrainSettings:
    if model is None:
        return settings
    from mfpyg.training.initial import completed

    return completed(settings, model)


def build_parser(backbone: str, preset: str = "small") -> Parser:
    """Parser of all settings, with the options of a backbone and the defaults of a preset."""
    usage = f"{NAME} --fidelities NAME:LABELS ... [options]"
    parser = Parser(prog=NAME, usage=usage, description=DESCRIPTION, add_help=False)
    add_help(parser)
    for name, text in (
        ("config", "YAML file of settings, such as --print-config prints; options given as well take precedence"),
        ("resume", "run folder of a stopped run to continue"),
    ):
        parser.add_argument(f"--{name}", metavar=METAVARS[name], default=argparse.SUPPRESS, help=text)
    parser.add_argument(
        "--print-config", action="store_true", default=argparse.SUPPRESS, help="print all settings as YAML, and exit"
    )
    settings = s.TrainSettings(model=backbones.find(backbone).options())
    groups = [f.name for f in dataclasses.fields(settings) if dataclasses.is_dataclass(getattr(settings, f.name))]
    parser.add_class_arguments(s.TrainSettings, as_group=False, skip=set(groups))
    _describe(parser, s.TrainSettings)
    for name in groups:
        kind = type(getattr(settings, name))
        parser.add_class_arguments(kind, name, as_group=False)
        _describe(parser, kind, f"{name}.")
    parser.set_defaults(flat(s.defaults(preset, backbone)))
    group_options(parser)
    return parser


def _describe(parser: Parser, cls: type, prefix: str = "") -> None:
    """Set the help and metavar of the options of a settings class from its fields."""
    hints = typing.get_type_hints(cls)
    fields = {prefix + f.name: f for f in dataclasses.fields(cls)}
    for action in parser._actions:
        if action.dest in fields:
            field, kind = fields[action.dest], hints[fields[action.dest].name]
            action.help = field.metadata.get("help", "")
            action.metavar = METAVARS.get(action.dest) or _metavar(kind, choices_of(field))
            parser.words[action.dest] = in_words(kind)


def _metavar(kind: Any, choices: tuple[str, ...]) -> str:
    if choices:
        return "{" + ",".join(map(str, choices)) + "}"
    kinds = [k for k in alternatives(kind) if k is not type(None)]
    return "|".join({"int": "N", "float": "X", "bool": "{true,false}"}.get(kind.__name__, "TEXT") for kind in kinds)


def new_data(settings: s.TrainSettings) -> str:
    """Option that names the data of a run, for messages."""
    return "--split.files train=NEW …" if settings.split.files else "--dataset NEW"


def default_out(settings: s.TrainSettings) -> str:
    """Default run folder, named after data set, backbone and strategy (if not the default), init, fidelities, label
    fractions and seed."""
    labels = "+".join(spec.label for spec in parse_specs(settings.sources))
    backbone = [] if settings.backbone == "hipnn" else [settings.backbone]
    strategy = [] if settings.strategy == "mfl" else [settings.strategy]
    further = [] if settings.init is None else ["init", settings.finetune.old]
    parts = [*further, *settings.fidelities, *settings.label_fraction, f"seed{settings.seed}"]
    name = "-".join([labels, *backbone, *strategy, *parts])
    return f"runs/{name.replace(':', '_')}"
