"""`make bench`: every figure beside its target, all targets once more at the end, and no part that
fails takes the others' figures with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from benchmarks import ASKED, Figure, summary, verdict, within
from benchmarks.__main__ import PARTS, main
from tests.support.helpers import REPOSITORY


@pytest.fixture(autouse=True)
def nothing_asked_before() -> None:
    ASKED.clear()


@pytest.mark.parametrize(
    ("value", "least", "most", "noise", "said"),
    [
        (2.2, 2.2, None, 0.0, "target ≥ 2.2: met"),
        (2.199, 2.2, None, 0.0, "target ≥ 2.2: MISSED"),
        (2.18, 2.2, None, 0.03, "target ≥ 2.2: met"),
        (0.7, None, 0.7, 0.0, "target ≤ 0.7: met"),
        (0.71, None, 0.7, 0.0, "target ≤ 0.7: MISSED"),
        (0.71, None, 0.7, 0.03, "target ≤ 0.7: met"),
        (0.0, 0.0, None, 0.0, "target ≥ 0: met"),
        (5.0, None, None, 0.0, ""),
    ],
)
def test_a_figure_is_said_with_its_target(
    value: float, least: float | None, most: float | None, noise: float, said: str
) -> None:
    assert verdict("a / b", value, least=least, most=most, noise=noise) == said
    assert len(ASKED) == bool(said)  # what has no target is not among the targets
    if most is not None:
        mark = "" if "met" in said else " !"
        assert within("a / b", value, most, noise) == f"≤ {most:g}{mark}"


def test_the_summary_has_every_target_and_counts_the_missed() -> None:
    reached, missed = Figure("a / b", 2.23, 2.2, True), Figure("wait", 1.5, 1.0, False, " s")
    lines = summary([("loop", reached), ("startup", missed)]).splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["loop", "a", "/", "b", "2.23", "≥", "2.2", "met"],
        ["startup", "wait", "1.5", "s", "≤", "1", "s", "MISSED"],
    ]
    assert lines[2] == "2 targets: 1 met, 1 missed"


def test_a_part_that_fails_takes_no_other_with_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        verdict("before it broke", 1.0, least=2.0)
        raise AssertionError("grows faster than its formula")

    parts: dict[str, Callable[[], object]] = {
        "broken": broken,
        "whole": lambda: verdict("after it", 3.0, least=2.0),
    }
    monkeypatch.setattr("benchmarks.__main__.PARTS", tuple(parts))
    for name, part in parts.items():
        monkeypatch.setitem(sys.modules, f"benchmarks.{name}", SimpleNamespace(main=part))
    assert main([]) == 1
    said = capsys.readouterr()
    assert "2 targets: 1 met, 1 missed" in said.out
    assert "before it broke" in said.out and "after it" in said.out
    assert "grows faster than its formula" in said.err
    assert said.err.splitlines()[-1] == "benchmarks: did not end: broken"


def test_a_part_as_it_is_typed() -> None:
    """The one that is counted and not timed: it misses its target on no machine."""
    assert main(["nothing"]) == 2 and "padding" in PARTS
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "padding"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    last, count = done.stdout.splitlines()[-2:]
    assert last.startswith("padding ") and last.endswith(" ≤ 1.15  met")
    assert count == "1 target: 1 met, 0 missed"
