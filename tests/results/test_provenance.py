"""What a table says under its numbers about the rows that made them."""

from __future__ import annotations

from loraexp.results.provenance import less


def test_rows_that_were_cut_or_left_out_are_counted_under_the_table() -> None:
    assert less({"rows": 10, "cut": 0, "left_out": 0, "skipped": 0}) == ""
    assert less({"rows": 10}) == ""
    part = {"rows": 99_000, "cut": 12, "left_out": 1_000, "skipped": 3}
    assert (
        less(part)
        == " (of the file's rows 12 cut, 1,000 too long and left out, 3 malformed and skipped)"
    )


def test_prompts_that_a_protocol_shortened_are_counted_too() -> None:
    protocols = {
        "gsm8k/lora_sb": {"cut": 0, "skipped": 0},
        "mmlu/five_shot": {"cut": 40, "skipped": 2},
    }
    said = less({"rows": 100, "skipped": 0, "protocols": protocols})
    assert (
        said
        == " (40 prompts shortened under mmlu/five_shot, 2 prompts too long and not asked under"
        " mmlu/five_shot)"
    )
