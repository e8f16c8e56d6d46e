"""What a step costs: every training rule against PyTorch's AdamW and PEFT's Riemannian optimizer on
the same parameters.

Each contestant has its own copy of the factors of n adapted layers (768 × 768, rank 8) and steps on
the same gradients, which are written anew before every step: PEFT's changes them in place. Steps
alternate with AdamW's, in its fused or foreach form, whichever is faster here; a figure is the
median over the rounds of `time / AdamW's time in that round`, by the processor, in one thread.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loraexp import config
from loraexp.adapter.adapted import AdaptedLinear, Adapters
from loraexp.adapter.layer import Factors
from loraexp.run.components import make

THREADS = 1
LAYERS = (24, 72, 224)
WIDTH, RANK, SCALING = 768, 8, 2.0
ROUNDS = 40
SLOW_ROUNDS = 3  # of rules whose step takes longer than SLOW seconds
SLOW = 0.2
LR = 1e-5  # small, so that many steps on the same gradients change nothing that matters for time
TARGETS = {"adamw": 1.0, "lora_plus": 1.05, "p_lora": 1.5}
# what two runs of the same thing differ by: the allowance on a target that is an equality
NOISE = 0.05


@dataclass(frozen=True)
class Contestant:
    """An optimizer on parameters of its own."""

    optimizer: torch.optim.Optimizer
    parameters: Sequence[nn.Parameter]
    gradients: Sequence[Tensor]

    def step(self) -> float:
        """The seconds of one step on fresh gradients."""
        torch._foreach_copy_(
            [p.grad for p in self.parameters if p.grad is not None], list(self.gradients)
        )
        began = time.process_time()
        self.optimizer.step()
        return time.process_time() - began

    def state_bytes(self) -> int:
        states = self.optimizer.state.values()
        return sum(x.nbytes for state in states for x in state.values() if isinstance(x, Tensor))


def contestant(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> Contestant:
    """Give each parameter a gradient, the same for the same shapes in the same order."""
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(p.shape, generator=generator) for p in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    return Contestant(optimizer, parameters, gradients)


def adapted(layers: int, train: frozenset[str]) -> Adapters:
    """`layers` adapted layers over one shared weight."""
    generator = torch.Generator().manual_seed(0)
    base = nn.Linear(WIDTH, WIDTH, bias=False)
    made = {}
    for index in range(layers):
        A, B = (
            torch.randn(RANK, WIDTH, generator=generator),
            torch.randn(WIDTH, RANK, generator=generator),
        )
        factors = Factors(A=A / WIDTH**0.5, B=B / WIDTH**0.5, start="shifted", train=train)
        made[f"layers.{index}"] = AdaptedLinear(base, factors, SCALING, f"layers.{index}")
    return Adapters(nn.ModuleList(made.values()), made, {})


def ours(name: str, layers: int) -> Contestant:
    """The rule of `conf/optimizer/<name>.yaml` with its values there, on what it trains."""
    rule = make(config.read_yaml("optimizer", name))
    frozen = rule.func.needs_frozen  # type: ignore[attr-defined]
    adapters = adapted(layers, frozenset({"A", "B"}) - frozen)
    return contestant(rule(adapters, lr=LR, weight_decay=0.0), adapters.trainable())


def torch_adamw(layers: int, train: frozenset[str], form: str) -> Contestant:
    """PyTorch's AdamW on the same parameters."""
    parameters = adapted(layers, train).trainable()
    return contestant(
        torch.optim.AdamW(
            parameters, lr=LR, weight_decay=0.0, fused=form == "fused", foreach=form == "foreach"
        ),
        parameters,
    )


def peft_riemannian(layers: int, form: str) -> Contestant:
    """PEFT's preconditioned AdamW on a PEFT model of the same layers, over one shared weight
    too."""
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_riemannian_optimizer

    plain = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False, device="meta") for _ in range(layers))
    weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
    for linear in plain:
        linear.weight = weight
    said = LoraConfig(
        r=RANK,
        lora_alpha=int(SCALING * RANK),
        target_modules=[str(i) for i in range(layers)],
        init_lora_weights=False,
    )
    model: Any = get_peft_model(plain, said)  # type: ignore[arg-type]
    optimizer = create_riemannian_optimizer(
        model, torch.optim.AdamW, lr=LR, weight_decay=0.0, **{form: True}
    )
    return contestant(optimizer, [p for p in model.parameters() if p.requires_grad])


def paired(one: Contestant, reference: Contestant, rounds: int) -> tuple[float, float]:
    """The median seconds of a step, and the median of its ratios to the reference's steps right
    before and after it."""
    times, ratios = [], []
    before = reference.step()
    for _ in range(rounds):
        spent = one.step()
        after = reference.step()
        times.append(spent)
        ratios.append(2 * spent / (before + after))
        before = after
    return statistics.median(times), statistics.median(ratios)


def faster_form(layers: int) -> str:
    """`fused` or `foreach`, whichever AdamW is faster here."""
    fused, foreach = (
        torch_adamw(layers, frozenset({"A", "B"}), form) for form in ("fused", "foreach")
    )
    fused.step(), foreach.step()
    return "fused" if paired(fused, foreach, ROUNDS)[1] < 1 else "foreach"


def measure(
    build: Callable[[], Contestant], reference: Contestant, rounds: int
) -> tuple[float, float, int]:
    """Seconds of a step, its ratio to the reference's and the bytes of its state."""
    one = build()
    reference.step(), one.step()
    slow = one.step() > SLOW
    found = (
        *paired(one, reference, min(rounds, SLOW_ROUNDS) if slow else rounds),
        one.state_bytes(),
    )
    del one
    gc.collect()
    return found


def steps_of(layers: int, rounds: int = ROUNDS) -> dict[str, float]:
    """Print and return the ratios of every rule at one number of layers."""
    form = faster_form(layers)
    both = torch_adamw(layers, frozenset({"A", "B"}), form)
    alone = torch_adamw(layers, frozenset({"B"}), form)
    print(f"\n{layers} adapted layers of {WIDTH} × {WIDTH}, rank {RANK}; AdamW is PyTorch's {form}")
    print(f"{'optimizer':22} {'ms':>9} {'of AdamW':>9} {'target':>9} {'state MiB':>10}")
    peft = measure(lambda: peft_riemannian(layers, form), both, rounds)
    figures: dict[str, float] = {}
    for name in ["peft_riemannian", *config.names("optimizer")]:
        if name == "peft_riemannian":
            found = peft
        else:
            rule: Any = make(config.read_yaml("optimizer", name)).func
            found = measure(
                lambda name=name: ours(name, layers),
                alone if "A" in rule.needs_frozen else both,
                rounds,
            )  # type: ignore[misc]
        taken, ratio, size = found
        line = (
            f"{'PEFT Riemannian' if name == 'peft_riemannian' else name:22} {taken * 1e3:9.2f}"
            f" {ratio:9.2f} {within(name, ratio):>9}"
        )
        note = f"  {ratio / peft[1]:.2f} of PEFT's (target < 1)" if name == "p_lora" else ""
        print(f"{line} {size / 2**20:10.2f}{note}", flush=True)
        figures |= {f"{name}/{layers}": ratio, f"{name}/{layers}/bytes": float(size)}
        if name == "p_lora":
            figures[f"{name}/{layers}/peft"] = ratio / peft[1]
    return figures


def within(name: str, ratio: float) -> str:
    """The target, marked where it is missed by more than the noise."""
    target = TARGETS.get(name)
    return "" if target is None else f"≤ {target:g}{'' if ratio <= target + NOISE else ' !'}"


def main(quick: bool = False) -> dict[str, float]:
    """Print the cost of a step of every rule; returns ratios to AdamW by `rule/layers`, and bytes
    of state."""
    torch.set_num_threads(THREADS)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {THREADS} thread")
    figures: dict[str, float] = {}
    for layers in (2,) if quick else LAYERS:
        figures |= steps_of(layers, rounds=2 if quick else ROUNDS)
    return figures


if __name__ == "__main__":
    main()
