"""Registry of strategies for ``--strategy``, built-in and third-party; importable without torch.

A strategy is a function from the inputs of a training (:class:`mfpyg.training.inputs.Inputs`) to the initial potential
and a list of stages (:class:`mfpyg.training.stage.Stage`). Third-party strategies are added with :func:`register` or,
to be available in every command, by an entry point of an installed package in the group ``mfpyg.strategies``::

    [project.entry-points."mfpyg.strategies"]
    mine = "my_package.training:my_stages"

Its options are the fields of a dataclass ``function.Options``, made with :func:`mfpyg.options.setting`, or else the
keyword parameters after the first, and are given as ``--strategy-options name=value``.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mfpyg import strategy_options as builtin
from mfpyg.errors import MFPyGError
from mfpyg.options import alternatives, build, check
from mfpyg.plugins import Plugin, Registry


@dataclass(frozen=True)
class Strategy(Plugin):
    """Registry entry of a strategy; ``factory(inputs, **options)`` creates its stages.

    Built-in strategies read their options from the settings instead.
    """

    def make(self, inputs: Any, texts: Sequence[str] = ()) -> Any:
        """Create the initial potential and the stages, with options from texts such as ``width=3``."""
        options = self.read(texts)
        return self.load()(inputs, **({} if options is None else vars(options)))

    def read(self, texts: Sequence[str]) -> Any:
        """Parse the options of a third-party strategy from texts such as ``width=3``.

        Raises:
            MFPyGError: for an unknown option, a value of the wrong type, or options for a built-in strategy.
        """
        if self.package is None:
            if texts:
                raise MFPyGError(
                    f"strategy_options are given, but strategy {self.name} does not use them; leave them out"
                )
            return None
        values, kinds = dict[str, Any](), typing.get_type_hints(self.options)
        for text in texts:
            name, equals, value = text.partition("=")
            if not equals or name in values:
                raise MFPyGError(f"strategy_options has '{text}', expected each option once, as name=value")
            values[name] = value if str in alternatives(kinds.get(name)) else _plain(value)
        options = build(self.options, values, "strategy_options.")
        check(options, "strategy_options.")
        return options


def _plain(text: str) -> Any:
    """Parse a number, true, false, null or text as YAML does."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, int | float | bool | None) else text


@dataclass
class _NoOptions:
    pass


registry = Registry(
    "strategy",
    "inputs",
    Strategy,
    [
        Strategy("mfl", "mfpyg.training.strategies.joint:stages", _NoOptions),
        Strategy("tl", "mfpyg.training.strategies.transfer:stages", builtin.TransferSettings),
        Strategy("delta", "mfpyg.training.strategies.delta:stages", builtin.DeltaSettings),
        Strategy("meta", "mfpyg.training.strategies.meta:stages", builtin.MetaSettings),
    ],
)
names, find, register = registry.names, registry.find, registry.register
