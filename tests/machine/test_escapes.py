"""Text of others, made safe to show."""

from __future__ import annotations

import json

import pytest

from loraexp.artifacts import html
from loraexp.machine.escapes import printable
from loraexp.scoring.samples import Sample, write_samples


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 字 🙂\tand\nlines", "plain é 字 🙂\tand\nlines"),
        ("\x1b[31mred\x1b[0m", "\\u001b[31mred\\u001b[0m"),
        ("\x1b]0;title\x07", "\\u001b]0;title\\u0007"),
        ("\x9b31m \x7f \x85", "\\u009b31m \\u007f \\u0085"),
        ("over\rwritten\x08", "over\\u000dwritten\\u0008"),
        ("\u202eright to left\u2066", "\\u202eright to left\\u2066"),
        ("\ud800", "\\ud800"),
    ],
)
def test_nothing_steers_a_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
    # inside JSON nothing is lost
    assert json.loads(printable(json.dumps(text, ensure_ascii=False))) == text


def test_outputs_are_escaped_in_files_and_on_the_page(tmp_path: object) -> None:
    from pathlib import Path

    folder, output = Path(str(tmp_path)), "\x1b[2J\x9b\u2028\u202e end"
    sample = Sample(
        index=0, protocol="a/b", prompt="p", truth="t", output=output, answer=output, right=False
    )
    for _ in range(2):  # the second reads the first's lines
        write_samples(
            folder,
            [
                sample,
                Sample(
                    index=1,
                    protocol="a/c",
                    prompt="p",
                    truth="t",
                    output="x",
                    answer="x",
                    right=True,
                ),
            ],
        )
    text = (folder / "samples.jsonl").read_text()
    assert printable(text) == text and text.count("\n") == 2
    assert json.loads(text.splitlines()[0])["output"] == output
    assert html.shown(output) == "\\u001b[2J\\u009b\\u2028\\u202e end"
