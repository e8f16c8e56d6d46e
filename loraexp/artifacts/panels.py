"""One panel of a picture, drawn on matplotlib axes: lines and bands, bars, samples, trajectories
over level lines.

The colours differ in luminance and for colour-blind readers (Paul Tol's muted scheme); line styles,
markers and hatching tell the same apart in black and white.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from loraexp.artifacts.figure import Line, Panel, plain
from loraexp.records.curves import Surface

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer

COLOURS = ("#332288", "#CC6677", "#117733", "#DDAA33", "#882255", "#44AA99", "#000000", "#88CCEE")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1.2, 1.2)),
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (3, 1.2)),
    (0, (6, 1.5, 1.2, 1.5, 1.2, 1.5)),
)
MARKERS = "osD^vPX<>h"
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "ooo", "+++", "---")
GREY = "#555555"


def draw(ax: Axes, panel: Panel, *, inner: bool, above: bool) -> None:
    """One panel; `inner` and `above` ones leave their axis labels to the panels beside and below
    them."""
    ax.set_title(panel.title, loc="left")
    if not above:
        ax.tick_params(labelbottom=True)
    ax.set_xlabel("" if above else panel.x_label)
    ax.set_ylabel("" if inner else panel.y_label)
    ax.set_xscale(panel.x_scale)
    ax.set_yscale(panel.y_scale)
    for surface in panel.surfaces:
        draw_surface(ax, surface)
    kinds = {line.kind for line in panel.lines}
    if "bar" in kinds:
        draw_bars(ax, panel)
    if "histogram" in kinds:
        draw_histograms(ax, [line for line in panel.lines if line.kind == "histogram"])
    for line in panel.lines:
        if line.kind not in ("bar", "histogram"):
            {"level": draw_level, "front": draw_front, "trajectory": draw_trajectory}.get(
                line.kind, draw_line
            )(ax, line)
            if line.low and line.kind == "line" and len(line.x) > 1:
                shade = {
                    "color": look(line)["color"],
                    "alpha": 0.14 if len(panel.lines) < 4 else 0.08,
                    "linewidth": 0,
                }
                x, _, low, high = thinned(
                    numbers(line.x), numbers(line.y), numbers(line.low), numbers(line.high)
                )
                ax.fill_between(x, low, high, **shade)
    if panel.x_scale == "linear" and all(
        float(x).is_integer()
        for line in panel.lines
        for x in line.x
        if x is not None and math.isfinite(x)
    ):
        ax.locator_params(axis="x", integer=True)  # a step is not halved
    if panel.ticks:
        set_ticks(ax, panel.ticks, panel.x_scale)


def look(line: Line) -> dict[str, Any]:
    return {
        "color": COLOURS[line.style % len(COLOURS)],
        "linestyle": DASHES[line.style % len(DASHES)],
        "linewidth": 1.7,
    }


def marker(line: Line) -> dict[str, Any]:
    return dotted(
        MARKERS[line.style % len(MARKERS)], 5.5, markeredgecolor="white", markeredgewidth=0.6
    )


def dotted(shape: str, size: float, **more: object) -> dict[str, Any]:
    return {"marker": shape, "markersize": size, **more}


def numbers(values: Sequence[float | None] | None) -> list[float]:
    """Values for matplotlib: what could not be written as JSON (NaN, infinity) was stored as
    null."""
    return [math.nan if value is None else float(value) for value in values or []]


def draw_line(ax: Axes, line: Line) -> None:
    """A line or points with a band or error bars; few marks on a long line, staggered so that lines
    on each other stay apart."""
    x, y = numbers(line.x), numbers(line.y)
    low, high = numbers(line.low), numbers(line.high)
    if line.kind == "points" or len(x) == 1:
        half = (
            [
                [m - a for m, a in zip(y, low, strict=True)],
                [b - m for m, b in zip(y, high, strict=True)],
            ]
            if low
            else None
        )
        across = line.x_error if line.x_error and any(line.x_error) else None
        how = (
            look(line)
            | {"linestyle": "none"}
            | marker(line)
            | ({"markersize": 7} if len(x) == 1 else {})
        )
        ax.errorbar(
            x, y, yerr=half, xerr=across, capsize=3, elinewidth=1.2, label=line.label, **how
        )
        return
    x, y = thinned(x, y)
    every = max(1, len(x) // 8)
    ax.plot(
        x,
        y,
        label=line.label,
        markevery=(line.style * every // 5 % every, every),
        **look(line),
        **marker(line),
    )
    if line.diverged_at is not None:
        ended(ax, x, y, look(line)["color"])


def thinned(
    x: list[float], y: list[float], *others: list[float], most: int = 300
) -> tuple[list[float], ...]:
    """Of a long line the least and the greatest of every stretch, as many as there are dots to show
    them; no spike is lost."""
    if len(x) <= 2 * most:
        return (x, y, *others)
    kept = {0, len(x) - 1}
    for i in range(most):
        stretch = range(i * len(x) // most, (i + 1) * len(x) // most)
        finite = [j for j in stretch if math.isfinite(y[j])] or [stretch[0]]
        kept |= {min(finite, key=y.__getitem__), max(finite, key=y.__getitem__)}
    return tuple([values[j] for j in sorted(kept)] for values in (x, y, *others))


def ended(ax: Axes, x: Sequence[float], y: Sequence[float], colour: str) -> None:
    """The last finite point of a line that diverged."""
    last = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)][-1:]
    for a, b in last:
        ax.plot(
            [a],
            [b],
            marker="x",
            markersize=9,
            markeredgewidth=2.2,
            color=colour,
            linestyle="none",
            clip_on=False,
            zorder=5,
        )


def draw_level(ax: Axes, line: Line) -> None:
    ax.axhline(
        numbers(line.y)[0], color=GREY, linestyle=(0, (1, 1)), linewidth=1.4, label=line.label
    )


def draw_front(ax: Axes, line: Line) -> None:
    ax.plot(
        line.x, line.y, color=GREY, linestyle=(0, (4, 2)), linewidth=1.2, label=line.label, zorder=1
    )


def draw_trajectory(ax: Axes, line: Line) -> None:
    """A way through the plane: a ring where it starts, a star where it ends (a cross where it
    diverged), arrows between."""
    x, y = numbers(line.x), numbers(line.y)
    colour = look(line)["color"]
    ax.plot(x, y, label=line.label, **look(line))
    ring = dotted("o", 8, markerfacecolor="white", markeredgecolor=colour, markeredgewidth=1.8)
    ax.plot(x[:1], y[:1], linestyle="none", zorder=4, **ring)
    if line.diverged_at is not None:
        ended(ax, x, y, colour)
    else:
        star = dotted("*", 12, markerfacecolor=colour, markeredgecolor="white", markeredgewidth=0.7)
        ax.plot(x[-1:], y[-1:], linestyle="none", zorder=5, **star)
    arrow = {"arrowstyle": "-|>", "color": colour, "mutation_scale": 13, "shrinkA": 0, "shrinkB": 0}
    for i, j in arrows(x, y):
        ax.annotate("", (x[j], y[j]), (x[i], y[i]), arrowprops=arrow)


def arrows(x: Sequence[float], y: Sequence[float]) -> list[tuple[int, int]]:
    """Neighbouring points a third and two thirds along the way."""
    lengths = [math.hypot(b - a, d - c) for a, b, c, d in zip(x, x[1:], y, y[1:], strict=False)]
    total, gone, found = sum(lengths), 0.0, []
    wanted = [total / 3, 2 * total / 3]
    for i, length in enumerate(lengths):
        gone += length
        if wanted and total > 0 and gone >= wanted[0]:
            wanted.pop(0)
            found.append((i, i + 1))
    return found


def draw_surface(ax: Axes, surface: Surface) -> None:
    """Level lines with their values over pale shading; spaced by ratio where the surface is
    positive and spans decades."""
    import numpy
    from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

    z = numpy.ma.masked_invalid(numpy.array([numbers(row) for row in surface.z]))
    low, high = float(z.min()), float(z.max())
    wide = low > 0 and high / low > 50
    if wide:
        levels: Any = numpy.unique(
            [float(f"{level:.1g}") for level in numpy.geomspace(low, high, 11)[1:-1]]
        )
    else:
        levels = MaxNLocator(9).tick_values(low, high)
    inner = [level for level in levels if low < level < high]
    pale = LinearSegmentedColormap.from_list("pale", ["#FFFFFF", "#D4D4D4"], N=len(inner) + 1)
    ax.contourf(
        surface.x,
        surface.y,
        z,
        levels=[low, *inner, high],
        norm=BoundaryNorm([low, *inner, high], pale.N),
        cmap=pale,
    )
    lines = ax.contour(surface.x, surface.y, z, levels=inner, colors="#777777", linewidths=0.8)
    ax.clabel(lines, fmt=lambda value: f"{value:.3g}", fontsize=8, inline_spacing=3)
    ax.grid(False)


def draw_histograms(ax: Axes, lines: Sequence[Line]) -> None:
    """Samples over common bins, the bars of several samples side by side."""
    import numpy

    samples = [
        numpy.array([value for value in numbers(line.y) if math.isfinite(value)]) for line in lines
    ]
    together = numpy.concatenate(samples)
    count = min(40, max(8, len(numpy.histogram_bin_edges(together, "auto")) - 1))
    if ax.get_xscale() == "log":
        together = numpy.log(together)
    edges = numpy.histogram_bin_edges(together, count).tolist()
    if ax.get_xscale() == "log":
        edges = [math.exp(edge) for edge in edges]
    _, _, drawn = ax.hist(samples, edges, label=[line.label for line in lines], linewidth=0.8)
    containers: list[BarContainer] = cast("Any", drawn if len(lines) > 1 else [drawn])
    for line, bars in zip(lines, containers, strict=True):
        for bar in bars:
            bar.set(**filled(line))
    if all(float(count).is_integer() for count in ax.get_yticks()) or ax.get_ylim()[1] < 6:
        ax.locator_params(axis="y", integer=True)


def filled(line: Line) -> dict[str, Any]:
    """Pale colour, dark edge and hatching: apart in grey too."""
    colour = COLOURS[line.style % len(COLOURS)]
    # opaque: SVG patterns have no transparency
    pale = tuple(0.5 + int(colour[i : i + 2], 16) / 510 for i in (1, 3, 5))
    return {
        "facecolor": pale,
        "edgecolor": colour,
        "hatch": HATCHES[line.style % len(HATCHES)] or None,
    }


def draw_bars(ax: Axes, panel: Panel) -> None:
    """Lying bars, the first on top, their numbers at the right; the published value as a
    diamond."""
    lines = [line for line in panel.lines if line.kind == "bar"]
    places = [-float(i) for i in range(len(lines))]
    reach = 0.0
    diamond = dotted("D", 6, color="black", markerfacecolor="white")
    for at, line in zip(places, lines, strict=True):
        mean, half, text = line.y[0], None, "no value"
        if math.isfinite(mean):
            ax.barh(at, mean, height=0.66, linewidth=1.0, **filled(line))
            half = line.high[0] - mean if line.high else None
            text = short(mean) if half is None else f"{short(mean)} ± {short(half, mean)}"
        if half is not None:
            ax.errorbar([mean], [at], xerr=[half], color="black", capsize=3, elinewidth=1.2)
        if line.published is not None:
            ax.plot(
                [line.published], [at], label="published", linestyle="none", zorder=5, **diamond
            )
        reach = max(
            reach,
            *(
                value
                for value in (mean + (half or 0.0), line.published or 0.0)
                if math.isfinite(value)
            ),
        )
        place: dict[str, Any] = {
            "xycoords": ax.get_yaxis_transform(),
            "ha": "right",
            "va": "center",
            "fontsize": 8.5,
        }
        ax.annotate(text, (0.995, at), color=GREY if text == "no value" else "black", **place)
    ax.set_yticks(places, [line.label for line in lines])
    ax.set_ylim(-len(lines) + 0.4, 0.6)
    if panel.x_scale == "linear":
        ax.set_xlim(0, (reach or 1.0) * 1.45)
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)


def short(value: float, like: float | None = None) -> str:
    """A number in three digits, or in as many decimals as another one."""
    size = abs(like if like is not None else value)
    decimals = 2 if size == 0 else max(0, 2 - math.floor(math.log10(size)))
    return f"{value:.{min(decimals, 6)}f}"


def set_ticks(ax: Axes, ticks: Sequence[float], scale: str) -> None:
    """Ticks at the values that were run, leaving out labels that would touch their neighbours."""
    if (
        scale == "linear"
        and len(ticks) > 1
        and min(b - a for a, b in zip(ticks, ticks[1:], strict=False)) < (ticks[-1] - ticks[0]) / 14
    ):
        return
    texts, last = [], -math.inf
    span = math.log(ticks[-1] / ticks[0]) if scale == "log" and len(ticks) > 1 else 1.0
    for tick in ticks:
        at = math.log(tick / ticks[0]) / span if scale == "log" and span else 0.0
        texts.append(plain(tick) if scale == "linear" or at - last > 0.1 else "")
        last = at if texts[-1] else last
    ax.set_xticks(ticks, texts)
    ax.minorticks_off()
