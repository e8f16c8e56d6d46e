"""Does a program that a model wrote pass its tests? The program in one sandbox, its judge in
another.

The tests, the values that they expect and the verdict stand in a process that the program cannot
reach; between the two go plain values (`inside/plain.py`). The benchmark's own tests are run, word
for word, on a stand-in for the function.
"""

from __future__ import annotations

import ast
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from loraexp.machine.escapes import printable
from loraexp.scoring import jail, sandbox
from loraexp.scoring.jail import Cell, Limits
from loraexp.scoring.sandbox import Outcome


@dataclass(frozen=True, kw_only=True)
class Case:
    """A program and its tests: `test` defines `check`, which is called with the function `entry`.

    `opening` is how the benchmark begins the program: functions of its own that the tests may use
    stand there.
    """

    program: str
    opening: str
    test: str
    entry: str

    def whole(self) -> str:
        """Program, tests and their call in one, as the benchmark runs it."""
        return f"{self.program}\n{self.test}\ncheck({self.entry})"


def judge(case: Case, *, limits: Limits | None = None, unsafe_code: bool = False) -> Outcome:
    """Run a program's tests. Raises: SandboxError where there is no sandbox and `unsafe_code` is
    false."""
    if needs_itself(case.test, case.entry):
        return sandbox.run(case.whole(), limits=limits, unsafe_code=unsafe_code)
    sandbox.require(unsafe_code)
    return _apart(case, limits or Limits(), walled=not unsafe_code)


def judge_all(
    cases: Sequence[Case],
    *,
    limits: Limits | None = None,
    unsafe_code: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Each case in sandboxes of its own, `workers` at a time (default: one for each CPU), in the
    order given."""
    sandbox.require(unsafe_code)
    return sandbox.each(
        lambda case: judge(case, limits=limits, unsafe_code=unsafe_code), cases, workers, progress
    )


def _apart(case: Case, limits: Limits, *, walled: bool) -> Outcome:
    started = time.monotonic()
    tests = {"opening": _before(case.opening, case.entry), "test": case.test, "entry": case.entry}
    theirs, ours = jail.pair()
    with theirs, ours:
        task = {"program": case.program}
        program = Cell("candidate", task, limits, walled=walled, channel=theirs.fileno())
        with program:
            examiner = Cell("examiner", tests, limits, walled=walled, channel=ours.fileno())
            theirs.close()  # each side notices when the other has gone
            ours.close()
            with examiner:
                status, detail = sandbox.watch([program, examiner], limits, started)
                verdict = _verdict(examiner)
                if status == "failed" and verdict.get("ended") in ("gone", "not loaded"):
                    sandbox.settle(program)
    if status == "failed" and verdict.get("passed") is True:
        status = "passed"
    elif status == "failed":
        detail = _why(verdict, program, examiner)
    seconds = time.monotonic() - started
    return Outcome(status, printable(detail), sandbox.text_of(program), seconds, inside=False)


def _verdict(examiner: Cell) -> dict[str, object]:
    """What the judge found; nothing where it came to no verdict."""
    try:
        verdict = json.loads(examiner.report)
    except ValueError:
        return {}
    return verdict if isinstance(verdict, dict) else {}


def _why(verdict: Mapping[str, object], program: Cell, examiner: Cell) -> str:
    if not verdict:
        return f"the tests did not end: {sandbox.last_line(examiner)}"
    if verdict["ended"] in ("gone", "not loaded"):
        return sandbox.last_line(program)
    words = str(verdict["ended"] or verdict["detail"]).strip() or "failed"
    return words.splitlines()[-1][:300]


def _before(opening: str, entry: str) -> str:
    """What the benchmark defines ahead of the function itself."""
    found = re.search(rf"^(async )?def {re.escape(entry)}\b", opening, re.MULTILINE)
    return opening[: found.start()] if found else ""


# ------------------------------------------------------------------------------------------- tests
# of another kind


@cache
def needs_itself(test: str, entry: str) -> str:
    """Why these tests need the function itself and not what it returns for plain values; empty
    where they do not.

    Read from the tests alone, so no program has a say in it. They then run in the program's own
    process, and a record says so: there a program that searches its own memory can pass without
    being right.
    """
    try:
        tree = ast.parse(test)
    except (SyntaxError, ValueError):
        return ""
    names = {entry} | {
        argument.arg
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == "check"
        for argument in node.args.args[:1]
    }
    functions = {
        node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.stmt, ast.expr)) and (reason := _reason(node, names, functions)):
            return f"line {node.lineno}: {reason}"
    return ""


def _reason(node: ast.AST, names: set[str], functions: set[str]) -> str:
    def is_function(one: ast.AST) -> bool:
        return isinstance(one, ast.Name) and one.id in names

    if isinstance(node, ast.Attribute) and is_function(node.value):
        return "it looks into the function"
    if not isinstance(node, ast.Call):
        return ""
    values = [*node.args, *(word.value for word in node.keywords)]
    if is_function(node.func):
        for value in values:
            if isinstance(value, (ast.Lambda, ast.GeneratorExp)):
                return "it passes a function or an iterator"
            if isinstance(value, ast.Name) and value.id in functions:
                return "it passes a function or a class"
    if isinstance(node.func, ast.Call) and is_function(node.func.func):
        return "it calls what the function returns"
    if isinstance(node.func, ast.Attribute) and any(map(is_function, values)):
        return "it gives the function to a library"
    if isinstance(node.func, ast.Name) and node.func.id in (
        "isinstance",
        "type",
        "id",
        "getattr",
        "hasattr",
    ):
        return "it looks at the function" if any(map(is_function, values)) else ""
    return ""
