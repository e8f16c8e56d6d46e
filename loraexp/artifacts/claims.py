"""The paper's sentences against what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

from loraexp.artifacts.parts import Section, signed
from loraexp.records.reading import number
from loraexp.results import provenance, significance
from loraexp.results.gather import Results, split
from loraexp.results.significance import Compared
from loraexp.results.units import printed
from loraexp.sweep.schema import Claim


class Judged(TypedDict):
    """A claim as it is printed, and stands in the JSON of a table."""

    text: str
    source: str | None
    measured: float | None
    verdict: str
    interval: tuple[float, float] | None  # of the difference of two cells
    visible: float | None  # the smallest difference that so many seeds would have kept apart from 0
    printed: float | None  # the paper's own difference
    above: float | None
    below: float | None


def judge(found: Results, claim: Claim) -> Judged:
    """A claim against what was measured: the value, the threshold and the verdict; where two cells
    differ, the interval too."""
    numbers = {
        name: found.named(name)
        for name in (claim.value, claim.minus, claim.over)
        if name is not None
    }
    value, minus, over = (
        numbers.get(name) if name else None for name in (claim.value, claim.minus, claim.over)
    )
    bound = claim.above if claim.above is not None else claim.below
    said = Judged(
        text=claim.text,
        source=claim.source,
        measured=None,
        verdict="not measured",
        interval=None,
        visible=None,
        printed=None,
        above=claim.above,
        below=claim.below,
    )
    if None in numbers.values() or value is None or over == 0 or bound is None:
        return said
    measured = (value - (minus or 0.0)) / (over if over is not None else 1.0)
    if (why := unjudged(found)) is not None:
        return {**said, "measured": measured, "verdict": f"not judged: {why}"}
    holds = measured > bound if claim.above is not None else measured < bound
    said["measured"], said["verdict"] = measured, "holds" if holds else "does not hold"
    compared = cells_apart(found, claim)
    if compared is not None and compared.t is not None:
        said["interval"], said["visible"] = compared.t, compared.visible
        said["printed"] = printed_difference(found, claim)
        if compared.includes(bound):
            said["verdict"] += ", within noise"
    return said


def unjudged(found: Results) -> str | None:
    """Why what was measured says nothing about the paper's claims, or None."""
    if found.sweep.variant == "smoke":
        return "a smoke variant shows that it runs"
    runs = provenance.unique(found)
    absent = [run for run in runs if run.status not in ("finished", "failed")]
    return f"{len(absent)} of {len(runs)} runs are not there" if absent else None


def cells_apart(found: Results, claim: Claim) -> Compared | None:
    """The paired comparison of two cells whose difference a claim is about."""
    places = [
        found.places.get(split(name)[:2])
        for name in (claim.value, claim.minus)
        if name and name.count("/") == 1
    ]
    if claim.over is not None or len(places) != 2 or any(place is None for place in places):
        return None
    values = [
        {seed: printed(v, found.sweep.report_of(place.column)) for seed, v in place.values.items()}
        for place in places
        if place is not None
    ]
    return significance.paired(*values)


def printed_difference(found: Results, claim: Claim) -> float | None:
    """The difference of the same two cells in the paper, in the table's unit, or None."""
    values = []
    for name in (claim.value, claim.minus):
        row, column, _ = split(name or "")
        published = found.sweep.published.get(row, {}).get(column)
        values.append(number(published[0] if isinstance(published, list) else published))
    first, second = values
    return None if first is None or second is None else first - second


def unseen(claim: Judged) -> str | None:
    """A sentence where the paper's own difference is nearer to the claim's threshold than what
    these runs would have seen."""
    visible, difference = claim["visible"], claim["printed"]
    bound = claim["above"] if claim["above"] is not None else claim["below"]
    if visible is None or difference is None or bound is None or abs(difference - bound) >= visible:
        return None
    return (
        f"too few or too noisy seeds to test that {claim['text']}: the paper's own difference is"
        f" {signed(difference, 2)}, {visible:.3g} would have been visible"
    )


def claimed(claims: Sequence[Judged]) -> Section:
    """The paper's sentences against what was measured, and which of them so many seeds cannot
    tell."""
    section = Section(
        title="Claims of the paper", header=["claim", "measured", "expected", "verdict"]
    )
    power = any(claim["visible"] is not None for claim in claims)
    if power:
        section.header.insert(3, "visible")
        section.lines.append(
            "visible: the smallest true difference that the 95 % interval of as many seeds would"
            " have kept apart from 0 eight times in ten"
        )
    for claim in claims:
        source = f" ({claim['source']})" if claim["source"] else ""
        row = [claim["text"] + source, measured(claim), expected(claim), claim["verdict"]]
        if power:
            row.insert(3, "—" if claim["visible"] is None else f"{claim['visible']:.3g}")
        section.rows.append(row)
    section.lines += [said for claim in claims if (said := unseen(claim)) is not None]
    return section


def measured(claim: Judged) -> str:
    """The number in four digits; with the interval of a difference of two cells, all in as many
    decimals as give the largest of them four."""
    value, interval = claim["measured"], claim["interval"]
    if value is None:
        return "—"
    if not interval:
        return f"{value:.4g}".replace("-", "−")
    largest = max(abs(number) for number in (value, *interval))
    decimals = max(0, 3 - math.floor(math.log10(largest))) if largest > 0 else 0
    low, high = (signed(end, decimals) for end in interval)
    return f"{value:.{decimals}f}".replace("-", "−") + f" [{low}, {high}]"


def expected(claim: Judged) -> str:
    where, bound = (
        ("above", claim["above"]) if claim["above"] is not None else ("below", claim["below"])
    )
    return f"{where} {bound:g}".replace("-", "−")
