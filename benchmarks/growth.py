"""How the cost of initialising grows with samples, rank, width and layers: slopes in a log-log
plot, against the exponents of the formulas.

Every initializer makes the factors of a stack of square linear layers, 16 tokens a sample, by the
way that a run takes, in one thread; what is timed is the processor's time of this thread, so that
others on the machine change it little. `sweeps/pictures/growth.png` shows the points and the
formulas' slopes, `growth.csv` beside it holds them.
"""

from __future__ import annotations

import csv
import math
import os
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import verdict
from loraexp import config
from loraexp.adapter.layer import Layer
from loraexp.run.components import make
from loraexp.run.initialise import settled, training_of
from loraexp.statistics import Calibration, collect, layer_generator

PICTURE = Path(__file__).resolve().parents[1] / "sweeps" / "pictures" / "growth.png"
TOKENS, BATCH, CLASSES = 16, 16, 2
USUAL = {"samples": 128, "rank": 8, "width": 384, "layers": 1}
# Along an axis in the place of the usual: more tokens than the widest layer is wide. Of fewer a
# second moment is singular, and LoRA-DA's eigenvectors take a whole decomposition.
ALONG = {"width": {"samples": 320}}
AXES: dict[str, Sequence[int]] = {
    "samples": (64, 256, 1024, 2048),
    "rank": (4, 16, 64, 128),
    "width": (384, 1024, 2048, 4096),
    "layers": (1, 4, 16),
}
# The largest exponent in the formula of an initializer's cost: passes over samples are linear in
# them and in layers, sketches and subspaces linear in the rank beside passes that have none of it,
# products of a layer quadratic in its width, and whole decompositions of it cubic.
FORMULA = {"samples": 1.0, "rank": 1.0, "width": 2.0, "layers": 1.0}
CUBIC = ("corda", "eva", "lora_da", "lora_da_fa", "milora", "olora", "pissa", "lora_xs")
INITIALIZERS = ("lora_one", "lora_ga", "lora_da", "cg_lora", "lora_sb", "eva", "pissa")
# Of a slope, where another formula would be a whole one off: a decomposition that leaves the cache
# on the way grows as 3.4.
TOLERANCE = 0.5
PATIENCE = 30.0  # seconds of a point after which no larger one is tried
REPEATS, ONCE = 2, 1.5  # the best of so many; of a point of more than so many seconds, the first


class Stack(nn.Module):
    """Square layers, each of which adds to what it reads, and classes from the mean over
    tokens."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            x = x + functional.gelu(layer(x))
        return self.head(x.mean(1))


def outputs(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    scores: Tensor = model(batch["x"])
    return scores


def loss_sum(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    scores = outputs(model, batch)
    return functional.cross_entropy(scores, batch["labels"], reduction="sum"), len(scores)


def batches_of(samples: int, width: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    sizes = [min(BATCH, samples - first) for first in range(0, samples, BATCH)]
    return [
        {
            "x": torch.randn(size, TOKENS, width, generator=generator),
            "attention_mask": torch.ones(size, TOKENS, dtype=torch.long),
            "labels": torch.randint(CLASSES, (size,), generator=generator),
        }
        for size in sizes
    ]


def point(name: str, samples: int, rank: int, width: int, layers: int) -> float:
    """Seconds of one initialisation, from the batches to the factors of every layer."""
    torch.manual_seed(0)
    model, batches = Stack(width, layers), batches_of(samples, width)
    targets: dict[str, nn.Module] = {f"layers.{i}": x for i, x in enumerate(model.layers)}
    settings = config.check(config.compose(["task=tweets", f"init={name}", f"rank={rank}"]))[0]
    made: partial[Any] = settled(make(settings.init), training_of(settings, samples))
    function: Any = made.func
    best = math.inf
    for _ in range(REPEATS):
        began = time.thread_time()
        read: Any = (Layer(name=key, W=module.weight.detach()) for key, module in targets.items())  # type: ignore[arg-type]
        if function.needs:
            read = collect(
                model,
                targets,
                Calibration(batches, loss_sum, outputs, population=samples),
                function.needs,
                function.request(rank, **made.keywords),
                budget=settings.calibration.budget(),
            ).layers
        for layer in read:
            made(layer, rank=rank, scaling=2.0, generator=layer_generator(0, layer.name))
        best = min(best, time.thread_time() - began)
        if best > ONCE:
            break
    return best


def line(name: str, axis: str, most: int) -> list[tuple[int, float]]:
    """The first `most` points of one initializer along one axis."""
    found: list[tuple[int, float]] = []
    for value in AXES[axis][:most]:
        found.append((value, point(name, **(USUAL | ALONG.get(axis, {}) | {axis: value}))))
        if found[-1][1] > PATIENCE:
            break
    return found


def slope(points: Sequence[tuple[int, float]]) -> float:
    """The exponent that fits best in a log-log plot."""
    x, y = np.log(np.array(points, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


def steepest(points: Sequence[tuple[int, float]]) -> float:
    """The exponent over the last half of the range, where what does not grow counts least."""
    upper = points[len(points) // 2 - 1 :]
    return max(slope(upper), slope(points)) if len(points) > 2 else slope(points)


def exponent(name: str, axis: str) -> float:
    return 3.0 if axis == "width" and name in CUBIC else FORMULA[axis]


Lines = Mapping[tuple[str, str], Sequence[tuple[int, float]]]


def draw(lines: Lines, path: Path) -> None:
    """The points of every initializer along every axis, and the slopes of the formulas, dashed."""
    names = list(dict.fromkeys(name for name, _ in lines))
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 9}):
        figure = Figure(figsize=(12, 4.2), dpi=130)
        for axes, axis in zip(figure.subplots(1, len(AXES)), AXES, strict=True):
            for name in names:
                points = lines[name, axis]
                label = f"{name} {steepest(points):.2f}"
                axes.loglog(*zip(*points, strict=True), marker="o", markersize=3, label=label)
            first = min(lines[name, axis][0][1] for name in names)
            ends = np.array([AXES[axis][0], AXES[axis][-1]])
            for power in sorted({exponent(name, axis) for name in names}):
                axes.loglog(
                    *(ends, 0.7 * first * (ends / ends[0]) ** power),
                    **{"color": "#888888", "linestyle": "--", "linewidth": 1},
                    label=f"formula {power:g}",
                )
            axes.set_xlabel(axis)
            ticks = AXES[axis]
            axes.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=7, minor=False)
            axes.minorticks_off()
            axes.grid(color="#DDDDDD", linewidth=0.6)
            axes.legend(fontsize=6, title="exponent", title_fontsize=6.5, loc="upper left")
            low, high = axes.get_ylim()
            axes.set_ylim(low, high * (high / low) ** 0.55)  # room for the legend
        figure.axes[0].set_ylabel("seconds of the processor, one thread")
        figure.tight_layout()
        figure.savefig(path)


def write(lines: Lines, stream: IO[str]) -> None:
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["initializer", "axis", "value", "seconds"])
    for (name, axis), points in lines.items():
        table.writerows([name, axis, value, f"{spent:.4g}"] for value, spent in points)


def main(quick: bool = False) -> dict[str, float]:
    """Print the slopes beside the formulas' exponents, draw the points; AssertionError where one
    grows faster. `quick`: two points a line of two initializers, no error of them, and a picture
    that is not kept."""
    most = 2 if quick else max(map(len, AXES.values()))
    names = INITIALIZERS[: 2 if quick else None]
    warnings.simplefilter("ignore")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    usual = ", ".join(f"{axis} {value}" for axis, value in USUAL.items())
    print(
        f"exponents, largest of the whole range and of its upper half; elsewhere {usual}; along"
        f" width {ALONG['width']['samples']} samples of {TOKENS} tokens"
    )
    print(f"{'initializer':12}" + "".join(f"{axis:>22}" for axis in AXES))
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    figures: dict[str, float] = {}
    for name in names:
        said = []
        for axis in AXES:
            points = lines[name, axis] = line(name, axis, most)
            figures[f"{name}/{axis}"] = steepest(points)
            few = "" if len(points) == len(AXES[axis][:most]) else f" to {points[-1][0]}"
            found = figures[f"{name}/{axis}"]
            said.append(f"{found:5.2f} of ≤ {exponent(name, axis):g}{few}")
        print(f"{name:12}" + "".join(f"{word:>22}" for word in said), flush=True)
    if quick:
        with tempfile.TemporaryDirectory() as place:
            draw(lines, Path(place) / PICTURE.name)
    else:
        draw(lines, PICTURE)
        with PICTURE.with_suffix(".csv").open("w") as stream:
            write(lines, stream)
    torch.set_num_threads(threads)
    over = {
        f"{name}/{axis}": figures[f"{name}/{axis}"] - exponent(name, axis)
        for name in names
        for axis in AXES
    }
    worst = max(over, key=lambda key: over[key])
    said = verdict(f"most beyond its formula: {worst}", over[worst], most=TOLERANCE)
    print(f"most beyond its formula: {worst} {over[worst]:+.2f}   {said}")
    if over[worst] > TOLERANCE and not quick:
        name, axis = worst.split("/")
        raise AssertionError(f"{worst} grows faster than its formula: {lines[name, axis]}")
    return figures


if __name__ == "__main__":
    main()
