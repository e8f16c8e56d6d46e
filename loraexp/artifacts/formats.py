"""A table in Markdown, CSV and JSON, and by name also in LaTeX; what is in it is decided in
table.py."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable

from loraexp.artifacts.latex import latex
from loraexp.artifacts.parts import Entry
from loraexp.artifacts.table import Table, source
from loraexp.machine.files import finite
from loraexp.results.assumptions import assumptions
from loraexp.results.provenance import deviations, environments, protocol

# --------------------------------------------------------------------------------------------------
# Markdown


def markdown(table: Table, brief: bool = False) -> str:
    sweep = table.sweep
    parts = [f"### {sweep.heading}", sweep.place]
    if table.entries:
        header = ["", *(escaped(table.header(column)) for column in sweep.columns)]
        parts.append(pipes(header, body(table), [True, *(False for _ in sweep.columns)]))
    parts.append(table.legend)
    for section in [] if brief else table.sections:
        parts.append(f"**{escaped(section.title)}**")
        if section.rows:
            rows = [[escaped(word) for word in row] for row in section.rows]
            parts.append(pipes([escaped(word) for word in section.header], rows, section.words()))
        if section.lines:
            parts.append("\n".join(f"- {escaped(line)}" for line in section.lines))
    return "\n\n".join(part for part in parts if part) + "\n"


def body(table: Table) -> list[list[str]]:
    """The rows, under the headings of their groups."""
    sweep, group = table.sweep, None
    lines: list[list[str]] = []
    for name, row in sweep.rows.items():
        if row.group != group:
            group = row.group
            lines.append([f"*{escaped(group)}*" if group else "", *("" for _ in sweep.columns)])
        lines.append(
            [escaped(row.label), *(cell(table.entries[name, column]) for column in sweep.columns)]
        )
    return lines


def cell(one: Entry) -> str:
    first = (f"**{one.value}**" if one.best else one.value) + one.marks
    return f"{first}<br>{escaped(one.given)}" if one.given else first


def pipes(header: list[str], rows: list[list[str]], left: list[bool]) -> str:
    lines = [header, ["---" if words else "---:" for words in left], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """Text as Markdown shows it: no pipe ends a cell, no star begins bold, no bracket a tag."""
    return text.replace("\n", " ").replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


# --------------------------------------------------------------------------------------------------
# CSV and JSON


def record_of(table: Table, row: str, column: str) -> dict[str, object]:
    """A place as plain values, in the table's unit."""
    sweep, one = table.sweep, table.entries[row, column]
    compared = one.compared
    t, bootstrap = (compared.t, compared.bootstrap) if compared is not None else (None, None)
    return {
        "row": row,
        "column": column,
        "group": sweep.rows[row].group,
        "row_label": sweep.rows[row].label,
        "column_label": sweep.columns[column].label,
        "unit": one.report.unit,
        "mean": one.mean,
        "std": one.std,
        "n": one.n,
        "best": one.best,
        "within_noise": one.noise,
        "published": one.published,
        "published_std": one.published_std,
        "difference": one.difference,
        "chosen": one.chosen or None,
        "to_best": compared.difference if compared is not None else None,
        "common_seeds": compared.n if compared is not None else None,
        "t_low": t[0] if t else None,
        "t_high": t[1] if t else None,
        "bootstrap_low": bootstrap[0] if bootstrap else None,
        "bootstrap_high": bootstrap[1] if bootstrap else None,
        "reason": one.reason,
    }


def places(table: Table) -> list[dict[str, object]]:
    """Every place as plain values; of a computed sweep without places, every value by its name."""
    lines = [record_of(table, row, column) for row, column in table.entries]
    if not lines and table.results.computed is not None:
        lines = [
            {"name": name, "value": value} for name, value in table.results.computed.values.items()
        ]
    return lines


def comma_separated(table: Table, brief: bool = False) -> str:
    """One line for each place."""
    lines = places(table)
    out = io.StringIO()
    writer = csv.DictWriter(
        out, list(lines[0]) if lines else ["name", "value"], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def as_json(table: Table, brief: bool = False) -> str:
    found, sweep = table.results, table.sweep
    places = []
    for row, column in table.entries:
        place = found.places[row, column]
        runs = [run.record["run_id"] for run in place.runs if run.record is not None]
        values = {str(seed): value for seed, value in place.values.items()}
        more = {
            "path": place.path,
            "values_by_seed": values,
            "chosen": place.chosen,
            "tried": place.tried,
            "runs": runs,
        }
        places.append(record_of(table, row, column) | more)
    content = {
        **{key: getattr(sweep, key) for key in ("name", "variant", "title", "paper", "artifact")},
        "cells": places,
        "computed": found.computed.values if found.computed is not None else None,
        "claims": table.claims,
        "protocol": protocol(found),
        "assumptions": assumptions(found),
        "deviations": {"found": deviations(found), "declared": sweep.deviations},
        "problems": found.problems,
        "runs": environments(found),
        "source": source(found),
    }
    if brief:
        content = {
            key: content[key]
            for key in ("name", "variant", "title", "paper", "artifact", "cells", "computed")
        }
    return json.dumps(finite(content), indent=2, default=str, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[Table, bool], str]] = {
    "md": markdown,
    "tex": latex,
    "csv": comma_separated,
    "json": as_json,
}
