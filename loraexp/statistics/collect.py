"""Collecting just the statistics that an initializer needs, layer by layer, within a budget of
memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from loraexp.adapter.adapted import whole
from loraexp.adapter.layer import CurvatureRequest, Layer
from loraexp.machine import measure
from loraexp.machine.processes import gathered, rank
from loraexp.statistics import cache as disk
from loraexp.statistics.calibration import Calibration
from loraexp.statistics.checks import (
    Request,
    check,
    check_samples,
    tokens_by_layer,
    warn_of_few_tokens,
)
from loraexp.statistics.curvature import cancelling, collect_curvature
from loraexp.statistics.matrices import sketched_leading, whole_matrices
from loraexp.statistics.plan import Size, plan
from loraexp.statistics.room import free_beside_a_batch
from loraexp.statistics.sweeps import Sweeper

HOST = 2_000_000_000  # bytes for the sums that are held there at once, as on a run without a GPU


@dataclass
class Report:
    """What collecting cost; complete when the last layer has been taken.

    `forward_sweeps`: forward and backward passes over the samples, each counted as one;
    `backward_sweeps`: the latter alone; `seconds`: without the time that the caller takes between
    layers; `peak_bytes`: of the process on a CPU, of the device's allocations elsewhere.
    """

    way: str = ""
    seconds: float = 0.0
    forward_sweeps: float = 0.0
    backward_sweeps: float = 0.0
    samples: int = 0
    tokens: int = 0
    weighting: str = ""  # what the loss was a mean over, where a statistic is of a loss
    peak_bytes: int = 0
    state_bytes: int = 0
    host: bool = False  # whole matrices were summed there
    cache_hit: bool = False
    cache_note: str = ""
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass
class Collected:
    """The layers, each to be used before the next is asked for, and the report on them.

    The model is swept between layers: attach adapters after the last one.
    """

    layers: Iterator[Layer]
    report: Report


def collect(
    model: nn.Module,
    targets: Mapping[str, nn.Module],
    calibration: Calibration,
    needs: frozenset[str],
    request: Request,
    *,
    budget: int | Callable[[int | None], int],
    rank: int = 1,
    cache: disk.Store | None = None,
) -> Collected:
    """Collect `needs` for every target (name → linear module inside the model) from the calibration
    batches.

    With `L = (1/n) Σ_i L_i` as `calibration.weighting` has it: `gradient`, `leading_gradient`, the
    core of `curvature`: of L. `summed_gradient`: of `Σ_i L_i`. `input_moment` `E[h hᵀ]`,
    `output_moment` `E[μ²]`: means over unpadded tokens, μ of the sample's own loss L_i. All in
    float32 or better, and none depends on padding, on how the samples are split into batches, or on
    the number of processes. `request` holds the sizes that `leading_gradient` and `curvature` are
    asked for. `budget`: bytes for the statistics' own state, beyond model and activations (`plan`
    says what it does), or what they are where so many bytes are free beside a batch's passes. The
    model's flags and hooks and the global random state are as before whenever no batch is being
    run. `rank`: of the factors that will be made.

    Warns for a layer that sees fewer tokens than the directions that its factors take of a
    gradient. Raises ValueError for an unknown statistic, a missing request, no batches, too few
    samples for the rank; FloatingPointError naming batch and layer for a statistic that is not
    finite.
    """
    check(targets, calibration, needs, request, budget)
    curvature = request.get("curvature")
    loss = curvature.loss if isinstance(curvature, CurvatureRequest) else "squared"
    sweeper = Sweeper(model, targets, calibration, loss)
    check_samples(sweeper.samples, sweeper.tokens, needs, request)
    warn_of_few_tokens(tokens_by_layer(sweeper), needs, request, rank)
    of_loss = needs - {"population", "input_moment"}
    report = Report(
        samples=sweeper.samples,
        tokens=sweeper.tokens,
        weighting=calibration.weighting if of_loss else "",
    )
    entry = None
    if cache is not None and needs - {"population"}:
        drawn = {"leading_gradient", "curvature"}
        random = calibration.mode == "train" or not needs.isdisjoint(drawn)
        parts = {
            "rows": gathered(disk.rows_fingerprint(calibration.batches)),
            "targets": [(name, sizes(module)) for name, module in targets.items()],
            "needs": sorted(needs),
            "request": {name: asdict(asked) for name, asked in request.items() if name in needs},
            "mode": calibration.mode,
            "weighting": "samples" if sweeper.by_sample else "tokens",
            "seed": calibration.seed if random else None,
            "dtypes": [str(parameter.dtype) for parameter in model.parameters()],
        }
        entry = cache.entry(parts)
    return Collected(
        measured(layers(sweeper, needs, request, budget, entry, report), report, sweeper), report
    )


def layers(
    sweeper: Sweeper,
    needs: frozenset[str],
    request: Request,
    budget: int | Callable[[int | None], int],
    entry: disk.Entry | None,
    report: Report,
) -> Iterator[Layer]:
    """The layers from the cache, or fresh ones, which go there."""
    population = {"population": sweeper.calibration.population} if "population" in needs else {}
    if entry is not None and all(gathered(entry.sound(list(sweeper.targets)))):
        report.cache_hit, report.way = True, "read from the cache"
        devices = {
            name: like(module, sweeper.device).device for name, module in sweeper.targets.items()
        }
        found = entry.read(devices)
    else:
        fresh = statistics(sweeper, needs, request, budget, report)
        found = fresh if entry is None else recorded(fresh, entry, report)
    for name, values in found:
        if "curvature" in values and values["curvature"].notes:
            report.notes[name] = values["curvature"].notes
        layer = Layer(
            name=name, W=weight(sweeper.targets[name], sweeper.device), **values, **population
        )
        del values
        yield layer


def recorded(
    found: Iterator[tuple[str, dict[str, Any]]], entry: disk.Entry, report: Report
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Pass the statistics on and write them to the cache; one process writes for all."""
    writing = rank() == 0
    entry.manifest = {}
    try:
        for name, values in found:
            if writing and (refused := entry.add(name, values)) is not None:
                report.cache_note = f"not cached: {refused}"
                writing = False
                entry.fresh.discard()
            yield name, values
            del values
        if writing and (refused := entry.commit()) is not None:
            report.cache_note = f"not cached: {refused}"
    finally:
        entry.fresh.discard()


def statistics(
    sweeper: Sweeper,
    needs: frozenset[str],
    request: Request,
    budget: int | Callable[[int | None], int],
    report: Report,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every layer's statistics from sweeps, a group of layers at a time where whole matrices are
    held."""
    likes = {name: like(module, sweeper.device) for name, module in sweeper.targets.items()}
    unpooled = cancelling(sweeper, likes) if "curvature" in needs else frozenset()
    known = {
        n: Size(x.shape[0], x.shape[1], x.element_size(), n in unpooled) for n, x in likes.items()
    }
    if not isinstance(budget, int):
        budget = budget(free_beside_a_batch(sweeper, likes, needs, request))
    host = None if measure.free_bytes(sweeper.device) is None else HOST
    chosen = plan(known, needs, request, sweeper.samples, budget, host)
    report.way, report.state_bytes, report.host = str(chosen), chosen.bytes, chosen.host

    small: dict[str, dict[str, Any]] = {name: {} for name in likes}

    def curvatures(names: Iterable[str]) -> None:
        asked = request["curvature"]
        assert isinstance(asked, CurvatureRequest) and chosen.curvature is not None
        own = {name: likes[name] for name in names}
        made = collect_curvature(sweeper, own, unpooled, asked, chosen.curvature)
        for name, curvature in made.items():
            small[name]["curvature"] = curvature

    if chosen.curvature is not None and not chosen.apart:
        curvatures(likes)
    if chosen.leading == "sketched":
        for name, factors in sketched_leading(sweeper, likes, request).items():
            small[name]["leading_gradient"] = factors
    for names in chosen.groups:
        if chosen.apart:
            curvatures(names)
        yield from whole_matrices(
            sweeper, {n: likes[n] for n in names}, needs, request, chosen, small
        )


def sizes(module: nn.Module) -> tuple[int, int]:
    """`(d_out, d_in)` of a linear module, quantised ones included, whose weight may be packed."""
    return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]


@torch.no_grad()
def weight(module: nn.Module, device: torch.device) -> Tensor:
    """The frozen weight (d_out, d_in) of a linear module; of a packed, quantised one, what it does
    to unit vectors."""
    stored = module.weight
    if isinstance(stored, Tensor) and stored.is_floating_point():
        return whole(stored.detach())
    unit = torch.eye(sizes(module)[1], device=device)
    weight: Tensor = (module(unit) - module(torch.zeros_like(unit[:1]))).mT
    return weight.contiguous()


def like(module: nn.Module, device: torch.device) -> Tensor:
    """A (d_out, d_in) tensor without memory, of the module's device and the dtype that its
    statistics are summed in."""
    stored = next(module.parameters(), torch.empty(0, device=device))
    dtype = torch.float64 if stored.dtype == torch.float64 else torch.float32
    return torch.zeros((), dtype=dtype, device=stored.device).expand(sizes(module))


def measured(found: Iterator[Layer], report: Report, sweeper: Sweeper) -> Iterator[Layer]:
    """Keep the report up to date: time without the caller's, passes, peak memory."""
    measure.reset_peak(sweeper.device)
    with contextlib.closing(found):  # type: ignore[type-var]
        while True:
            began = time.perf_counter()
            layer = next(found, None)
            report.seconds += time.perf_counter() - began
            report.forward_sweeps = sweeper.forwards + sweeper.backwards
            report.backward_sweeps = sweeper.backwards
            report.peak_bytes = max(report.peak_bytes, measure.peak_bytes(sweeper.device))
            if layer is None:
                return
            yield layer
            del layer
