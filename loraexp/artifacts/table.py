"""`loraexp table`: a sweep's results as the paper's table, the published number beside ours, and
what a reader must know under it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loraexp.artifacts.claims import Judged, claimed, judge
from loraexp.artifacts.parts import Entry, Section, signed
from loraexp.results import grid, provenance, significance
from loraexp.results.assumptions import assumptions
from loraexp.results.gather import Results
from loraexp.results.places import Place
from loraexp.results.units import printed, symbol
from loraexp.sweep.schema import Sweep

FORMATS = ("md", "tex", "csv", "json")
PLACE = tuple[str, str]
MANY = 20  # numbers of one value that nobody reads one by one
ASSUMED = "Settings that the paper does not state"


@dataclass(kw_only=True)
class Table:
    """What every format prints."""

    results: Results
    entries: dict[PLACE, Entry]
    legend: str
    sections: list[Section]
    claims: list[Judged]

    @property
    def sweep(self) -> Sweep:
        return self.results.sweep

    def header(self, column: str) -> str:
        """A column's label, with its unit where the columns have several."""
        several = len({self.sweep.report_of(name).unit for name in self.sweep.columns}) > 1
        shown = symbol(self.sweep.report_of(column))
        return self.sweep.columns[column].label + (f" ({shown})" if several and shown else "")


# --------------------------------------------------------------------------------------------------
# the numbers


def build(found: Results) -> Table:
    """Everything that `loraexp table` prints of a sweep's results."""
    entries = {key: entry(found, place) for key, place in found.places.items()}
    for column in found.sweep.columns:
        for group in dict.fromkeys(row.group for row in found.sweep.rows.values()):
            compare(
                found,
                entries,
                column,
                [name for name, row in found.sweep.rows.items() if row.group == group],
            )
    claims = [judge(found, claim) for claim in found.sweep.claims]
    table = Table(
        results=found,
        entries=entries,
        legend=legend(found.sweep, entries),
        sections=[],
        claims=claims,
    )
    table.sections = [section for section in sections(table) if section.lines or section.rows]
    return table


def entry(found: Results, place: Place) -> Entry:
    report = found.sweep.report_of(place.column)
    published = found.sweep.published.get(place.row, {}).get(place.column)
    given = published if isinstance(published, list) else [published, None]
    return Entry(
        report=report,
        mean=None if place.mean is None else printed(place.mean, report),
        std=None if place.std is None else printed(place.std, report),
        n=len(place.values) if place.seeded else 0,
        published=given[0],
        published_std=given[1] if len(given) > 1 else None,
        chosen=grid.chosen(place) if place.mean is not None else "",
        reason=place.reason,
    )


def compare(found: Results, entries: dict[PLACE, Entry], column: str, rows: list[str]) -> None:
    """Mark the best of some rows in a column, and compare the others with it over common seeds."""
    report = found.sweep.report_of(column)
    means = {row: mean for row in rows if (mean := entries[row, column].mean) is not None}
    if report.goal == "none" or len(means) < 2:
        return
    best = (max if report.goal == "max" else min)(means, key=lambda row: means[row])
    for row in means:
        one = entries[row, column]
        one.best = one.text(means[row]) == one.text(means[best])
        if row != best and one.n:
            ours, theirs = (found.places[name, column].values for name in (row, best))
            one.compared = significance.paired(
                {seed: printed(value, report) for seed, value in ours.items()},
                {seed: printed(value, report) for seed, value in theirs.items()},
            )


# --------------------------------------------------------------------------------------------------
# under the table


def legend(sweep: Sweep, entries: dict[PLACE, Entry]) -> str:
    """How to read the cells; only what occurs in them."""
    every = list(entries.values())
    units = {symbol(one.report) for one in every}
    shown = units.pop() if len({one.report.unit for one in every}) == 1 else ""
    groups = len({row.group for row in sweep.rows.values()}) > 1
    said = []
    if any(one.n for one in every):
        spread = any(one.std is not None and one.report.spread == "std" for one in every)
        said.append(f"mean{' ± standard deviation' if spread else ''} over seeds (number of seeds)")
    said += [f"in {shown}"] if shown and any(one.mean is not None for one in every) else []
    if any(one.best for one in every):
        said.append(f"bold: the best of the column{' in its group' if groups else ''}")
    if any(one.noise for one in every):
        said.append(
            "†: within noise of the best (the 95 % t interval of the paired difference over common"
            " seeds includes 0)"
        )
    if any(one.published is not None for one in every):
        said.append("second line: the published number, and ours minus it")
    if any(one.mean is None for one in every):
        said.append("—: no number, the reason is below")
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def sections(table: Table) -> list[Section]:
    found, sweep = table.results, table.sweep
    reasons = {key: one.reason for key, one in table.entries.items() if one.reason is not None}
    notes = [f"{row.label}: {row.note}" for row in sweep.rows.values() if row.note]
    notes += [f"{column.label}: {column.note}" for column in sweep.columns.values() if column.note]
    gaps = [
        f"{what}: {places_of(sweep, reasons, what)}" for what in dict.fromkeys(reasons.values())
    ]
    return [
        computed_values(found),
        Section(title="No number", lines=gaps),
        choices(table),
        against_best(table),
        claimed(table.claims),
        Section(title="Protocol", lines=provenance.protocol(found)),
        Section(
            title="Deviations from the paper, found in the configuration",
            lines=provenance.deviations(found),
        ),
        Section(title="Deviations from the paper, declared", lines=list(sweep.deviations)),
        Section(
            title=ASSUMED,
            lines=[
                f"{group}: {line}" for group, lines in assumptions(found).items() for line in lines
            ],
        ),
        Section(title="Notes", lines=notes),
        Section(title="Problems", lines=found.problems),
        Section(title="Runs", lines=[*provenance.environments(found), f"source: {source(found)}"]),
    ]


def places_of(sweep: Sweep, reasons: dict[PLACE, str], what: str) -> str:
    every = [(row, column) for row in sweep.rows for column in sweep.columns]
    return provenance.in_words(
        sweep, [key for key, reason in reasons.items() if reason == what], every
    )


def source(found: Results) -> str:
    """Where the records were read, as the user would type it from here."""
    from loraexp.machine.words import shorten

    return found.source if found.source.startswith("wandb:") else shorten(Path(found.source))


def computed_values(found: Results) -> Section:
    """The values of a computed sweep that are no place of its table."""
    section = Section(title="Computed", header=["value", "result"])
    places = {f"{row}/{column}" for row, column in found.places}
    for name, value in found.computed.values.items() if found.computed is not None else ():
        if name not in places:
            section.rows.append([name, in_words(value if isinstance(value, list) else [value])])
    return section


def in_words(numbers: Sequence[float | None]) -> str:
    """Some numbers as they are, many by their range and median; csv and json have them all."""
    known = [one for one in numbers if one is not None]
    if len(numbers) <= MANY or not known:
        return ", ".join("—" if one is None else f"{one:.6g}" for one in numbers)
    least, middle, most = min(known), statistics.median(known), max(known)
    words = f"{len(known):,} numbers from {least:.6g} to {most:.6g}, median {middle:.6g}"
    absent = len(numbers) - len(known)
    return f"{words}; {absent:,} of none" if absent else words


def choices(table: Table) -> Section:
    """The grid values that validation chose, cell by cell, and how many every row has tried."""
    found, sweep = table.results, table.sweep
    counts, warnings = grid.tried(found)
    keys = list(dict.fromkeys(key for place in found.places.values() for key in place.tried))
    if not any(one.chosen for one in table.entries.values()):
        return Section(title="Values tried", lines=warnings)
    columns = [name for name in sweep.columns if sweep.columns[name].mean_of is None]
    rows = [
        [
            sweep.label_of(row),
            *(table.entries[row, c].chosen or "—" for c in columns),
            counts[row] or "—",
        ]
        for row in sweep.rows
    ]
    several = any(provenance.keys_of(place) for place in found.places.values())
    how = f"chosen by {sweep.select.by}" if several else "as given, there is no choice"
    return Section(
        title=f"{', '.join(keys)} {how}",
        header=["", *(sweep.columns[c].label for c in columns), "tried"],
        rows=rows,
        lines=warnings,
    )


def against_best(table: Table) -> Section:
    """Every row's paired difference to the best one of the column, with both intervals."""
    sweep = table.sweep
    compared = {key: one for key, one in table.entries.items() if one.compared is not None}
    columns = [name for name in sweep.columns if any(key[1] == name for key in compared)]
    section = Section(
        title=(
            "Difference to the best row over common seeds: mean, 95 % t interval, 95 % bootstrap"
            " interval"
        )
    )
    if not compared:
        return section
    section.header = ["", *(table.header(column) for column in columns)]
    for row in sweep.rows:
        section.rows.append(
            [sweep.label_of(row), *(difference(table.entries[row, column]) for column in columns)]
        )
    few = {
        key: f"{one.compared.n} common"
        for key, one in compared.items()
        if one.compared is not None and one.compared.n < 3
    }
    for what in dict.fromkeys(few.values()):
        where = provenance.in_words(sweep, [key for key in few if few[key] == what], compared)
        section.lines.append(
            f"fewer than 3 common seeds ({what}): {where}; such intervals say little, and one seed"
            " gives none"
        )
    return section


def difference(one: Entry) -> str:
    if one.compared is None:
        return "best" if one.best else "—"
    digits = one.report.digits
    if one.compared.t is None or one.compared.bootstrap is None:
        return f"{signed(one.compared.difference, digits)} (1 seed)"
    t, bootstrap = (
        f"[{signed(low, digits)}, {signed(high, digits)}]"
        for low, high in (one.compared.t, one.compared.bootstrap)
    )
    return f"{signed(one.compared.difference, digits)} {t} {bootstrap}{' †' if one.noise else ''}"
