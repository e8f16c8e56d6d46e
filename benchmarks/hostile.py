"""The sandbox: every attack of the table and every cheat, as root and as an ordinary user. See
tests/support."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, Reference
from benchmarks.disks import NotHere
from loraexp.scoring import sandbox
from tests.support import attacks as table
from tests.support import cheats as wrong
from tests.support import ordinary

NO_CHANCE = random.Random(0)
HUMANEVAL = (
    Path(__file__).resolve().parents[2] / "shared" / "data" / "humaneval" / "HumanEval.jsonl.gz"
)
TASKS = {
    "HumanEval/0": "(numbers, threshold)",
    "HumanEval/2": "(number,)",
    "HumanEval/37": "(l,)",
    "HumanEval/12": "(strings,)",
}


def users() -> list[str]:
    """Raises: NotHere where there is no sandbox."""
    if (reason := sandbox.problem()) is not None:
        raise NotHere(reason)
    return ["own user", *(["ordinary user"] if ordinary.hindrance() is None else [])]


def attacks(of: Reference, small: bool) -> list[Case]:
    cases = []
    for user in users():
        for group in table.GROUPS:
            cases += together(
                [(f"{one.name} ({user})", one) for one in table.attacks() if one.group == group],
                lambda group=group, user=user: ended(group, user),
            )
    return of.rng.sample(cases, 12) if small else cases


def ended(group: str, user: str) -> list[str]:
    text = ordinary.python(
        table.CAMPAIGN, group, env={"WANDB_API_KEY": "do-not-tell"}, own=user == "own user"
    )
    known = {one.name: one for one in table.attacks()}
    return [
        "" if table.held(known[name], status, output) else f"{status}: {output[-200:]}"
        for name, status, output in json.loads(text)
    ]


def cheats(of: Reference, small: bool) -> list[Case]:
    if not HUMANEVAL.exists():
        raise NotHere(f"{HUMANEVAL} is not there")
    rows = {
        row["task_id"]: row
        for row in map(json.loads, gzip.decompress(HUMANEVAL.read_bytes()).decode().splitlines())
    }
    cases = []
    for user in users():
        for task, arguments in TASKS.items():
            cases += together(
                [(f"{cheat.name} in {task} ({user})", cheat) for cheat in wrong.cheats()],
                lambda row=rows[task], arguments=arguments, user=user: judged(row, arguments, user),
            )
    return cases[: len(wrong.cheats()) // 4] if small else cases


def judged(row: dict[str, Any], arguments: str, user: str) -> list[str]:
    how = {"opening": row["prompt"], "test": row["test"], "entry": row["entry_point"]}
    cases = [
        {"program": cheat.program(row["prompt"], arguments), **how} for cheat in wrong.cheats()
    ]
    found = wrong.judged(cases, own=user == "own user", seconds=3.0)
    return ["it passed" if status == "passed" else "" for status, _, _ in found["outcomes"]]


def together(named: list[tuple[str, Any]], work: Callable[[], list[str]]) -> list[Case]:
    """Cases whose reasons one call makes together, when the first of them is tried."""
    reasons: list[str] = []

    def tried(number: int) -> str:
        if not reasons:
            reasons.extend(work())
        return reasons[number]

    return [
        Case(name, lambda _, number=number: tried(number)) for number, (name, _) in enumerate(named)
    ]  # type: ignore[misc]
