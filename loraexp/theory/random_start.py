"""LoRA-One's alignment from a random start as numbers (Theorems 3.1, 3.2 and C.9)."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from loraexp.adapter.layer import Factors, Layer
from loraexp.machine.progress import Progress
from loraexp.records.curves import Computed, Curve, Values
from loraexp.theory import linear
from loraexp.theory.bands import band
from loraexp.theory.keywords import keywords
from loraexp.theory.linear import Batch, Trace, descend, first_step, logs
from loraexp.theory.shifts import Growing
from loraexp.theory.starts import gaussian


def base_of_c9(d: int, rank: int, true_rank: int, theta: float, xi: float) -> float:
    """`θ/(24 √d)` where r ≥ 2r*, and `θ ξ/(24 r √d)` below: what Theorem C.9's α and t* are made
    of.
    """
    return theta / (24 * math.sqrt(d)) * (1.0 if rank >= 2 * true_rank else xi / rank)


def start_of_c9(
    layer: Layer, generator: torch.Generator, *, rank: int, true_rank: int, theta: float, xi: float
) -> Factors:
    """(LoRA-init) with the largest α that Theorem C.9 allows: `α = base^{3κ/2} √(λ_1/(27 d))` of
    the layer's own gradient.
    """
    values = torch.linalg.svdvals(layer.gradient)
    kappa = float(values[0] / values[true_rank - 1])
    base = base_of_c9(layer.d_in, rank, true_rank, theta, xi)
    alpha = base ** (1.5 * kappa) * math.sqrt(float(values[0]) / (27 * layer.d_in))
    return gaussian(layer, generator, rank=rank, variance=alpha**2)


def angle_of_outputs(batch: Batch, true_rank: int) -> linear.Measure:
    """`‖V_⊥ᵀ(G♮) V(B_t)‖_op`: the sine of the largest angle between the r* leading output
    directions of B and of G♮.

    Those of G♮ are the columns of Δ; at B = 0 it has no directions, and counts as 0.
    """
    basis = batch.each(torch.linalg.qr(batch.given.left).Q[..., :true_rank])

    def measure(batch: Batch) -> Tensor:
        B = batch.factors["B"]
        assert B is not None
        leading = torch.linalg.svd(B, full_matrices=False).U[..., :true_rank]
        sine = torch.linalg.matrix_norm(leading - basis @ (basis.mT @ leading), 2)
        return torch.where(B.flatten(1).any(-1), sine, 0.0)

    return measure


@keywords
def random_start(
    growing: Growing,
    ranks: dict[str, int],
    theta: float,
    xi: float,
    lr: float,
    progress: Progress,
) -> Computed:
    """Theorems 3.1 (C.10) and 3.2 (C.9): how B and A of plain LoRA align with the one-step
    gradient, against the bounds.

    Δ has r* singular values 1 and N = d `rows_per_dimension` inputs; α is the largest that Theorem
    C.9 allows, and `t* = ln(1/base)/ln(1 + η λ_r*(G♮))` with its `base`; the constants that both
    leave open (≲) are read as 1.
    Values by `<rank's name>/<dimension's name>`: `3.1/angle/…`, the largest sine of B over all
    steps; `C.9/angle over θ/…` at t*; `C.9/steps over bound/…`: the first step at which A is within
    θ, over t*; `steps/…` and `log10 α/…`. `C.9/growth/<name>`: the steps at the largest d over
    those at the smallest, less the same of t*.
    """
    values: Values = {}
    curves: list[Curve] = []
    true_rank, sizes = growing.true_rank, growing.dimensions
    total, done = len(sizes) * len(ranks), 0
    for name, rank in ranks.items():
        taken, bounds = [], []
        start = partial(start_of_c9, rank=rank, true_rank=true_rank, theta=theta, xi=xi)
        for size, d in sizes.items():
            given = growing.tasks(d)
            smallest = torch.linalg.svdvals(given.gradient)[:, true_rank - 1]
            base = base_of_c9(d, rank, true_rank, theta, xi)
            bound = -math.log(base) / torch.log1p(lr * smallest)
            batch = Batch(given, {"random": start}, rank)
            found, trace = against_bound(batch, true_rank, lr, theta, bound)
            values |= {f"{what}/{name}/{size}": x.tolist() for what, x in found.items()}
            taken.append(float(found["steps"].mean()))
            bounds.append(float(bound.mean()))
            curves.append(band(f"A, r = {rank}", f"d = {d}", trace.steps, trace["A"]))
            done += 1
            progress(done, total)
        values[f"C.9/growth/{name}"] = taken[-1] / taken[0] - bounds[-1] / bounds[0]
    axes = {
        curve.panel: {"x": "step", "y": "sine of the principal angle of A to G♮"}
        for curve in curves
    }
    return Computed(values=values, curves=curves, axes=axes)


def against_bound(
    batch: Batch, true_rank: int, lr: float, theta: float, bound: Tensor
) -> tuple[dict[str, Tensor], Trace]:
    """Gradient descent until t* = `bound`: the start's size, the angles and the steps of each
    seed."""
    first = batch.factors["A"]
    assert first is not None
    size = logs(first.square().mean((-1, -2)).sqrt())
    measures = {
        "A": linear.angle_to_gradient(batch, true_rank),
        "B": angle_of_outputs(batch, true_rank),
    }
    at = bound.ceil().long()
    trace = descend(batch, "gd", lr, int(at.max()), measures)
    until = first_step(trace.steps, trace["A"] <= theta).double()
    found = {
        "log10 α": size,
        "3.1/angle": trace["B"].amax(0),
        "C.9/angle over θ": trace["A"].gather(0, at[None])[0] / theta,
        "C.9/steps over bound": until / bound,
        "steps": until,
    }
    return found, trace
