"""A two-layer network that has learnt MNIST's odd digits learns the even ones: trajectories of full
and low-rank fine-tuning."""

from __future__ import annotations

import copy
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from loraexp import config, models
from loraexp.adapter.adapted import Adapters, attach, scaling_factor, train_everything
from loraexp.config import ConfigError
from loraexp.config.settings import Settings
from loraexp.machine.device import Runtime
from loraexp.machine.processes import Processes
from loraexp.machine.progress import Progress
from loraexp.records.curves import Computed, Curve, Surface
from loraexp.run.components import make
from loraexp.run.initialise import initialize
from loraexp.run.train import Diverged
from loraexp.theory import digits
from loraexp.theory.digits import PIXELS, Digits
from loraexp.theory.keywords import keywords
from loraexp.theory.network import CLASSES, Data, DigitTask, Images, TwoLayer, pretrained
from loraexp.theory.plane import FULL, Plane, Way, distances

EARLY = 0.05  # the share of the steps that counts as the beginning
CPU = torch.device("cpu")


# --------------------------------------------------------------------------------------------------
# training


def settings_of(overrides: Sequence[str], seed: int) -> Settings:
    """The settings that `loraexp OVERRIDES seed=SEED` would run with; model, task and loop are this
    module's own."""
    settings, _ = config.check(
        config.compose([*overrides, "init.cache=false", "wandb.mode=disabled", f"seed={seed}"])
    )
    return settings


def adapted(model: TwoLayer, data: Data, settings: Settings) -> Adapters:
    """The method's start, made by the initializer and the adapter of real runs; with `init=full`
    every weight trains."""
    if config.Component.of(settings.init, "init").full:
        return train_everything(model)
    targets = dict(model.named_children())
    try:
        models.check_rank(targets, settings.rank)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    scaling = scaling_factor(settings.adapter.scaling, settings.alpha, settings.rank)
    task = DigitTask(data.even)
    runtime = Runtime(device=CPU, precision=settings.precision, processes=Processes("cpu"))
    made = initialize(
        model,
        targets,
        task,
        make(settings.init),
        scaling=scaling,
        settings=settings,
        runtime=runtime,
    )
    return attach(model, made.factors, scaling)


def fine_tuned(
    start: TwoLayer,
    data: Data,
    settings: Settings,
    steps: int,
    every: int,
    advance: Callable[[], None],
) -> Way:
    """Full-batch steps of the method's own optimizer at a constant rate; a loss that is no number
    ends the way there."""
    origin, model = start.flat(), copy.deepcopy(start)
    adapters = adapted(model, data, settings)
    way = Way(steps=[0], moved=[model.flat() - origin])
    optimizer = make(settings.optimizer)(
        adapters, lr=settings.lr, weight_decay=settings.train.weight_decay
    )
    for step in range(steps + 1):
        loss = functional.cross_entropy(model(data.even.x), data.even.labels)
        if not torch.isfinite(loss):
            way.diverged_at = step
            break
        way.losses.append(loss.item())
        if step and (step % every == 0 or step == steps):
            way.steps.append(step)
            way.moved.append(model.flat() - origin)
        if step < steps:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            try:
                optimizer.step()
            except FloatingPointError:  # a gradient that is not finite
                way.diverged_at = step
                break
        advance()
    if way.diverged_at is None:
        with torch.no_grad():
            way.accuracy = float(
                (model(data.held_out.x).argmax(dim=1) == data.held_out.labels).float().mean()
            )
    return way


# --------------------------------------------------------------------------------------------------
# the figure


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """A network of `width` that has learnt `odd` digits, and the `even` ones it learns next."""

    odd: int = 10_000
    even: int = 1_000
    width: int = 100

    def draw(self, pool: Digits, seed: int) -> tuple[Data, TwoLayer]:
        data = Data.drawn(pool, self.odd, self.even, seed)
        return data, pretrained(data, self.width, seed)


@dataclass(frozen=True, kw_only=True)
class FullBatch:
    """Steps over all even digits; weights are kept at each `every`."""

    steps: int
    every: int


@keywords
def trajectories(
    *,
    methods: dict[str, Any],
    overrides: list[str],
    training: FullBatch,
    seeds: list[int],
    transfer: Transfer,
    points: int = 41,
    data_dir: str | None = None,
    progress: Progress,
) -> Computed:
    """Full-batch fine-tuning of a two-layer network from odd to even digits by several methods.

    LoRA-One figure 1 (c) and appendix G.1, LoRA-DA figure 3 and appendix E, both after Meng et al.
    2024. `methods`: name → `label` and `overrides` of the run configuration, after the `overrides`
    of all of them. Values, a number for each seed, where `M` is the vector of all weights:

        NAME/initial_loss, /final_loss, /accuracy (of even digits held out)
        NAME/distance, /final_distance  ‖M_t − M_t^full‖ / ‖M_T^full − M_0‖: mean and last
        NAME/early_length   ‖M_e − M_0'‖ / ‖M_e^full − M_0‖ after a twentieth, M_0' the start
        NAME/early_cosine   cosine of the same two displacements
        NAME/in_plane       share of ‖M_T − M_0‖² that lies in the drawn plane

    Drawn, for the first seed: the ways in the plane (see `Plane`) over the loss, and both against
    the step. Raises: ConfigError without `full`, or for too high a rank; SourceError without data.
    """
    labels, pool = checked(methods), digits.read(data_dir)
    steps, every = training.steps, training.every
    advance = counter(progress, len(seeds) * len(methods) * (steps + 1))
    values, ways = defaultdict[str, list[float]](list), defaultdict[str, list[Way]](list)
    drawn: list[tuple[Plane, Data]] = []
    for seed in seeds:
        data, start = transfer.draw(pool, seed)
        for name, said in methods.items():
            settings = settings_of([*overrides, *said["overrides"]], seed)
            ways[name].append(fine_tuned(start, data, settings, steps, every, advance))
        latest = {name: found[-1] for name, found in ways.items()}
        plane = Plane.through(start.flat(), converged(latest))
        drawn.append((plane, data))
        for name, way in latest.items():
            for column, value in measured(way, latest[FULL], plane, steps).items():
                values[f"{name}/{column}"].append(value)
    plane, data = drawn[0]
    return Computed(
        values=dict(values),
        curves=curves(ways, labels, plane, every),
        surfaces=[surface(plane, data.even, corners(plane, ways), points)],
        axes=AXES,
        data={"source": pool.source, "fingerprint": pool.fingerprint(), "rows": data.rows},
    )


def converged(ways: Mapping[str, Way]) -> Mapping[str, Way]:
    """The ways, of which full fine-tuning's is what the others are measured against. Raises:
    Diverged where it has no end."""
    if ways[FULL].diverged_at is not None:
        raise Diverged(
            f"full fine-tuning diverged at step {ways[FULL].diverged_at}, and the others are"
            " measured against it; lower lr"
        )
    return ways


def counter(progress: Progress, count: int) -> Callable[[], None]:
    """Counts steps, and says so every twenty."""
    done = itertools.count(1)

    def advance() -> None:
        step = next(done)
        if step % 20 == 0 or step == count:
            progress(step, count)

    return advance


def checked(methods: Mapping[str, Any]) -> dict[str, str]:
    """The labels of the methods; `full` is among them, because all others are measured against
    it."""
    for name, said in methods.items():
        if not isinstance(said, dict) or set(said) != {"label", "overrides"}:
            raise ConfigError(
                f"compute.methods.{name}: expected label and overrides, for example {{label: LoRA,"
                " overrides: [method=lora]}"
            )
    if FULL not in methods or len(methods) < 2:
        raise ConfigError(
            f"compute.methods: {', '.join(methods)}: expected {FULL} and at least one other to"
            " compare with it"
        )
    return {name: str(said["label"]) for name, said in methods.items()}


def measured(way: Way, full: Way, plane: Plane, steps: int) -> dict[str, float]:
    """The numbers of one way; of one that diverged, up to there."""
    early = next(
        (i for i, step in enumerate(way.steps) if step >= EARLY * steps), len(way.steps) - 1
    )
    mine, theirs = way.moved[early] - way.moved[0], full.moved[min(early, len(full.moved) - 1)]
    apart = distances(way, full)
    found = {
        "initial_loss": way.losses[0] if way.losses else math.inf,
        "final_loss": way.losses[-1] if way.losses else math.inf,
        "accuracy": way.accuracy,
        "distance": float(np.mean(apart)),
        "final_distance": apart[-1],
        "early_length": float(mine.norm() / theirs.norm()),
        "early_cosine": float(functional.cosine_similarity(mine, theirs, dim=0)),
        "in_plane": plane.share(way.moved[-1]),
    }
    return found if way.diverged_at is None else found | {"diverged_at": float(way.diverged_at)}


AXES = {
    "trajectories": {
        "x": "towards full fine-tuning's end (‖ΔW‖)",
        "y": "leading direction of the others beside it (‖ΔW‖)",
    },
    "loss": {"x": "step", "y": "training loss", "y_scale": "log"},
    "distance": {"x": "step", "y": "distance to full fine-tuning (1: its length)"},
}


def corners(plane: Plane, ways: Mapping[str, list[Way]]) -> Tensor:
    """The least and largest coordinates (2, 2) of what is drawn."""
    unit = ways[FULL][0].length
    points = torch.cat(
        [torch.stack(found[0].drawn(unit)) @ plane.directions.mT for found in ways.values()]
    )
    return torch.stack([points.amin(dim=0), points.amax(dim=0)])


@torch.no_grad()
def surface(plane: Plane, images: Images, corners: Tensor, points: int) -> Surface:
    """The loss on the images over the plane; the hidden layer is linear in both coordinates and
    computed once."""
    low, high = corners
    margin = 0.15 * (high - low)
    x, y = (
        torch.linspace(float(a), float(b), points)
        for a, b in zip(low - margin, high + margin, strict=True)
    )
    vectors = (plane.origin, *plane.directions)
    # entries of the hidden layer's weight, the first of the vector
    size = len(plane.origin) // (PIXELS + CLASSES) * PIXELS
    hidden = [images.x @ v[:size].reshape(-1, PIXELS).mT for v in vectors]
    output = [v[size:].reshape(CLASSES, -1) for v in vectors]

    def loss(a: Tensor, b: Tensor) -> float:
        active = functional.relu(hidden[0] + a * hidden[1] + b * hidden[2])
        return float(
            functional.cross_entropy(
                active @ (output[0] + a * output[1] + b * output[2]).mT, images.labels
            )
        )

    z = [[loss(a, b) for a in x] for b in y]
    return Surface(panel="trajectories", x=x.tolist(), y=y.tolist(), z=z, label="training loss")


def curves(
    ways: Mapping[str, list[Way]], labels: Mapping[str, str], plane: Plane, every: int
) -> list[Curve]:
    """The ways of the first seed in the plane; loss and distance as means over seeds with their
    extremes."""
    made, unit = [], ways[FULL][0].length
    for name, found in ways.items():
        where = torch.stack(found[0].drawn(unit)) @ plane.directions.mT
        ended = min((way.diverged_at for way in found if way.diverged_at is not None), default=None)
        common: dict[str, Any] = {"label": labels[name], "diverged_at": ended}
        made.append(
            Curve(
                panel="trajectories",
                kind="trajectory",
                x=where[:, 0].tolist(),
                y=where[:, 1].tolist(),
                **common,
            )
        )
        length = min(len(way.losses) for way in found)
        shown = range(0, length, max(1, every // 4))
        series: dict[str, tuple[Sequence[int], list[list[float]]]] = {
            "loss": (shown, [[way.losses[i] for i in shown] for way in found])
        }
        if name != FULL:
            pieces = [distances(way, full) for way, full in zip(found, ways[FULL], strict=True)]
            kept = min(map(len, pieces))
            series["distance"] = (found[0].steps[:kept], [piece[:kept] for piece in pieces])
        for panel, (x, samples) in series.items():
            stacked = np.array(samples)
            band = {"low": stacked.min(0).tolist(), "high": stacked.max(0).tolist()}
            made.append(
                Curve(
                    panel=panel,
                    x=[float(step) for step in x],
                    y=stacked.mean(0).tolist(),
                    **band,
                    **common,
                )
            )
    return made
