"""Who passes: right programs do, wrong ones do not whatever they try, and a benchmark's tests keep
their meaning."""

from __future__ import annotations

import gzip
import json
import socket
from collections import Counter, OrderedDict, deque, namedtuple
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from loraexp.scoring import judge, sandbox
from loraexp.scoring.inside.plain import NotPlain, Stranger, Wire, decode, encode
from loraexp.scoring.judge import Case
from loraexp.scoring.sandbox import Limits, Outcome, SandboxError
from tests.support import ordinary
from tests.support.cheats import cheats
from tests.support.cheats import judged as judged_apart
from tests.support.helpers import shared_data

needs_sandbox = pytest.mark.skipif(sandbox.problem() is not None, reason=str(sandbox.problem()))
USERS = ["own", "ordinary"]


def rows() -> dict[str, dict[str, Any]]:
    text = gzip.decompress(shared_data("humaneval", "HumanEval.jsonl.gz").read_bytes()).decode()
    return {row["task_id"]: row for row in map(json.loads, text.splitlines())}


def case(row: dict[str, Any], completion: str) -> Case:
    return Case(
        program=f"{row['prompt']}{completion}\n",
        opening=row["prompt"],
        test=row["test"],
        entry=row["entry_point"],
    )


def tried(function: str, checks: str, name: str = "f", **limits: Any) -> Outcome:
    """A function against the lines of a `check`."""
    test = "def check(candidate):\n" + "".join(f"    {line}\n" for line in checks.splitlines())
    given = Case(program=function, opening="", test=test, entry=name)
    return judge.judge(given, limits=Limits(**({"seconds": 5.0} | limits)))


def judged(cases: list[Case], user: str, seconds: float = 10.0) -> dict[str, Any]:
    if user == "ordinary" and (reason := ordinary.hindrance()) is not None:
        pytest.skip(reason)
    return judged_apart([vars(one) for one in cases], own=user == "own", seconds=seconds)


@needs_sandbox
@pytest.mark.parametrize("user", ["own", pytest.param("ordinary", marks=pytest.mark.slow)])
def test_the_canonical_solutions_pass_in_a_minute_and_leave_nothing(user: str) -> None:
    table = rows()
    found = judged([case(row, row["canonical_solution"]) for row in table.values()], user)
    assert [
        (name, one)
        for name, one in zip(table, found["outcomes"], strict=True)
        if one != ["passed", "", False]
    ] == []
    assert len(table) == 164 and found["seconds"] <= 60 and found["defunct"] == []


@needs_sandbox
@pytest.mark.parametrize("user", USERS)
def test_right_and_empty_programs_are_told_apart(user: str) -> None:
    table = list(rows().values())[::16]
    right = [case(row, row["canonical_solution"]) for row in table]
    found = judged(right + [case(row, "    pass") for row in table], user)
    assert [one[0] for one in found["outcomes"]] == ["passed"] * len(table) + ["failed"] * len(
        table
    )
    assert found["defunct"] == []


@needs_sandbox
@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        ("HumanEval/12", "(strings,)"),
        pytest.param("HumanEval/0", "(numbers, threshold)", marks=pytest.mark.slow),
        pytest.param("HumanEval/2", "(number,)", marks=pytest.mark.slow),
        pytest.param("HumanEval/37", "(l,)", marks=pytest.mark.slow),
    ],
)
def test_no_cheat_passes(task: str, arguments: str, user: str) -> None:
    if user == "ordinary" and task != "HumanEval/12":
        pytest.skip("one task is enough for the other user")
    row = rows()[task]
    how = {"opening": row["prompt"], "test": row["test"], "entry": row["entry_point"]}
    cases = [Case(program=one.program(row["prompt"], arguments), **how) for one in cheats()]
    found = judged(cases, user, seconds=3.0)
    passed = [
        cheat.name
        for cheat, one in zip(cheats(), found["outcomes"], strict=True)
        if one[0] == "passed"
    ]
    assert passed == [] and len(cheats()) >= 32 and found["defunct"] == []


@needs_sandbox
def test_the_cheats_are_cheats() -> None:
    """In one process with its tests, as a benchmark runs it, many of them pass: the table can
    fail."""
    row = rows()["HumanEval/12"]
    how = {"opening": "", "test": row["test"], "entry": row["entry_point"]}
    chosen = [
        one for one in cheats() if any(word in one.name for word in ("equal", "text", "pickles"))
    ]
    wholes = [
        Case(program=one.program(row["prompt"], "(strings,)"), **how).whole() for one in chosen
    ]
    passed = sum(
        outcome.passed
        for outcome in sandbox.each(
            lambda one: sandbox.run(one, limits=Limits(seconds=4.0)), wholes, 2, None
        )
    )
    assert passed == len(wholes) == 13


# --------------------------------------------------------------------------------------------------
# meaning


@needs_sandbox
@pytest.mark.parametrize(
    ("function", "checks", "passes"),
    [
        ("def f(x): return x + 1", "assert candidate(1) == 2", True),
        ("def f(x): return 1", "assert candidate(0) == True", True),  # as Python compares
        ("def f(x): return 1.0", "assert candidate(0) == 1", True),
        ("def f(x): return '1'", "assert candidate(0) == 1", False),
        ("def f(x): return (1, 2)", "assert candidate(0) == [1, 2]", False),
        ("def f(x): return (n for n in [1, 2])", "assert tuple(candidate(0)) == (1, 2)", True),
        ("def f(x): return (n for n in [1, 2])", "assert candidate(0) == [1, 2]", False),
        (
            "from collections import Counter\ndef f(x): return Counter(x)",
            "assert candidate('aab') == {'a': 2, 'b': 1}",
            True,
        ),
        ("import math\ndef f(x): return math.nan", "assert candidate(0) == float('nan')", False),
        ("def f(x): return None", "assert candidate(0) is None", True),
        # a change of its argument is seen
        ("def f(x):\n    x.sort()", "x = [2, 1]\ncandidate(x)\nassert x == [1, 2]", True),
        ("def f(x):\n    x['a'] = 1", "x = {}\ncandidate(x)\nassert x == {'a': 1}", True),
        (
            "def f(x): raise KeyError(x)",
            "try:\n    candidate('k')\nexcept KeyError:\n    return\nassert False",
            True,
        ),
        (
            "class Own(ValueError): pass\ndef f(x): raise Own",
            "try:\n    candidate(0)\nexcept ValueError:\n    return\nassert False",
            True,
        ),
        (
            "def f(x): return x",
            "try:\n    candidate(0)\nexcept ValueError:\n    return\nassert False",
            False,
        ),
        (
            "import os\ndef f(x): os._exit(0)",
            "try:\n    candidate(0)\nexcept BaseException:\n    pass",
            False,
        ),
        ("def f(x, *, y): return x - y", "assert candidate(3, y=1) == 2", True),
        ("def f(x): return 10 ** 5000 + x", "assert candidate(1) == 10 ** 5000 + 1", True),
        ("def f(x): return x", "assert candidate('\\ud800 é') == '\\ud800 é'", True),
        ("def f(x): return f(x)", "assert candidate(0) == 0", False),
        ("def g(x): return x", "assert candidate(0) == 0", False),
        ("def f(x:", "assert candidate(0) == 0", False),
        ("def f(x): return x", "assert list(map(candidate, [1, 2])) == [1, 2]", True),
        ("def f(x): print('said'); return x", "assert candidate(1) == 1", True),
    ],
)
def test_tests_mean_what_they_mean_in_one_process(function: str, checks: str, passes: bool) -> None:
    outcome = tried(function, checks)
    assert (outcome.passed, outcome.inside) == (passes, False), outcome


@needs_sandbox
def test_limits_hold_for_program_and_judge() -> None:
    assert (
        tried("def f(x):\n    while True: pass", "candidate(0)", seconds=1.0).detail
        == "more than 1 seconds"
    )
    assert tried("def f(x): return x", "while True: pass", seconds=1.0).status == "timeout"
    assert tried("def f(x):\n    while True: print('x' * 4096)", "candidate(0)").status == "output"
    assert (
        "MemoryError" in tried("def f(x): return len(bytearray(10 * 2**30))", "candidate(0)").detail
    )
    long = tried("def f(x): return 'x' * (9 * 2**20)", "candidate(0)")
    assert long.status == "failed" and "more than 8388608 bytes" in long.detail


@needs_sandbox
def test_functions_of_the_opening_are_the_benchmarks_own() -> None:
    """HumanEval/50 decodes what its opening encodes: a program that spoils the encoder does not
    change its task."""
    row = rows()["HumanEval/50"]
    spoiled = case(row, "    return s\n\ndef encode_shift(s):\n    return s\n")
    assert (
        judge.judge(case(row, row["canonical_solution"])).passed and not judge.judge(spoiled).passed
    )
    assert sandbox.run(spoiled.whole()).passed  # as it would in one process


@needs_sandbox
def test_a_test_that_needs_the_function_itself_runs_inside_and_says_so() -> None:
    test = (
        "def check(candidate):\n    assert candidate.__name__ == 'f' and candidate(lambda x: x + 1)"
        " == 2\n"
    )
    good = Case(program="def f(g): return g(1)\n", opening="", test=test, entry="f")
    outcome = judge.judge(good)
    assert (
        outcome.passed
        and outcome.inside
        and "looks into the function" in judge.needs_itself(test, "f")
    )
    leaving = (
        "sys.exit",
        "os._exit",
        "atexit",
        "__main__",
        "a verdict of its own",
        "pipes",
        "hook",
    )
    for cheat in [one.below for one in cheats() if any(word in one.name for word in leaving)]:
        wrong = Case(program=f"def f(g): return 0\n{cheat}\n", opening="", test=test, entry="f")
        assert not judge.judge(wrong).passed


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("candidate(1)", ""),
        ("candidate([x for x in range(3)])", ""),
        ("sorted(map(candidate, [1]))", ""),
        ("candidate.__doc__", "line 2: it looks into the function"),
        ("candidate(lambda x: x)", "line 2: it passes a function or an iterator"),
        ("candidate(check)", "line 2: it passes a function or a class"),
        ("candidate(1)(2)", "line 2: it calls what the function returns"),
        ("inspect.signature(f)", "line 2: it gives the function to a library"),
        ("isinstance(candidate, type)", "line 2: it looks at the function"),
    ],
)
def test_which_tests_need_the_function_itself(line: str, reason: str) -> None:
    assert judge.needs_itself(f"def check(candidate):\n    {line}\n", "f") == reason


def test_no_test_of_humaneval_does() -> None:
    assert [
        name for name, row in rows().items() if judge.needs_itself(row["test"], row["entry_point"])
    ] == []


def test_without_a_sandbox_nothing_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "problem", lambda: "none here")
    good = Case(
        program="def f(x): return x\n",
        opening="",
        test="def check(c):\n    assert c(1) == 1\n",
        entry="f",
    )
    for attempt in (lambda: judge.judge(good), lambda: judge.judge_all([good])):
        with pytest.raises(SandboxError, match="none here"):
            attempt()
    outcome = judge.judge(good, unsafe_code=True)
    assert outcome.passed and not outcome.inside
    wrong = Case(program="def f(x): return 2\n", opening="", test=good.test, entry="f")
    assert judge.judge(wrong, unsafe_code=True).detail == "AssertionError"


# --------------------------------------------------------------------------------------------------
# the wire


class Small(IntEnum):
    one = 1


Point = namedtuple("Point", "x y")


class Sly(list):  # type: ignore[type-arg]
    def __eq__(self, other: object) -> bool:
        return True

    def __iter__(self) -> Any:
        return iter([7])


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        *[
            (value, value)
            for value in (
                None,
                True,
                0,
                -(2**70),
                10**4000,
                1.5,
                -0.0,
                float("inf"),
                5e-324,
                1 + 2j,
                "",
                "é\ud800\x1b",
                b"\0\xff",
                bytearray(b"x"),
                [],
                [1, [2, (3,)]],
                {"a": {1: None}},
                {1, 2},
                frozenset({"x"}),
                range(1, 9, 2),
                deque([1]),
                Fraction(1, 3),
                Decimal("1.10"),
                ["list", [1]],
                {(1, 2): [3]},
            )
        ],
        (Small.one, 1),
        (Point(1, 2), (1, 2)),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (Sly([1]), [1]),
        (np.int64(3), 3),
        (np.float64(0.1), 0.1),
        (np.bool_(True), True),
    ],
)
def test_plain_values_arrive_as_they_are(value: Any, arrives: Any) -> None:
    back = decode(json.loads(json.dumps(encode(value))))
    assert type(back) is type(arrives) and repr(back) == repr(arrives)


def test_what_is_no_plain_value_is_a_stranger_that_equals_nothing() -> None:
    stranger = decode(encode(object()))
    assert (
        isinstance(stranger, Stranger)
        and stranger != object()
        and repr(stranger) == "<an object of class object>"
    )
    with pytest.raises(NotPlain, match="function is no plain value"):
        encode(lambda: 0, strict=True)


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        '["list", 1]',
        '["eval", "1"]',
        '["int", "x"]',
        "1.5",
        "NaN",
        '{"a": 1}',
        '["dict", [[1]]]',
        '["fraction", ["1", "0"]]',
        '["set", [["list", []]]]',
    ],
)
def test_a_forged_value_is_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError, ZeroDivisionError)):
        decode(json.loads(text))


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\xff\xff\xff\xff", "too long"),
        (b"\0\0\0\2[]", "not a message"),
        (b"\0\0\0\1{", "Expecting"),
        (b"\0\0", ""),
        (b"", ""),
    ],
)
def test_a_forged_message_is_refused(sent: bytes, reason: str) -> None:
    here, there = socket.socketpair()
    there.sendall(sent)
    there.close()
    wire = Wire(here.detach())
    with wire._socket:
        if reason:
            with pytest.raises(ValueError, match=reason):
                wire.receive()
        else:
            assert wire.receive() is None
