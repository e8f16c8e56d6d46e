"""The function behind `_target_`: found, checked against its signature, and asked once what it
needs and trains."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loraexp.config import boundary
from loraexp.config.errors import ConfigError, nearest
from loraexp.config.fit import check_bounds, fit, type_hints
from loraexp.config.settings import Plain

# Where the functions of an older `_target_` are now, by the module they were in: old configurations
# and sweeps still open.
MOVED = {"loraexp.costs": "loraexp.theory.costs"}
# Keys of a node that are not keywords of its function; `facts` are what planning needs to know
# before anything is there.
APART = frozenset({"_target_", "_partial_", "facts"})
# What the run itself hands to the function behind `_target_`, never the configuration.
GIVEN = {
    "init": {"layer", "rank", "scaling", "generator"},
    "optimizer": {"adapters", "params", "lr", "weight_decay"},
    "task": {"tokenizer", "cache_root", "progress", "kind", "backend", "unsafe_code"},
    "compute": {"progress", "output_root"},
}

# a sweep asks the same few functions hundreds of times
signature_of = functools.cache(inspect.signature)


@dataclass(frozen=True)
class Component:
    """A task, an initializer, a rule or an experiment: the function behind `_target_` and its
    keywords."""

    group: str
    name: str
    function: Callable[..., Any]
    keywords: Plain

    @classmethod
    def of(cls, node: Mapping[str, object], group: str) -> Component:
        """The component of a configuration's node; raises ConfigError where its function is not
        found."""
        function = target(node, group)
        takes_name = "name" in signature_of(function).parameters
        keywords = {
            key: value
            for key, value in node.items()
            if key not in APART and (key != "name" or takes_name)
        }
        return cls(group, str(node.get("name", function.__name__)), function, keywords)

    @property
    def partial(self) -> functools.partial[Any]:
        """The function with its keywords filled in: the run gives the rest."""
        return functools.partial(self.function, **self.keywords)

    def check(self) -> None:
        """Its keywords are the parameters of its function, of the annotated types; raises
        ConfigError."""
        function = self.function
        parameters = signature_of(function).parameters
        hints = type_hints(function.__init__ if inspect.isclass(function) else function)
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        free = [name for name in parameters if name not in GIVEN[self.group] | {"self"}]
        for key, value in self.keywords.items():
            if key == "name":
                continue
            if key not in free and not open_ended:
                raise ConfigError(f"{self.group}.{key}: there is no such key; {nearest(key, free)}")
            if key in hints:
                fit(f"{self.group}.{key}", value, hints[key])
            if key.startswith("limit_"):
                check_bounds(f"{self.group}.{key}", value, {"above": 0})

    # ---- of an initializer, by its decorator `needs`

    @property
    def needs(self) -> frozenset[str]:
        """The statistics that it reads."""
        return getattr(self.function, "needs", frozenset())

    @property
    def trains(self) -> frozenset[str]:
        """What it lets train: some of A, B, R; W for every weight; nothing where the start is all
        there is."""
        return getattr(self.function, "trains", frozenset({"A", "B"}))

    @property
    def full(self) -> bool:
        """Whether every weight trains and there is no adapter."""
        return "W" in self.trains

    # ---- of a task

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of model that it is for: those it says, or by whether it takes the model's kind
        text or encoders."""
        of_text = "kind" in signature_of(self.function).parameters
        return getattr(
            self.function, "kinds", frozenset({"causal", "seq2seq"} if of_text else {"encoder"})
        )

    # ---- of an optimizer, which says `needs_trained` and `needs_frozen`

    def fits(self, trains: frozenset[str]) -> bool:
        """Whether a rule can step what an initializer trains."""
        return self._said("needs_trained") <= trains and not self._said("needs_frozen") & trains

    @property
    def wants(self) -> str:
        """What a rule needs trained and frozen, in words."""
        trained, frozen = (sorted(self._said(name)) for name in ("needs_trained", "needs_frozen"))
        words = [f"trains {' and '.join(trained)}"] * bool(trained) + [
            f"needs {' and '.join(frozen)} frozen"
        ] * bool(frozen)
        return " and ".join(words)

    def _said(self, name: str) -> frozenset[str]:
        return getattr(self.function, name, frozenset())


def target(node: Mapping[str, object], group: str) -> Callable[..., Any]:
    """The function or class behind `_target_`."""
    path = node.get("_target_")
    if not isinstance(path, str) or "." not in path:
        raise ConfigError(
            f"{group}._target_={path}: expected the dotted path of a function or class"
        )
    module, _, name = path.rpartition(".")
    module = MOVED.get(module, module)
    boundary.admit(path, module, group)
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{group}._target_={path}: cannot be imported ({error}); expected a function or class"
        ) from error
    boundary.admit_function(path, found)
    return found
