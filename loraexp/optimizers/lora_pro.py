"""LoRA-Pro: gradients of A and B whose joint effect on the weight is closest to the full
gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from loraexp.adapter.adapted import Adapters
from loraexp.machine.device import is_accelerator
from loraexp.optimizers.elementwise import AdamW, State, base_rule
from loraexp.optimizers.factored import correction, square_means, way_back
from loraexp.optimizers.grams import SingularSystem, require_damping
from loraexp.optimizers.pairs import PairOptimizer, pairs
from loraexp.optimizers.rule import rule
from loraexp.optimizers.stepping import AdapterOptimizer, Block, factor_blocks, head_section
from loraexp.optimizers.sylvester import System, system

FirstStep = Literal["plain", "limit"]
Moments = Literal["float32", "bfloat16", "factored"]
# Entries of a d_out × d_in temporary that are worked on at once: on a CPU what stays in its cache
# with both moments (half a MiB each in float32), elsewhere what keeps the device busy.
CHUNK, ELSEWHERE = 2**17, 2**24


def closest(
    s: System, A: Tensor, B: Tensor, grad_A: Tensor, grad_B: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """The closed form of `equivalent_gradients`; where B is zero, its limit `g_A = 0`, `g_B =
    (1/η²) g_B (A Aᵀ)⁻¹`."""
    inverse_B = s.inverse_B
    scaled_A = (inverse_B / scaling**2) @ grad_A
    scaled_B = grad_B @ (s.inverse_A / scaling**2)
    X = s.solve(-(scaled_A @ A.mT))
    return scaled_A + X @ A, scaled_B - B @ (inverse_B @ (B.mT @ scaled_B) + X)


def at_zero(
    s: System, plain: tuple[Tensor, Tensor], ours: tuple[Tensor, Tensor], first: FirstStep
) -> tuple[Tensor, Tensor]:
    """`ours`, with the plain gradients in its place for the layers where B is zero, unless `first`
    keeps the limit."""
    if first == "limit" or not (is_accelerator(s.no_B.device) or bool(s.no_B.any())):
        return ours
    return torch.where(s.no_B, plain[0], ours[0]), torch.where(s.no_B, plain[1], ours[1])


def equivalent_gradients(
    A: Tensor,
    B: Tensor,
    grad_A: Tensor,
    grad_B: Tensor,
    scaling: float,
    damping: float = 0.0,
    first_step: FirstStep = "plain",
) -> tuple[Tensor, Tensor]:
    """The gradients of A and B whose effect `η(B g_A + g_B A)` on W is closest to the full gradient
    G.

    LoRA-Pro (Wang et al. 2025), Theorems 2.1 and 2.3, from the ordinary gradients `grad_A = η BᵀG`,
    `grad_B = η G Aᵀ`: `g_A = (1/η²)(BᵀB)⁻¹ grad_A + X A`, `g_B = (1/η²)(I − B(BᵀB)⁻¹Bᵀ) grad_B (A
    Aᵀ)⁻¹ − B X`, where X solves `BᵀB X + X A Aᵀ = −(1/η²)(BᵀB)⁻¹ grad_A Aᵀ`: of all minimisers, the
    one nearest to (grad_A, grad_B). A (…, r, d_in), B (…, d_out, r), any leading dimensions; the
    result has the shapes of the gradients. Where B is zero, at the first step, BᵀB has no inverse:
    `first_step` takes the plain gradients, or as the released code the limit `g_A = 0`, `g_B =
    (1/η²) grad_B (A Aᵀ)⁻¹`. `damping` is relative: `damping · λ_max` is added to each Gram matrix.
    Raises `FloatingPointError` where one is singular all the same. Differs from the released code
    (mrflogs/LoRA-Pro fe26027, DeepSpeed-0.15.1/deepspeed/runtime/zero/stage_1_and_2.py,
    lorapro_full_adjustment), which adds an absolute 1e-8.
    """
    s = system(A, B, damping)
    return at_zero(s, (grad_A, grad_B), closest(s, A, B, grad_A, grad_B, scaling), first_step)


class LoRAPro(AdapterOptimizer):
    """AdamW whose moments are those of the equivalent gradient `G̃ = η(B g_A + g_B A)`, (d_out,
    d_in) per layer."""

    base: AdamW

    def __init__(
        self,
        sections: Sequence[tuple[list[Block], float]],
        *,
        weight_decay: float,
        base: AdamW,
        damping: float,
        first_step: FirstStep = "plain",
        moments: torch.dtype | None = None,
    ) -> None:
        self.damping, self.first_step, self.moments = damping, first_step, moments
        super().__init__(sections, weight_decay=weight_decay, base=base)

    def new_states(self, blocks: list[Block]) -> list[State]:
        states = super().new_states([block for block in blocks if block.factor is None])
        for _, A, B in pairs(blocks):
            states += self.moments_of(A.values, B.values)
        return states

    def moments_of(self, A: Tensor, B: Tensor) -> tuple[State, State]:
        """The state of a pair before the first step, kept with A and with B."""
        shape = len(A), B.shape[1], A.shape[2]
        return self.base.state(A.new_zeros(shape, dtype=self.moments or A.dtype)), {}

    def apply(self, group: dict[str, Any], blocks: list[Block], directions: list[Tensor]) -> None:
        if blocks[0].factor is None:
            return super().apply(group, blocks, directions)
        # all of them before any state moves
        systems = [
            (place, layers, A, B, self._system(place, layers, A, B))
            for place, A, B in pairs(blocks)
            for layers in self.runs(A.values, B.values)
        ]
        for place, layers, A, B, s in systems:
            gradients = [x[layers] for x in directions[place : place + 2]]
            step_A, step_B = self._project(s, layers, A, B, *gradients)
            self.watch([step_A, step_B], gradients)
            for values, step in ((A.values[layers], step_A), (B.values[layers], step_B)):
                values.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-group["lr"])
        for _, A, _ in pairs(blocks):
            self.state[A.key]["step"] += 1

    def runs(self, A: Tensor, B: Tensor) -> list[slice]:
        """The layers that are worked on together: all, whose moments are gone over in pieces."""
        return [slice(0, len(A))]

    def _system(self, place: int, layers: slice, A: Block, B: Block) -> System:
        try:
            return system(A.values[layers], B.values[layers], self.damping)
        except SingularSystem as problem:
            problem.index = layers.start + problem.index % len(A.values[layers])
            problem.block = place
            raise

    def _project(
        self, s: System, layers: slice, A: Block, B: Block, grad_A: Tensor, grad_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Update the moments of G̃ in place and bring the AdamW direction `Ĝ = m̂ / (√v̂ + ε)` back
        to A and B.

        At B = 0 the moments take the limit `G̃ = G Aᵀ(A Aᵀ)⁻¹A`, so that they stay in one unit; the
        way back is `first_step`'s.
        """
        scaling, values = A.layers[0].scaling, (A.values[layers], B.values[layers])
        new = closest(s, *values, grad_A, grad_B, scaling)
        own, others = (
            {key: x[layers] if x.dim() else x for key, x in self.state[block.key].items()}
            for block in (A, B)
        )
        plain_A, plain_B = self._direction((own, others), new, *values, scaling)
        plain = plain_A.mul_(scaling), plain_B.mul_(scaling)
        return at_zero(s, plain, closest(s, *values, *plain, scaling), self.first_step)

    def _direction(
        self,
        states: tuple[State, State],
        new: tuple[Tensor, Tensor],
        A: Tensor,
        B: Tensor,
        scaling: float,
    ) -> tuple[Tensor, Tensor]:
        """`BᵀĜ` and `Ĝ Aᵀ` of the direction Ĝ that AdamW takes from G̃.

        One pass over d_out × d_in, in pieces that stay in the cache from the product to the way
        back, each in the memory of the one before; narrower moments are moved in the precision of A
        and B and rounded once.
        """
        (state, _), (left, right) = states, product(*new, A, B)
        left *= scaling
        plain_A = torch.zeros_like(A)
        plain_B = torch.empty_like(B.mT, memory_format=torch.contiguous_format)
        count = state["step"].clone()
        moments = state["exp_avg"], state["exp_avg_sq"]
        pieces = list(parts(moments[0].shape, A.device.type))
        room = A.new_empty(2, max(moments[0][part].numel() for part in pieces))
        for part in pieces:
            layers, rows = part
            own = [x[part] for x in moments]
            gradient, moved = (x[: own[0].numel()].view(own[0].shape) for x in room)
            torch.bmm(left[part], right[layers], out=gradient)
            wide = [x.to(gradient.dtype) for x in own]  # themselves, where they are not narrower
            # AdamW on a weight of zeros, which it leaves at −Ĝ
            moved.zero_()
            held = {"step": count.copy_(state["step"]), "exp_avg": wide[0], "exp_avg_sq": wide[1]}
            self.base.update([moved], [gradient], [held], lr=1.0, weight_decay=0.0)
            for narrow, value in zip(own, wide, strict=True):
                if narrow.dtype != value.dtype:
                    narrow.copy_(value)
            plain_A[layers].baddbmm_(B[part].mT, moved, alpha=-1)
            # A Ĝᵀ, which takes a CPU three fifths of the time of Ĝ Aᵀ
            plain_B[layers, :, rows] = torch.bmm(A[layers], moved.mT)
        return plain_A, plain_B.mT.neg()


class FactoredLoRAPro(LoRAPro):
    """The same with a state in the shapes of the factors and their sides: the first moment is that
    of g_A and g_B, the second is known by the means of the rows and columns of G̃²."""

    def moments_of(self, A: Tensor, B: Tensor) -> tuple[State, State]:
        state = {
            "step": torch.zeros((), dtype=torch.float32, device=A.device),
            "exp_avg": torch.zeros_like(A),
            "row_squares": A.new_zeros(len(A), B.shape[1]),
            "column_squares": A.new_zeros(len(A), A.shape[2]),
        }
        return state, {"exp_avg": torch.zeros_like(B)}

    def _direction(
        self,
        states: tuple[State, State],
        new: tuple[Tensor, Tensor],
        A: Tensor,
        B: Tensor,
        scaling: float,
    ) -> tuple[Tensor, Tensor]:
        """With `m = η(B m_A + m_B A)` in place of the first moment of G̃: equal at the first step,
        and apart by what B and A moved since."""
        base, state = self.base, states[0]
        step = state["step"] + 1
        squares = state["row_squares"], state["column_squares"]
        for held, mean in zip(squares, square_means(*product(*new, A, B)), strict=True):
            held.lerp_(mean * scaling**2, 1 - base.beta2)
        moments = states[0]["exp_avg"], states[1]["exp_avg"]
        for held, value in zip(moments, new, strict=True):
            held.lerp_(value, 1 - base.beta1)
        rows, columns = (held / correction(base.beta2, step) + base.eps**2 for held in squares)
        back_A, back_B = way_back(*product(*moments, A, B), rows, columns, A, B)
        unit = scaling / correction(base.beta1, step)
        return back_A.mul_(unit), back_B.mul_(unit)

    def runs(self, A: Tensor, B: Tensor) -> list[slice]:
        """On a CPU as many layers as stay in its cache with both sides of a product of factors."""
        each = 2 * A.shape[1] * max(A.shape[2], B.shape[1])
        size = max(1, (CHUNK if A.device.type == "cpu" else ELSEWHERE) // each)
        return [slice(first, first + size) for first in range(0, len(A), size)]


def product(new_A: Tensor, new_B: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """`B g_A + g_B A` as one product of stacked factors."""
    return torch.cat([B, new_B], -1), torch.cat([new_A, A], -2)


def parts(shape: Sequence[int], device: str) -> Iterator[tuple[slice, slice]]:
    """Pieces of (n, d_out, d_in): several layers, or rows of one."""
    layers, height, width = shape
    most = CHUNK if device == "cpu" else ELSEWHERE
    together, rows = max(1, most // (height * width)), min(height, max(1, most // width))
    for first in range(0, layers, together):
        for row in range(0, height, rows):
            yield slice(first, first + together), slice(row, row + rows)


@rule("A", "B", plain_pair=True)
def lora_pro(
    adapters: Adapters,
    *,
    lr: float,
    weight_decay: float,
    damping: float = 1e-6,
    first_step: FirstStep = "plain",
    moments: Moments = "float32",
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    head_lr: float | None = None,
) -> torch.optim.Optimizer:
    """LoRA-Pro with AdamW (Wang et al. 2025, Algorithm 2): AdamW as if W were trained, each step
    projected onto A and B.

    `G̃ = η(B g_A + g_B A)`; `m, v` are moments of G̃; the direction `Ĝ = m̂/(√v̂ + ε)` goes back
    through `equivalent_gradients(A, B, η BᵀĜ, η Ĝ Aᵀ)`. State: two d_out × d_in matrices per layer.
    `damping` is relative to the largest eigenvalue of each Gram matrix: after the first step BᵀB is
    of order lr². `first_step` says what the first step, from B = 0, goes back by; see
    `equivalent_gradients`. `moments=bfloat16` halves the state, as the released code's, whose
    moments have the dtype of its bf16 weights; steps of v below 2⁻⁹ of it are then rounded away, so
    with β₂ = 0.999 v falls no more. `moments=factored`, of no paper's, keeps of v the means of its
    rows and columns, `v_ij ≈ r_i c_j / mean(r)` (Shazeer & Stern 2018, Algorithm 2, ε² in the place
    of their ε₁), and m as that of g_A and g_B: the same step where G̃² has rank one, a state and a
    step of O((d_in + d_out) r²). Raises `FloatingPointError`, naming step and layer, where a
    gradient is not finite or a system is singular.
    """
    check_named(first_step, moments)
    require_damping(damping)
    sections = [(factor_blocks(adapters, ("A", "B")), lr), head_section(adapters, lr, head_lr)]
    narrow = torch.bfloat16 if moments == "bfloat16" else None
    return (FactoredLoRAPro if moments == "factored" else LoRAPro)(
        sections,
        weight_decay=weight_decay,
        base=AdamW(beta1, beta2, eps),
        damping=damping,
        first_step=first_step,
        moments=narrow,
    )


def check_named(first_step: str, moments: str = "float32") -> None:
    """Refuse a choice by a name that there is not."""
    if first_step not in ("plain", "limit"):
        raise ValueError(f"optimizer.first_step={first_step!r}: expected plain or limit")
    if moments not in ("float32", "bfloat16", "factored"):
        raise ValueError(f"optimizer.moments={moments!r}: expected float32, bfloat16 or factored")


@rule("A", "B", plain_pair=True)
def lora_pro_low_memory(
    adapters: Adapters,
    *,
    lr: float,
    weight_decay: float,
    base: Literal["adamw", "gd"] = "adamw",
    damping: float = 1e-6,
    first_step: FirstStep = "plain",
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    head_lr: float | None = None,
) -> torch.optim.Optimizer:
    """AdamW, or gradient descent, on LoRA-Pro's gradients (Wang et al. 2025, Theorem 2.1), with the
    state of plain LoRA.

    The moments are those of `equivalent_gradients`, in the shapes of A and B: cheaper than, and not
    the same as, `lora_pro`. With `base=gd` it is their algorithm for SGD.
    """
    check_named(first_step)
    require_damping(damping)
    sections = [(factor_blocks(adapters, ("A", "B")), lr), head_section(adapters, lr, head_lr)]

    def transform(
        A: Tensor, B: Tensor, grad_A: Tensor, grad_B: Tensor, scaling: float
    ) -> tuple[Tensor, Tensor]:
        return equivalent_gradients(A, B, grad_A, grad_B, scaling, damping, first_step)

    return PairOptimizer(
        sections,
        weight_decay=weight_decay,
        base=base_rule(base, beta1, beta2, eps),
        transform=transform,
    )
