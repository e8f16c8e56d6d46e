"""MATH's answers: every real truth in fifteen spellings is right, and changed in ten ways it is
wrong."""

from __future__ import annotations

import time

import pytest

from loraexp.scoring.algebra import Algebra
from loraexp.scoring.answers import COMPARERS
from loraexp.scoring.mathematics import normal_form, same_mathematics
from tests.support.spellings import CHANGES, SPELLINGS, truths


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_truth_is_right_in_this_spelling(name: str) -> None:
    wrong = [
        (truth, answer)
        for truth in truths()
        if not same_mathematics(answer := SPELLINGS[name](truth), truth)
    ]
    assert wrong == [] and len(truths()) == 500


@pytest.mark.parametrize("name", CHANGES)
def test_no_changed_truth_is_right(name: str) -> None:
    changed = [(truth, CHANGES[name](truth)) for truth in truths() if CHANGES[name](truth) != truth]
    assert changed and [pair for pair in changed if same_mathematics(pair[1], pair[0])] == []


def test_there_are_enough_spellings_and_they_differ() -> None:
    assert len(SPELLINGS) >= 10
    assert all(
        any(change(truth) != truth for truth in truths())
        for name, change in SPELLINGS.items()
        if name != "itself"
    )


@pytest.mark.parametrize(
    ("answer", "truth", "same"),
    [
        ("-35/9", r"-\frac{35}{9}", True),
        (r"\frac{-3}{8}", r"-\frac{3}{8}", True),
        ("58{,}500", "58,500", True),
        (r"\(42\)", "42", True),
        (r"\text{ west}", r"\text{ east}", False),
        (r"\text{ east}", "east", True),
        ("East", r"\text{east}", True),
        (r"2\frac{1}{2}", "2.5", True),
        ("2 1/2", r"\frac{5}{2}", True),
        ("1 + x", "x+1", True),
        ("(x+1)^2", "x^2+2x+1", True),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}", True),
        ("5, 3", "3,5", True),  # solutions have no order
        ("(5,3)", "(3,5)", False),
        ("1,2", "(1,2)", False),
        ("[0,1]", "(0,1)", False),
        ("52_8", "52_9", False),
        ("52_{8}", "52_8", True),
        ("52", "52_8", False),
        ("3.14159", r"\pi", False),
        ("0.333333", r"\frac{1}{3}", False),
        ("2 pi", "2", False),
        ("2π", r"2\pi", True),
        ("10 cm", r"10\text{ cm}", True),
        ("(A)", r"\text{(A)}", True),
        ("", "", False),
        ("", "5", False),
        ("x > 2", "x < 2", False),
        (r"\boxed{7}", "7", True),
        ("$7$.", "7", True),
        ("7.5", "7", False),
        ("5 or 7", "5", False),
        (r"5\text{ or }7", "5", False),
        ("x=5 or x=7", "5", False),
        ("5,7", "5", False),
        (r"2\sqrt{3}, 1", r"2\sqrt{3}", False),
        (r"x} \boxed{2\pi", r"2\pi", False),
    ],
)
def test_pairs(answer: str, truth: str, same: bool) -> None:
    assert COMPARERS["math"](answer, truth) is same


def test_a_form_of_a_form_is_the_form() -> None:
    assert [
        truth for truth in truths() if normal_form(normal_form(truth)) != normal_form(truth)
    ] == []


def test_an_answer_that_would_never_end_is_wrong_and_the_next_is_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from loraexp.scoring import algebra

    monkeypatch.setattr(algebra, "SECONDS", 2.0)
    asked = Algebra()
    assert asked.equal("x+1", "1+x")
    began = time.monotonic()
    assert not asked.equal("9^{9^{9^{9}}}", "x")
    assert time.monotonic() - began < 30
    assert asked.equal("y+1", "1+y") and not asked.equal("y+1", "y+2")
    asked.end()


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from loraexp.scoring import algebra

    monkeypatch.setattr(algebra, "SERVER", "raise ImportError")
    with pytest.raises(RuntimeError, match="math-verify does not start, .*pip install math-verify"):
        Algebra().equal("x", "y")
