"""Pictures drawn with matplotlib: PNG, SVG and PDF that are readable in black and white and when
shown small.

A page is stacked from measured blocks (title, panels, legend, notes), so nothing overlaps. The same
label has the same colour, line style and marker in every panel.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraexp.artifacts.figure import Panel, Picture
from loraexp.artifacts.panels import GREY, draw
from loraexp.machine import files

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

FORMATS = ("png", "svg", "pdf")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9.5,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "loraexp",
    "path.simplify_threshold": 0.4,
    "savefig.facecolor": "white",
}
PAD = 0.12  # inches between the blocks of a page


def save(picture: Picture, stem: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Draw a picture into STEM.png (150 dots per inch), STEM.svg, STEM.pdf; returns the paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, content in rendered(picture, formats).items():
        path = stem.with_name(f"{stem.name}.{kind}")
        files.replace(path, content)
        paths.append(path)
    return paths


def rendered(picture: Picture, formats: Sequence[str]) -> dict[str, bytes]:
    """The picture in each format; the same data give the same bytes of PNG and SVG."""
    import matplotlib

    dates: dict[str, dict[str, None]] = {
        "svg": {"Date": None},
        "pdf": {"CreationDate": None},
        "png": {},
    }
    drawn = figure(picture)
    found = {}
    with matplotlib.rc_context(STYLE):
        for kind in formats:
            buffer = io.BytesIO()
            drawn.savefig(buffer, format=kind, dpi=150, metadata=dates[kind])
            found[kind] = buffer.getvalue()
    return found


def figure(picture: Picture) -> Figure:
    """The picture as matplotlib has it, on a canvas of its own: a notebook shows it, no window
    opens."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        drawn = Figure(dpi=150)
        FigureCanvasAgg(drawn)
        page(drawn, picture)
    return drawn


# --------------------------------------------------------------------------------------------------
# the page


def page(figure: Figure, picture: Picture) -> None:
    """Title on top, panels, one legend, notes at the foot; the height is what they need."""
    panels = [panel for panel in picture.panels if panel.lines or panel.surfaces]
    across = min(len(panels), 2 if len(panels) in (2, 4) else 3)
    down = math.ceil(len(panels) / across)
    width = 7.2 if across == 1 else 9.0
    figure.set_size_inches(width, 10)
    axes = figure.subplots(
        down, across, squeeze=False, sharex=picture.share, sharey=picture.share or is_bars(panels)
    ).ravel()
    for i, (panel, ax) in enumerate(zip(panels, axes, strict=False)):
        draw(
            ax,
            panel,
            inner=(picture.share or is_bars(panels)) and i % across > 0,
            above=picture.share and i + across < len(panels),
        )
    for ax in axes[len(panels) :]:
        ax.remove()
    tall = max(panel_height(panel, across) for panel in panels)
    for ax in axes[: len(panels)]:  # a label longer than its axis goes on in a second line
        ax.set_xlabel(textwrap.fill(ax.get_xlabel(), int((width / across - 0.8) * 13)))
        ax.set_ylabel(textwrap.fill(ax.get_ylabel(), int((tall - 0.8) * 13)))
    around(figure, picture, width, tall * down, legend_of(figure, list(axes[: len(panels)]), width))


def around(
    figure: Figure, picture: Picture, width: float, panels: float, legend: Legend | None
) -> None:
    """What stands above and below panels of that height in inches, and the room that it needs."""
    title = textwrap.wrap(picture.title, int(width * 9.4)) or [""]
    subtitle = textwrap.wrap(picture.subtitle, int(width * 14.5)) or [""]
    notes = [
        line
        for note in picture.notes
        for line in textwrap.wrap(note, int(width * 15.5), subsequent_indent="   ")
    ]
    legend_height = (
        legend.get_window_extent().height / figure.dpi + PAD if legend is not None else 0.0
    )
    head = 0.22 * len(title) + 0.165 * len(subtitle) + 0.195
    foot = 0.165 * len(notes) + (PAD if notes else 0.0)
    height = head + panels + legend_height + foot + PAD
    figure.set_size_inches(width, height)
    bold: dict[str, Any] = {"fontsize": 12, "fontweight": "bold", "linespacing": 1.25}
    grey: dict[str, Any] = {"va": "bottom", "color": GREY}
    x = 0.12 / width
    figure.text(x, 1 - 0.1 / height, "\n".join(title), va="top", **bold)
    below = 1 - (head - 0.06) / height
    figure.text(x, below, "\n".join(subtitle), fontsize=9, linespacing=1.25, **grey)
    figure.text(x, PAD / 2 / height, "\n".join(notes), fontsize=8.5, linespacing=1.3, **grey)
    if legend is not None:
        legend.set_bbox_to_anchor((0.5, (foot + PAD / 2) / height), figure.transFigure)
    bottom = (foot + legend_height) / height
    figure.set_layout_engine(
        "constrained", rect=(0, bottom, 1, 1 - bottom - head / height), w_pad=0.08, h_pad=0.08
    )


def is_bars(panels: Sequence[Panel]) -> bool:
    return any(line.kind == "bar" for panel in panels for line in panel.lines)


def panel_height(panel: Panel, across: int) -> float:
    """Inches: bars need a line each; others a pleasant shape."""
    if is_bars([panel]):
        return 0.75 + 0.33 * len(panel.lines)
    return {1: 4.0, 2: 3.3, 3: 2.8}[across]


def legend_of(figure: Figure, axes: Sequence[Axes], width: float) -> Legend | None:
    """One legend for all panels, below them; none where there is one thing, or where the bars are
    named on their axis."""
    handles: dict[str, Artist] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if not handles:
        return None
    longest = max(len(label) for label in handles)
    columns = max(1, min(len(handles), int((width - 0.3) / (0.085 * longest + 0.62))))
    columns = math.ceil(len(handles) / math.ceil(len(handles) / columns))  # rows of like length
    return figure.legend(
        list(handles.values()),
        list(handles),
        loc="lower center",
        bbox_to_anchor=(0.5, 0),
        ncols=columns,
        frameon=False,
        handlelength=2.8,
        borderpad=0,
        borderaxespad=0,
        columnspacing=1.4,
    )
