"""`sweeps/RESULTS.md` agrees with itself: times and counts of the overview are those of the
sections, each section's sweep, variant and pictures are there."""

from __future__ import annotations

import re

import pytest

from loraexp.sweep import reading
from tests.support.results_page import COMMAND, OVERVIEW, SECTIONS, SWEEPS, TEXT, VERDICT


def test_every_line_of_the_overview_is_read() -> None:
    lines = [line for line in TEXT.splitlines() if line.startswith("| [")]
    assert len(lines) == len(OVERVIEW) > 20
    anchors = {title.replace(" ", "-") for title in SECTIONS}
    assert {line["anchor"] for line in OVERVIEW.values()} <= anchors


@pytest.mark.parametrize("title", OVERVIEW)
def test_a_line_of_the_overview_is_what_its_section_says(title: str) -> None:
    line, body = OVERVIEW[title], SECTIONS[title]
    verdicts = VERDICT.findall(body)
    assert (verdicts.count("holds"), len(verdicts)) == (
        int(line["holds"] or 0),
        int(line["claims"] or 0),
    )
    times = [time.removesuffix(" of processor time") for _, time in COMMAND.findall(body) if time]
    assert not times or times[0] == line["time"].strip()
    words = COMMAND.findall(body)[0][0].split()
    variant = words[words.index("--variant") + 1] if "--variant" in words else None
    sweep = reading.load(words[0], variant, [])
    assert sweep.name == title.split()[0]
    assert len(sweep.claims) == len(verdicts)
    for picture in re.findall(r"\]\((pictures/[^)]+)\)", body):
        assert (SWEEPS / picture).is_file(), picture


def test_a_claim_of_a_section_is_one_of_its_sweep() -> None:
    """Word for word, so that a sentence that was changed in a yaml is not left behind here."""
    for title in OVERVIEW:
        words = COMMAND.findall(SECTIONS[title])[0][0].split()
        variant = words[words.index("--variant") + 1] if "--variant" in words else None
        texts = [claim.text for claim in reading.load(words[0], variant, []).claims]
        rows = [row for row in SECTIONS[title].splitlines() if VERDICT.search(row)]
        plain = [row.replace("\\*", "*").replace("&lt;", "<").replace("\\|", "|") for row in rows]
        for text, row in zip(texts, plain, strict=True):
            assert row.startswith(f"| {text}"), (title, row)
