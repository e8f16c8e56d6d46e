"""A few cases of each part of the campaign (`make campaign` tries them all), in a process as a user
would start it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.helpers import REPOSITORY

FEW = ("kills", "damage", "inputs", "sandbox")  # of a minute


@pytest.mark.parametrize(
    "parts", [FEW, pytest.param(("sweeps", "signals", "cheats"), marks=pytest.mark.slow)]
)
def test_what_may_befall_a_run_or_a_sandbox_is_held(parts: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "benchmarks.campaign", "--small", *parts]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    # each part prints its row as it ends; the table of all stands last
    printed = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    rows = [line.strip("| ").split(" | ") for line in printed[-len(parts) - 1 :]]
    counts = {what: (int(tried), int(held)) for what, tried, held, _ in rows}
    assert all(tried == held for tried, held in counts.values())
    assert len(counts) == len(parts) + 1 and counts["all"][0] >= 15


def test_what_does_not_hold_is_told_with_the_words_that_try_it(monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    from benchmarks import campaign as tool
    from benchmarks.cases import Case

    def parts(of: object, small: bool) -> list[Case]:
        return [
            Case("good", lambda place: ""),
            Case("bad", lambda place: "it broke"),
            Case("worse", lambda place: 1 / 0),
        ]  # type: ignore[list-item]

    monkeypatch.setattr(tool, "PARTS", {"cheats": ("three cases", parts)})
    assert tool.main(["cheats", "--seed", "7"]) == 1
    said = capsys.readouterr().out
    assert (
        "| three cases | 3 | 1 |" in said
        and "cheats: bad: it broke" in said
        and "ZeroDivisionError" in said
    )
    assert "python -m benchmarks.campaign cheats --seed 7 --only 'bad'" in said


def test_the_same_seed_tries_the_same() -> None:
    import random
    from pathlib import Path

    from benchmarks import damage, kills, mistakes
    from benchmarks.cases import Reference

    def names(seed: int) -> list[str]:
        like = Reference(Path("a"), Path("b"), 2.0, random.Random(seed))
        return [
            case.name
            for part in (kills.kills, kills.sweeps, damage.stopped, mistakes.mistakes)
            for case in part(like, True)
        ]

    assert names(0) == names(0) != names(1)
