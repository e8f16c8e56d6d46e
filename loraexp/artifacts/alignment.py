"""The picture of a run's alignment diagnostics."""

from __future__ import annotations

from collections.abc import Sequence

from loraexp.artifacts.figure import Line, Panel, Picture
from loraexp.finished.findings import Alignment, Angles, Distance, KeptStep, Plane
from loraexp.records.curves import Surface

NEXT = 4  # the first style that the factors of two layer classes leave


def picture(found: Alignment) -> Picture:
    """Angles and overlap, predictions, and the loss, as far as `loraexp align` measured them."""
    panels = angle_panels(found["angles"]) if "angles" in found else []
    if "predictions" in found:
        panels.append(prediction_panel(found["predictions"]["steps"]))
    loss = found["loss"]
    way = Line(
        label=f"loss on {loss['split']}",
        x=loss["line"]["t"],
        y=loss["line"]["loss"],
        style=NEXT + 1,
    )
    panels.append(
        Panel(
            title="loss between the weights",
            x_label="t (0: pretrained, 1: the run)",
            y_label="loss",
            lines=[way],
        )
    )
    if "plane" in loss:
        panels.append(plane_panel(loss["plane"]))
    title = f"{found['run']}" + (f" against {found['against']}" if found["against"] else "")
    return Picture(name="align", title=title, subtitle=f"init={found['init']}", panels=panels)


def angle_panels(angles: Angles) -> list[Panel]:
    """The sine of the largest angle, and the overlap, over the steps."""
    return [
        Panel(
            title="angles to the one-step gradient",
            x_label="step",
            y_label="sine of the largest angle",
            lines=by_factor(angles["steps"], ""),
        ),
        Panel(
            title="overlap with the one-step gradient",
            x_label="step",
            y_label=f"‖P_A P_G‖² / {angles['directions']}",
            lines=by_factor(angles["steps"], "_overlap"),
        ),
    ]


def prediction_panel(steps: Sequence[Distance]) -> Panel:
    line = Line(
        label="‖f_full − f‖",
        x=[s["step"] for s in steps],
        y=[s["relative"] for s in steps],
        style=NEXT,
    )
    level = Line(label="pretrained weights", kind="level", x=[0], y=[1.0])
    return Panel(
        title="predictions against full",
        x_label="step",
        y_label="‖f_full − f‖ / ‖f_full − f₀‖",
        lines=[line, level],
    )


def by_factor(steps: Sequence[KeptStep], what: str) -> list[Line]:
    """A line for A and for B of each class of layers, through the steps that have the value."""
    names = [name for name in steps[0]["classes"] if name != "mean"]
    lines = []
    for style, (name, factor) in enumerate((name, factor) for name in names for factor in "AB"):
        values = [(s["step"], s["classes"][name].get(f"{factor}{what}")) for s in steps]
        points = [(step, value) for step, value in values if value is not None]
        lines.append(
            Line(
                label=f"{name} {factor}",
                style=style,
                x=[p[0] for p in points],
                y=[p[1] for p in points],
            )
        )
    return lines


def plane_panel(plane: Plane) -> Panel:
    labels = {"pretrained": "at W0", "run": "the run", "full": "full fine-tuning"}
    lines = [
        Line(label=labels[name], kind="points", x=[x], y=[y], style=NEXT + 2 + i)
        for i, (name, (x, y)) in enumerate(plane["points"].items())
    ]
    surface = Surface(panel="plane", x=plane["x"], y=plane["y"], z=plane["loss"], label="loss")
    return Panel(
        title="loss over the plane",
        x_label="along the run (‖ΔW‖)",
        y_label="beside it, to full (‖ΔW‖)",
        lines=lines,
        surfaces=[surface],
    )
