"""`loraexp align RUN`: alignment diagnostics of a finished run, as a table, `align.json` and a picture in its folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from loraexp.cli.verbs import Parser, find_run
from loraexp.config import ConfigError
from loraexp.machine.files import write_json

if TYPE_CHECKING:
    from loraexp.artifacts.figure import Panel, Picture
    from loraexp.finished.angles import Subject

WHERE = ("device", "cache_root", "task.data_dir", "task.eval_data_dir")
SHOWN = 13  # steps in the printed table, and points of the line, which t = 0 and t = 1 are among
NEXT = 4  # the first style of the picture that the factors of two layer classes leave


def main(arguments: Sequence[str]) -> int:
    """`loraexp align RUN [--against FULL_RUN]`: principal angles between the factors and the one-step gradient, at every kept step
    (train.keep_factors_every); with a finished run of init=full, how far the predictions are from its own; and the loss
    on the way from the pretrained weights to the run's."""
    parser = Parser("loraexp align", description=main.__doc__)
    parser.add_argument("run", help="run folder or run id")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=" | ".join(WHERE))
    parser.add_argument("--against", metavar="FULL_RUN", help="a finished run with init=full of the same model and task")
    parser.add_argument("--rows", type=int, default=512, help="training rows of the one-step gradient (default 512)")
    parser.add_argument("--held-out", type=int, default=128, help="held-out rows for predictions and losses (default 128)")
    parser.add_argument("--directions", type=int, help="leading directions that are compared (default: the rank)")
    parser.add_argument("--points", type=int, default=9, help="points of each side of the plane (default 9; the line has 13)")
    options = parser.parse_intermixed_args(arguments)
    for name in ("rows", "held_out", "points", "directions"):
        value = getattr(options, name)
        if value is not None and value < (2 if name == "points" else 1):
            raise ConfigError(f"--{name.replace('_', '-')} {value}: expected a whole number of at least {2 if name == 'points' else 1}")
    changed = dict(override(word) for word in options.overrides)
    subject = load(options.run, changed)
    full = load(options.against, changed) if options.against else None
    check(subject, full, options.directions)
    found = diagnose(subject, full, options)
    write_json(subject.folder / "align.json", found)
    show(found)
    from loraexp.artifacts import drawing

    paths = drawing.save(picture(found), subject.folder / "align", ("png",))
    print(f"written: {os.path.relpath(subject.folder / 'align.json')}, {', '.join(os.path.relpath(path) for path in paths)}")
    return 0


def override(word: str) -> tuple[str, Any]:
    key, equals, value = word.partition("=")
    if not equals or key not in WHERE:
        raise ConfigError(f"align: {word}: expected KEY=VALUE of {', '.join(WHERE)}; the run's other keys are what it was trained with")
    read = yaml.safe_load(value)
    return key, str(Path(read).expanduser().absolute()) if read is not None and key != "device" else read


def load(word: str, changed: Mapping[str, Any]) -> Subject:
    from loraexp.finished.angles import Subject

    return Subject.of(*find_run(word), changed)


def check(subject: Subject, full: Subject | None, directions: int | None) -> None:
    """The run has factors of that many directions, and the other is full fine-tuning of the same thing."""
    rank = subject.settings.rank
    if directions is not None and directions > rank:
        raise ConfigError(f"--directions {directions}: the run's rank is {rank}; expected at most that")
    if full is None:
        return
    if full.has_factors:
        raise ConfigError(f"--against {full.folder}: init={full.settings.init['name']}; expected a run with init=full")
    if not subject.has_factors:
        raise ConfigError(f"{subject.folder}: init=full is not compared with another full run; leave out --against")
    same: dict[str, tuple[Any, Any]] = {
        "model": (subject.settings.model.name, full.settings.model.name),
        "model.path": (subject.settings.model.path, full.settings.model.path),
        "task": (subject.settings.task["name"], full.settings.task["name"]),
        "task.protocol": (subject.settings.task.get("protocol"), full.settings.task.get("protocol")),
    }
    for key, (ours, theirs) in same.items():
        if ours != theirs:
            raise ConfigError(f"--against {full.folder}: {key}={theirs}, and the run has {ours}; expected the same")


# ------------------------------------------------------------------------------------------------------ measuring


def diagnose(subject: Subject, full: Subject | None, options: Any) -> dict[str, Any]:
    from loraexp.finished import angles
    from loraexp.machine.progress import bar

    stages = ["angles"] * subject.has_factors + ["predictions"] * (full is not None) + ["loss between the weights"]
    found: dict[str, Any] = {
        "run": subject.folder.name,
        "init": subject.settings.init["name"],
        "against": full.folder.name if full else None,
    }
    with bar("aligning", len(stages)) as advance:
        if subject.has_factors:
            k = options.directions or subject.settings.rank
            gradient = angles.one_step_gradient(subject, subject.base(), options.rows, k)
            steps = []
            for step, path in angles.kept_factors(subject):
                layers = angles.angles(subject, gradient, path, k)
                steps.append({"step": step, "classes": angles.by_class(layers), "layers": layers})
            rows = min(options.rows, len(subject.task.splits["train"]))
            found["angles"] = {"directions": k, "rows": rows, "steps": steps}
            advance()
        if full is not None:
            found["predictions"] = angles.prediction_distances(subject, full, options.held_out)
            advance()
        found["loss"] = angles.slices(subject, full, options.held_out, SHOWN, options.points)
        advance()
    return found


# ------------------------------------------------------------------------------------------------------ showing


def show(found: Mapping[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if "angles" in found:
        seen = found["angles"]
        console.print(
            f"\nsine of the largest of {seen['directions']} principal angles to the one-step gradient ({seen['rows']} rows), means"
        )
        console.print(angle_table(seen["steps"]))
    else:
        console.print("\ninit=full: no factors, so no angles")
    if "predictions" in found:
        seen = found["predictions"]
        console.print(f"\n‖f_full − f‖ on held-out inputs, rms per logit; pretrained {seen['pretrained_rms']:.4g} (relative 1)")
        for line in some(seen["steps"]):
            console.print(f"  step {line['step']:<7} {line['rms']:.4g}  relative {line['relative']:.3f}")
    loss, line = found["loss"], found["loss"]["line"]
    console.print(f"\nloss on {loss['rows']} rows of {loss['split']} from the pretrained weights (t = 0) to the run's (t = 1)")
    for t, value in some(list(zip(line["t"], line["loss"], strict=True))):
        console.print(f"  t {t:5.2f}   {value:.4f}")


def angle_table(steps: Sequence[Mapping[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2))
    classes = list(steps[0]["classes"])
    for column in ["step", *(f"{name} {factor}" for name in classes for factor in "AB")]:
        table.add_column(column, justify="right", no_wrap=True)
    for line in some(steps):
        values = [line["classes"][name][factor] for name in classes for factor in "AB"]
        table.add_row(str(line["step"]), *("—" if value is None else f"{value:.3f}" for value in values))
    return table


def some(lines: Sequence[Any]) -> list[Any]:
    """The lines, or of many evenly spread ones with the first and the last."""
    if len(lines) <= SHOWN:
        return list(lines)
    return [lines[round(i * (len(lines) - 1) / (SHOWN - 1))] for i in range(SHOWN)]


def picture(found: Mapping[str, Any]) -> Picture:
    from loraexp.artifacts.figure import Line, Panel, Picture

    panels: list[Panel] = []
    if "angles" in found:
        steps = found["angles"]["steps"]
        names = [name for name in steps[0]["classes"] if name != "mean"]
        lines = []
        for style, (name, factor) in enumerate((name, factor) for name in names for factor in "AB"):
            points = [(s["step"], s["classes"][name][factor]) for s in steps if s["classes"][name][factor] is not None]
            lines.append(Line(label=f"{name} {factor}", style=style, x=[p[0] for p in points], y=[p[1] for p in points]))
        panels.append(Panel(title="angles to the one-step gradient", x_label="step", y_label="sine of the largest angle", lines=lines))
    if "predictions" in found:
        steps = found["predictions"]["steps"]
        line = Line(label="‖f_full − f‖", x=[s["step"] for s in steps], y=[s["relative"] for s in steps], style=NEXT)
        level = Line(label="pretrained weights", kind="level", x=[0], y=[1.0])
        panels.append(Panel(title="predictions against full", x_label="step", y_label="‖f_full − f‖ / ‖f_full − f₀‖", lines=[line, level]))
    loss = found["loss"]
    way = Line(label=f"loss on {loss['split']}", x=loss["line"]["t"], y=loss["line"]["loss"], style=NEXT + 1)
    panels.append(Panel(title="loss between the weights", x_label="t (0: pretrained, 1: the run)", y_label="loss", lines=[way]))
    if "plane" in loss:
        panels.append(plane_panel(loss["plane"]))
    title = f"{found['run']}" + (f" against {found['against']}" if found["against"] else "")
    return Picture(name="align", title=title, subtitle=f"init={found['init']}", panels=panels)


def plane_panel(plane: Mapping[str, Any]) -> Panel:
    from loraexp.artifacts.figure import Line, Panel
    from loraexp.sweep.computed import Surface

    labels = {"pretrained": "at W0", "run": "the run", "full": "full fine-tuning"}
    lines = [
        Line(label=labels[name], kind="points", x=[x], y=[y], style=NEXT + 2 + i)
        for i, (name, (x, y)) in enumerate(plane["points"].items())
    ]
    surface = Surface(panel="plane", x=plane["x"], y=plane["y"], z=plane["loss"], label="loss")
    drawn: dict[str, Any] = {"lines": lines, "surfaces": [surface]}
    return Panel(title="loss over the plane", x_label="along the run (‖ΔW‖)", y_label="beside it, to full (‖ΔW‖)", **drawn)
