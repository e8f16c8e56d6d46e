"""The slides' ablation study: gradient descent from the spectral start with and without
preconditioners.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from loraexp.machine.progress import Progress
from loraexp.records.curves import Computed, Curve, Values
from loraexp.theory import linear, shifts
from loraexp.theory.bands import band
from loraexp.theory.linear import Batch, Trace, descend, first_step, logs
from loraexp.theory.starts import spectral


def relative_risk(batch: Batch, whole: float) -> Tensor:
    """The risk over that of W0."""
    return linear.risk(batch) / whole


def ablation(
    d: int,
    rows: int,
    spectra: dict[str, list[float]],
    lrs: list[float],
    steps: int,
    seeds: int,
    target: float,
    progress: Progress,
) -> Computed:
    """Gradient descent from the spectral start with (+) and without (−) preconditioners, over
    learning rates.

    Slides, "Ablation study", of which only the labels survive; here on the linear task with r = r*,
    for a well and an ill conditioned Δ.
    Values by `<spectrum>/<+|->`: `tolerated/…` (how many of the rates bring the risk, relative to
    that of W0, below `target` in every seed), `steps/…` (the fewest steps to there at any rate;
    `steps` where none does), `risk/…/lr <η>` (log10 of the last relative risk).
    """
    values: Values = {}
    curves: list[Curve] = []
    axes = {}
    total, done = len(spectra) * 2 * len(lrs) * steps, 0
    for name, spectrum in spectra.items():
        given = shifts.tasks(seeds, d, d, spectrum, rows)
        relative = partial(relative_risk, whole=sum(s * s for s in spectrum) / 2)
        start = {"spectral": partial(spectral, rank=len(spectrum))}
        for sign, rule in (("+", "prec_gd"), ("-", "gd")):
            traces = []
            for lr in lrs:
                batch = Batch(given, start, len(spectrum))
                part = linear.share(progress, done, total)
                trace = descend(batch, rule, lr, steps, {"risk": relative}, progress=part)
                traces.append(trace)
                done += steps
                values[f"risk/{name}/{sign}/lr {lr:g}"] = logs(trace["risk"][-1]).tolist()
            found, drawn = over_rates(traces, lrs, steps, target, name, sign)
            values |= {f"{what}/{name}/{sign}": value for what, value in found.items()}
            curves += drawn
        axes[f"{name}: last risk against η"] = {
            "x": "learning rate η",
            "y": "log10 of the last relative risk",
            "x_scale": "log",
        }
        axes[f"{name}: risk at the best η"] = {"x": "step", "y": "log10 relative risk"}
    return Computed(values=values, curves=curves, axes=axes)


def over_rates(
    traces: list[Trace], lrs: list[float], steps: int, target: float, name: str, sign: str
) -> tuple[Values, list[Curve]]:
    """How many rates reach the target in every seed, the fewest steps to there, and the curves of
    one spectrum and sign: the last risks, and the way at the rate that is there first."""
    last = torch.stack([logs(x["risk"][-1]).nan_to_num(0.0).clamp_max(0.0) for x in traces])
    until = torch.stack([first_step(x.steps, x["risk"] <= target).clamp_max(steps) for x in traces])
    best = traces[
        min(range(len(lrs)), key=lambda i: (float(until[i].mean()), float(last[i].mean())))
    ]
    label = "(+) with preconditioners" if sign == "+" else "(−) without"
    reach = (last <= logs(torch.tensor(target))).all(-1)
    return (
        {"tolerated": float(reach.sum()), "steps": until.amin(0).tolist()},
        [
            band(f"{name}: last risk against η", label, lrs, last),
            band(f"{name}: risk at the best η", label, best.steps, logs(best["risk"])),
        ],
    )
