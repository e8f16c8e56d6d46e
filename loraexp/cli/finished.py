"""The verbs of finished runs: `verify`, `export`, `eval`, `align`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.table import Table

from loraexp.cli.options import Parser
from loraexp.config import ConfigError
from loraexp.machine.files import write_json
from loraexp.machine.progress import first
from loraexp.machine.words import shorten

if TYPE_CHECKING:
    from loraexp.finished.findings import Alignment, KeptStep
    from loraexp.finished.opened import FinishedRun

T = TypeVar("T")


def verify(arguments: Sequence[str]) -> int:
    """Prove that a run's saved adapter is the same function on the original base every way.

    Logits of the same tokens through this project's layer (R and offset apart), through PEFT, and
    merged once in float32 agree to 1e-5 of the largest logit. In bf16 the adapter kept apart is
    compared with edited weights.
    """
    parser = Parser("loraexp verify", description=verify.__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders or run ids")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-5,
        metavar="X",
        help="relative to the largest logit (default 1e-5)",
    )
    options = parser.parse_args(arguments)
    from loraexp.finished import opened

    runs = [opened.open_run(word) for word in options.runs]
    return max([verified(run, options.tolerance) for run in runs])


def verified(run: FinishedRun, tolerance: float) -> int:
    """Print how far apart the ways are; 0 where they agree."""
    from loraexp.finished import verify as proof

    print(f"{shorten(run.folder)}")
    errors = proof.in_float32(run)
    if "PEFT" not in errors:
        print("PEFT is not installed (pip install 'loraexp[peft]'): its way is not checked")
    for name, error in errors.items():
        print(f"{name:<20} largest difference {error:.1e} of the largest logit")
    for name, error in proof.in_bf16(run).items():
        print(f"{name:<20} rms difference     {error:.1e} of the largest logit")
    worst = max(errors.values())
    agree = worst <= tolerance
    if agree:
        run.check_files()  # to the last bit, also where a difference is below the tolerance
    print("agree" if agree else f"DISAGREE: {worst:.1e} is above the tolerance {tolerance:g}")
    return 0 if agree else 1


def export(arguments: Sequence[str]) -> int:
    """A PEFT adapter folder of a run, or the base with the update merged once in float32."""
    parser = Parser("loraexp export", description=export.__doc__)
    parser.add_run()
    parser.add_argument(
        "--to", required=True, type=Path, metavar="DIR", help="a folder that does not exist yet"
    )
    parser.add_argument(
        "--merged", action="store_true", help="a whole checkpoint instead of an adapter"
    )
    options = parser.parse_args(arguments)
    from loraexp.finished import export as exporting
    from loraexp.finished import opened

    exporting.check_place(options.to)
    run = opened.open_run(options.run)
    (exporting.merged if options.merged else exporting.adapter)(run, options.to)
    print(f"{'merged checkpoint' if options.merged else 'adapter'} in {options.to}")
    return 0


def evaluate(arguments: Sequence[str]) -> int:
    """Score a finished run's adapter again, under other protocols or limits.

    The run's own metrics never change: the new ones stand in the record's `evaluations`, with the
    protocol, limits, rows and versions that made them, in W&B and in `load_records`
    (`evaluations/KEY/SPLIT/METRIC`).
    """
    from loraexp.finished import rescore

    parser = Parser("loraexp eval", description=evaluate.__doc__)
    parser.add_run()
    parser.add_overrides(" | ".join(rescore.SCORING))
    options = parser.parse_args(arguments)
    for split, values in rescore.rescore(options.run, options.overrides).items():
        if not first():
            continue  # of several processes the first speaks
        print(f"{split:<28} " + "  ".join(f"{name} {value:.4f}" for name, value in values.items()))
    return 0


def align_options(arguments: Sequence[str]) -> argparse.Namespace:
    """The run, what it is compared with, and how many rows, directions and points."""
    from loraexp.finished.diagnose import WHERE

    parser = Parser("loraexp align", description=align.__doc__)
    parser.add_run()
    parser.add_overrides(" | ".join(WHERE))
    parser.add_argument(
        "--against",
        metavar="FULL_RUN",
        help="a finished run with init=full of the same model and task",
    )
    parser.add_argument(
        "--rows",
        type=int,
        metavar="N",
        default=512,
        help="training rows of the one-step gradient (default 512)",
    )
    parser.add_argument(
        "--held-out",
        type=int,
        metavar="N",
        default=128,
        help="held-out rows for predictions and losses (default 128)",
    )
    parser.add_argument(
        "--directions",
        type=int,
        metavar="N",
        help="leading directions that are compared (default: the rank)",
    )
    parser.add_argument(
        "--points",
        type=int,
        metavar="N",
        default=9,
        help="points of each side of the plane (default 9; the line has 13)",
    )
    options = parser.parse_intermixed_args(arguments)
    for name in ("rows", "held_out", "points", "directions"):
        value = getattr(options, name)
        if value is not None and value < (2 if name == "points" else 1):
            raise ConfigError(
                f"--{name.replace('_', '-')} {value}: expected a whole number of at least"
                f" {2 if name == 'points' else 1}"
            )
    return options


def align(arguments: Sequence[str]) -> int:
    """Principal angles between the factors and the one-step gradient, at every kept step.

    Steps are kept by train.keep_factors_every. With a finished run of init=full, also how far the
    predictions are from its own; and the loss on the way from the pretrained weights to the run's.
    """
    options = align_options(arguments)
    from loraexp.artifacts import alignment, drawing
    from loraexp.finished import diagnose, opened

    changed = dict(diagnose.override(word) for word in options.overrides)
    subject = opened.open_run(options.run, changed)
    full = opened.open_run(options.against, changed) if options.against else None
    diagnose.check(subject, full, options.directions)
    extent = diagnose.Extent(
        rows=options.rows,
        held_out=options.held_out,
        directions=options.directions,
        points=options.points,
    )
    measured = diagnose.diagnose(subject, full, extent)
    write_json(subject.folder / "align.json", measured)
    show_alignment(measured)
    paths = drawing.save(alignment.picture(measured), subject.folder / "align", ("png",))
    written = [subject.folder / "align.json", *paths]
    print(f"written: {', '.join(os.path.relpath(path) for path in written)}")
    return 0


SHOWN = 13  # lines of a printed table


def show_alignment(found: Alignment) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if "angles" in found:
        seen = found["angles"]
        console.print(
            f"\nsine of the largest of {seen['directions']} principal angles to the one-step"
            f" gradient ({seen['rows']} rows), means"
        )
        console.print(angle_table(seen["steps"]))
        console.print(
            f"\noverlap ‖P_A P_G‖²/{seen['directions']} of the same subspaces: 1 where they are"
            " equal, 0 where orthogonal"
        )
        console.print(angle_table(seen["steps"], "_overlap"))
    else:
        console.print("\ninit=full: no factors, so no angles")
    if "predictions" in found:
        apart = found["predictions"]
        console.print(
            "\n‖f_full − f‖ on held-out inputs, rms per logit; pretrained"
            f" {apart['pretrained_rms']:.4g} (relative 1)"
        )
        for at in some(apart["steps"]):
            console.print(f"  step {at['step']:<7} {at['rms']:.4g}  relative {at['relative']:.3f}")
    loss, line = found["loss"], found["loss"]["line"]
    console.print(
        f"\nloss on {loss['rows']} rows of {loss['split']} from the pretrained weights (t = 0) to"
        " the run's (t = 1)"
    )
    for t, value in some(list(zip(line["t"], line["loss"], strict=True))):
        console.print(f"  t {t:5.2f}   {value:.4f}")


def angle_table(steps: Sequence[KeptStep], what: str = "") -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    classes = list(steps[0]["classes"])
    for column in ["step", *(f"{name} {factor}" for name in classes for factor in "AB")]:
        table.add_column(column, justify="right", no_wrap=True)
    for line in some(steps):
        values = [line["classes"][name][f"{factor}{what}"] for name in classes for factor in "AB"]
        table.add_row(
            str(line["step"]), *("—" if value is None else f"{value:.3f}" for value in values)
        )
    return table


def some(lines: Sequence[T]) -> list[T]:
    """The lines, or of many evenly spread ones with the first and the last."""
    if len(lines) <= SHOWN:
        return list(lines)
    return [lines[round(i * (len(lines) - 1) / (SHOWN - 1))] for i in range(SHOWN)]
