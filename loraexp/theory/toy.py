"""LoRA-One's two-parameter example: trajectories from a random and a spectral start on the surface
of the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from loraexp.adapter.layer import Factors, Layer
from loraexp.config import ConfigError
from loraexp.machine.progress import Progress
from loraexp.records.curves import Computed, Curve, Surface, Values
from loraexp.theory import linear, shifts
from loraexp.theory.linear import Batch, by_seed, descend
from loraexp.theory.starts import gaussian, spectral

SHIFT = (2.0, 1.0)  # w
STARTS = {
    "squared": "(Spectral-init), y² as printed",
    "gradient": "(Spectral-init), y",
    "random": "(LoRA-init)",
}
SPECTRAL = ("squared", "gradient")
SPAN = 3.2  # the plane that is drawn: both coordinates from −SPAN to SPAN
TICKS = 81
FLOOR = 0.05  # the least loss that the surface tells apart
ARROWS = 9  # streams of the phase portrait along each side of the plane


@dataclass(frozen=True)
class ToyTasks(shifts.Tasks):
    """The linear tasks with their inputs `X` (n, N, 2)."""

    X: Tensor

    @property
    def squared(self) -> Tensor:
        """`¼ Σ y_i² x_i` (n, 1, 2): the one-step gradient as the text prints it and the authors'
        notebook computes it."""
        y = self.X @ torch.tensor(SHIFT, dtype=self.X.dtype)
        return torch.einsum("ni,nid->nd", y.square(), self.X)[:, None] / self.rows


def toy_tasks(seeds: int, rows: int) -> ToyTasks:
    """`y = wᵀx` with `w = (2, 1)`, W0 = 0 and `rows` standard normal inputs for each seed: the
    linear task with d = 2, k = 1."""
    inputs = []

    def gram(generator: torch.Generator) -> Tensor:
        inputs.append(torch.randn(rows, 2, generator=generator, dtype=torch.float64))
        return inputs[-1].mT @ inputs[-1] / rows

    drawn = shifts.tasks(seeds, 2, 1, [1.0], rows, gram=gram)
    target = torch.tensor(SHIFT, dtype=torch.float64).expand(seeds, 1, 2)
    W, left = torch.zeros_like(drawn.W), torch.ones_like(drawn.left)
    return ToyTasks(W, left, target.clone(), drawn.gram, rows, torch.stack(inputs))


def starts(given: ToyTasks) -> dict[str, linear.Start]:
    """The arms: the spectral start from the text's gradient and from that of the loss, and the
    random start."""
    squared = given.squared

    def as_printed(layer: Layer, generator: torch.Generator) -> Factors:
        g = squared[int(layer.name.removeprefix("task "))]
        return spectral(Layer(name=layer.name, W=layer.W, gradient=-g), generator, rank=1)

    return {
        "squared": as_printed,
        "gradient": partial(spectral, rank=1),
        "random": partial(gaussian, rank=1, variance=1.0),
    }


def parameters(batch: Batch) -> Tensor:
    """`(a_1, a_2, b)` (m, 3) of every layer."""
    A, B = batch.factors["A"], batch.factors["B"]
    assert A is not None and B is not None
    return torch.cat([A[:, 0], B[:, 0]], -1)


def distance_to_minimizers(point: Tensor) -> Tensor:
    """The distance of `(a_1, a_2, b)` (…, 3) to the set `{(2/t, 1/t, t)}` of global minimizers.

    The derivative of the squared distance along the set is zero where `t⁴ − b t³ + (w·a) t − ‖w‖² =
    0`: the eigenvalues of a companion matrix. Its real roots hold the nearest point, and a root
    with an imaginary part is only farther away.
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


def steps_until_near(at: Tensor, near: float) -> Tensor:
    """The first step (m,) at which points (steps, m, 3) are within `near` of the minimizers; the
    number of steps where never.

    Within ε of `(w/t, t)` is `‖a b − w‖ ≤ ε (|b| + ‖a‖ + ε)`: the distance itself is computed where
    that holds.
    """
    steps, count = at.shape[:2]
    a, b = at[..., :2], at[..., 2:]
    reach = near * (b.abs().squeeze(-1) + a.norm(dim=-1) + near)
    candidates = (a * b - torch.tensor(SHIFT, dtype=at.dtype)).norm(dim=-1) <= reach
    until = torch.full((count,), steps - 1)
    open_ = candidates.any(0)
    while open_.any():
        which = open_.nonzero().squeeze(1)
        first = candidates[:, which].int().argmax(0)
        there = distance_to_minimizers(at[first, which]) <= near
        until[which[there]] = first[there]
        candidates[first, which] = False
        open_[which[there]] = False
        open_ &= candidates.any(0)
    return until


def trajectories(
    seeds: int,
    shown: int,
    rows: int,
    lr: float,
    steps: int,
    near: float,
    portrait: bool,
    progress: Progress,
) -> Computed:
    """Gradient descent on `1/8 Σ (y_i − b x_iᵀa)²` from (Spectral-init) and (LoRA-init), in the
    plane of `a·w/‖w‖` and b.

    LoRA-One, Figure 3 and the end of its appendix G.1; slides, Figure 2, and with `portrait` the
    toy example II: log loss with a phase portrait. In (LoRA-init) a is standard normal and b zero.
    The one-step gradient of the text, and of the authors' notebook (YuanheZ/LoRA-One 086d00d^,
    Toy_Experiments.ipynb), is `¼ Σ y_i² x_i` ("squared"); the negative gradient of the loss that is
    printed beside it is `¼ Σ y_i x_i` ("gradient"). Both are run. Values by start: `distance/…` of
    the start to the set of global minimizers, `steps/…` until the distance is below `near` (`steps`
    where never), `reached/…` and `diverged/…` (shares of seeds). `<start>/nearer`, `<start>/fewer`:
    the share of seeds where the spectral start is nearer, and needs fewer steps, `<start>/error`
    the standard error of the latter; `<start>/steps_ratio`: the median over seeds of the spectral
    start's steps over the random one's. The first `shown` seeds are drawn.
    """
    if shown > seeds:
        raise ConfigError(f"shown={shown}: expected at most seeds={seeds}")
    given = toy_tasks(seeds, rows)
    batch, arms = Batch(given, starts(given), 1), len(STARTS)
    trace = descend(
        batch, "gd", lr, steps, {"at": parameters}, progress=linear.share(progress, 0, steps)
    )
    at = trace["at"].nan_to_num(1e6)
    until = by_seed(steps_until_near(at, near), arms)
    start = by_seed(distance_to_minimizers(at[0]), arms)
    values = compared(start, until) | ends(start, until, steps, trace.diverged_at)
    panel = "steps until a minimizer"
    axes = {panel: {"x": f"steps until within {near:g} of the set ({steps}: never)", "y": "seeds"}}
    axes |= dict.fromkeys(map(data_panel, range(shown)), {"x": "a along w/‖w‖", "y": "b"})
    curves = [
        Curve(panel=panel, label=label, x=[], y=until[:, j].tolist(), kind="histogram")
        for j, label in enumerate(STARTS.values())
    ]
    for seed in range(shown):
        panel = data_panel(seed)
        curves += [minimizers(panel)] + [streams(given.gram[seed], panel)] * portrait
        for place, label in enumerate(STARTS.values(), arms * seed):
            curves.append(path(trace["at"][:, place], panel, label, trace.diverged_at[place]))
    surfaces = [loss(given.gram[seed], data_panel(seed)) for seed in range(shown)]
    return Computed(values=values, curves=curves, surfaces=surfaces, axes=axes)


def data_panel(seed: int) -> str:
    return f"data {seed + 1}"


def compared(start: Tensor, until: Tensor) -> Values:
    """The spectral starts against the random one, the last: distances of the start and steps
    (seeds, arms)."""
    values: Values = {}
    for j, name in enumerate(SPECTRAL):
        fewer = float((until[:, j] < until[:, -1]).double().mean())
        values[f"{name}/nearer"] = float((start[:, j] < start[:, -1]).double().mean())
        values[f"{name}/fewer"] = fewer
        values[f"{name}/error"] = math.sqrt(fewer * (1 - fewer) / len(until))
        values[f"{name}/steps_ratio"] = float((until[:, j] / until[:, -1].clamp_min(1)).median())
    return values


def ends(start: Tensor, until: Tensor, steps: int, diverged_at: Sequence[int | None]) -> Values:
    """Every start by seed: its distance, its steps, and how many arrived or diverged."""
    values: Values = {}
    for j, name in enumerate(STARTS):
        values[f"distance/{name}"] = start[:, j].tolist()
        values[f"steps/{name}"] = until[:, j].tolist()
        values[f"reached/{name}"] = float((until[:, j] < steps).double().mean())
        diverged = sum(x is not None for x in diverged_at[j :: len(STARTS)])
        values[f"diverged/{name}"] = diverged / len(until)
    return values


def along(at: Tensor) -> Tensor:
    """`a·w/‖w‖` of parameters (…, 3): the plane holds every global minimizer."""
    w = torch.tensor(SHIFT, dtype=at.dtype)
    return at[..., :2] @ w / w.norm()


def path(at: Tensor, panel: str, label: str, diverged_at: int | None) -> Curve:
    """One trajectory (steps, 3), drawn with b > 0: (a, b) and (−a, −b) are the same model."""
    at = at[~at.isnan().any(-1)]
    sign = 1.0 if at[-1, 2] >= 0 else -1.0
    x, y = sign * along(at), sign * at[:, 2]
    return Curve(
        panel=panel,
        label=label,
        x=x.tolist(),
        y=y.tolist(),
        kind="trajectory",
        diverged_at=diverged_at,
    )


def minimizers(panel: str) -> Curve:
    """The two branches of `{(2/t, 1/t, t)}` in the plane, with a gap between them."""
    length = math.hypot(*SHIFT)
    t = torch.linspace(length / SPAN, SPAN, 60, dtype=torch.float64)
    x, y = (length / t).tolist(), t.tolist()
    return Curve(
        panel=panel,
        label="global minimizers",
        x=[*x, math.nan, *(-v for v in x)],
        y=[*y, math.nan, *(-v for v in y)],
    )


def in_plane(gram: Tensor) -> float:
    """`ŵᵀ Σ ŵ`: how the loss weighs an error along w."""
    w = torch.tensor(SHIFT, dtype=gram.dtype)
    return float(w @ gram @ w / (w @ w))


def loss(gram: Tensor, panel: str) -> Surface:
    """The loss where a lies along w; the floor keeps the valley of the minimizers finite on a
    logarithmic scale."""
    ticks = torch.linspace(-SPAN, SPAN, TICKS, dtype=torch.float64)
    z = in_plane(gram) * (ticks[:, None] * ticks - math.hypot(*SHIFT)).square() / 2
    return Surface(
        panel=panel, x=ticks.tolist(), y=ticks.tolist(), z=z.clamp_min(FLOOR).tolist(), label="loss"
    )


def streams(gram: Tensor, panel: str) -> Curve:
    """The phase portrait: short streams of `−∇ loss` in the plane from a grid of points, gaps
    between them."""
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
