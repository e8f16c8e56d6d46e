"""Figures of LoRA-One that are read off real runs: alignment during training, and the spectra
behind Assumption 4.1."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraexp import config
from loraexp.config import ConfigError
from loraexp.finished import angles
from loraexp.finished.opened import FinishedRun
from loraexp.machine.progress import Progress
from loraexp.records.curves import Computed, Curve, Values
from loraexp.run import experiment
from loraexp.theory.keywords import keywords


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The runs of a configuration: a figure's own, filed beside all others and shared by all
    figures."""

    overrides: list[str]
    output_root: Path
    data_dir: str | None = None

    def trained(self, seed: int) -> FinishedRun:
        """The finished run of a seed; it is run where it is not there yet."""
        data = [f"task.data_dir={self.data_dir}"] if self.data_dir else []
        cfg = config.compose([*self.overrides, f"seed={seed}", *data])
        cfg.output_root = str(self.output_root)
        settings, plain = config.check(cfg)
        outcome = experiment.run(settings, plain)
        return FinishedRun.of(outcome.folder, outcome.record)


def provenance(subjects: Sequence[FinishedRun]) -> dict[str, Any]:
    """Which runs a figure was made from, and the data of the first."""
    return {
        "runs": [str(subject.folder) for subject in subjects],
        "splits": subjects[0].record["data"],
    }


# --------------------------------------------------------------------------------------------------
# Figure 1 (b)


@keywords
def angles_during_training(
    *, runs: Runs, seeds: list[int], rows: int, directions: int | None = None, progress: Progress
) -> Computed:
    """Mean principal angle between LoRA's factors and the one-step gradient, per layer class,
    during training.

    LoRA-One figure 1 (b) and line 188. One run of `overrides` for each seed, which keeps its
    factors (train.keep_factors_every), then `alignment.angles` of each kept step: A against the
    gradient's leading right singular vectors, B against the left ones, the gradient that of the
    mean loss over `rows` training rows at the pretrained weights, `directions` (null: the rank)
    leading directions of each. For the classes and for `mean`, all layers:

        CLASS_FACTOR/start, /end, /lowest
            sine of the largest angle, mean over the layers (B: at the first kept step)
        CLASS_FACTOR/start_mean, /end_mean           the mean of the sines of all angles

    Raises: ConfigError where the run keeps no factors.
    """
    subjects, found = [], []
    for done, seed in enumerate(seeds):
        progress(done, len(seeds))
        subjects.append(runs.trained(seed))
        found.append(of_kept_steps(subjects[-1], rows, directions))
    progress(len(seeds), len(seeds))
    values: Values = {}
    curves = []
    for name, factor, measure, ways in series(found):
        suffix, panel = ("_mean", "mean angle") if measure else ("", "largest angle")
        firsts = [next((step, y) for step, y in way.items()) for way in ways]
        values |= {
            f"{name}_{factor}/start{suffix}": [y for _, y in firsts],
            f"{name}_{factor}/end{suffix}": [last(way) for way in ways],
        }
        if not measure:
            values[f"{name}_{factor}/lowest"] = [min(way.values()) for way in ways]
        if name != "mean":
            curves.append(band(panel, f"{name} {factor}", ways))
    axes = {"x": "step", "y": "sine, mean over the layers"}
    return Computed(
        values=values,
        curves=curves,
        axes={"largest angle": axes, "mean angle": axes},
        data=provenance(subjects),
    )


Way = dict[int, float]  # step → value
Row = dict[str, float | None]  # of a class: A, B, A_mean, B_mean


def of_kept_steps(
    subject: FinishedRun, rows: int, directions: int | None
) -> dict[int, dict[str, Row]]:
    """The angles by class at each step whose factors a run kept."""
    if not subject.settings.train.keep_factors_every or not subject.has_factors:
        raise ConfigError(
            "compute.overrides: expected an initializer with factors, and"
            " train.keep_factors_every above 0"
        )
    k = directions or subject.settings.rank
    if k > subject.settings.rank:
        raise ConfigError(
            f"compute.directions={k}: expected at most the rank, {subject.settings.rank}"
        )
    gradient = angles.one_step_gradient(subject, subject.base(), rows, k)
    return {
        step: angles.by_class(angles.angles(subject, gradient, path, k))
        for step, path in angles.kept_factors(subject)
    }


def series(
    found: Sequence[Mapping[int, Mapping[str, Row]]],
) -> Iterator[tuple[str, str, str, list[Way]]]:
    """(class, factor, "" or "_mean", a way for each seed), without the steps at which a factor is
    zero."""

    def way(steps: Mapping[int, Mapping[str, Row]], name: str, key: str) -> Way:
        values = ((step, at[name][key]) for step, at in steps.items())
        return {step: value for step, value in values if value is not None}

    for name in next(iter(found[0].values())):
        for factor, measure in itertools.product("AB", ("", "_mean")):
            yield name, factor, measure, [way(steps, name, factor + measure) for steps in found]


def last(way: Way) -> float:
    return way[max(way)]


def band(panel: str, label: str, ways: Sequence[Way]) -> Curve:
    """The mean over seeds at the steps that all of them have, with the least and the largest."""
    steps = sorted(set.intersection(*(set(way) for way in ways)))
    samples = [[way[step] for way in ways] for step in steps]
    return Curve(
        panel=panel,
        label=label,
        x=[float(step) for step in steps],
        y=[statistics.fmean(s) for s in samples],
        low=[min(s) for s in samples],
        high=[max(s) for s in samples],
    )


# --------------------------------------------------------------------------------------------------
# Figures 7 and 8


def weights(subject: FinishedRun) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(layer, W0, W) of every target layer of a run with init=full."""
    if subject.has_factors:
        raise ConfigError(
            f"compute.overrides: init={subject.settings.init['name']}; expected method=full"
        )
    base, whole = subject.base(), subject.whole()
    for name, module in subject.targets(base).items():
        trained = whole.get_submodule(name).get_parameter("weight")
        yield name, module.get_parameter("weight").detach().double(), trained.detach().double()


def neuron_ratio(W: Tensor) -> float:
    """`‖W‖_op / min_m ‖w_m‖₂` of a weight (d_out, d_in) with a neuron in each row: the ratio of
    Assumption 4.1 (i)."""
    return float(torch.linalg.matrix_norm(W, 2) / W.norm(dim=1).min())


@keywords
def assumption_ratio(*, runs: Runs, seed: int = 0, progress: Progress) -> Computed:
    """The ratio of Assumption 4.1 (i) for every weight matrix after full fine-tuning, and before.

    LoRA-One figure 7, appendix G.5: `‖W̃‖_op / min_m ‖w̃_m‖₂` over the neurons m of a layer;
    model.targets says which layers. Values: WHEN/largest, /median, /smallest and /spread, the
    largest over the median, for WHEN pretrained and fine_tuned.
    """
    progress(0, 2)
    subject = runs.trained(seed)
    progress(1, 2)
    ratios: dict[str, list[float]] = {"pretrained": [], "fine_tuned": []}
    for _, before, after in weights(subject):
        ratios["pretrained"].append(neuron_ratio(before))
        ratios["fine_tuned"].append(neuron_ratio(after))
    values: Values = {}
    for when, found in ratios.items():
        middle = statistics.median(found)
        values |= {
            f"{when}/largest": max(found),
            f"{when}/median": middle,
            f"{when}/smallest": min(found),
        }
        values |= {f"{when}/spread": max(found) / middle, f"{when}/matrices": float(len(found))}
    labels = {"pretrained": "pretrained", "fine_tuned": "after full fine-tuning"}
    curves = [
        Curve(panel="ratio", kind="histogram", label=labels[when], x=[], y=found)
        for when, found in ratios.items()
    ]
    axes = {"ratio": {"x": "‖W‖ / smallest neuron norm", "y": "weight matrices"}}
    progress(2, 2)
    return Computed(values=values, curves=curves, axes=axes, data=provenance([subject]))


@keywords
def spectra(*, runs: Runs, count: int = 32, seed: int = 0, progress: Progress) -> Computed:
    """The leading singular values of every pretrained weight matrix, and of its change under full
    fine-tuning.

    LoRA-One figure 8, appendix G.5 (Assumption 4.1 (ii)). Values over the matrices: ratio/smallest,
    /median and /largest of `‖W0‖_op / ‖ΔW‖_op`; decay/median of `σ_count/σ_1` of ΔW, and
    decay_pretrained/median of W0.
    """
    progress(0, 2)
    subject = runs.trained(seed)
    progress(1, 2)
    found: dict[str, dict[str, list[Tensor]]] = {"pre-trained": {}, "difference": {}}
    ratios: list[float] = []
    decays: dict[str, list[float]] = {"decay_pretrained": [], "decay": []}
    for name, before, after in weights(subject):
        values = [torch.linalg.svdvals(W)[:count] for W in (before, after - before)]
        if len(values[0]) < count:
            raise ConfigError(
                f"compute.count={count}: layer {name} has {len(values[0])} singular values;"
                " expected at most that"
            )
        for panel, spectrum in zip(found, values, strict=True):
            found[panel].setdefault(angles.layer_class(name), []).append(spectrum)
        ratios.append(float(values[0][0] / values[1][0]))
        for decay, spectrum in zip(decays.values(), values, strict=True):
            decay.append(float(spectrum[-1] / spectrum[0]))
    numbers: Values = {
        "ratio/smallest": min(ratios),
        "ratio/median": statistics.median(ratios),
        "ratio/largest": max(ratios),
    }
    numbers |= {f"{name}/median": statistics.median(decay) for name, decay in decays.items()}
    axes = {panel: {"x": "index", "y": "singular value", "y_scale": "log"} for panel in found}
    curves = [
        spread(panel, kind, torch.stack(rows))
        for panel, classes in found.items()
        for kind, rows in classes.items()
    ]
    progress(2, 2)
    return Computed(values=numbers, curves=curves, axes=axes, data=provenance([subject]))


def spread(panel: str, label: str, spectra: Tensor) -> Curve:
    """The median over the matrices (n, count) of a class, and their extremes."""
    x = [float(i + 1) for i in range(spectra.shape[1])]
    low, middle, high = spectra.amin(0), spectra.median(0).values, spectra.amax(0)
    return Curve(
        panel=panel, label=label, x=x, y=middle.tolist(), low=low.tolist(), high=high.tolist()
    )
