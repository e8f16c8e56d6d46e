"""The numbers of `sweeps/RESULTS.md` are those of what is kept: a claim is judged by the bound of
its sweep and by what was measured, and published numbers are the sweep's.

What was measured comes from records that are not in the repository; the page says with which
command they were made, and that what it shows was made from them.
"""

from __future__ import annotations

import re

import pytest

from loraexp.artifacts.claims import expected
from loraexp.sweep import reading
from tests.support.results_page import COMMAND, OVERVIEW, SECTIONS, TEXT, VERDICT

NUMBER = r"[−+]?\d+(?:\.\d+)?(?:e[−+]?\d+)?"
MEASURED = re.compile(rf"^({NUMBER})(?: \[({NUMBER}), ({NUMBER})\])?$")
CELL = re.compile(
    rf"(?P<ours>{NUMBER})(?: ± {NUMBER})?\**(?: \(\d+\))?[^<]*<br>paper (?P<paper>{NUMBER})"
    rf"(?: ± (?P<spread>{NUMBER}))?, (?P<less>{NUMBER})"
)


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def words_of(title: str) -> tuple[str, str | None]:
    words = COMMAND.findall(SECTIONS[title])[0][0].split()
    return words[0], words[words.index("--variant") + 1] if "--variant" in words else None


@pytest.mark.parametrize("title", OVERVIEW)
def test_a_claim_is_judged_by_its_sweeps_bound_and_what_was_measured(title: str) -> None:
    claims = reading.load(*words_of(title), []).claims
    rows = [line for line in SECTIONS[title].splitlines() if VERDICT.search(line)]
    for claim, row in zip(claims, rows, strict=True):
        cells = [part.strip() for part in re.split(r"(?<!\\)\|", row)[1:-1]]
        measured, bound, verdict = cells[1], cells[2], cells[-1]
        asked = {"above": claim.above, "below": claim.below}
        assert bound == expected(asked), row  # type: ignore[arg-type]
        found = MEASURED.match(measured)
        assert found is not None, row
        value, limit = number(found[1]), claim.above if claim.above is not None else claim.below
        assert limit is not None
        if value != pytest.approx(limit, rel=1e-3, abs=1e-12):  # as printed, in four digits
            holds = value > limit if claim.above is not None else value < limit
            assert verdict.startswith("holds" if holds else "does not hold"), row
        if found[2] is not None:
            low, high = number(found[2]), number(found[3])
            assert low <= value + 0.005 and value - 0.005 <= high, row
            if low + 0.005 < limit < high - 0.005:
                assert verdict.endswith("within noise"), row
            if limit < low - 0.005 or high + 0.005 < limit:
                assert not verdict.endswith("within noise"), row


def test_published_numbers_are_the_sweeps_and_ours_are_compared_with_them() -> None:
    compared = 0
    for title in OVERVIEW:
        sweep = reading.load(*words_of(title), [])
        printed = {
            row.label: {sweep.columns[c].label: n for c, n in sweep.published.get(name, {}).items()}
            for name, row in sweep.rows.items()
        }
        header: list[str] = []
        for line in SECTIONS[title].splitlines():
            cells = [part.strip() for part in line.strip("|").split("|")]
            if "<br>paper" not in line:
                header = cells if line.startswith("|  |") else header
                continue
            for column, cell in zip(header[1:], cells[1:], strict=True):
                if (found := CELL.search(cell)) is None:
                    assert "<br>paper" not in cell, cell
                    continue
                # a table of several units has them in its header
                kept = printed[cells[0]][re.sub(r" \((%|nats|s|MiB)\)$", "", column)]
                mean, spread = (kept if isinstance(kept, list) else [kept, None])[:2]
                assert number(found["paper"]) == pytest.approx(mean), (title, line)
                assert (found["spread"] is None) == (spread is None), (title, line)
                assert spread is None or number(found["spread"]) == pytest.approx(spread)
                ours = number(found["ours"]) - mean
                assert number(found["less"]) == pytest.approx(ours, abs=0.0101), (title, line)
                compared += 1
    assert compared >= 18


def test_the_page_says_what_made_its_numbers() -> None:
    """The command of every section, and of the whole page."""
    assert "`python -m benchmarks.results OUTPUTS GLUE NAME[@VARIANT]`" in TEXT
    for title in OVERVIEW:
        assert COMMAND.search(SECTIONS[title]), title
