"""The HTML of `loraexp report`: tables, figures, runs and the state of every sweep; every text is escaped."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loraexp.artifacts.figure import Picture, plain, point_label, runs_of
from loraexp.artifacts.page import STATUSES, Part
from loraexp.artifacts.table import Section, Table
from loraexp.machine.escapes import printable
from loraexp.records.reading import Run
from loraexp.results import units
from loraexp.results.gather import Place


def text(value: Any) -> str:
    return html.escape(printable(str(value)), quote=True)


def tag(name: str, *inside: str, **attributes: Any) -> str:
    """An element; `data_x` is written data-x, a trailing underscore is dropped, None leaves an attribute out."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items() if value is not None)
    return f"<{name}{written}>{''.join(inside)}</{name}>"


def identifier(*words: str) -> str:
    """Words as an id that a link can name."""
    return "-".join(re.sub(r"[^A-Za-z0-9_.]", lambda found: f"_{ord(found[0]):x}", word) for word in words)


def page(parts: Sequence[Part], overrides: Sequence[str]) -> str:
    """The whole document: the template with its four places filled."""
    from loraexp.records import record

    shown = [part for part in parts if part.table is not None]
    fill = {
        "MADE": text(record.now()[:16].replace("T", " ") + " UTC"),
        "SUMMARY": summary(parts, shown),
        "FILTERS": filters(parts, shown),
        "CONTENT": contents(shown) + "\n".join(section(part) for part in shown)
        or tag("p", "No run is there yet: the commands below make them.", class_="none"),
        "STATE": state(parts, overrides),
    }
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    return re.sub(r"<!--([A-Z]+)-->", lambda found: fill[found[1]], template)


def summary(parts: Sequence[Part], shown: Sequence[Part]) -> str:
    artifacts = {part.name for part in parts}
    with_data = {part.name for part in shown}
    runs = {status: sum(part.counts[status] for part in shown) for status in ("finished", "failed", "running")}
    told = ", ".join(f"{count} {status}" for status, count in runs.items() if count)
    return text(f"{len(with_data)} of {len(artifacts)} artifacts have data" + (f" · runs: {told}" if told else ""))


def contents(shown: Sequence[Part]) -> str:
    """Links to everything that has data."""
    links = [tag("li", tag("a", text(part.key), href=f"#{identifier(part.key)}", class_="runs")) for part in shown]
    if not links:
        return tag("p", "No run is there yet: the commands below make them.", class_="none")
    return tag("nav", tag("ul", *links), aria_label="tables and figures with data")


def filters(parts: Sequence[Part], shown: Sequence[Part]) -> str:
    """The choices of the three lists."""
    papers = sorted({part.sweep.paper for part in parts if part.sweep is not None})
    tasks = sorted({task for part in parts for task in part.tasks})
    methods = sorted({row.label for part in shown if part.sweep is not None for row in part.sweep.rows.values()}, key=str.casefold)
    made = []
    for name, choices in (("paper", papers), ("task", tasks), ("method", methods)):
        options = tag("option", "all", value="") + "".join(tag("option", text(choice), value=choice) for choice in choices)
        made.append(tag("label", name.capitalize(), " ", tag("select", options, id=f"filter-{name}", data_filter=name)))
    return "".join(made)


# ---------------------------------------------------------------------------------------------------- a sweep


def section(part: Part) -> str:
    """A sweep that has data: title, figures, table, what a reader must know, and its runs."""
    assert part.sweep is not None and part.table is not None
    wanted = part.sweep
    variant = tag("span", text(f"variant {wanted.variant}"), class_="variant") if wanted.variant else ""
    title = tag("h2", text(wanted.title), " ", variant, id=f"title-{identifier(wanted.key)}")
    about = tag("p", text(wanted.place), " · ", counted(part), " · ", tag("code", text(part.command)), class_="about")
    body = [results_table(part.table)] if part.table.entries else []
    body += [tag("p", text(part.table.legend), class_="legend")] if part.table.legend else []
    body += [figure(picture, svg, identifier(wanted.key, picture.name)) for picture, svg in part.figures]
    body += [under(one) for one in part.table.sections]
    body.append(runs(part))
    where = {"data_paper": wanted.paper, "data_tasks": " ".join(part.tasks), "id": identifier(wanted.key)}
    return tag("section", title, about, *body, class_="artifact", aria_labelledby=f"title-{identifier(wanted.key)}", **where)


def counted(part: Part) -> str:
    return text(", ".join(f"{part.counts[status]} {status}" for status in STATUSES if part.counts[status]) or "no runs")


def results_table(table: Table) -> str:
    """The paper's table; each number is a link to its runs, each heading sorts."""
    wanted = table.sweep
    heads = [tag("th", sorter("Method"), scope="col")]
    heads += [
        tag("th", sorter(table.header(name)), scope="col", data_task=task_of(table, name), class_="number") for name in wanted.columns
    ]
    groups: dict[str | None, list[str]] = {}
    for row, own in wanted.rows.items():
        cells = [tag("th", text(own.label), scope="row")]
        cells += [cell(table, row, column) for column in wanted.columns]
        groups.setdefault(own.group, []).append(tag("tr", *cells, data_method=own.label))
    bodies = []
    for group, lines in groups.items():
        across = len(wanted.columns) + 1
        heading = [tag("tr", tag("th", text(group), scope="rowgroup", colspan=across), class_="group")] if group else []
        bodies.append(tag("tbody", *heading, *lines))
    caption = tag("caption", text(f"{wanted.paper} {wanted.artifact}: measured, and under it the published value"), class_="hidden")
    return scrolled(tag("table", caption, tag("thead", tag("tr", *heads)), *bodies, class_="results sortable", data_key=wanted.key))


def scrolled(table: str) -> str:
    """A wide table scrolls in its own box, with the keyboard too."""
    return tag("div", table, class_="wide", tabindex="0", role="region", aria_label="table")


def sorter(label: str) -> str:
    return tag("button", text(label), type="button", class_="sort")


def task_of(table: Table, column: str) -> str | None:
    """The tasks behind a column; of a mean, those of its columns."""
    found = table.results
    columns = table.sweep.columns[column].mean_of or [column]
    tasks = {run.cell.plain["task"]["name"] for row in table.sweep.rows for name in columns for run in found.places[row, name].runs}
    return " ".join(sorted(tasks)) or None


def cell(table: Table, row: str, column: str) -> str:
    """One place: the number leads to its runs; of a gap, why it is one."""
    entry, place = table.entries[row, column], table.results.places[row, column]
    key = identifier("runs", table.sweep.key, row, column)
    value = tag("b", text(entry.value)) if entry.best else text(entry.value)
    shown = tag("a", value, href=f"#{key}", class_="runs") if place.runs else value
    marks = (f" ({entry.n})" if entry.n else "") + (" †" if entry.noise else "")
    second = entry.given or textwrap.shorten(entry.reason or "", 60, placeholder=" …")  # the whole reason is under the table
    more = tag("small", text(second)) if second else ""
    order = None if entry.mean is None else repr(entry.mean)
    return tag(
        "td", shown, tag("span", text(marks), class_="count"), more, data_value=order, class_="number", data_task=task_of(table, column)
    )


def under(one: Section) -> str:
    """A part under the table, folded but for the claims and the problems."""
    body = ""
    if one.rows:
        head = tag("thead", tag("tr", *(tag("th", text(word), scope="col") for word in one.header)))
        body += scrolled(tag("table", head, tag("tbody", *(tag("tr", *(tag("td", text(word)) for word in row)) for row in one.rows))))
    if one.lines:
        body += tag("ul", *(tag("li", text(line)) for line in one.lines))
    opened = "" if one.title in ("Claims of the paper", "Problems") else None
    return tag("details", tag("summary", text(one.title)), body, open=opened)


def figure(picture: Picture, svg: str, key: str) -> str:
    """A picture as part of the page: its ids are its own, and a screen reader is told what it shows."""
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{key}-", svg)
    svg = re.sub(r'(?<= d=")[^"]*', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)
    said = "; ".join([picture.title, *(panel.title for panel in picture.panels if panel.title), *picture.notes])
    svg = re.sub(r"<svg ", f'<svg role="img" aria-label="{text(said)}" ', svg, count=1)
    return tag("figure", svg)


# ---------------------------------------------------------------------------------------------------- runs


def runs(part: Part) -> str:
    """Every place with runs, folded: run id, folder, grid point, value and status of each."""
    assert part.table is not None
    table = part.table
    places = [place for place in table.results.places.values() if place.runs]
    if not places:
        folders = [tag("li", text(run), ": ", text(record.get("status"))) for run, record in table.results.records.items()]
        return tag("details", tag("summary", "Result on disk"), tag("ul", *folders)) if folders else ""
    inside = [of_place(table, place) for place in places]
    return tag("details", tag("summary", "Runs of each cell: ", counted(part)), *inside, class_="all-runs")


def of_place(table: Table, place: Place) -> str:
    wanted = table.sweep
    keys = list(dict.fromkeys(key for run in place.runs for key in run.cell.point))
    chosen = {run.cell.run_id for run in runs_of(place)} if place.mean is not None else set()
    unit = units.symbol(wanted.report_of(place.column))
    heads = ["Run", *keys, f"Value ({unit})" if unit else "Value", "Status", "Folder"]
    numbers = [*keys, heads[len(keys) + 1]]
    head = tag("thead", tag("tr", *(tag("th", sorter(word), scope="col", class_="number" if word in numbers else None) for word in heads)))
    lines = [line(table, place, run, keys, chosen=run.cell.run_id in chosen) for run in place.runs]
    done = f"{place.finished} of {len(place.runs)} runs finished"
    title = tag("summary", text(f"{wanted.rows[place.row].label} · {wanted.columns[place.column].label}: {done}"))
    body = scrolled(tag("table", head, tag("tbody", *lines), class_="sortable"))
    how = f"bold: the reported point, chosen by {wanted.select.by} ({point_label(place.chosen)})" if place.chosen and chosen else ""
    note = tag("p", text(how), class_="legend") if how else ""
    row = {"data_method": wanted.rows[place.row].label, "data_task": task_of(table, place.column)}
    return tag("details", title, body, note, id=identifier("runs", wanted.key, place.row, place.column), class_="place", **row)


def line(table: Table, place: Place, run: Run, keys: Sequence[str], *, chosen: bool) -> str:
    """One run."""
    report = table.sweep.report_of(place.column)
    value = place.read(run)
    shown = "—" if value is None else units.text(value, report)
    point = [run.cell.point.get(key, "") for key in keys]
    cells = [tag("td", tag("code", text(run.cell.run_id)))]
    for one in point:
        number = isinstance(one, (int, float)) and not isinstance(one, bool)
        cells.append(tag("td", text(plain(one) if number else one), data_value=repr(one) if number else None, class_="number"))
    best = tag("b", text(shown)) if chosen and value is not None else text(shown)
    cells.append(tag("td", best, data_value=None if value is None else repr(value), class_="number"))
    cells.append(tag("td", text(run.reason), class_=f"status {run.status}"))
    cells.append(tag("td", tag("code", text(Path(*run.folder.parts[-2:]))) if run.folder is not None else text(run.where or "")))
    return tag("tr", *cells)


# ---------------------------------------------------------------------------------------------------- the state of all


def state(parts: Sequence[Part], overrides: Sequence[str]) -> str:
    """One line for each sweep and variant: how much of it is done, what it costs, and the command that runs it."""
    heads = ["Artifact", "Title", "Variant", "Done", "Failed", "Running", "Missing", "Stated hours", "Command"]
    lines = [state_line(part, overrides) for part in parts]
    numbers = {"Done", "Failed", "Running", "Missing", "Stated hours"}
    head = tag("tr", *(tag("th", sorter(word), scope="col", class_="number" if word in numbers else None) for word in heads))
    table = tag("table", tag("thead", head), tag("tbody", *lines), class_="state sortable", data_key="state")
    return scrolled(table)


def state_line(part: Part, overrides: Sequence[str]) -> str:
    wanted, counts = part.sweep, part.counts
    command = " ".join([part.command, *overrides])
    title = text(wanted.title) if wanted is not None and part.problem is None else tag("span", text(part.problem), class_="status failed")
    name = tag("a", text(part.name), href=f"#{identifier(part.key)}", class_="runs") if part.table is not None else text(part.name)
    cells = [tag("th", name, scope="row"), tag("td", title), tag("td", text(part.variant or ""))]
    for count in (counts["finished"], counts["failed"] + counts["unreadable"], counts["running"], counts["missing"]):
        cells.append(tag("td", text(count or "—"), data_value=count, class_="number"))
    hours = wanted.hours if wanted is not None else None
    told = tag("span", text(f"{hours.hours:g}"), tag("small", text(hours.hardware))) if hours is not None else "—"
    cells.append(tag("td", told, data_value=None if hours is None else hours.hours, class_="number"))
    cells.append(tag("td", tag("code", text(command))))
    paper = wanted.paper if wanted is not None else ""
    methods = "\n".join(row.label for row in wanted.rows.values()) if wanted is not None else ""
    where = {"data_paper": paper, "data_tasks": " ".join(part.tasks), "data_methods": methods}
    return tag("tr", *cells, class_="has-data" if part.table is not None else None, **where)
