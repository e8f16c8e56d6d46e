"""What a table says under its numbers about the rows that made them."""

from __future__ import annotations

from loraexp.results.provenance import less


def test_rows_that_were_cut_or_left_out_are_counted_under_the_table() -> None:
    assert less({"rows": 10, "cut": 0, "left_out": 0, "skipped": 0}) == ""
    assert less({"rows": 10}) == ""
    part = {"rows": 99_000, "cut": 12, "left_out": 1_000, "skipped": 3}
    assert less(part) == " (12 cut, 1,000 too long and left out, 3 malformed and skipped)"
