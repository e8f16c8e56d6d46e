"""The elementwise rules that turn gradients into a step: AdamW, AdamW without bias correction,
gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.optim.adamw import adamw

State = dict[str, Tensor]


class Base(Protocol):
    """The elementwise rule that turns gradients into a step."""

    def state(self, values: Tensor) -> State: ...

    def update(
        self,
        values: list[Tensor],
        gradients: list[Tensor],
        states: list[State],
        lr: float,
        weight_decay: float,
    ) -> None: ...


@dataclass(frozen=True)
class AdamW:
    """AdamW with decoupled weight decay (Loshchilov & Hutter 2019, Algorithm 2), by PyTorch's own
    fused kernel."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= beta < 1:
                raise ValueError(f"optimizer.{name}={beta}: expected a number in [0, 1)")
        if self.eps < 0:
            raise ValueError(f"optimizer.eps={self.eps}: expected a number ≥ 0")

    def state(self, values: Tensor) -> State:
        step = torch.zeros((), dtype=torch.float32, device=values.device)
        return {
            "step": step,
            "exp_avg": torch.zeros_like(values),
            "exp_avg_sq": torch.zeros_like(values),
        }

    def update(
        self,
        values: list[Tensor],
        gradients: list[Tensor],
        states: list[State],
        lr: float,
        weight_decay: float,
    ) -> None:
        steps = [s["step"] for s in states]
        moments = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        rates: dict[str, Any] = {
            "lr": lr,
            "weight_decay": weight_decay,
            "beta1": self.beta1,
            "beta2": self.beta2,
            "eps": self.eps,
            "amsgrad": False,
            "maximize": False,
        }
        if all(v.device.type in ("cpu", "cuda", "meta") for v in values):
            # PyTorch's kernel as it is: what stands before it in `adamw` takes longer than a step
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(values, gradients, *moments, [], steps, **rates)
        else:
            adamw(values, gradients, *moments, [], steps, fused=False, foreach=True, **rates)


@dataclass(frozen=True)
class UncorrectedAdamW(AdamW):
    """AdamW without the bias correction of its moments: `p ← (1 − lr·λ) p − lr · m / (√v + ε)`.

    Both begin at zero, so its first step is (1 − β₁)/√(1 − β₂) times as long: 3.2 with the usual
    β₁, β₂.
    """

    def update(
        self,
        values: list[Tensor],
        gradients: list[Tensor],
        states: list[State],
        lr: float,
        weight_decay: float,
    ) -> None:
        for value, gradient, state in zip(values, gradients, states, strict=True):
            state["step"] += 1
            m = state["exp_avg"].lerp_(gradient, 1 - self.beta1)
            v = (
                state["exp_avg_sq"]
                .mul_(self.beta2)
                .addcmul_(gradient, gradient, value=1 - self.beta2)
            )
            value.mul_(1 - lr * weight_decay).addcdiv_(m, v.sqrt().add_(self.eps), value=-lr)


@dataclass(frozen=True)
class GradientDescent:
    """`p ← (1 − lr·λ) p − lr·m`, `m ← momentum·m + g`; plain gradient descent where momentum is 0,
    with no state."""

    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optimizer.momentum={self.momentum}: expected a number in [0, 1)")

    def state(self, values: Tensor) -> State:
        step = torch.zeros((), dtype=torch.float32, device=values.device)
        return (
            {"step": step, "momentum": torch.zeros_like(values)}
            if self.momentum
            else {"step": step}
        )

    def update(
        self,
        values: list[Tensor],
        gradients: list[Tensor],
        states: list[State],
        lr: float,
        weight_decay: float,
    ) -> None:
        for value, gradient, state in zip(values, gradients, states, strict=True):
            state["step"] += 1
            if self.momentum:
                gradient = state["momentum"].mul_(self.momentum).add_(gradient)
            if weight_decay:
                value.mul_(1 - lr * weight_decay)
            value.add_(gradient, alpha=-lr)


def base_rule(base: Literal["adamw", "gd"], beta1: float, beta2: float, eps: float) -> Base:
    """The elementwise rule by name."""
    if base == "adamw":
        return AdamW(beta1, beta2, eps)
    if base == "gd":
        return GradientDescent()
    raise ValueError(f"optimizer.base={base!r}: expected adamw or gd")
