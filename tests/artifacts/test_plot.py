"""Figures: the numbers of a picture from records on disk, what it says of itself, and a page on
which nothing overlaps."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import struct
import typing
from pathlib import Path

import pytest
from scipy import stats

from loraexp import cli
from loraexp.artifacts import charts, drawing, panels, plots
from loraexp.artifacts.figure import Line, Panel, Picture, banded, plain, running_mean
from loraexp.config import ConfigError
from loraexp.records.curves import Computed, Curve, Surface
from loraexp.results.gather import Results, gather
from loraexp.sweep import reading
from loraexp.sweep.cells import Cell
from loraexp.sweep.schema import Plot
from tests.support.measured import CONTENT, LR, at, expanded_once, fill, load, log, put

__all__ = ["expanded_once"]  # a fixture for every test here


def numbers(cell: Cell) -> tuple[float, float] | None:
    """LoRA-GA is better at the second learning rate, LoRA at the first; nothing of LoRA on the
    second task."""
    if (cell.row, cell.column) == ("plain", "second"):
        return None
    better = (cell.point["lr"] == LR[1]) == (cell.row == "gradient")
    return 0.5 + 0.2 * better + 0.01 * cell.point["seed"], 0.5 + 0.1 * better


def measured(folder: Path, content: str = CONTENT) -> Results:
    """A small sweep whose runs logged 4 losses: step + seed / 10."""
    wanted = load(folder, content)
    for cell in fill(wanted, numbers):
        if numbers(cell) is not None:
            lines = [
                {"step": s, "epoch": s / 4, "loss": s + cell.point["seed"] / 10}
                for s in (1, 2, 3, 4)
            ]
            log(cell.folder, *lines, {"step": 4, "epoch": 1.0, "dev/accuracy": 0.5})
    return gather(wanted)


def line(picture: Picture, label: str, panel: int = 0) -> Line:
    return next(one for one in picture.panels[panel].lines if one.label == label)


# --------------------------------------------------------------------------------------------------
# numbers


def test_a_curve_is_the_mean_over_seeds_at_the_chosen_point_with_its_band(tmp_path: Path) -> None:
    found = measured(tmp_path)
    picture = plots.make(found, Plot(name="loss", kind="curve", y="loss"))
    assert [panel.title for panel in picture.panels] == ["First", "Second"]
    assert (
        picture.panels[0].x_label == "optimizer step"
        and picture.panels[0].y_label == "training loss"
    )
    drawn = line(picture, "LoRA")
    std = statistics.stdev([0.0, 0.1, 0.2])
    assert drawn.x == [1, 2, 3, 4] and drawn.y == pytest.approx([1.1, 2.1, 3.1, 4.1])
    assert drawn.low == pytest.approx([1.1 - std, 2.1 - std, 3.1 - std, 4.1 - std])
    assert "mean ± standard deviation over 3 seeds" in picture.notes
    assert "learning rate chosen by best/value: LoRA 1e-3; LoRA-GA & co_1 2e-3" in picture.notes
    assert "not drawn in Second: LoRA (6 missing)" in picture.notes
    wide = plots.make(
        found, Plot(name="loss", kind="curve", y="loss", x="epoch", band="ci95", columns=["first"])
    )
    half = stats.t.ppf(0.975, 2) * std / math.sqrt(3)
    assert line(wide, "LoRA").x == [0.25, 0.5, 0.75, 1.0] and line(
        wide, "LoRA"
    ).high == pytest.approx([y + half for y in drawn.y])
    assert "mean and 95 % t interval over 3 seeds" in wide.notes and wide.panels[0].title == ""


def test_a_metric_is_drawn_in_the_unit_of_the_table(tmp_path: Path) -> None:
    picture = plots.make(measured(tmp_path), Plot(name="accuracy", kind="curve", columns=["first"]))
    assert line(picture, "LoRA").y == [50.0] and picture.panels[0].y_label == "dev accuracy (%)"


def test_curves_of_every_grid_point_share_their_axes(tmp_path: Path) -> None:
    picture = plots.make(
        measured(tmp_path),
        Plot(name="all", kind="curve", y="loss", columns=["first"], best_only=False),
    )
    assert [panel.title for panel in picture.panels] == [
        "learning rate 1e-3",
        "learning rate 2e-3",
    ] and picture.share
    assert all(len(panel.lines) == 2 for panel in picture.panels)


def test_columns_of_the_same_runs_are_one_panel(tmp_path: Path) -> None:
    content = CONTENT.replace("task.limit_train=65]", "task.limit_train=64], epoch: 1.0")
    picture = plots.make(measured(tmp_path, content), Plot(name="loss", kind="curve", y="loss"))
    assert len(picture.panels) == 1


def test_seeds_that_logged_other_steps_are_drawn_where_all_of_them_did(tmp_path: Path) -> None:
    found = measured(tmp_path)
    short = found.places["plain", "first"].runs[0]
    assert short.folder is not None
    log(short.folder, {"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0})
    picture = plots.make(
        gather(found.sweep), Plot(name="loss", kind="curve", y="loss", columns=["first"])
    )
    assert line(picture, "LoRA").x == [1, 2]
    assert "LoRA, First: at the 2 steps that all seeds logged" in picture.notes


def test_smoothing_is_a_running_mean_and_said() -> None:
    assert running_mean([1.0, 2.0, 3.0, 6.0], 3) == pytest.approx([1.0, 1.5, 2.0, 11 / 3])


def test_a_band_on_a_logarithmic_scale_is_geometric() -> None:
    drawn = banded("x", 0, [(1.0, [1.0, 100.0])], "std", "log")
    spread = math.exp(statistics.stdev([0.0, math.log(100.0)]))
    assert (
        drawn.y == pytest.approx([10.0])
        and drawn.low == pytest.approx([10.0 / spread])
        and drawn.high == pytest.approx([10.0 * spread])
    )
    assert banded("x", 0, [(1.0, [-1.0, 1.0])], "std", "log").y == [0.0], (
        "what has no logarithm is averaged as it is"
    )


def test_against_a_grid_key_every_value_has_its_mean(tmp_path: Path) -> None:
    found = measured(tmp_path)
    failed = at(
        [run.cell for run in found.places["gradient", "first"].runs], "gradient", "first", LR[0], 2
    )
    put(failed, 0.7, 0.8, status="failed", error={"type": "Diverged", "message": "loss nan"})
    picture = plots.make(
        gather(found.sweep), Plot(name="lr", kind="against", x="lr", x_scale="log")
    )
    assert line(picture, "LoRA").x == list(LR) and line(picture, "LoRA").y == pytest.approx(
        [71.0, 51.0]
    )
    assert line(picture, "LoRA-GA & co_1").y == pytest.approx([50.5, 71.0]) and picture.panels[
        0
    ].ticks == list(LR)
    assert "mean ± standard deviation over 2 to 3 seeds" in picture.notes
    assert any(
        "LoRA-GA & co_1 (learning rate 1e-3, seed 2 failed: Diverged: loss nan)" in note
        for note in picture.notes
    )


RANKS = CONTENT.replace(
    """  first: {label: First, overrides: [task.limit_train=64], value: dev/accuracy}
  second: {label: Second, overrides: [task.limit_train=65], value: dev/accuracy}
""",
    "  first: {label: First, value: dev/accuracy}\n",
).split("published:")[0]


def test_against_a_key_that_rows_set_is_a_line_for_each_label(tmp_path: Path) -> None:
    rows = "rows:\n" + "".join(
        f"  {init}{rank}: {{label: {init}, group: rank {rank}, overrides: [init={init},"
        f" rank={rank}]}}\n"
        for init, rank in itertools.product(("lora", "pissa"), (2, 4))
    )
    content = RANKS[: RANKS.index("rows:")] + rows + RANKS[RANKS.index("columns:") :]
    wanted = load(tmp_path, content)
    fill(wanted, lambda cell: (0.1 * cell.plain["rank"], 0.5))
    picture = plots.make(gather(wanted), Plot(name="rank", kind="against", x="rank"))
    assert [one.label for one in picture.panels[0].lines] == ["lora", "pissa"]
    assert line(picture, "pissa").x == [2, 4] and line(picture, "pissa").y == pytest.approx(
        [20.0, 40.0]
    )


def test_against_a_key_that_columns_set_is_one_panel(tmp_path: Path) -> None:
    wanted = load(tmp_path)
    fill(wanted, lambda cell: (0.01 * cell.plain["task"]["limit_train"], 0.5))
    picture = plots.make(gather(wanted), Plot(name="rows", kind="against", x="task.limit_train"))
    assert (
        len(picture.panels) == 1
        and line(picture, "LoRA").x == [64, 65]
        and line(picture, "LoRA").y == pytest.approx([64.0, 65.0])
    )
    with pytest.raises(
        ConfigError, match="x: task.name=tweets: expected a key whose values are numbers"
    ):
        plots.make(gather(wanted), Plot(name="rows", kind="against", x="task.name"))


def test_bars_carry_the_published_value_and_a_missing_row_keeps_its_place(tmp_path: Path) -> None:
    picture = plots.make(measured(tmp_path), Plot(name="bars", kind="bar"))
    first, second = picture.panels
    assert [(one.label, one.published) for one in first.lines] == [
        ("LoRA", 70.0),
        ("LoRA-GA & co_1", None),
    ]
    assert first.lines[0].y == pytest.approx([71.0]) and first.lines[0].high == pytest.approx(
        [72.0]
    )
    assert math.isnan(second.lines[0].y[0]) and second.lines[0].published == 60.0
    cost = plots.make(
        measured(tmp_path), Plot(name="cost", kind="bar", y="cost/init_seconds", columns=["first"])
    )
    assert (
        cost.panels[0].x_label == "time of the initialisation (s)"
        and cost.panels[0].lines[0].published is None
    )


def test_the_front_is_of_the_points_that_no_other_beats(tmp_path: Path) -> None:
    points = [
        Line(label=str(i), x=[x], y=[y])
        for i, (x, y) in enumerate([(1, 5), (2, 7), (3, 6), (4, 9), (1, 4), (2, 7)])
    ]
    front = charts.front(points, "min", "max")
    assert [(one.x, one.y) for one in front] == [([1, 2, 4], [5, 7, 9])]
    assert charts.front(points, "none", "max") == []
    assert charts.front(points[:1], "min", "max") == []
    picture = plots.make(
        measured(tmp_path),
        Plot(name="pareto", kind="scatter", x="cost/train_seconds", columns=["first"]),
    )
    assert picture.panels[0].x_label == "time of the training (s), less is better"
    assert picture.panels[0].y_label == "dev accuracy (%), more is better" and line(
        picture, "LoRA"
    ).x == [3599.0]
    named = plots.make(
        measured(tmp_path), Plot(name="pareto", kind="scatter", x="first", y="first")
    ).panels[0]
    label = measured(tmp_path).sweep.columns["first"].label
    assert (named.x_label, named.y_label) == (f"{label} (%), more is better",) * 2


def test_a_histogram_counts_every_finished_run(tmp_path: Path) -> None:
    picture = plots.make(
        measured(tmp_path), Plot(name="spread", kind="histogram", columns=["first"])
    )
    assert sorted(line(picture, "LoRA, 6 runs").y) == pytest.approx(
        [50.0, 51.0, 52.0, 70.0, 71.0, 72.0]
    )


# --------------------------------------------------------------------------------------------------
# computed sweeps


def theory(*, diverged: bool = False) -> Computed:
    steps = list(range(2000))
    curves = [
        Curve(
            panel="risk",
            label="spectral",
            x=steps,
            y=[math.exp(-s / 200) for s in steps],
            kind="line",
        ),
        Curve(
            panel="risk",
            label="random",
            x=steps,
            y=[1.0 + s for s in steps],
            diverged_at=40.0 if diverged else None,
        ),
        Curve(panel="risk", label="best rank-4 risk", x=[], y=[1e-3], kind="level"),
        Curve(
            panel="plane", label="spectral", x=[0.0, 0.5, 1.0], y=[0.0, 0.2, 1.0], kind="trajectory"
        ),
        Curve(panel="ratio", label="matrices", x=[], y=[1.0, 2.0, 2.5, 8.0], kind="histogram"),
    ]
    axis = [-1.0, 0.0, 1.0, 2.0]
    surface = Surface(
        panel="plane", x=axis, y=axis, z=[[x * x + y * y + 0.01 for x in axis] for y in axis]
    )
    return Computed(
        values={},
        curves=curves,
        surfaces=[surface],
        axes={"risk": {"x": "step", "y": "risk", "y_scale": "log"}},
    )


def of_theory(made: Computed | None, tmp_path: Path) -> Results:
    path = tmp_path / "toy.yaml"
    path.write_text(
        "title: A toy\npaper: a_paper\nartifact: fig1\nkind: figure\ncompute: {_target_:"
        " loraexp.theory.toy}\n"
    )
    return Results(sweep=reading.load(str(path)), source="", computed=made)


def test_computed_curves_and_surfaces_are_drawn_by_panel(tmp_path: Path) -> None:
    found = of_theory(theory(diverged=True), tmp_path)
    picture = plots.make(found, Plot(name="all", kind="series"))
    assert [panel.title for panel in picture.panels] == ["risk", "plane", "ratio"]
    assert (
        picture.panels[0].y_scale == "log"
        and line(picture, "spectral").style == line(picture, "spectral", 1).style
    )
    assert picture.notes == [
        "ring: start of a trajectory · star: its end",
        "× diverged: random at 40",
    ]
    one = plots.make(found, Plot(name="plane", kind="surface", panels=["plane"]))
    assert [panel.title for panel in one.panels] == ["plane"] and len(one.panels[0].surfaces) == 1
    assert all(
        len(content) > 5000 for content in drawing.rendered(picture, ["png", "svg"]).values()
    )
    with pytest.raises(
        ConfigError,
        match="panels: plain: the result has no such panel; choices: risk, plane, ratio",
    ):
        plots.make(found, Plot(name="plane", kind="surface", panels=["plain"]))
    assert plots.make(of_theory(None, tmp_path), Plot(name="all", kind="series")).empty


def stretched(**more: typing.Any) -> list[Curve]:
    """A way that leaves the plane of `theory` and comes to 1e6 before it ends."""
    far = {"x": [0.0, 1.0, 5.0, 1e6], "y": [0.0, 1.0, 3.0, 1e6], "diverged_at": 3.0}
    return [Curve(panel="plane", label="random", kind="trajectory", **(far | more))]


def test_what_diverged_stretches_no_axis(tmp_path: Path) -> None:
    """Its way ends at the edge of the view, between a point inside and the first outside."""
    made = theory()
    one = Plot(name="all", kind="series")
    clear = dataclasses.replace(made, curves=[*made.curves, *stretched()])
    picture = plots.make(of_theory(clear, tmp_path), one)
    way = line(picture, "random", 1)
    assert (list(way.x), list(way.y)) == ([0.0, 1.0, 2.0], [0.0, 1.0, 1.5])  # the plane ends at 2
    assert picture.notes[1] == "× diverged (drawn to where it leaves the view): random at 3"
    drawn = drawing.figure(picture).axes[1]
    assert drawn.get_xlim()[1] < 2.5 and drawn.get_ylim()[1] < 2.5
    crosses = [entry for entry in drawn.lines if entry.get_marker() == "x"]
    assert [list(entry.get_xdata()) for entry in crosses] == [[2.0]]
    near = dataclasses.replace(made, curves=[*made.curves, *stretched(x=[0, 3], y=[0, 3])])
    picture = plots.make(of_theory(near, tmp_path), one)
    assert list(line(picture, "random", 1).x) == [0, 3]  # an axis not twice as long
    assert picture.notes[1] == "× diverged: random at 3"


def test_a_curve_that_diverged_leaves_the_scale_to_the_others(tmp_path: Path) -> None:
    """On a logarithmic axis by decades: e^-10 … 1 beside 1 … 1e12; its band ends with it."""
    made = theory()
    wild = {"y": [1e-2, 1.0, 1e12], "low": [1e-3, 0.5, 1e11], "high": [1e-1, 2.0, 1e13]}
    curve = Curve(panel="risk", label="random", x=[0, 10, 12], diverged_at=12.0, **wild)
    found = dataclasses.replace(made, curves=[made.curves[0], curve])
    drawn = line(plots.make(of_theory(found, tmp_path), Plot(name="all", kind="series")), "random")
    assert drawn.x[-1] == 10.0 and drawn.y[-1] == pytest.approx(1.0)
    assert drawn.high is not None and max(drawn.high) <= 1.0


def test_values_that_json_has_no_word_for_leave_a_gap(tmp_path: Path) -> None:
    made = dataclasses.replace(
        theory(), curves=[Curve(panel="risk", label="a", x=[0, 1, 2], y=[1.0, None, 3.0])]
    )  # type: ignore[list-item]
    assert drawing.rendered(
        plots.make(of_theory(made, tmp_path), Plot(name="all", kind="series")), ["png"]
    )["png"]


def test_a_long_line_is_thinned_without_losing_a_spike() -> None:
    x, y = [float(i) for i in range(5000)], [0.0] * 5000
    y[1234], y[4321] = 9.0, -9.0
    thin_x, thin_y = panels.thinned(x, y)
    assert (
        len(thin_x) <= 602
        and (1234.0, 9.0) in zip(thin_x, thin_y, strict=True)
        and (4321.0, -9.0) in zip(thin_x, thin_y, strict=True)
    )
    assert thin_x[0] == 0.0 and thin_x[-1] == 4999.0 and thin_x == sorted(thin_x)
    assert panels.thinned(x[:600], y[:600]) == (x[:600], y[:600])


# --------------------------------------------------------------------------------------------------
# the page


def crowded() -> Picture:
    """Six panels, eight long labels, a title and notes that need several lines."""
    lines = [
        Line(
            label=f"A method with a long name, number {i}",
            style=i,
            x=[0, 1, 2],
            y=[i, i + 1, i],
            low=[i - 1] * 3,
            high=[i + 2] * 3,
        )
        for i in range(8)
    ]
    labels = {
        "x_label": "optimizer step, counted from the start of the training (batches)",
        "y_label": "accuracy on the split that is reported (%)",
    }
    every = [Panel(title=f"Task {i}", lines=lines, **labels) for i in range(6)]  # type: ignore[arg-type]
    words = "a rather long sentence about what is to be seen here " * 4
    return Picture(
        name="crowded",
        title=words,
        subtitle="a_paper fig1",
        panels=every,
        notes=["one: " + words, "two: " + words],
    )


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_no_block_of_a_page_lies_on_another(count: int) -> None:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = dataclasses.replace(crowded(), panels=crowded().panels[:count])
    with matplotlib.rc_context(drawing.STYLE):
        figure = Figure(dpi=150)
        canvas = FigureCanvasAgg(figure)
        drawing.page(figure, picture)
        canvas.draw()
    boxes = {f"panel {i}": ax.get_tightbbox() for i, ax in enumerate(figure.axes)}
    boxes |= {text.get_text()[:12]: text.get_window_extent() for text in figure.texts} | {
        "legend": figure.legends[0].get_window_extent()
    }
    assert len(boxes) == count + 4
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
        assert apart, f"{one} lies on {other}: {a} {b}"
    for name, box in boxes.items():
        assert (
            box.x0 >= -1
            and box.y0 >= -1
            and box.x1 <= figure.bbox.x1 + 1
            and box.y1 <= figure.bbox.y1 + 1
        ), f"{name} is cut off"


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_lines_are_told_apart_without_colour() -> None:
    looks = [
        (str(panels.look(Line(label="", x=[], y=[], style=i))["linestyle"]), panels.MARKERS[i % 10])
        for i in range(24)
    ]
    assert len(set(looks)) == 24
    shades = sorted(luminance(colour) for colour in panels.COLOURS)
    assert min(b - a for a, b in itertools.pairwise(shades)) > 0.015 and shades[-1] < 0.6
    assert abs(luminance(panels.COLOURS[0]) - luminance(panels.COLOURS[1])) > 0.2, (
        "the two of a two-line figure differ most"
    )
    assert len(set(panels.HATCHES)) == len(panels.HATCHES)


def test_the_same_data_give_the_same_bytes() -> None:
    one = dataclasses.replace(crowded(), panels=crowded().panels[:1])
    first, second = (drawing.rendered(one, ["png", "svg"]) for _ in range(2))
    assert first == second


def test_numbers_are_written_as_a_reader_writes_them() -> None:
    assert [plain(x) for x in (2e-5, 5e-4, 0.01, 8, 0.5, 0)] == [
        "2e-5",
        "5e-4",
        "0.01",
        "8",
        "0.5",
        "0",
    ]
    assert [panels.short(x) for x in (93.19, 0.5678, 1234.5, 0.0)] == [
        "93.2",
        "0.568",
        "1234",
        "0.00",
    ]
    assert panels.short(0.1234, like=93.2) == "0.1"


# --------------------------------------------------------------------------------------------------
# the command

PLOTS = """plots:
  - {name: loss, kind: curve, y: loss}
  - {name: rate, kind: against, x: lr, x_scale: log, columns: [first]}
"""


def test_the_command_writes_three_formats_and_prints_their_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured(tmp_path, CONTENT + PLOTS)
    root = f"output_root={tmp_path / 'outputs'}"
    assert cli.main(["plot", str(found.sweep.path), root]) == 0
    stems = [tmp_path / "outputs" / "figures" / f"mine-{name}" for name in ("loss", "rate")]
    paths = [f"{stem}.{kind}" for stem in stems for kind in ("png", "svg", "pdf")]
    # as one types them from here
    assert [str(Path(line).resolve()) for line in capsys.readouterr().out.splitlines()] == paths
    png, svg, pdf = (Path(path).read_bytes() for path in paths[:3])
    assert (
        png.startswith(b"\x89PNG")
        and struct.unpack(">I", png[16:20])[0] == 1350
        and pdf.startswith(b"%PDF")
        and b"<svg" in svg
    )
    into = tmp_path / "elsewhere"
    assert (
        cli.main(["plot", str(found.sweep.path), "--to", str(into), "--format", "svg", root]) == 0
    )
    assert sorted(path.name for path in into.iterdir()) == ["mine-loss.svg", "mine-rate.svg"]


def test_a_figure_without_data_tells_the_command_that_makes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = load(tmp_path, CONTENT + PLOTS)
    fill(wanted, numbers)  # records, but nothing was logged
    root = f"output_root={tmp_path / 'outputs'}"
    assert cli.main(["plot", str(wanted.path), "--format", "svg", root]) == 1
    out, err = capsys.readouterr()
    command = f"loraexp sweep {wanted.path} {root}"
    assert err.strip() == f"loraexp: mine-loss: no data; {command} makes it"
    assert "mine-rate.svg" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "png,jpg"], "--format jpg: expected some of png, svg, pdf"),
        (["--format", ""], "--format : expected some of png, svg, pdf"),
        (["--variant", "smok"], "smok"),
        (["--from", "nowhere"], "--from nowhere: expected wandb:"),
    ],
)
def test_wrong_words_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    path = load(tmp_path, CONTENT + PLOTS).path
    assert cli.main(["plot", str(path), *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_a_sweep_without_plots_and_a_kind_that_does_not_fit_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plot", str(load(tmp_path).path)]) == 2
    assert (
        "mine: this sweep declares no plots; loraexp table mine prints its table"
        in capsys.readouterr().err
    )
    path = load(tmp_path, CONTENT + "plots:\n  - {name: s, kind: series}\n").path
    assert cli.main(["plot", str(path)]) == 2
    assert (
        "mine.yaml: plot s: kind series is for computed sweeps; expected curve, against"
        in capsys.readouterr().err
    )


def test_every_kind_of_the_schema_is_drawn(tmp_path: Path) -> None:
    kinds = typing.get_args(typing.get_type_hints(Plot)["kind"])
    assert set(kinds) == {*plots.MAKERS, *plots.OF_COMPUTED}
    found = measured(tmp_path)
    for kind in plots.MAKERS:
        x = "cost/train_seconds" if kind == "scatter" else None
        picture = plots.make(found, Plot(name="x", kind=kind, x=x))  # type: ignore[arg-type]
        assert len(drawing.rendered(picture, ["png"])["png"]) > 5000
