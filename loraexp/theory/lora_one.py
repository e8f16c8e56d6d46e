"""LoRA-One's figures on the linear task: variance of the start, the global minimum, preconditioners
(appendix G.1, slides)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch

from loraexp.adapter.layer import Factors, Layer
from loraexp.config import ConfigError
from loraexp.initializers.lora_ga import lora_ga
from loraexp.initializers.lora_one import lora_one
from loraexp.initializers.lora_sb import lora_sb
from loraexp.sweep.computed import Computed, Curve, Progress
from loraexp.theory import linear, shifts
from loraexp.theory.bands import band, first_divergence, smallest_gap
from loraexp.theory.linear import Batch, Trace, by_seed, descend, first_step, logs
from loraexp.theory.starts import gaussian, spectral, subspace_of_gradient

# --------------------------------------------------------------------------------------------------
# Figure 2


def figure2(
    dimensions: dict[str, int],
    rows_per_dimension: int,
    rank: int,
    true_rank: int,
    variances: list[float],
    lr: float,
    steps: int,
    every: int,
    seeds: int,
    aligned: float,
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
    values: dict[str, float | list[float]] = {}
    total = (len(dimensions) + 2 * len(ratios)) * steps
    for i, (size, d) in enumerate(dimensions.items()):
        given = shifts.tasks(seeds, d, d, [1.0] * true_rank, rows_per_dimension * d)
        starts = {f"{v:g}": partial(gaussian, rank=rank, variance=v) for v in variances}
        batch = Batch(given, starts, rank)
        measures = {"risk": linear.risk, "angle": linear.angle_to_gradient(batch, true_rank)}
        part = linear.share(progress, i * steps, total)
        trace = descend(batch, "gd", lr, steps, measures, every=every, progress=part)
        found, drawn = of_dimension(trace, size, d, variances, steps, aligned)
        values |= found
        curves += drawn
    if ratios:
        part = linear.share(progress, len(dimensions) * steps, total)
        start = partial(gaussian, rank=rank, variance=variances[-1])
        d = next(iter(dimensions.values()))
        given = shifts.tasks(seeds, d, d, [1.0] * true_rank, rows_per_dimension * d)
        found, drawn = two_rates(
            given, start, rank, true_rank, lr, steps, every, aligned, ratios, part
        )
        values |= found
        curves += drawn
    axes = axes_of_figure2(dimensions)
    if ratios:
        axes["two rates"] = {"x": "step", "y": LABELS["angle"]}
    return Computed(values=values, curves=curves, axes=axes)


def of_dimension(
    trace: Trace, size: str, d: int, variances: list[float], steps: int, aligned: float
) -> tuple[dict[str, float | list[float]], list[Curve]]:
    """Values and curves of one dimension, a curve for each variance and one against it."""
    values: dict[str, float | list[float]] = {}
    curves: list[Curve] = []
    arms = len(variances)
    risk, angle = (by_seed(trace[name], arms) for name in ("risk", "angle"))
    last, best = logs(risk[-1]), angle.nan_to_num(1.0).amin(0)
    until = by_seed(first_step(trace.steps, trace["angle"] <= aligned).clamp_max(steps), arms)
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
    given: shifts.Tasks,
    start: linear.Start,
    rank: int,
    true_rank: int,
    lr: float,
    steps: int,
    every: int,
    aligned: float,
    ratios: list[float],
    progress: Callable[[int], None],
) -> tuple[dict[str, float | list[float]], list[Curve]]:
    """Steps until alignment where B learns `ratio` times as fast as A: with A at `lr`, and with the
    geometric mean at `lr`."""
    values: dict[str, float | list[float]] = {}
    curves = []
    runs = [(f"η_B = {r:g} η_A, η_A = η", lr, r, "faster B") for r in ratios]
    runs += [
        (f"η_B = {r:g} η_A, √(η_A η_B) = η", lr / r**0.5, r, "same mean") for r in ratios if r != 1
    ]
    for i, (label, rate, ratio, kind) in enumerate(runs):
        batch = Batch(given, {"random": start}, rank)
        measure = {"angle": linear.angle_to_gradient(batch, true_rank)}
        done = partial(lambda first, step: progress(first + step), i * steps)
        trace = descend(
            batch, "imbalanced", rate, steps, measure, every=every, progress=done, ratio=ratio
        )
        curves.append(
            band("two rates", label, trace.steps, trace["angle"], first_divergence(trace, 0, 1))
        )
        values[f"steps/{kind}/ratio {ratio:g}"] = (
            first_step(trace.steps, trace["angle"] <= aligned).clamp_max(steps).tolist()
        )
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


# LoRA-GA's factors are k^(1/4)/γ (equation 91) or k^(1/4)/√γ (the authors' notebook)
GammaReading = Literal["paper", "released"]


def biased(
    layer: Layer,
    generator: torch.Generator,
    *,
    rank: int,
    gamma: float,
    reading: GammaReading,
    scaling: float,
) -> Factors:
    """LoRA-GA with the α/√r of equation 91 inside its factors: the same offset, and steps as
    without a scaling."""
    found = lora_ga(
        layer, rank=rank, scaling=1.0, generator=generator, gamma=gamma, flavour=reading
    )
    return replace(found, A=scaling**0.5 * found.A, B=scaling**0.5 * found.B)


def starts_of_figure4(
    rank: int, lr: float, gamma: float, reading: GammaReading, scaling: float, scale: float
) -> dict[str, linear.Start]:
    """The methods of Figure 4, and two readings of them that the text leaves open."""
    return {
        "lora_one": lambda layer, g: lora_one(
            layer, rank=rank, scaling=1.0, generator=g, scale=scale
        ),
        "spectral": partial(spectral, rank=rank),
        "lora_ga": partial(biased, rank=rank, gamma=gamma, reading=reading, scaling=scaling),
        "lora_sb": lambda layer, g: lora_sb(
            layer, rank=rank, scaling=scale, generator=g, step_size=lr
        ),
        "lora_sb_svd": partial(subspace_of_gradient, rank=rank),
    }


def figure4(
    d: int,
    rows: int,
    cases: dict[str, list[int]],
    spectrum: list[float],
    lr: float,
    stable_lr: float,
    gamma: float,
    scale: float,
    steps: int,
    plain_steps: int,
    seeds: int,
    progress: Progress,
    gamma_reading: GammaReading = "paper",
    damping: float = 0.0,
    alpha: float | None = None,
) -> Computed:
    """Log-risk of LoRA-One, LoRA-SB and LoRA-GA under and over the rank of Δ, with the best rank-r
    risk as a line.

    LoRA-One, Figure 4 and its appendix G.1: η = 0.5, stable parameter γ = 16, scaling parameter 1;
    the number of steps is not stated. `gamma_reading`: LoRA-GA's factors are `k^{1/4}/γ` (paper:
    equation 91) or `k^{1/4}/√γ` (released); its `α/√r` is of `alpha`, or 1 where that is null.
    `damping`: λ of the preconditioned rule; 0 in the text, 1e-3 in the authors' notebook. Plain
    gradient descent at 0.5 diverges on singular values of 40 (the curvature is 80), and it is not
    said which other rule was run; here three: `gd` at η, `prec_gd` at η (equation Prec-GD, for
    which Theorem C.21 allows rates up to 0.5), and `small`: gradient descent at `stable_lr`.
    LoRA-SB trains R alone and takes plain gradient descent under each. `cases` are [r, r*] by name.
    Values `risk/<case>/<rule>/<method>` (log10 of the last risk), `excess/…` (log10 of what its
    training loss, relative to that of W0, lies above the infimum over updates of rank r; −40 where
    it does not), `reached/…` (the share of seeds where that is below 1e-8), `above/…` (log10 of the
    last risk over the best rank-r risk, where that is not 0), `diverged/…` (the share of seeds) and
    `diverged_at/…` (the first step). LoRA-GA's update has rank 2r, its offset included, and may lie
    below the infimum.
    """
    rules = {
        "gd": ("gd", lr, steps),
        "prec_gd": ("prec_gd", lr, steps),
        "small": ("gd", stable_lr, plain_steps),
    }
    total, done = len(cases) * 2 * (2 * steps + plain_steps), 0
    values: dict[str, float | list[float]] = {}
    curves: list[Curve] = []
    for case, ranks in cases.items():
        rank, true_rank = checked_ranks(case, ranks, len(spectrum))
        given = shifts.tasks(seeds, d, d, spectrum[:true_rank], rows)
        infimum = linear.least_risk(spectrum[:true_rank], rank)
        values[f"infimum/{case}"] = infimum
        scaling = 1.0 if alpha is None else alpha / rank**0.5
        for name, (rule, rate, count) in rules.items():
            panel = PANELS[name].format(case=f"r = {rank}, r* = {true_rank}", lr=rate)
            starts = starts_of_figure4(rank, rate, gamma, gamma_reading, scaling, scale)
            for own, arms in by_rule(rule, starts):
                trace = descend(
                    Batch(given, arms, rank),
                    own,
                    rate,
                    count,
                    {"risk": linear.risk, "loss": linear.training_loss},
                    every=max(1, count // 200),
                    progress=linear.share(progress, done, total),
                    **({"damping": damping} if own == "prec_gd" else {}),
                )
                done += count
                values |= ends(trace, f"{case}/{name}", list(arms), given, rank, infimum)
                curves += [
                    risk_curve(trace, panel, method, j, len(arms)) for j, method in enumerate(arms)
                ]
            if infimum:
                curves.append(best_risk(panel, rank, infimum, count))
    axes = {curve.panel: {"x": "step", "y": LABELS["risk"]} for curve in curves}
    return Computed(values=values, curves=curves, axes=axes)


def checked_ranks(case: str, ranks: list[int], most: int) -> tuple[int, int]:
    """r and r*. Raises: ConfigError where they are not two, or the spectrum is too short."""
    if len(ranks) != 2 or not 1 <= ranks[1] <= most:
        raise ConfigError(
            f"cases.{case}={ranks}: expected [r, r*] with an r* of 1 to {most}, the length of"
            " spectrum"
        )
    return ranks[0], ranks[1]


def by_rule(
    rule: str, starts: dict[str, linear.Start]
) -> list[tuple[str, dict[str, linear.Start]]]:
    """The methods with the rule that each takes: LoRA-SB, which trains R alone, plain gradient
    descent beside any."""
    frozen = {name: start for name, start in starts.items() if name.startswith("lora_sb")}
    return [(rule, {m: start for m, start in starts.items() if m not in frozen}), ("gd", frozen)]


def best_risk(panel: str, rank: int, infimum: float, count: int) -> Curve:
    """The line of the best rank-r risk."""
    level = float(logs(torch.tensor(infimum)))
    label = f"best rank-{rank} risk"
    return Curve(panel=panel, label=label, x=[0, count], y=[level, level], kind="level")


PANELS = {
    "gd": "{case}, GD, η = {lr:g}",
    "prec_gd": "{case}, preconditioned GD, η = {lr:g}",
    "small": "{case}, GD, η = {lr:g}",
}


def risk_curve(trace: Trace, panel: str, method: str, arm: int, arms: int) -> Curve:
    return band(
        panel,
        NAMES[method],
        trace.steps,
        logs(by_seed(trace["risk"], arms)[..., arm]),
        first_divergence(trace, arm, arms),
    )


def ends(
    trace: Trace, where: str, arms: Sequence[str], given: shifts.Tasks, rank: int, infimum: float
) -> dict[str, float | list[float]]:
    """The last risk and excess loss of each arm by seed; of a diverged one no number, and the step
    at which it diverged."""
    values: dict[str, float | list[float]] = {}
    for j, method in enumerate(arms):
        risk, loss = (by_seed(trace[name][-1], len(arms))[:, j] for name in ("risk", "loss"))
        excess = (loss - linear.least_loss(given, rank)) / linear.least_loss(given, 0)
        values[f"risk/{where}/{method}"] = logs(risk).tolist()
        values[f"excess/{where}/{method}"] = logs(excess).tolist()
        if infimum:
            values[f"above/{where}/{method}"] = logs(risk / infimum).tolist()
        values[f"reached/{where}/{method}"] = float((excess < 1e-8).double().mean())
        diverged = [step for step in trace.diverged_at[j :: len(arms)] if step is not None]
        values[f"diverged/{where}/{method}"] = len(diverged) / len(excess)
        if diverged:
            values[f"diverged_at/{where}/{method}"] = float(min(diverged))
    return values
