"""What a training rule needs of the adapters: declared once by `@rule`, checked wherever the rule
is built."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from loraexp import optimizers
from loraexp.adapter.adapted import AdaptedLinear, Adapters

Make = TypeVar("Make", bound=Callable[..., Any])


class Rule(Protocol):
    """A training rule that `rule` has declared."""

    needs_trained: frozenset[str]
    needs_frozen: frozenset[str]
    plain_pair: bool


def as_rule(make: Callable[..., Any]) -> Rule:
    """The function as what its declaration made of it."""
    return cast(Rule, make)


def trained_factors(layer: AdaptedLinear) -> frozenset[str]:
    """Which of A, B, R of this layer receive gradients."""
    factors = {"A": layer.lora_A, "B": layer.lora_B, "R": layer.lora_R}
    return frozenset(
        name for name, factor in factors.items() if factor is not None and factor.requires_grad
    )


def rule(
    *needs_trained: str, needs_frozen: tuple[str, ...] = (), plain_pair: bool = False
) -> Callable[[Make], Make]:
    """Declare which factors must train, which must not, and whether the update must be `B A`
    without an R.

    The function gets the attributes `needs_trained`, `needs_frozen` and `plain_pair`, which the
    configuration reads, and refuses adapters that do not fit.
    """

    def declare(make: Make) -> Make:
        @functools.wraps(make)
        def checked(adapters: Adapters, **keywords: Any) -> Any:
            if complaint := misfit(checked, adapters):
                fitting = [
                    name
                    for name, other in optimizers.rules().items()
                    if not misfit(other, adapters)
                ]
                raise ValueError(
                    f"optimizer={make.__name__} {complaint}: choose one of"
                    f" {', '.join(sorted(fitting))}"
                )
            return make(adapters, **keywords)

        made = as_rule(checked)
        made.needs_trained, made.needs_frozen = frozenset(needs_trained), frozenset(needs_frozen)
        made.plain_pair = plain_pair
        return cast(Make, checked)

    return declare


def misfit(make: Callable[..., Any], adapters: Adapters) -> str | None:
    """Why the rule `make` cannot train these adapters, or None where it can."""
    rule = as_rule(make)
    trained, frozen = rule.needs_trained, rule.needs_frozen
    wanted = f"needs {_names(trained)} to train" + (
        f" and {_names(frozen)} frozen" if frozen else ""
    )
    if trained and not len(adapters):
        return f"{wanted}, but no layer is adapted (every weight trains)"
    for layer in adapters:
        if not trained <= trained_factors(layer) or frozen & trained_factors(layer):
            return f"{wanted}, but layer {layer.name} trains {_names(trained_factors(layer))}"
        if rule.plain_pair and layer.lora_R is not None:
            return f"{wanted} and an update B A, but layer {layer.name} has B R A"
    return None


def _names(factors: frozenset[str]) -> str:
    return " and ".join(sorted(factors)) or "nothing"
