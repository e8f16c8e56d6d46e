"""What the report page's template is filled with: tables, figures, runs and the state of every
sweep; the template escapes."""

from __future__ import annotations

import datetime
import html
import re
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from loraexp.artifacts.figure import Picture, plain, point_label, runs_of
from loraexp.artifacts.page import STATUSES, Part
from loraexp.artifacts.table import Table
from loraexp.machine.escapes import printable
from loraexp.results import units
from loraexp.results.matching import Run
from loraexp.results.places import Place

OPENED = ("Claims of the paper", "Problems")  # parts under a table that are not folded
Values = dict[str, Any]


def page(
    parts: Sequence[Part],
    overrides: Sequence[str],
    runs: Sequence[Mapping[str, object]] = (),
    root: str = "",
) -> str:
    """The whole document: every sweep with data, all runs, and the state of the rest."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        keep_trailing_newline=True,
    )
    with_data = [part for part in parts if part.table is not None]
    return environment.get_template("page.html").render(
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        summary=summary(parts, with_data),
        filters=filters(parts, with_data),
        parts=[of_part(part) for part in with_data],
        states=states(parts, overrides),
        opened=OPENED,
        runs=list(runs),
        root=root,
    )


def shown(value: object) -> object:
    """A value as text that cannot steer what shows it; markup stays what it is."""
    return value if isinstance(value, Markup) else printable(str(value))


def identifier(*words: str) -> str:
    """Words as an id that a link can name."""
    return "-".join(
        re.sub(r"[^A-Za-z0-9_.]", lambda found: f"_{ord(found[0]):x}", word) for word in words
    )


def summary(parts: Sequence[Part], with_data: Sequence[Part]) -> str:
    artifacts = {part.name for part in parts}
    there = {part.name for part in with_data}
    counts = {
        status: sum(part.counts[status] for part in with_data)
        for status in ("finished", "failed", "running")
    }
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return f"{len(there)} of {len(artifacts)} artifacts have data" + (
        f" · runs: {told}" if told else ""
    )


def filters(parts: Sequence[Part], with_data: Sequence[Part]) -> list[tuple[str, list[str]]]:
    """The choices of the three lists."""
    papers = sorted({part.sweep.paper for part in parts if part.sweep is not None})
    tasks = sorted({task for part in parts for task in part.tasks})
    labels = {
        row.label
        for part in with_data
        if part.sweep is not None
        for row in part.sweep.rows.values()
    }
    return [("paper", papers), ("task", tasks), ("method", sorted(labels, key=str.casefold))]


def counted(part: Part) -> str:
    return (
        ", ".join(f"{part.counts[status]} {status}" for status in STATUSES if part.counts[status])
        or "no runs"
    )


# --------------------------------------------------------------------------------------------------
# a sweep


def of_part(part: Part) -> Values:
    """A sweep that has data: title, table, figures, what a reader must know, and its runs."""
    assert part.sweep is not None and part.table is not None
    wanted, table = part.sweep, part.table
    groups: dict[str | None, list[tuple[str, list[Values]]]] = {}
    if table.entries:
        for row, own in wanted.rows.items():
            groups.setdefault(own.group, []).append(
                (own.label, [of_cell(table, row, column) for column in wanted.columns])
            )
    return {
        "id": identifier(wanted.key),
        "key": wanted.key,
        "title": wanted.heading,
        "variant": wanted.variant,
        "paper": wanted.paper,
        "tasks": " ".join(part.tasks),
        "place": wanted.place,
        "counted": counted(part),
        "command": part.command,
        "caption": f"{wanted.paper} {wanted.artifact}: measured, and under it the published value",
        "columns": [(table.header(name), task_of(table, name)) for name in wanted.columns],
        "groups": list(groups.items()),
        "legend": table.legend,
        "figures": [
            figure(picture, svg, identifier(wanted.key, picture.name))
            for picture, svg in part.figures
        ],
        "sections": table.sections,
        "places": [of_place(table, place) for place in table.results.places.values() if place.runs],
        "records": [(run, record.get("status")) for run, record in table.results.records.items()],
    }


def task_of(table: Table, column: str) -> str | None:
    """The tasks behind a column; of a mean, those of its columns."""
    found = table.results
    columns = table.sweep.columns[column].mean_of or [column]
    places = [found.places[row, name] for row in table.sweep.rows for name in columns]
    return (
        " ".join(sorted({run.cell.plain["task"]["name"] for place in places for run in place.runs}))
        or None
    )


def of_cell(table: Table, row: str, column: str) -> Values:
    """One place: the number leads to its runs; of a gap, why it is one."""
    entry, place = table.entries[row, column], table.results.places[row, column]
    # the whole reason is under the table
    reason = textwrap.shorten(entry.reason or "", 60, placeholder=" …")
    return {
        "value": entry.value,
        "best": entry.best,
        "link": identifier("runs", table.sweep.key, row, column) if place.runs else None,
        "marks": entry.marks,
        "second": entry.given or reason,
        "order": None if entry.mean is None else repr(entry.mean),
        "task": task_of(table, column),
    }


def figure(picture: Picture, svg: str, key: str) -> Markup:
    """A picture as part of the page: its ids are its own, and a screen reader is told what it
    shows."""
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{key}-", svg)
    svg = re.sub(r'(?<= d=")[^"]*', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)
    said = "; ".join(
        [picture.title, *(panel.title for panel in picture.panels if panel.title), *picture.notes]
    )
    label = html.escape(printable(said), quote=True)
    return Markup(re.sub("<svg ", lambda _: f'<svg role="img" aria-label="{label}" ', svg, count=1))  # noqa: S704


# --------------------------------------------------------------------------------------------------
# runs


def of_place(table: Table, place: Place) -> Values:
    """A place with its runs: id, grid point, value, status and folder of each."""
    wanted = table.sweep
    keys = list(dict.fromkeys(key for run in place.runs for key in run.cell.point))
    chosen = {run.cell.run_id for run in runs_of(place)} if place.mean is not None else set()
    unit = units.symbol(wanted.report_of(place.column))
    value = f"Value ({unit})" if unit else "Value"
    how = f"bold: the reported point, chosen by {wanted.select.by} ({point_label(place.chosen)})"
    done = f"{place.finished} of {len(place.runs)} runs finished"
    return {
        "id": identifier("runs", wanted.key, place.row, place.column),
        "method": wanted.rows[place.row].label,
        "task": task_of(table, place.column),
        "title": f"{wanted.rows[place.row].label} · {wanted.columns[place.column].label}: {done}",
        "heads": ["Run", *keys, value, "Status", "Folder"],
        "numbers": [*keys, value],
        "runs": [
            of_run(table, place, run, keys, chosen=run.cell.run_id in chosen) for run in place.runs
        ],
        "note": how if place.chosen and chosen else "",
    }


def of_run(table: Table, place: Place, run: Run, keys: Sequence[str], *, chosen: bool) -> Values:
    report, value = table.sweep.report_of(place.column), place.read(run)
    point = []
    for one in (run.cell.point.get(key, "") for key in keys):
        number = isinstance(one, (int, float)) and not isinstance(one, bool)
        point.append((plain(one), repr(one)) if number else (one, None))
    return {
        "id": run.cell.run_id,
        "point": point,
        "value": "—" if value is None else units.text(value, report),
        "order": None if value is None else repr(value),
        "chosen": chosen and value is not None,
        "status": run.status,
        "reason": run.reason,
        "folder": str(Path(*run.folder.parts[-2:])) if run.folder is not None else None,
        "where": run.where or "",
    }


# --------------------------------------------------------------------------------------------------
# the state of all


def states(parts: Sequence[Part], overrides: Sequence[str]) -> Values:
    """One line for each sweep and variant: how much of it is done, what it costs, and the command
    that runs it."""
    counts = ["Done", "Failed", "Running", "Missing", "Stated hours"]
    heads = ["Artifact", "Title", "Variant", *counts, "Command"]
    return {"heads": heads, "numbers": counts, "lines": [state(part, overrides) for part in parts]}


def state(part: Part, overrides: Sequence[str]) -> Values:
    wanted, counts = part.sweep, part.counts
    hours = wanted.hours if wanted is not None else None
    return {
        "name": part.name,
        "link": identifier(part.key) if part.table is not None else None,
        "title": wanted.heading if wanted is not None else "",
        "problem": part.problem,
        "variant": part.variant or "",
        "counts": [
            counts["finished"],
            counts["failed"] + counts["unreadable"],
            counts["running"],
            counts["missing"],
        ],
        "hours": None if hours is None else hours.hours,
        "hardware": "" if hours is None else hours.hardware,
        "command": f"{part.command} {shlex.join(overrides)}".strip(),
        "paper": wanted.paper if wanted is not None else "",
        "tasks": " ".join(part.tasks),
        "methods": (
            "\n".join(row.label for row in wanted.rows.values()) if wanted is not None else ""
        ),
    }
