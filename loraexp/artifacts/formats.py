"""A table in Markdown, LaTeX, CSV and JSON; what is in it is decided in table.py."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

from loraexp.artifacts.table import Entry, Section, Table, source
from loraexp.machine.files import finite
from loraexp.results.assumptions import assumptions
from loraexp.results.provenance import deviations, environments, protocol


def shown(one: Entry) -> str:
    """What stands behind the number: how many seeds, and the mark of noise."""
    return (f" ({one.n})" if one.n else "") + (" †" if one.noise else "")


def words(rows: list[list[str]]) -> list[bool]:
    """Which columns hold words, and not numbers: those stand to the left."""
    numeric = ("", "best", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "+", "−", "—")
    return [i == 0 or any(row[i] not in numeric and row[i][:1] not in numeric for row in rows) for i in range(len(rows[0]))]


# ---------------------------------------------------------------------------------------------------- Markdown


def markdown(table: Table) -> str:
    sweep = table.sweep
    parts = [f"### {sweep.title}", sweep.place]
    if table.entries:
        header = ["", *(escaped(table.header(column)) for column in sweep.columns)]
        parts.append(pipes(header, body(table), [True, *(False for _ in sweep.columns)]))
    parts.append(table.legend)
    for section in table.sections:
        parts.append(f"**{escaped(section.title)}**")
        if section.rows:
            rows = [[escaped(word) for word in row] for row in section.rows]
            parts.append(pipes([escaped(word) for word in section.header], rows, words(section.rows)))
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
        lines.append([escaped(row.label), *(cell(table.entries[name, column]) for column in sweep.columns)])
    return lines


def cell(one: Entry) -> str:
    first = (f"**{one.value}**" if one.best else one.value) + shown(one)
    return f"{first}<br>{escaped(one.given)}" if one.given else first


def pipes(header: list[str], rows: list[list[str]], left: list[bool]) -> str:
    lines = [header, ["---" if words else "---:" for words in left], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """Text as Markdown shows it: no pipe ends a cell, no star begins bold, no bracket a tag."""
    return text.replace("\n", " ").replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


# ---------------------------------------------------------------------------------------------------- LaTeX

LATEX = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after a line's end a bracket would be its argument
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "†": r"$^{\dagger}$",
    "—": "---",
    "·": r"$\cdot$",
    "→": r"$\to$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "…": r"\ldots{}",
    "²": r"$^2$",
    "η": r"$\eta$",
    "γ": r"$\gamma$",
}


def latex(table: Table) -> str:
    """A `table` environment for `\\usepackage{booktabs}`; the parts under it as paragraphs, so that they may go over pages."""
    sweep = table.sweep
    about = f"{sweep.title} ({sweep.place}). {table.legend}"
    lines = ["% needs \\usepackage{booktabs} and, before LaTeX of 2018, \\usepackage[utf8]{inputenc}", r"\begin{table}", r"\centering"]
    lines.append(f"\\caption{{{tex(about)}}}")
    if table.entries:
        lines += tabular(["", *(table.header(column) for column in sweep.columns)], tex_body(table), "l" + "r" * len(sweep.columns))
    lines += [r"\end{table}", "", r"{\footnotesize\raggedright"]
    for section in table.sections:
        lines += tex_section(section)
    return "\n".join([*lines, "}"]) + "\n"


def tex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


def tabular(header: list[str], rows: list[str], columns: str) -> list[str]:
    first = " & ".join(tex(word) for word in header)
    return [f"\\begin{{tabular}}{{{columns}}}", r"\toprule", f"{first} \\\\", r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]


def tex_body(table: Table) -> list[str]:
    """Two lines a row where the paper has numbers: ours, and the published one in small type."""
    sweep, group = table.sweep, None
    lines: list[str] = []
    columns = list(sweep.columns)
    for name, row in sweep.rows.items():
        if row.group != group:
            group = row.group
            lines += [r"\midrule"] * bool(lines) + [f"\\multicolumn{{{len(columns) + 1}}}{{l}}{{\\emph{{{tex(group or '')}}}}} \\\\"]
        entries = [table.entries[name, column] for column in columns]
        ours = [(f"\\textbf{{{tex(one.value)}}}" if one.best else tex(one.value)) + tex(shown(one)) for one in entries]
        lines.append(" & ".join([tex(row.label), *ours]) + r" \\")
        if any(one.given for one in entries):
            lines.append(" & ".join(["", *(f"{{\\small {tex(one.given)}}}" for one in entries)]) + r" \\")
    return lines


def tex_section(section: Section) -> list[str]:
    lines = [f"\\par\\medskip\\textbf{{{tex(section.title)}.}}\\par"]
    if section.rows:
        rows = [" & ".join(tex(word) for word in row) + r" \\" for row in section.rows]
        long = [max(len(row[i]) for row in section.rows) > 40 for i in range(len(section.header))]
        kinds = [
            r"p{0.45\linewidth}" if wide and left else "l" if left else "r" for wide, left in zip(long, words(section.rows), strict=True)
        ]
        lines += [*tabular(section.header, rows, "".join(kinds)), r"\par"]
    return lines + [f"{tex(line)}\\par" for line in section.lines]


# ---------------------------------------------------------------------------------------------------- CSV and JSON


def record_of(table: Table, row: str, column: str) -> dict[str, Any]:
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


def comma_separated(table: Table) -> str:
    """One line for each place; of a computed sweep without places, one for each value."""
    lines = [record_of(table, row, column) for row, column in table.entries]
    if not lines and table.results.computed is not None:
        lines = [{"name": name, "value": value} for name, value in table.results.computed.values.items()]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]) if lines else ["name", "value"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def as_json(table: Table) -> str:
    found, sweep = table.results, table.sweep
    places = []
    for row, column in table.entries:
        place = found.places[row, column]
        runs = [run.record["run_id"] for run in place.runs if run.record is not None]
        values = {str(seed): value for seed, value in place.values.items()}
        more = {"path": place.path, "values_by_seed": values, "chosen": place.chosen, "tried": place.tried, "runs": runs}
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
    return json.dumps(finite(content), indent=2, default=str, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {"md": markdown, "tex": latex, "csv": comma_separated, "json": as_json}
