"""The linear task of LoRA-One (equation 3): many adapted layers as one batch, each with its own
data, target and start.

`y = (W0 + Δ) x` is to be learnt by `W0 + η (B R A − B0 A0)` from N rows of inputs. Only the second
moment `Σ = XᵀX/N` of the inputs enters the loss `1/(2N) ‖X (W − W0 − Δ)ᵀ‖²`, whose gradient is `E
Σ` with `E = W − W0 − Δ`, so a step costs products with Σ alone. The layers are `AdaptedLinear`
modules with factors from the initializers, and the steps are those of `loraexp.optimizers`, which
stack layers of equal shape: nothing of a method is written a second time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loraexp.adapter.adapted import AdaptedLinear, Adapters
from loraexp.adapter.layer import Factors, Layer
from loraexp.config import ConfigError, nearest
from loraexp.machine.progress import Progress
from loraexp.optimizers.elementwise import GradientDescent
from loraexp.optimizers.p_lora import p_lora
from loraexp.optimizers.sgd import sgd
from loraexp.optimizers.stepping import AdapterOptimizer, factor_blocks
from loraexp.statistics import layer_generator
from loraexp.theory.shifts import Tasks

DIVERGED = 1e12  # growth of a gradient's norm after which a layer is left where it is


# --------------------------------------------------------------------------------------------------
# the layers


def stacked(factors: Sequence[Tensor | None]) -> Tensor | None:
    """One factor of all layers as a stack; None where the layers have none."""
    known = [x.detach() for x in factors if x is not None]
    return torch.stack(known) if known else None


Start = Callable[[Layer, torch.Generator], Factors]  # one arm: how a layer starts


class Batch:
    """Adapted layers of one shape as one batch, ordered by task: every arm of the first task, then
    of the second.

    `A` (m, r, d), `B` (m, k, r) and `R` (m, r, r) or None are the factors themselves: what an
    optimizer steps.
    """

    def __init__(
        self, given: Tasks, starts: Mapping[str, Start], rank: int, scaling: float = 1.0
    ) -> None:
        k, d = given.W.shape[1:]
        if not 1 <= rank <= min(k, d):
            raise ConfigError(
                f"rank={rank}: expected 1 to {min(k, d)}, the smaller side of the {k} x {d} weight;"
                " lower rank or raise d"
            )
        self.given, self.arms, self.scaling = given, list(starts), scaling
        layers: dict[str, AdaptedLinear] = {}
        for seed, layer in enumerate(given.layers()):
            base = nn.Linear(d, k, bias=False, device="meta")
            base.weight = nn.Parameter(layer.W, requires_grad=False)
            for arm, start in starts.items():
                factors = start(layer, layer_generator(seed, f"{layer.name} {arm}"))
                layers[f"{layer.name}, {arm}"] = AdaptedLinear(
                    base, factors, scaling, f"{layer.name}, {arm}"
                )
        self.adapters = Adapters(nn.Module(), layers, {})
        self.gather()

    def gather(self) -> None:
        """Read the factors of all layers into stacks; an optimizer's blocks take their place."""
        every = list(self.adapters)
        self.factors: dict[str, Tensor | None] = {
            name: stacked([getattr(x, f"lora_{name}") for x in every]) for name in ("A", "B", "R")
        }
        # What does not move in E: the offset and the target, `fixed_left @ fixed_right`, (m, k, q)
        # and (m, q, d).
        left, right = self.each(-self.given.left), self.each(self.given.right)
        if any(x.offset_A is not None for x in every):
            A = stacked(
                [torch.zeros_like(x.lora_A) if x.offset_A is None else x.offset_A for x in every]
            )
            B = stacked(
                [torch.zeros_like(x.lora_B) if x.offset_B is None else x.offset_B for x in every]
            )
            assert A is not None and B is not None
            left, right = torch.cat([-self.scaling * B, left], -1), torch.cat([A, right], -2)
        self.fixed_left, self.fixed_right = left, right
        self.fixed_seen = self.through(right)

    def __len__(self) -> int:
        return len(self.adapters)

    def each(self, x: Tensor) -> Tensor:
        """Something of every task (n, …) repeated for every arm (m, …)."""
        return x.repeat_interleave(len(self.arms), 0)

    def through(self, right: Tensor) -> Tensor:
        """`right Σ` (m, q, d) of (m, q, d): one product for each task, whatever the number of
        arms."""
        n, (q, d) = len(self.given), right.shape[1:]
        return (right.reshape(n, -1, d) @ self.given.gram).reshape(-1, q, d)

    def product(self) -> tuple[Tensor, Tensor]:
        """`η B R` (m, k, r) and A (m, r, d)."""
        A, B, R = self.factors["A"], self.factors["B"], self.factors["R"]
        assert A is not None and B is not None
        return self.scaling * (B if R is None else B @ R), A

    def error(self) -> tuple[Tensor, Tensor]:
        """`E = η (B R A − B0 A0) − Δ` as a product of thin factors (m, k, r + q) and (m, r + q,
        d)."""
        left, right = self.product()
        return torch.cat([left, self.fixed_left], -1), torch.cat([right, self.fixed_right], -2)

    def gradients(self) -> dict[str, Tensor]:
        """Of A, B and R: `η (B R)ᵀ E Σ`, `η E Σ (R A)ᵀ`, `η Bᵀ E Σ Aᵀ`; E Σ itself is never
        formed."""
        A, B, R = self.factors["A"], self.factors["B"], self.factors["R"]
        assert A is not None and B is not None
        left, _ = self.error()
        seen = torch.cat([self.through(A), self.fixed_seen], -2)  # (m, r + q, d)
        if R is None:
            return {
                "A": self.scaling * (B.mT @ left) @ seen,
                "B": self.scaling * left @ (seen @ A.mT),
            }
        return {"R": self.scaling * (B.mT @ left) @ (seen @ A.mT)}

    def hand_to(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Take the optimizer's blocks for the factors' stacks; what it will read as the gradients,
        which is written in place."""
        assert isinstance(optimizer, AdapterOptimizer)
        for block in (block for blocks in optimizer.blocks for block in blocks):
            assert block.factor is not None
            self.factors[block.factor] = block.values
        held = {name: gradient.clone() for name, gradient in self.gradients().items()}
        for i, layer in enumerate(self.adapters):
            for name, gradient in held.items():
                getattr(layer, f"lora_{name}").grad = gradient[i]
        return held


# --------------------------------------------------------------------------------------------------
# the rules


def imbalanced(adapters: Adapters, lr: float, ratio: float) -> AdapterOptimizer:
    """Gradient descent where B learns `ratio` times as fast as A: LoRA+'s two rates on the slides'
    equation for (A, B)."""
    sections = [
        (factor_blocks(adapters, ("A",)), lr),
        (factor_blocks(adapters, ("B",)), ratio * lr),
    ]
    return AdapterOptimizer(sections, weight_decay=0.0, base=GradientDescent())


RULES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "gd": lambda adapters, lr: sgd(adapters, lr=lr, weight_decay=0.0, momentum=0.0),
    "prec_gd": lambda adapters, lr, damping=0.0: p_lora(
        adapters, lr=lr, weight_decay=0.0, base="gd", damping=damping
    ),
    "imbalanced": imbalanced,
}


@dataclass(frozen=True)
class Trace:
    """What was measured of every layer at `steps`: `values[name]` (len(steps), m, …); NaN after a
    layer diverged."""

    steps: list[int]
    values: dict[str, Tensor]
    diverged_at: list[int | None]

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]


Measure = Callable[[Batch], Tensor]


def descend(
    batch: Batch,
    rule: str,
    lr: float,
    steps: int,
    measures: Mapping[str, Measure],
    *,
    every: int = 1,
    progress: Callable[[int], None] = lambda step: None,
    **options: object,
) -> Trace:
    """Train every layer of the batch by `steps` full-batch steps of a rule, and measure at step 0,
    each `every`, and last.

    A layer whose gradient is not finite, or has grown by `DIVERGED`, is left where it is: its later
    values are NaN and `diverged_at` says the step. Raises ConfigError for an unknown rule, and
    where a number is out of range.
    """
    if rule not in RULES:
        raise ConfigError(f"rule={rule}: there is no such rule; {nearest(rule, RULES)}")
    if not (lr > 0 and steps >= 1 and every >= 1):
        raise ConfigError(
            f"lr={lr}, steps={steps}, every={every}: expected a rate above 0 and whole numbers of"
            " at least 1"
        )
    optimizer = RULES[rule](batch.adapters, lr=lr, **options)
    held = batch.hand_to(optimizer)
    bound = DIVERGED * size(held).clamp_min(1e-300)
    alive = torch.ones(len(batch), dtype=torch.bool)
    diverged: list[int | None] = [None] * len(batch)
    seen: dict[str, list[Tensor]] = {name: [] for name in measures}
    at: list[int] = []
    for step in range(steps + 1):
        gradients = batch.gradients()
        for i in (alive & ~(size(gradients) <= bound)).nonzero().flatten().tolist():
            alive[i], diverged[i] = False, step
        if step % every == 0 or step == steps:
            at.append(step)
            for name, measure in measures.items():
                value = measure(batch)
                seen[name].append(
                    torch.where(alive.reshape(-1, *[1] * (value.dim() - 1)), value, torch.nan)
                )
        if step == steps or not alive.any():
            break
        for name, gradient in gradients.items():
            held[name].copy_(torch.where(alive[:, None, None], gradient, 0.0))
        optimizer.step()
        progress(step + 1)
    return Trace(at, {name: torch.stack(values) for name, values in seen.items()}, diverged)


def size(gradients: Mapping[str, Tensor]) -> Tensor:
    """The norm (m,) of all gradients of each layer."""
    return torch.stack([torch.linalg.matrix_norm(x) for x in gradients.values()]).norm(dim=0)


# --------------------------------------------------------------------------------------------------
# the measures


def thin_norms(left: Tensor, right: Tensor, order: object = "fro") -> Tensor:
    """Norms (m,) of `left @ right` from the triangles of both, which lose nothing to cancellation
    as Gram matrices do."""
    return torch.linalg.matrix_norm(torch.linalg.qr(left).R @ torch.linalg.qr(right.mT).R.mT, order)


def risk(batch: Batch) -> Tensor:
    """`½ ‖E‖²_F`: the expected loss on fresh inputs (LoRA-One, caption of Figure 2)."""
    return thin_norms(*batch.error()).square() / 2


def operator_error(batch: Batch) -> Tensor:
    """`‖E‖_op`."""
    return thin_norms(*batch.error(), order=2)


def training_loss(batch: Batch) -> Tensor:
    """`½ tr(E Σ Eᵀ)`: the loss that is descended (equation 3)."""
    left, right = batch.error()
    n, (q, d) = len(batch.given), right.shape[1:]
    seen = (right.reshape(n, -1, d) @ torch.linalg.cholesky(batch.given.gram)).reshape(-1, q, d)
    return thin_norms(left, seen).square() / 2


def least_loss(given: Tasks, rank: int) -> Tensor:
    """The infimum (n,) of the training loss over updates of a rank: `½ Σ_{i>r} s_i²(Δ Σ^{1/2})`
    (Eckart-Young-Mirsky)."""
    seen = given.right @ torch.linalg.cholesky(given.gram)
    values = torch.linalg.svdvals(torch.linalg.qr(given.left).R @ torch.linalg.qr(seen.mT).R.mT)
    return values[:, rank:].square().sum(-1) / 2


def least_risk(spectrum: Sequence[float], rank: int) -> float:
    """The best rank-r risk: `½ Σ_{i>r} s_i²(Δ)`."""
    return sum(s * s for s in sorted(spectrum, reverse=True)[rank:]) / 2


def angle_to_gradient(batch: Batch, true_rank: int) -> Measure:
    """The measure `‖U_⊥ᵀ(G♮) U(A_t)‖_op`: the sine of the largest principal angle between the r*
    leading directions of both.

    Caption of Figure 2; its `U(A_t)` are the directions of the inputs that A reads.
    """
    left, right = torch.linalg.qr(batch.given.left).R, batch.given.right @ batch.given.gram
    basis = batch.each(torch.linalg.svd(left @ right, full_matrices=False).Vh[:, :true_rank])

    def measure(batch: Batch) -> Tensor:
        A = batch.factors["A"]
        assert A is not None
        leading = torch.linalg.svd(A, full_matrices=False).Vh[:, :true_rank]
        return torch.linalg.matrix_norm(leading - (leading @ basis.mT) @ basis, 2).clamp_max(1.0)

    return measure


# --------------------------------------------------------------------------------------------------
# numbers of seeds


def logs(x: Tensor) -> Tensor:
    """log10, with what rounding left at zero at the smallest number that a figure shows."""
    return x.clamp_min(1e-40).log10()


def by_seed(x: Tensor, arms: int) -> Tensor:
    """(…, m) as (…, seeds, arms)."""
    return x.unflatten(-1, (-1, arms))


def first_step(steps: Sequence[int], reached: Tensor) -> Tensor:
    """The first of `steps` at which a layer is there, (m,) of (len(steps), m); infinity where it
    never is."""
    at = torch.tensor(steps, dtype=torch.float64)[:, None]
    return torch.where(reached, at, math.inf).amin(0)


def share(progress: Progress, done: int, total: int) -> Callable[[int], None]:
    """A part's progress within a whole: `done` steps are behind it."""
    return lambda step: progress(done + step, total)
