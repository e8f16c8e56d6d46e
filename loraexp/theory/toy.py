"""LoRA-One's two-parameter example: trajectories from a random and a spectral start on the surface of the loss."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from loraexp.config import ConfigError
from loraexp.sweep.computed import Computed, Curve, Progress, Surface
from loraexp.theory import linear
from loraexp.theory.linear import Batch, by_seed, descend, first_step
from loraexp.theory.lora_one import gaussian, spectral

SHIFT = (2.0, 1.0)  # w
STARTS = {"spectral": "(Spectral-init)", "random": "(LoRA-init)"}
SPAN = 3.2  # the plane that is drawn: both coordinates from −SPAN to SPAN
TICKS = 81
FLOOR = 0.05  # the least loss that the surface tells apart
ARROWS = 9  # streams of the phase portrait along each side of the plane


def toy_tasks(seeds: int, rows: int) -> linear.Tasks:
    """`y = wᵀx` with `w = (2, 1)`, W0 = 0 and `rows` standard normal inputs for each seed: the linear task with d = 2, k = 1."""
    drawn = linear.tasks(seeds, 2, 1, [1.0], rows)
    target = torch.tensor(SHIFT, dtype=torch.float64).expand(seeds, 1, 2)
    return linear.Tasks(torch.zeros_like(drawn.W), torch.ones_like(drawn.left), target.clone(), drawn.gram, rows)


def parameters(batch: Batch) -> Tensor:
    """`(a_1, a_2, b)` (m, 3) of every layer."""
    A, B = batch.factors["A"], batch.factors["B"]
    assert A is not None and B is not None
    return torch.cat([A[:, 0], B[:, 0]], -1)


def distance_to_minimizers(point: Tensor) -> Tensor:
    """The distance of `(a_1, a_2, b)` (…, 3) to the set `{(2/t, 1/t, t)}` of global minimizers.

    The derivative of the squared distance along the set is zero where `t⁴ − b t³ + (w·a) t − ‖w‖² = 0`: the eigenvalues of a
    companion matrix. Its real roots hold the nearest point, and a root with an imaginary part is only farther away.
    """
    w = torch.tensor(SHIFT, dtype=point.dtype)
    companion = torch.zeros(*point.shape[:-1], 4, 4, dtype=point.dtype)
    companion[..., 1:, :-1] = torch.eye(3, dtype=point.dtype)
    companion[..., 0, 3] = w @ w
    companion[..., 1, 3] = -(point[..., :2] @ w)
    companion[..., 3, 3] = point[..., 2]
    t = torch.linalg.eigvals(companion).real
    t = torch.where(t.abs() < 1e-12, torch.nan, t)[..., None]  # the set has no point at t = 0
    nearest = torch.cat([w / t, t], -1)
    return (nearest - point[..., None, :]).norm(dim=-1).nan_to_num(math.inf).amin(-1)


def trajectories(seeds: int, shown: int, rows: int, lr: float, steps: int, near: float, portrait: bool, progress: Progress) -> Computed:
    """Gradient descent on `1/8 Σ (y_i − b x_iᵀa)²` from (Spectral-init) and (LoRA-init), in the plane of `a·w/‖w‖` and b.

    LoRA-One, Figure 3 and the end of its appendix G.1; slides, Figure 2, and with `portrait` the toy example II: log loss with a phase
    portrait. In (LoRA-init) a is standard normal and b zero. The text's one-step gradient `¼ Σ y_i² x_i` has a square too many:
    the initializer's `¼ Σ y_i x_i` is the negative gradient of the loss that is printed beside it.
    Values by start: `distance/…` of the start to the set of global minimizers, `steps/…` until the distance is below `near` (`steps`
    where never), `reached/…` and `diverged/…` (shares of seeds); `nearer`, `fewer`: the share of seeds where the spectral start is
    nearer, and needs fewer steps; `steps ratio`: the median over seeds of the spectral start's steps over the random one's. The first
    `shown` seeds are drawn.
    """
    if shown > seeds:
        raise ConfigError(f"shown={shown}: expected at most seeds={seeds}")
    given = toy_tasks(seeds, rows)
    batch = Batch(given, {"spectral": partial(spectral, rank=1), "random": partial(gaussian, rank=1, variance=1.0)}, 1)
    trace = descend(batch, "gd", lr, steps, {"at": parameters, "risk": linear.risk}, progress=linear.share(progress, 0, steps))
    distance = distance_to_minimizers(trace["at"].nan_to_num(1e6))
    until = by_seed(first_step(trace.steps, distance <= near).clamp_max(steps), 2)
    start = by_seed(distance[0], 2)
    values: dict[str, float | list[float]] = {
        "nearer": float((start[:, 0] < start[:, 1]).double().mean()),
        "fewer": float((until[:, 0] < until[:, 1]).double().mean()),
        "steps ratio": float((until[:, 0] / until[:, 1].clamp_min(1)).median()),
    }
    for j, name in enumerate(STARTS):
        values[f"distance/{name}"] = start[:, j].tolist()
        values[f"steps/{name}"] = until[:, j].tolist()
        values[f"reached/{name}"] = float((until[:, j] < steps).double().mean())
        values[f"diverged/{name}"] = sum(x is not None for x in trace.diverged_at[j::2]) / seeds
    panel = "steps until a minimizer"
    axes = {panel: {"x": f"steps until within {near:g} of the set", "y": "seeds"}}
    curves = [Curve(panel=panel, label=label, x=[], y=until[:, j].tolist(), kind="histogram") for j, label in enumerate(STARTS.values())]
    surfaces = []
    for seed in range(shown):
        panel = f"data {seed + 1}"
        axes[panel] = {"x": "a along w/‖w‖", "y": "b"}
        surfaces.append(loss(given.gram[seed], panel))
        curves += [minimizers(panel)] + [streams(given.gram[seed], panel)] * portrait
        for j, label in enumerate(STARTS.values()):
            curves.append(path(trace["at"][:, 2 * seed + j], panel, label, trace.diverged_at[2 * seed + j]))
    return Computed(values=values, curves=curves, surfaces=surfaces, axes=axes)


def along(at: Tensor) -> Tensor:
    """`a·w/‖w‖` of parameters (…, 3): the plane holds every global minimizer."""
    w = torch.tensor(SHIFT, dtype=at.dtype)
    return at[..., :2] @ w / w.norm()


def path(at: Tensor, panel: str, label: str, diverged_at: int | None) -> Curve:
    """One trajectory (steps, 3), drawn with b > 0: (a, b) and (−a, −b) are the same model."""
    at = at[~at.isnan().any(-1)]
    sign = 1.0 if at[-1, 2] >= 0 else -1.0
    x, y = sign * along(at), sign * at[:, 2]
    return Curve(panel=panel, label=label, x=x.tolist(), y=y.tolist(), kind="trajectory", diverged_at=diverged_at)


def minimizers(panel: str) -> Curve:
    """The two branches of `{(2/t, 1/t, t)}` in the plane, with a gap between them."""
    length = math.hypot(*SHIFT)
    t = torch.linspace(length / SPAN, SPAN, 60, dtype=torch.float64)
    x, y = (length / t).tolist(), t.tolist()
    return Curve(panel=panel, label="global minimizers", x=[*x, math.nan, *(-v for v in x)], y=[*y, math.nan, *(-v for v in y)])


def in_plane(gram: Tensor) -> float:
    """`ŵᵀ Σ ŵ`: how the loss weighs an error along w."""
    w = torch.tensor(SHIFT, dtype=gram.dtype)
    return float(w @ gram @ w / (w @ w))


def loss(gram: Tensor, panel: str) -> Surface:
    """The loss where a lies along w; the floor keeps the valley of the minimizers finite on a logarithmic scale."""
    ticks = torch.linspace(-SPAN, SPAN, TICKS, dtype=torch.float64)
    z = in_plane(gram) * (ticks[:, None] * ticks - math.hypot(*SHIFT)).square() / 2
    return Surface(panel=panel, x=ticks.tolist(), y=ticks.tolist(), z=z.clamp_min(FLOOR).tolist(), label="loss")


def streams(gram: Tensor, panel: str) -> Curve:
    """The phase portrait: short streams of `−∇ loss` in the plane from a grid of points, gaps between them."""
    weight, length = in_plane(gram), math.hypot(*SHIFT)
    ticks = torch.linspace(-0.92 * SPAN, 0.92 * SPAN, ARROWS, dtype=torch.float64)
    at = torch.cartesian_prod(ticks, ticks)
    points = [at]
    for _ in range(12):
        error = weight * (at[:, 0] * at[:, 1] - length)
        flow = -error[:, None] * at.flip(-1)
        at = at + 0.03 * flow / flow.norm(dim=-1, keepdim=True).clamp_min(1e-3).sqrt()
        points.append(at)
    points.append(torch.full_like(at, torch.nan))
    x, y = torch.stack(points, 1).flatten(0, 1).unbind(-1)
    return Curve(panel=panel, label="negative gradient", x=x.tolist(), y=y.tolist(), kind="front")
