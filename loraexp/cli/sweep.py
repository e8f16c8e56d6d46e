"""The verbs of sweeps: `sweep`, `plan`, `table`, `plot`, `report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loraexp import config
from loraexp.cli.options import Parser, expected, one_of
from loraexp.config import ConfigError, boundary
from loraexp.machine.escapes import printable
from loraexp.machine.words import reason_of, shorten
from loraexp.sweep import comparison, reading, schema
from loraexp.sweep.schema import Sweep

if TYPE_CHECKING:
    from loraexp.sweep.watch import Watch

FIGURES = ("png", "svg", "pdf")


def named(parser: Parser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """NAME, --variant and what the parser has besides; and the overrides, wherever they stand."""
    about = "a sweep (loraexp list sweeps), or a yaml file of your own"
    parser.add_argument("name", metavar="NAME", help=about)
    parser.add_overrides("overrides of every run, after those of the sweep")
    parser.add_argument(
        "--variant", metavar="NAME", help="the same artifact under other means, such as smoke"
    )
    options = parser.parse_intermixed_args(arguments)
    for word in options.overrides:
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(f"{word}: expected KEY=VALUE")
    if options.name.endswith((".yaml", ".yml")):
        boundary.enclose(Path(options.name), options.overrides)
    return options, options.overrides


def of_hydra(word: str) -> bool:
    """Whether an override is for Hydra, such as the launcher, and not for a run."""
    return schema.key_of(word).startswith(("hydra.", "hydra/"))


def require_root(overrides: Sequence[str]) -> Path | None:
    """The output_root that was typed, if one was; raises ConfigError where no such folder is."""
    root = schema.root_of(overrides)
    if root is not None and not root.is_dir():
        raise ConfigError(
            f"output_root={root}: there is no such folder, so there are no records; give that of"
            " your runs (loraexp sweep makes them)"
        )
    return root


def sweep(arguments: Sequence[str]) -> int:
    """Every missing run of a sweep; hydra/launcher=joblib|submitit_slurm|ray runs several at once.

    Exit status 0 when every run is finished, 1 when one failed.
    """
    options, overrides = named(Parser("loraexp sweep", description=sweep.__doc__), arguments)
    hydra = [word for word in overrides if of_hydra(word)]
    wanted = reading.load(
        options.name, options.variant, [word for word in overrides if word not in hydra]
    )

    if wanted.compute is None:
        return run_until_inside(wanted, hydra)
    if hydra:
        raise ConfigError(
            f"{hydra[0]}: {wanted.key} is computed in this process, it has no runs for a launcher;"
            " leave it out"
        )
    return compute(wanted)


def compare(arguments: Sequence[str]) -> int:
    """Initializers or methods of your own beside the others, under the conditions of
    sweeps/equal_conditions.yaml.

    Runs what is missing, then prints the table. Runs are shared with `loraexp sweep
    equal_conditions`.
    """
    parser = Parser("loraexp compare", description=compare.__doc__)
    about = "an initializer, a method, or init=NAME,optimizer=NAME; two or more side by side"
    parser.add_argument("words", nargs="+", metavar="INIT", help=about)
    parser.add_overrides("overrides of every run, such as task=mrpc")
    parser.add_argument(
        "--against",
        default="",
        metavar="ROW,…",
        help="rows of the table, separated by commas (default: all)",
    )
    parser.add_argument(
        "--variant", metavar="NAME", help="the same under other means, such as smoke"
    )
    options = parser.parse_intermixed_args(arguments)
    words = [*options.words, *options.overrides]  # argparse has them all in the first
    mine = [word for word in words if "=" not in word or word.startswith("init=")]
    overrides = [word for word in words if word not in mine]
    if not mine:
        raise ConfigError(
            f"compare {' '.join(overrides)}: expected an initializer, a method, or"
            " init=NAME,optimizer=NAME"
        )
    against = [name.strip() for name in options.against.split(",") if name.strip()]
    words = [word for word in overrides if not of_hydra(word)]
    wanted = comparison.comparison(mine, against, words, options.variant)
    hydra = [word for word in overrides if of_hydra(word)]
    status = run_until_inside(wanted, hydra, follow=False)  # the table is printed here
    from loraexp.artifacts import formats
    from loraexp.artifacts import table as tables
    from loraexp.results import gather

    print(printable(formats.markdown(tables.build(gather.gather(wanted)))), end="")
    return status


def run_until_inside(wanted: Sweep, hydra: Sequence[str], *, follow: bool = True) -> int:
    """Every run; where a grid widens by itself, also those beyond an edge that was best, until the
    best is inside."""
    from loraexp.cli import show
    from loraexp.results.gather import gather
    from loraexp.sweep import launch

    said = False

    def summarise(sweep: Sweep, watch: Watch) -> None:
        nonlocal said
        if not said or watch.already < len(watch.cells):  # what was said is not said again
            show.summary_of_sweep(sweep, watch, follow=follow)
        said = True

    while True:
        watch = launch.run(wanted, hydra, summarise)
        wider = gather(wanted).sweep if wanted.extend or wanted.select.judges else wanted
        if (wider.cells, wider.chosen) == (wanted.cells, wanted.chosen):
            return 1 if watch.counts()["failed"] else 0
        wanted = wider


def compute(wanted: Sweep) -> int:
    """A sweep without runs, computed here."""
    from loraexp.sweep import computed, launch

    try:
        into = launch.compute(wanted)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the function raises: the record has type, message and place
        into = computed.folder(wanted, wanted.output_root)
        print(f"{wanted.key}: failed: {reason_of(error)} ({into}/{config.RECORD})", file=sys.stderr)
        return 1
    verb = "table" if wanted.kind == "table" else "plot"
    print(f"{wanted.key}: computed, in {shorten(into)}; loraexp {verb} {wanted.words} shows it")
    return 0


def plan(arguments: Sequence[str]) -> int:
    """What a sweep will cost: runs, hours, memory and disk; starts nothing, downloads nothing."""
    parser = Parser("loraexp plan", description=plan.__doc__)
    parser.add_argument(
        "--budget-gb",
        type=float,
        metavar="X",
        help="memory of your device in GB: says which cells do not fit",
    )
    options, overrides = named(parser, arguments)
    budget = options.budget_gb
    if budget is not None and not budget > 0:
        raise ConfigError(f"--budget-gb {budget}: expected a number above 0")
    wanted = reading.load(
        options.name, options.variant, [word for word in overrides if not of_hydra(word)]
    )
    from loraexp.cli import budget as printed

    print(f"{wanted.key}: {wanted.heading}")
    if wanted.compute is not None:
        printed.plan_of_computed(wanted)
        return 0
    from loraexp.results.gather import gather as of_records
    from loraexp.sweep.cells import expand
    from loraexp.sweep.plan import gather

    if wanted.extend or wanted.select.judges:
        wanted = of_records(wanted).sweep  # the grid as it has widened, the points that were chosen
    printed.plan(wanted, gather(wanted, expand(wanted.whole())), budget)
    return 0


def table(arguments: Sequence[str]) -> int:
    """A sweep's table from the records of its runs, the published value beside ours."""
    from loraexp.artifacts import formats
    from loraexp.artifacts import table as tables
    from loraexp.results import gather

    parser = Parser("loraexp table", description=table.__doc__)
    names = list(formats.FORMATS)
    parser.add_argument(
        "--format", metavar="FORMAT", help=f"{' | '.join(names)} (default md, or what FILE ends in)"
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="wandb:…",
        help="wandb:ENTITY/PROJECT, or wandb:DIR with the folders of offline runs",
    )
    parser.add_argument("--to", type=Path, metavar="FILE", help="a file instead of standard output")
    parser.add_argument(
        "--brief", action="store_true", help="the table alone, without what stands under it"
    )
    options, overrides = named(parser, arguments)
    wanted = options.format or (options.to.suffix.lstrip(".") if options.to is not None else "md")
    if wanted not in names:
        raise ConfigError(f"--format {wanted}: {expected(wanted, names)}")
    loaded = reading.load(options.name, options.variant, overrides)
    if options.source is None:
        require_root(overrides)
    built = tables.build(gather.gather(loaded, options.source))
    text = printable(formats.FORMATS[wanted](built, options.brief))
    if options.to is None:
        print(text, end="")
    else:
        options.to.parent.mkdir(parents=True, exist_ok=True)
        options.to.write_text(text)
        print(shorten(options.to))
    if wanted == "csv":  # which has no room for them
        for problem in built.results.problems:
            print(f"loraexp: {problem}", file=sys.stderr)
    return 0


def plot(arguments: Sequence[str]) -> int:
    """Draw a sweep's figures, from the records of its runs or from what it computed.

    Each is written as `<output_root>/figures/<sweep>-<plot>.<format>`, with whatever has been
    measured; what is missing is named in the figure. Exit status 1 where a figure has no data at
    all.
    """
    parser = Parser("loraexp plot", description=plot.__doc__)
    parser.add_argument(
        "--to", type=Path, metavar="DIR", help="a folder (default: figures under output_root)"
    )
    parser.add_argument(
        "--format",
        default=",".join(FIGURES),
        help="png, svg, pdf, separated by commas (default: all three)",
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="wandb:…",
        help="wandb:ENTITY/PROJECT, or wandb:DIR of offline runs (default: the records on disk)",
    )
    options, overrides = named(parser, arguments)
    formats = one_of("--format", options.format, FIGURES)
    wanted = reading.load(options.name, options.variant, overrides)
    if not wanted.plots:
        raise ConfigError(
            f"{wanted.name}: this sweep declares no plots; loraexp table {wanted.name} prints its"
            " table"
        )
    if options.source is None:
        require_root(overrides)
    from loraexp.artifacts import drawing, plots
    from loraexp.results import gather

    results = gather.gather(wanted, options.source)
    for problem in results.problems:
        print(f"loraexp: {problem}", file=sys.stderr)
    into = options.to or wanted.output_root / "figures"
    empty = 0
    for each in wanted.plots:
        picture = plots.make(results, each)
        if picture.empty:
            command = f"loraexp sweep {wanted.words} makes it"
            print(f"loraexp: {wanted.key}-{each.name}: no data; {command}", file=sys.stderr)
            empty += 1
            continue
        for path in drawing.save(picture, into / f"{wanted.key}-{each.name}", formats):
            print(shorten(path))
    return 1 if empty else 0


def report(arguments: Sequence[str]) -> int:
    """Write DIR/index.html, which needs no other file and no network.

    Every sweep and variant that has a run on disk is there with its table, its figures and its
    runs; of the others, how many runs they have and the command that starts them. A sweep that
    cannot be read is named, and hides nothing else.
    """
    parser = Parser("loraexp report", description=report.__doc__)
    parser.add_argument(
        "words", nargs="*", default=[], metavar="NAME", help="sweeps (default: all)"
    )
    parser.add_overrides("as given to loraexp sweep, such as output_root=DIR")
    parser.add_argument(
        "--to",
        type=Path,
        required=True,
        metavar="DIR",
        help="a folder; it is made if it is not there",
    )
    options = parser.parse_intermixed_args(arguments)
    words = [*options.words, *options.overrides]  # argparse has them all in the first
    overrides = [word for word in words if "=" in word]
    names = [word for word in words if "=" not in word]
    if strange := [word for word in names if word.endswith((".yaml", ".yml"))]:
        boundary.enclose(Path(strange[0]), overrides)
    config.compose(overrides)
    for name in names:
        reading.place(name)  # one that was typed is there
    from loraexp.artifacts import html, page
    from loraexp.machine import files

    root = require_root(overrides) or Path("outputs").absolute()
    options.to.mkdir(parents=True, exist_ok=True)
    path = options.to / "index.html"
    parts = [part for name in names or reading.names() for part in page.parts_of(name, overrides)]
    runs = page.all_runs(root, options.to.absolute())
    files.replace(path, html.page(parts, overrides, runs, shorten(root)).encode())
    with_data = sum(part.table is not None for part in parts)
    print(f"{path}: {with_data} of {len(parts)} sweeps and variants have data")
    return 0
