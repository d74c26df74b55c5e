"""Reference pages of commands and settings, generated from the parsers and the settings classes.

Importable without torch, as the commands themselves are.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import inspect
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from mfpyg import backbones
from mfpyg import settings as s
from mfpyg.options import choices_of, flat, in_words

ROOT = Path(__file__).resolve().parents[2]
_SCRIPT = re.compile(r'^(mfpyg[\w-]*) = "([\w.]+):\w+"$', re.MULTILINE)
_CODE = re.compile(r"^--[a-z]|[=@_]|^\.[a-z]|[\w*]\.[a-z]+\b|^\w+:[A-Z]+$|^mfpyg-?[a-z]*$|[A-Z]:[A-Z]|^\w+/\w+/")
_USUAL_TITLES = {"positional arguments": "Arguments", "options": "Options", "optional arguments": "Options"}


def scripts() -> dict[str, ModuleType]:
    """Module of each command, in the order of ``pyproject.toml``."""
    found = _SCRIPT.findall((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {name: importlib.import_module(module) for name, module in found}


def parser_of(module: ModuleType) -> argparse.ArgumentParser | None:
    """Parser of a command, with the defaults of preset ``published``; ``None`` if it has none."""
    options = importlib.util.find_spec(f"{module.__name__}_options")
    if not hasattr(module, "build_parser") and options is not None:
        module = importlib.import_module(options.name)
    builder = getattr(module, "build_parser", None)
    known = {} if builder is None else inspect.signature(builder).parameters
    given = {"backbone": "hipnn", "preset": "published"}
    return None if builder is None else builder(**{name: given[name] for name in given if name in known})


def commands_page() -> str:
    """Markdown of all commands."""
    lines: list[str] = []
    small = flat(s.defaults("small", "hipnn"))
    for name, module in scripts().items():
        lines += [f"## {name} {{ #{name} }}", ""]
        parser = parser_of(module)
        if parser is None:  # a command that names the others
            lines += _overview(module.overview())
        else:
            lines += _command(name, parser, small if name == "mfpyg-train" else {})
    return "\n".join(lines)


def _overview(text: str) -> Iterator[str]:
    """Lines such as ``  mfpyg-train  what it does`` as a list, and the others as they are."""
    for line in text.splitlines():
        found = re.fullmatch(r"  (mfpyg[\w -]*?) +((?<=  ).*)", line)
        if found is None:
            yield prose(line)
        else:
            link = f"(#{found[1]})" if "-" in found[1] else ""
            yield f"- {'[' * bool(link)}`{found[1]}`{']' * bool(link)}{link}: {prose(found[2])}"
    yield ""


def _command(name: str, parser: argparse.ArgumentParser, small: Mapping[str, Any]) -> Iterator[str]:
    description, _, example = (parser.description or "").partition("Example: ")
    yield from (prose(description.strip()), "")
    yield from ("```text", " ".join(parser.format_usage().removeprefix("usage: ").split()), "```", "")
    if example:
        yield from ("Example:", "", "```sh", example, "```", "")
    if parser.epilog:
        yield from (prose(parser.epilog), "")
    for group, actions in option_groups(parser):
        title = group.title or "Options"
        title = _USUAL_TITLES.get(title, title[:1].upper() + title[1:])
        yield from (f"### {prose(title)} {{ #{name}-{_slug(title)} }}", "")
        if group.description:
            yield from (prose(group.description), "")
        for action in actions:
            yield from _option(name, parser, action, small)


def option_groups(parser: argparse.ArgumentParser) -> list[tuple[Any, list[argparse.Action]]]:
    """Groups of a parser, each with the options that it shows."""
    every = [
        (group, [a for a in group._group_actions if a.help != argparse.SUPPRESS and not _is_help(a)])
        for group in parser._action_groups
    ]
    return [(group, actions) for group, actions in every if actions]


def _is_help(action: argparse.Action) -> bool:
    return "--help" in action.option_strings


def anchor(command: str, action: argparse.Action) -> str:
    """Anchor of an option on the page: ``mfpyg-train--optim.lr``; of an argument: ``mfpyg-inspect-file``."""
    return command + (max(action.option_strings, key=len) if action.option_strings else f"-{action.dest}")


def _option(
    command: str, parser: argparse.ArgumentParser, action: argparse.Action, small: Mapping[str, Any]
) -> Iterator[str]:
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar or action.dest}`"
    yield from (f"#### {names} {{ #{anchor(command, action)} }}", "")
    values, facts = _choices(action), []
    if action.option_strings and action.nargs != 0:
        metavar = action.metavar or (values and "{" + ",".join(values) + "}") or action.dest.upper()
        facts.append(f"`{metavar}{' …' if action.nargs in ('+', '*') else ''}`")
    facts += ["required"] * bool(action.required and action.option_strings)
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    told = re.search(r" \(default: (.*)\)$", text)
    facts += _default(action, small) if told is None else [f"default: {prose(told[1])}"]
    text = text if told is None else text[: told.start()]
    if facts:
        yield from (" · ".join(facts), "")
    lead, *pairs = _by_value(text, values)
    if lead:
        yield from (sentence(lead) if not pairs else prose(lead[:1].upper() + lead[1:]) + ":", "")
    for value, meaning in zip(pairs[::2], pairs[1::2], strict=True):
        yield f"- `{value}`: {sentence(meaning)}"
    yield from [""] * bool(pairs)


def _choices(action: argparse.Action) -> list[str]:
    """Values that an option allows, which may be in its metavar only: ``{auto,cpu,cuda}``."""
    if action.choices is not None:
        return [str(value) for value in action.choices]
    braces = re.fullmatch(r"\{(.*)\}", action.metavar) if isinstance(action.metavar, str) else None
    return braces[1].split(",") if braces else []


def _default(action: argparse.Action, small: Mapping[str, Any]) -> list[str]:
    if action.default in (None, argparse.SUPPRESS, [], "") or action.nargs == 0 or action.dest == "preset":
        return []
    words = f"default: `{_value(action.default)}`"
    other = small.get(action.dest, action.default)
    return [words if other == action.default else f"{words}, with preset small `{_value(other)}`"]


def _value(value: Any) -> str:
    """Value as in YAML and on the command line."""
    if isinstance(value, list):
        return " ".join(map(str, value)) or "[]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _by_value(text: str, values: Sequence[str]) -> list[str]:
    """Split a help text into its beginning, and then each value that it explains and the explanation."""
    words = "|".join(re.escape(word) for word in (*values, "null"))
    return re.split(rf"(?:^|; )({words}): ", text) if values else [text]


def prose(text: str) -> str:
    """Plain text as Markdown in one line, with names, options and values as code."""
    pieces = re.split(r"((?<!\w)'[^']+'(?!\w)|\s+)", text)
    marked = "".join(" " if piece.isspace() else _as_code(piece) for piece in pieces)
    marked = re.sub(r"(`--[\w.-]+)` ([A-Z]+)\b", r"\1 \2`", marked)  # an option and its value
    return marked.replace("` `", " ")


def _as_code(word: str) -> str:
    before, core, after = re.fullmatch(r"(\(?)(.*?)([,;.:)]*)", word).groups()
    if core.startswith("https:"):
        return f"{before}<{core}>{after}"
    if core.startswith("'") or _CODE.search(core):
        return f"{before}`{core.strip(chr(39))}`{after}"
    return re.sub(r"([\\`*_\[\]{}#|$])", r"\\\1", word).replace("<", "&lt;")


def sentence(text: str) -> str:
    """A help text as a sentence, unless it begins with a name."""
    first = text[:1].upper() if re.match(r"[a-z]+(?:-[a-z]+)*[ ,;]", text) else text[:1]
    return prose(first + text[1:]) + "." * (text[-1:] not in ".:")


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def settings_page() -> str:
    """Markdown tables of all settings, in the groups of ``mfpyg-train --help``, and of the options of the backbones."""
    known, published, small = dict(_fields(s.TrainSettings)), *(flat(s.defaults(p, "hipnn")) for p in s.PRESETS)
    lines, shown = [], set()
    parser = parser_of(scripts()["mfpyg-train"])
    for group, actions in option_groups(parser):
        names = [action.dest for action in actions if action.dest in known]
        shown.update(names)
        if names and not names[0].startswith("model."):
            title = _USUAL_TITLES.get(group.title or "", group.title or "")
            lines += [f"## {prose(title[:1].upper() + title[1:])}", "", *_table(names, known, published, small)]
    missing = known.keys() - shown
    if missing:
        raise LookupError(f"mfpyg-train --help has no options for the settings {', '.join(sorted(missing))}")
    return "\n".join([*lines, *_backbones()])


def _fields(cls: type, prefix: str = "") -> Iterator[tuple[str, tuple[dataclasses.Field[Any], Any]]]:
    """Settings by dotted names, each with its type."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = type(field.default_factory()) if callable(field.default_factory) else hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from _fields(kind, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, (field, hints[field.name])


def _table(
    names: Iterable[str], known: Mapping[str, Any], published: Mapping[str, Any], small: Mapping[str, Any], of: str = ""
) -> Iterator[str]:
    yield from ("| setting | default | values | meaning |", "| --- | --- | --- | --- |")
    for name in names:
        field, kind = known[name]
        default = "" if name == "preset" else f"`{_value(published[name])}`"
        if small[name] != published[name] and default:
            default += f", small: `{_value(small[name])}`"
        choices = [str(value) for value in choices_of(field)]
        words = "|".join(re.escape(word) for word in (*choices, "null"))
        meaning = re.sub(rf"(^|; )({words}): ", r"\1`\2`: ", prose(field.metadata["help"]))
        values = ", ".join(f"`{value}`" for value in choices) or _words(kind, field)
        # An anchor beside the option of mfpyg-train, as which the search finds it.
        link = f"[`{name}`](commands.md#mfpyg-train--{name.replace('_', '-')})" if not of else f"`{name}`"
        identifier = f"{of}.{name.removeprefix('model.')}" if of else name
        yield f"| {link}{{ #{identifier} }} | {default} | {values} | {meaning} |"
    yield ""


def _words(kind: Any, field: dataclasses.Field[Any]) -> str:
    """Type of a setting and its bounds in words."""
    words, low, high = in_words(kind).partition(" such as ")[0], field.metadata.get("low"), field.metadata.get("high")
    if low is not None:
        bounds = f" of at least {low:g}" if high is None or high > 1e18 else f" from {low:g} to {high:g}"
        words = re.sub("(number)", rf"\1{bounds}", words)
    return words


def _backbones() -> Iterator[str]:
    yield from ("## Options of the backbones", "")
    for kind in backbones.registry.known.values():
        known = dict(_fields(kind.options, "model."))
        published, small = (flat({"model": s.defaults(preset, kind.name)["model"]}) for preset in s.PRESETS)
        yield from (f"### {kind.name} {{ #{kind.name} }}", "", prose(inspect.getdoc(kind.options) or ""), "")
        yield from _table(known, known, published, small, kind.name)
