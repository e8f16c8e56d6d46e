"""What a step costs: every training rule against PyTorch's AdamW and PEFT's Riemannian optimizer on
the same parameters.

Each contestant has its own copy of the factors of n adapted layers (768 × 768, rank 8) and steps on
the same gradients, which are written anew before every step: PEFT's changes them in place. Steps
alternate with AdamW's, in its fused or foreach form, whichever is faster here; a figure is the
median over the rounds of `time / AdamW's time in that round`, by the processor, in one thread; the
clock's median stands beside it.
"""

from __future__ import annotations

import gc
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import verdict, within
from benchmarks.clocks import CPU, now
from loraexp import config
from loraexp.adapter.adapted import AdaptedLinear, Adapters
from loraexp.adapter.layer import Factors
from loraexp.run.components import make

THREADS = 1
LAYERS = (24, 72, 224)
WIDTH, RANK, SCALING = 768, 8, 2.0
ROUNDS = 40
SLOW_ROUNDS = 7  # of rules whose step takes longer than SLOW seconds
SLOW = 0.2
LR = 1e-5  # small, so that many steps on the same gradients change nothing that matters for time
TARGETS = {"adamw": 1.0, "lora_plus": 1.05, "p_lora": 1.5}
# forms of a rule that are measured beside it, and how many times as fast as it they are to be
FORMS = {
    "lora_pro moments=bfloat16": ("lora_pro", {"moments": "bfloat16"}),
    "lora_pro moments=factored": ("lora_pro", {"moments": "factored"}),
}
FASTER = {"lora_pro moments=factored": ("lora_pro", 5.0)}
# what two runs of the same thing differ by: the allowance on a target that is an equality
NOISE = 0.05


@dataclass(frozen=True)
class Contestant:
    """An optimizer on parameters of its own."""

    optimizer: torch.optim.Optimizer
    parameters: Sequence[nn.Parameter]
    gradients: Sequence[Tensor]

    def step(self) -> np.ndarray:
        """The seconds of one step on fresh gradients, of the processor and of the clock."""
        torch._foreach_copy_(
            [p.grad for p in self.parameters if p.grad is not None], list(self.gradients)
        )
        device = self.parameters[0].device
        began = now(device)
        self.optimizer.step()
        return now(device) - began

    def state_bytes(self) -> int:
        states = self.optimizer.state.values()
        return sum(x.nbytes for state in states for x in state.values() if isinstance(x, Tensor))


def contestant(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> Contestant:
    """Give each parameter a gradient, the same for the same shapes in the same order."""
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(p.shape, generator=generator).to(p.device) for p in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    return Contestant(optimizer, parameters, gradients)


def adapted(layers: int, train: frozenset[str], device: torch.device) -> Adapters:
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
    return Adapters(nn.ModuleList(made.values()).to(device), made, {})


def ours(name: str, layers: int, changed: dict[str, Any], *, device: torch.device) -> Contestant:
    """The rule of `conf/optimizer/<name>.yaml` with its values there but for those changed, on what
    it trains."""
    rule = make(config.read_yaml("optimizer", name) | changed)
    frozen = rule.func.needs_frozen  # type: ignore[attr-defined]
    adapters = adapted(layers, frozenset({"A", "B"}) - frozen, device)
    return contestant(rule(adapters, lr=LR, weight_decay=0.0), adapters.trainable())


def torch_adamw(
    layers: int, train: frozenset[str], form: str, *, device: torch.device
) -> Contestant:
    """PyTorch's AdamW on the same parameters."""
    parameters = adapted(layers, train, device).trainable()
    return contestant(
        torch.optim.AdamW(
            parameters, lr=LR, weight_decay=0.0, fused=form == "fused", foreach=form == "foreach"
        ),
        parameters,
    )


def peft_riemannian(layers: int, form: str, *, device: torch.device) -> Contestant:
    """PEFT's preconditioned AdamW on a PEFT model of the same layers, over one shared weight
    too."""
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_riemannian_optimizer

    plain = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False, device="meta") for _ in range(layers))
    weight = nn.Parameter(torch.randn(WIDTH, WIDTH, device=device))
    for linear in plain:
        linear.weight = weight
    said = LoraConfig(
        r=RANK,
        lora_alpha=int(SCALING * RANK),
        target_modules=[str(i) for i in range(layers)],
        init_lora_weights=False,
    )
    model: Any = get_peft_model(plain, said).to(device)  # type: ignore[arg-type]
    optimizer = create_riemannian_optimizer(
        model, torch.optim.AdamW, lr=LR, weight_decay=0.0, **{form: True}
    )
    return contestant(optimizer, [p for p in model.parameters() if p.requires_grad])


def paired(one: Contestant, reference: Contestant, rounds: int) -> tuple[float, float, float]:
    """The median seconds of a step, of the processor and of the clock, and the median of its ratios
    to the reference's steps right before and after it."""
    times, ratios = [], []
    before, _ = reference.step()
    for _ in range(rounds):
        spent = one.step()
        after, _ = reference.step()
        times.append(spent)
        ratios.append(2 * spent[0] / (before + after))
        before = after
    processor, clock = np.median(times, 0).tolist()
    return processor, clock, statistics.median(ratios)


def faster_form(layers: int, device: torch.device) -> str:
    """`fused` or `foreach`, whichever AdamW is faster here."""
    fused, foreach = (
        torch_adamw(layers, frozenset({"A", "B"}), form, device=device)
        for form in ("fused", "foreach")
    )
    fused.step(), foreach.step()
    return "fused" if paired(fused, foreach, ROUNDS)[2] < 1 else "foreach"


def measure(
    build: Callable[[], Contestant], reference: Contestant, rounds: int
) -> tuple[float, float, float, int]:
    """Seconds of a step by the processor and the clock, its ratio to the reference's, and the bytes
    of its state."""
    one = build()
    reference.step(), one.step()
    slow = one.step()[0] > SLOW
    found = (
        *paired(one, reference, min(rounds, SLOW_ROUNDS) if slow else rounds),
        one.state_bytes(),
    )
    del one
    gc.collect()
    return found


def steps_of(layers: int, rounds: int = ROUNDS, device: torch.device = CPU) -> dict[str, float]:
    """Print and return the ratios of every rule at one number of layers."""
    form = faster_form(layers, device)
    both = torch_adamw(layers, frozenset({"A", "B"}), form, device=device)
    alone = torch_adamw(layers, frozenset({"B"}), form, device=device)
    print(f"\n{layers} adapted layers of {WIDTH} × {WIDTH}, rank {RANK}; AdamW is PyTorch's {form}")
    heads = f"{'optimizer':26} {'ms':>9} {'by clock':>9} {'of AdamW':>9} {'target':>9}"
    print(f"{heads} {'state MiB':>10}")
    forms = {name: (name, dict[str, Any]()) for name in config.names("optimizer")} | FORMS
    figures: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for name in ["PEFT Riemannian", *sorted(forms)]:
        build, reference = partial(peft_riemannian, layers, form, device=device), both
        if name in forms:
            rule: Any = make(config.read_yaml("optimizer", forms[name][0])).func
            build = partial(ours, forms[name][0], layers, forms[name][1], device=device)
            reference = alone if "A" in rule.needs_frozen else both
        taken, clock, ratio, size = measure(build, reference, rounds)
        key = name.lower().replace(" ", "_")
        figures |= {f"{key}/{layers}": ratio, f"{key}/{layers}/bytes": float(size)}
        seconds[name] = taken
        bound = within(f"{name} / AdamW, {layers} layers", ratio, TARGETS.get(name), NOISE)
        note = ""
        if name == "p_lora":
            of_peft = figures[f"{key}/{layers}/peft"] = ratio / figures[f"peft_riemannian/{layers}"]
            note = f"  {of_peft:.2f} of PEFT's (target < 1)"
        if name in FASTER:
            slower, least = FASTER[name]
            times = figures[f"{key}/{layers}/times"] = seconds[slower] / taken
            said = verdict(f"{name}, times as fast, {layers} layers", times, least=least)
            note = f"  {times:.1f} times as fast as {slower}: {said}"
        print(
            f"{name:26} {taken * 1e3:9.2f} {clock * 1e3:9.2f} {ratio:9.2f}"
            f" {bound:>9} {size / 2**20:10.2f}{note}",
            flush=True,
        )
    return figures


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
