"""LoRA-One's figures on the linear task: variance of the start, the global minimum, preconditioners
(appendix G.1, slides)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from loraexp.config import ConfigError
from loraexp.initializers.lora_one import lora_one
from loraexp.initializers.lora_sb import lora_sb
from loraexp.machine.progress import Progress
from loraexp.records.curves import Computed, Curve, Values
from loraexp.theory import linear
from loraexp.theory.bands import band, first_divergence, smallest_gap
from loraexp.theory.cases import Case, Cases, Rates, Rule
from loraexp.theory.keywords import keywords
from loraexp.theory.linear import Batch, Trace, by_seed, descend, first_step, logs
from loraexp.theory.shifts import Growing
from loraexp.theory.starts import Offset, gaussian, spectral, subspace_of_gradient

# --------------------------------------------------------------------------------------------------
# Figure 2


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Gradient descent that is measured at each `every` steps, until the sine of the angle is below
    `aligned`."""

    lr: float
    steps: int
    every: int
    aligned: float

    def until(self, trace: Trace) -> Tensor:
        """The steps (m,) that each layer took; all of them where it never was there."""
        return first_step(trace.steps, trace["angle"] <= self.aligned).clamp_max(self.steps)


@keywords
def figure2(
    growing: Growing,
    descent: Alignment,
    rank: int,
    variances: list[float],
    ratios: list[float],
    progress: Progress,
) -> Computed:
    """Risk and alignment of LoRA from (LoRA-init), against the variance α² of A, the dimension and
    the ratio of the two rates.

    LoRA-One, Figure 2 and its appendix G.1; slides, Figure 1. `Δ = U Vᵀ` with r* singular values 1,
    d = k, N = d `rows_per_dimension`. Values by `<dimension's name>/variance <α²>`: `risk/…` (log10
    of the last risk), `angle/…` (the least over the measured steps), `steps/…` until the angle is
    below `aligned`; and `gap/…`, the smallest fall of the mean from a variance to the next smaller
    one. `ratios` η_B/η_A are run in the first dimension with the smallest variance, with η_A = `lr`
    and with `√(η_A η_B) = lr`.
    """
    if sorted(variances, reverse=True) != variances:
        raise ConfigError(f"variances={variances}: expected the largest first")
    curves: list[Curve] = []
    values: Values = {}
    sizes, steps = growing.dimensions, descent.steps
    total = (len(sizes) + 2 * len(ratios)) * steps
    starts = {f"{v:g}": partial(gaussian, rank=rank, variance=v) for v in variances}
    for i, (size, d) in enumerate(sizes.items()):
        batch = Batch(growing.tasks(d), starts, rank)
        angle = linear.angle_to_gradient(batch, growing.true_rank)
        part = linear.share(progress, i * steps, total)
        measures = {"risk": linear.risk, "angle": angle}
        trace = descend(
            batch, "gd", descent.lr, steps, measures, every=descent.every, progress=part
        )
        found, drawn = of_dimension(trace, size, d, variances, descent)
        values |= found
        curves += drawn
    axes = axes_of_figure2(sizes)
    if ratios:
        part = linear.share(progress, len(sizes) * steps, total)
        start = {"random": list(starts.values())[-1]}
        found, drawn = two_rates(growing, descent, rank, start, ratios, part)
        values |= found
        curves += drawn
        axes["two rates"] = {"x": "step", "y": LABELS["angle"]}
    return Computed(values=values, curves=curves, axes=axes)


def of_dimension(
    trace: Trace, size: str, d: int, variances: list[float], descent: Alignment
) -> tuple[Values, list[Curve]]:
    """Values and curves of one dimension, a curve for each variance and one against it."""
    values: Values = {}
    curves: list[Curve] = []
    arms = len(variances)
    risk, angle = (by_seed(trace[name], arms) for name in ("risk", "angle"))
    last, best = logs(risk[-1]), angle.nan_to_num(1.0).amin(0)
    until = by_seed(descent.until(trace), arms)
    for j, v in enumerate(variances):
        label, ended = f"α² = {v:g}", first_divergence(trace, j, arms)
        curves.append(band(f"risk, {size} d", label, trace.steps, logs(risk[..., j]), ended))
        curves.append(band(f"angle, {size} d", label, trace.steps, angle[..., j]))
        for name, x in (("risk", last), ("angle", best), ("steps", until)):
            values[f"{name}/{size}/variance {v:g}"] = x[:, j].tolist()
    for name, x in (("risk", last), ("angle", best)):
        curves.append(band(f"{name} against α²", f"d = {d}", variances, x.mT))
        values[f"gap/{name}/{size}"] = smallest_gap(x)
    return values, curves


def axes_of_figure2(dimensions: dict[str, int]) -> dict[str, dict[str, str]]:
    axes = {
        f"{name}, {size} d": {"x": f"step (d = {d})", "y": LABELS[name]}
        for name in LABELS
        for size, d in dimensions.items()
    }
    return axes | {
        f"{name} against α²": {"x": "variance α² of the start", "y": BEST[name], "x_scale": "log"}
        for name in BEST
    }


LABELS = {"risk": "log10 risk ½‖BA − Δ‖²", "angle": "sine of principal angle to G♮"}
BEST = {"risk": "log10 of the last risk", "angle": "best sine of principal angle"}


def two_rates(
    growing: Growing,
    descent: Alignment,
    rank: int,
    start: Mapping[str, linear.Start],
    ratios: list[float],
    progress: Callable[[int], None],
) -> tuple[Values, list[Curve]]:
    """Steps until alignment where B learns `ratio` times as fast as A: with A at `lr`, and with the
    geometric mean at `lr`."""
    values: Values = {}
    curves = []
    lr, steps = descent.lr, descent.steps
    given = growing.tasks(next(iter(growing.dimensions.values())))
    runs = [(f"η_B = {r:g} η_A, η_A = η", lr, r, "faster B") for r in ratios]
    runs += [
        (f"η_B = {r:g} η_A, √(η_A η_B) = η", lr / r**0.5, r, "same mean") for r in ratios if r != 1
    ]
    for i, (label, rate, ratio, kind) in enumerate(runs):
        batch = Batch(given, start, rank)
        trace = descend(
            batch,
            "imbalanced",
            rate,
            steps,
            {"angle": linear.angle_to_gradient(batch, growing.true_rank)},
            every=descent.every,
            progress=partial(lambda first, step: progress(first + step), i * steps),
            ratio=ratio,
        )
        curves.append(
            band("two rates", label, trace.steps, trace["angle"], first_divergence(trace, 0, 1))
        )
        values[f"steps/{kind}/ratio {ratio:g}"] = descent.until(trace).tolist()
    return values, curves


# --------------------------------------------------------------------------------------------------
# Figure 4

NAMES = {
    "lora_one": "LoRA-One",
    "spectral": "LoRA-One, size of the gradient kept",
    "lora_ga": "LoRA-GA",
    "lora_sb": "LoRA-SB",
    "lora_sb_svd": "LoRA-SB, gradient without signs",
}


def starts_of_figure4(
    rank: int, lr: float, offset: Offset, scaling: float, scale: float
) -> dict[str, linear.Start]:
    """The methods of Figure 4, and two readings of them that the text leaves open."""
    return {
        "lora_one": lambda layer, g: lora_one(
            layer, rank=rank, scaling=1.0, generator=g, scale=scale
        ),
        "spectral": partial(spectral, rank=rank),
        "lora_ga": partial(offset.start, rank=rank, scaling=scaling),
        "lora_sb": lambda layer, g: lora_sb(
            layer, rank=rank, scaling=scale, generator=g, step_size=lr
        ),
        "lora_sb_svd": partial(subspace_of_gradient, rank=rank),
    }


@keywords
def figure4(
    problem: Cases,
    rates: Rates,
    offset: Offset,
    scale: float,
    progress: Progress,
    alpha: float | None = None,
) -> Computed:
    """Log-risk of LoRA-One, LoRA-SB and LoRA-GA under and over the rank of Δ, with the best rank-r
    risk as a line.

    LoRA-One, Figure 4 and its appendix G.1: η = 0.5, stable parameter γ = 16, scaling parameter 1;
    the number of steps is not stated. LoRA-GA's `α/√r` is of `alpha`, or 1 where that is null.
    LoRA-SB trains R alone and takes plain gradient descent under each of the rules.
    Values `risk/<case>/<rule>/<method>` (log10 of the last risk), `excess/…` (log10 of what its
    training loss, relative to that of W0, lies above the infimum over updates of rank r; −40 where
    it does not), `reached/…` (the share of seeds where that is below 1e-8), `above/…` (log10 of the
    last risk over the best rank-r risk, where that is not 0), `diverged/…` (the share of seeds) and
    `diverged_at/…` (the first step). LoRA-GA's update has rank 2r, its offset included, and may lie
    below the infimum.
    """
    rules = rates.rules()
    total, done = 2 * len(problem.cases) * sum(rule.steps for rule in rules), 0
    values: Values = {}
    curves: list[Curve] = []
    for case in problem:
        values[f"infimum/{case.name}"] = case.infimum
        scaling = 1.0 if alpha is None else alpha / case.rank**0.5
        for rule in rules:
            panel = f"{case.title}, {rule.title}, η = {rule.lr:g}"
            starts = starts_of_figure4(case.rank, rule.lr, offset, scaling, scale)
            for own, arms in rule.over(starts):
                trace = of_rule(case, own, arms, linear.share(progress, done, total))
                done += own.steps
                values |= ends(trace, case, rule.name, list(arms))
                curves += [
                    risk_curve(trace, panel, method, j, len(arms)) for j, method in enumerate(arms)
                ]
            if case.infimum:
                curves.append(best_risk(panel, case, rule.steps))
    axes = {curve.panel: {"x": "step", "y": LABELS["risk"]} for curve in curves}
    return Computed(values=values, curves=curves, axes=axes)


def of_rule(
    case: Case, rule: Rule, arms: Mapping[str, linear.Start], progress: Callable[[int], None]
) -> Trace:
    return descend(
        Batch(case.given, arms, case.rank),
        rule.rule,
        rule.lr,
        rule.steps,
        {"risk": linear.risk, "loss": linear.training_loss},
        every=max(1, rule.steps // 200),
        progress=progress,
        **rule.options,
    )


def best_risk(panel: str, case: Case, count: int) -> Curve:
    """The line of the best rank-r risk."""
    level = float(logs(torch.tensor(case.infimum)))
    label = f"best rank-{case.rank} risk"
    return Curve(panel=panel, label=label, x=[0, count], y=[level, level], kind="level")


def risk_curve(trace: Trace, panel: str, method: str, arm: int, arms: int) -> Curve:
    return band(
        panel,
        NAMES[method],
        trace.steps,
        logs(by_seed(trace["risk"], arms)[..., arm]),
        first_divergence(trace, arm, arms),
    )


def ends(trace: Trace, case: Case, rule: str, arms: Sequence[str]) -> Values:
    """The last risk and excess loss of each arm by seed; of a diverged one no number, and the step
    at which it diverged."""
    values: Values = {}
    infimum = linear.least_loss(case.given, case.rank)
    whole = linear.least_loss(case.given, 0)
    for j, method in enumerate(arms):
        where = f"{case.name}/{rule}/{method}"
        risk, loss = (by_seed(trace[name][-1], len(arms))[:, j] for name in ("risk", "loss"))
        excess = (loss - infimum) / whole
        values[f"risk/{where}"] = logs(risk).tolist()
        values[f"excess/{where}"] = logs(excess).tolist()
        if case.infimum:
            values[f"above/{where}"] = logs(risk / case.infimum).tolist()
        values[f"reached/{where}"] = float((excess < 1e-8).double().mean())
        diverged = [step for step in trace.diverged_at[j :: len(arms)] if step is not None]
        values[f"diverged/{where}"] = len(diverged) / len(excess)
        if diverged:
            values[f"diverged_at/{where}"] = float(min(diverged))
    return values
