"""Readers of answers against a table of golden strings, the released mistakes under their names."""

from __future__ import annotations

import json
import re
import time

import pytest

from loraexp.scoring.answers import COMMONSENSE_WORDS, COMPARERS, EXTRACTORS
from loraexp.scoring.mathematics import last_boxed, normal_form
from tests.support.helpers import shared_data

# What follows the marker; the number as meant; as LoRA-GA's and LoRA-One's code reads it; as
# LoRA-SB's and LoRA-DA's.
NUMBERS = [
    ("18", "18", "18", "18"),
    ("1,234", "1234", "1", "1234"),
    ("1,234,567", "1234567", "1", "1234"),
    ("12,34,567", "1234567", "12", "1234"),
    ("70000", "70000", "70000", "70000"),
    ("-3", "-3", "0", "-3"),
    ("- 3", "-3", "0", "3"),
    ("+7", "7", "0", "7"),
    ("−4", "-4", "0", "4"),
    ("–4", "-4", "0", "4"),
    ("0", "0", "0", "0"),
    ("007", "7", "7", "7"),
    ("18.", "18", "18", "18"),
    ("18.0", "18", "18", "18"),
    ("2.50", "2.5", "2", "2"),
    (".5", "0.5", "0", "0"),
    ("-0.25", "-0.25", "0", "0"),
    ("3.14159", "3.14159", "3", "3"),
    ("1,234.56", "1234.56", "1", "1234"),
    ("$18", "18", "0", "18"),
    ("$1,450,000", "1450000", "0", "1450"),
    ("-$20", "-20", "0", "20"),
    ("$-20", "-20", "0", "-20"),
    ("\\$18", "18", "0", "18"),
    ("€5", "5", "0", "5"),
    ("£3.20", "3.2", "0", "3"),
    ("₹100", "100", "0", "100"),
    ("$ 15", "15", "0", "15"),
    ("18 dollars", "18", "18", "18"),
    ("18 eggs.", "18", "18", "18"),
    ("50%", "50", "50", "50"),
    ("12.5%", "12.5", "12", "12"),
    ("3/4", "0.75", "3", "1"),
    ("-3/4", "-0.75", "0", "-1"),
    ("6/3", "2", "6", "2"),
    ("7/2", "3.5", "7", "4"),
    ("1 1/2", "1.5", "1", "1"),
    ("10 / 4", "2.5", "10", "10"),
    ("\\frac{3}{4}", "0.75", "0", "3"),
    ("-\\frac{1}{2}", "-0.5", "0", "1"),
    ("\\dfrac{6}{3}", "2", "0", "6"),
    ("1{,}234", "1234", "1", "1"),
    ("2,\\!125", "2125", "2", "2"),
    ("x = 5", "5", "0", "5"),
    ("x - 5", "5", "0", "5"),
    ("about 12 of 30", "12", "0", "12"),
    ("2:30", "2", "2", "2"),
    ("7 and 8", "7", "7", "7"),
    ("5-3", "5", "5", "5"),
    ("3*4=12", "3", "3", "3"),
    ("1e3", "1000", "1", "1"),
    ("1.5e2", "150", "1", "2"),
    ("**42**", "42", "0", "42"),
    ("$\\boxed{9}$", "9", "0", "9"),
    ("(6)", "6", "0", "6"),
    ("72</s>", "72", "72", "72"),
    ("", None, "0", None),
    ("none", None, "0", None),
    ("no number here", None, "0", None),
    ("ten", None, "0", None),
    ("$", None, "0", None),
    ("#", None, "0", None),
    ("1,23", "1", "1", "123"),
    ("1234,567", "1234", "1234", "1234567"),
    ("9,99,999", "999999", "9", "999"),
    ("3,000 and 4", "3000", "3", "3000"),
    ("100,000,000", "100000000", "100", "100000"),
    ("\t 21 ", "21", "21", "21"),
    ("twenty-1", "1", "0", "-1"),
    ("10\\,000", "10000", "10", "10"),
    ("10~000", "10000", "10", "10"),
    ("10 000", "10000", "10", "10"),
    ("10\u202f000", "10000", "10", "10"),
    ("10'000", "10000", "10", "10"),
    ("1.000.000", "1000000", "1", "1"),
    ("1.234,56", "1234.56", "1", "1"),
    ("1 234 567.5", "1234567.5", "1", "1"),
    ("2\\frac{1}{2}", "2.5", "2", "2"),
    ("-2\\frac{1}{4}", "-2.25", "0", "-2"),
    ("\\frac34", "0.75", "0", "34"),
    ("\\frac{-3}{8}", "-0.375", "0", "-3"),
    ("\\frac{3}4", "0.75", "0", "3"),
    ("2 and 1/2", "2.5", "2", "2"),
    ("1½", "1.5", "1", "1"),
    ("Rs.500", "500", "0", "0"),
    ("Rs. 1,500.50", "1500.5", "0", "1500"),
    ("USD 5", "5", "0", "5"),
    ("-Rs.20", "-20", "0", "0"),
    ("1.5 million", "1500000", "1", "2"),
    ("1.5 \\times 10^{3}", "1500", "1", "2"),
    ("2 × 10^5", "200000", "2", "2"),
    ("10 000/4", "2500", "10", "10"),
]


@pytest.mark.parametrize(
    ("text", "meant", "hashes", "rounded"), NUMBERS, ids=[repr(row[0]) for row in NUMBERS]
)
def test_numbers(text: str, meant: str | None, hashes: str, rounded: str | None) -> None:
    direct, stepwise = f"2 + 99 = 7\n#### {text}", f"The answer is: 99. No. The answer is: {text}"
    assert EXTRACTORS["gsm8k_lora_ga"](direct) == meant
    assert EXTRACTORS["gsm8k_lora_da"](direct) == meant
    assert EXTRACTORS["gsm8k_lora_sb"](stepwise) == meant
    assert EXTRACTORS["gsm8k_lora_da"](stepwise) == meant
    assert EXTRACTORS["gsm8k_lora_ga_released"](direct) == hashes
    assert EXTRACTORS["gsm8k_lora_sb_released"](stepwise) == rounded
    assert EXTRACTORS["gsm8k_lora_da_released"](stepwise) == rounded
    assert EXTRACTORS["gsm8k_lora_da_released"](direct) == rounded


def test_there_are_enough_golden_strings() -> None:
    assert (
        len(NUMBERS) >= 60
        and len(COT) * 2 + len(NUMBERS) >= 60
        and len(FINAL) >= 60
        and len(WORDS) * len(COMMONSENSE_WORDS) >= 60
    )


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("gsm8k_lora_ga", "#### 5 then #### 6", "5"),  # the first
        ("gsm8k_lora_ga_released", "#### x #### 6", "6"),  # the first that digits follow
        ("gsm8k_lora_ga", "The answer is 5", None),
        # no answer is zero, and right where the truth is zero
        ("gsm8k_lora_ga_released", "The answer is 5", "0"),
        ("gsm8k_lora_ga_released", "####7", "7"),
        ("gsm8k_lora_da", "#### 5\n#### 6", "6"),  # the last
        ("gsm8k_lora_da", "The answer is: 4\n#### 6", "6"),
        # exactly as it is written
        ("gsm8k_lora_sb", "The answer is: 5. Wait, the answer is: 6", "5"),
        ("gsm8k_lora_sb", "The answer is 5", None),
        ("gsm8k_lora_sb", "#### 5", None),
        ("gsm8k_lora_sb_released", "The answer is: 5/0", "5"),
        ("gsm8k_lora_da_released", "The answer is: 5/0", None),
        ("gsm8k_lora_sb", "The answer is: 5/0", None),
        ("gsm8k_lora_sb_released", f"The answer is: {'9' * 400}", None),  # infinity
        ("gsm8k_lora_sb_released", "The answer is: 0.5", "0"),  # ties to even
        ("gsm8k_lora_sb_released", "The answer is: 1.5", "2"),
        ("gsm8k_lora_sb_released", "The answer is: /5", None),
    ],
)
def test_places_and_corners(name: str, text: str, answer: str | None) -> None:
    assert EXTRACTORS[name](text) == answer


# Text of the 8-shot protocol; strict-match; flexible-extract.
COT = [
    ("The answer is 18.", "18", "18."),
    ("The answer is 1,234.", "1,234", "1,234."),
    ("The answer is -3.", "-3", "-3."),
    ("The answer is 18 dollars.", "18", "18"),
    ("The answer is $18.", None, "$18."),
    ("The answer is 2.50.", "2.50", "2.50."),
    ("The answer is 5. The answer is 6.", "5.", "6."),
    ("the answer is 7.", None, "7."),
    ("So 3 + 4 = 7", None, "7"),
    # one character must follow: a lone digit without a stop is not read
    ("The answer is 7", None, "7"),
    ("The answer is 17", "1", "17"),  # and of two digits the last is that character
    ("It cost $1,000 and 3", None, "3"),
    ("none", None, None),
    ("", None, None),
]


@pytest.mark.parametrize(("text", "strict", "flexible"), COT)
def test_eight_shots(text: str, strict: str | None, flexible: str | None) -> None:
    assert (EXTRACTORS["gsm8k_cot_strict"](text), EXTRACTORS["gsm8k_cot_flexible"](text)) == (
        strict,
        flexible,
    )


def test_eight_shots_read_as_lm_evals_own_filters() -> None:
    from lm_eval.filters.extraction import RegexFilter

    texts = [row[0] for row in COT] + [f"Thus {row[0]}. The answer is {row[0]}." for row in NUMBERS]
    for name, pattern, group in (
        ("gsm8k_cot_strict", r"The answer is (\-?[0-9\.\,]+).", 0),
        ("gsm8k_cot_flexible", r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1),
    ):
        filtered = RegexFilter(pattern, group_select=group).apply(
            [[text] for text in texts], [{} for _ in texts]
        )
        assert [EXTRACTORS[name](text) or "[invalid]" for text in texts] == [
            one[0] for one in filtered
        ]


# A MATH output; the answer in it.
FINAL = [
    (r"so $\boxed{42}$.", "42"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\frac{\sqrt{3}}{2}} and more", r"\frac{\sqrt{3}}{2}"),
    (r"first \boxed{1}, then \boxed{2}", "2"),
    (r"\boxed{\left( 3, \frac{\pi}{2} \right)}", r"\left( 3, \frac{\pi}{2} \right)"),
    (r"\boxed{\text{even}}", r"\text{even}"),
    (
        r"\boxed{\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}}",
        r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}",
    ),
    (r"\boxed{x^{2^{3}}}", "x^{2^{3}}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{ 7 }", "7"),
    (r"\boxed 7", "7"),
    (r"$\boxed 7$ apples", "7"),
    (r"\fbox{9}", "9"),
    (r"\boxed{}", None),
    (r"\boxed{unclosed", None),
    (r"\boxed{1,234}", "1,234"),
    (r"\boxed{-5}", "-5"),
    (r"\boxed{3.75}", "3.75"),
    (r"\boxed{\$18.90}", r"\$18.90"),
    (r"\boxed{50\%}", r"50\%"),
    (r"\boxed{90^\circ}", r"90^\circ"),
    (r"\boxed{(-\infty, 3]}", r"(-\infty, 3]"),
    (r"\boxed{52_8}", "52_8"),
    (r"\boxed{6 - 5i}", "6 - 5i"),
    (r"\boxed{1 \pm \sqrt{19}}", r"1 \pm \sqrt{19}"),
    (r"\boxed{x=5}", "x=5"),
    (r"\boxed{\frac43}", r"\frac43"),
    (r"\boxed{11\sqrt2}", r"11\sqrt2"),
    (r"\boxed{3,5,7}", "3,5,7"),
    (r"\boxed{(a+5)(b+2)}", "(a+5)(b+2)"),
    (r"\boxed{A} The answer is: 5", "A"),
    ("The answer is: 42", "42"),
    ("The answer is: 42.", "42"),
    ("The answer is: $42$.", "42"),
    ("The answer is: 1. No. The answer is: 2", "2"),
    ("the answer is 7.", "7"),
    ("The final answer is $\\frac{1}{3}$. I hope it is correct.", r"\frac{1}{3}"),
    ("Final Answer: The final answer is $24$. I hope it is correct.", "24"),
    ("The answer is: 3.5", "3.5"),
    ("The answer is: -3.5.", "-3.5"),
    ("The answer is: 1,234", "1,234"),
    ("The answer is: $1,234.56$", "1,234.56"),
    ("The answer is: \\frac{3}{4}", r"\frac{3}{4}"),
    ("The answer is: 3/4", "3/4"),
    ("The answer is: x = 5", "x = 5"),
    ("The answer is: (1, 2)", "(1, 2)"),
    ("The answer is: \\sqrt{2}\nBecause 5.", r"\sqrt{2}"),
    ("The answer is:7", "7"),
    ("The answer is:  7  ", "7"),
    ("The answer is: ", None),
    ("The answer is: .", None),
    ("The answer is: 50%", "50%"),
    ("The answer is: \\text{east}", r"\text{east}"),
    ("The answer is: 10 cm", "10 cm"),
    ("Final answer: 12", "12"),
    ("The answer is: p - q.", "p - q"),
    ("The answer is: €5", "€5"),
    ("The answer is: 12,34", "12,34"),
    ("the final answer is 8", "8"),
    ("nothing is said", None),
    ("", None),
    ("42", None),
]


@pytest.mark.parametrize(("text", "answer"), FINAL)
def test_final_answers(text: str, answer: str | None) -> None:
    assert EXTRACTORS["math"](text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is: 42.\nMore. text", "42"),
        ("The answer is: 1. The answer is: 3.5.", "3.5"),
        ("The answer is: 4\nQED", "4\nQED"),  # only a stop ends it
        ("\\boxed{4}", None),
        ("the answer is: 4", None),
        ("The answer is: ", ""),
        ("The answer is: $4$", "$4$"),
    ],
)
def test_final_answers_as_released(text: str, answer: str | None) -> None:
    assert EXTRACTORS["math_lora_sb_released"](text) == answer


@pytest.mark.parametrize(
    ("answer", "truth", "meant", "released"),
    [
        (r"\dfrac12", r"\frac{1}{2}", True, True),
        ("1/2", r"\frac{1}{2}", True, True),
        ("0.5", r"\frac{1}{2}", True, True),
        (r"\frac43", r"\frac{4}{3}", True, True),
        (r"11\sqrt2", r"11 \sqrt{2}", True, True),
        ("x=5", "5", True, True),
        ("1,234", "1234", True, True),
        ("10,000", "10000", True, True),
        (r"90^\circ", "90", True, True),
        (r"10\%", "10", True, True),
        (".5", "0.5", True, True),
        ("2.50", "2.5", True, True),
        (r"\$18", "18", True, True),
        (r"10 \text{ cm}", "10", True, True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", True, True),
        ("25", "0.25", False, True),  # a factor of 100 is forgiven
        ("3.14159", "3.1416", False, True),  # as is a relative error of 1e-4
        ("(1,2)", "1,2", False, True),  # and brackets
        ("7", "8", False, False),
        ("1,2", "12", False, True),  # and a comma in a number
        ("-5", "5", False, False),
        ("x+1", "1+x", True, False),  # the released code's algebra is not run
        ("__import__('os').system('true')", "5", False, False),
    ],
)
def test_mathematics_compared(answer: str, truth: str, meant: bool, released: bool) -> None:
    assert (
        COMPARERS["math"](answer, truth),
        COMPARERS["math_lora_sb_released"](answer, truth),
    ) == (meant, released)


def test_every_real_answer_is_found_in_its_solution_and_equals_itself() -> None:
    rows = [
        json.loads(line)
        for line in shared_data("math", "math500_test.jsonl").read_text().splitlines()
    ]
    wrong = [
        row["unique_id"]
        for row in rows
        if not COMPARERS["math"](EXTRACTORS["math"](row["solution"]), row["answer"])
    ]
    assert wrong == [] and len(rows) == 500
    assert all(
        normal_form(normal_form(row["answer"])) == normal_form(row["answer"]) for row in rows
    )


def test_every_real_gsm8k_answer_is_read() -> None:
    answers = [
        json.loads(line)["answer"]
        for line in shared_data("gsm8k", "test.jsonl").read_text().splitlines()
    ]
    expected = [str(int(answer.split("#### ")[1].replace(",", ""))) for answer in answers]
    assert [EXTRACTORS["gsm8k_lora_ga"](answer) for answer in answers] == expected
    released = [re.search(r"####\s*(\d+)", answer) for answer in answers]
    misread = sum(
        found is None or found[1] != truth for found, truth in zip(released, expected, strict=True)
    )
    ours = [EXTRACTORS["gsm8k_lora_ga_released"](answer) for answer in answers]
    assert misread == sum(a != b for a, b in zip(ours, expected, strict=True)) == 16


# What follows in a text, with {0} and {1} for a benchmark's first two words; the answer; the answer
# in any case.
WORDS = [
    ("the correct answer is {0}", "{0}", "{0}"),
    ("{1}", "{1}", "{1}"),
    ("{1} or {0}", "{1}", "{1}"),  # the first
    ("not{0}!", "{0}", "{0}"),  # inside another word
    ("  {0}\n{1}", "{0}", "{0}"),
    ("{0upper}", None, "{0}"),
    ("{0upper} {1}", "{1}", "{0}"),
    ("none of them", None, None),
    ("", None, None),
]


@pytest.mark.parametrize(("text", "exact", "lower"), WORDS)
@pytest.mark.parametrize("benchmark", COMMONSENSE_WORDS)
def test_words(benchmark: str, text: str, exact: str | None, lower: str | None) -> None:
    first, second = COMMONSENSE_WORDS[benchmark][:2]

    def filled(pattern: str | None) -> str | None:
        return pattern and pattern.replace("{0upper}", first.upper()).replace("{0}", first).replace(
            "{1}", second
        )

    assert EXTRACTORS[f"{benchmark}_first"](filled(text) or "") == filled(exact)
    assert EXTRACTORS[f"{benchmark}_first_lower"](filled(text) or "") == filled(lower)


@pytest.mark.parametrize(
    "benchmark",
    ["boolq", "piqa", "social_i_qa", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa"],
)
def test_words_are_those_of_the_real_answers(benchmark: str) -> None:
    rows = json.loads(shared_data("commonsense", benchmark, "test.json").read_text())
    assert all(EXTRACTORS[f"{benchmark}_first"](row["output"]) == row["answer"] for row in rows)
    assert {row["answer"] for row in rows} <= set(COMMONSENSE_WORDS[benchmark])


BODY = "def f(x):\n    return x + 1"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (BODY, BODY),
        (BODY + "\n```\nThis adds one.", BODY),
        ("```python\n" + BODY + "\n```\nThis adds one.", BODY),
        ("Here it is:\n```python\n" + BODY + "\n```", BODY),
        ("```\n" + BODY + "\n```", BODY),
        (BODY + "\n```\n\n```python\nprint(1)\n```", BODY),
        ("    def f(x):\n        return x + 1", BODY),
        ("def f(x):\n\treturn x + 1", BODY),
        ("    return x + 1\n```", "    return x + 1"),
        ("import math\n\ndef f(x):\n    return x", "import math\n\ndef f(x):\n    return x"),
        ("@cache\ndef f(x):\n    return x", "@cache\ndef f(x):\n    return x"),
        ("", None),
        ("```", None),
    ],
)
def test_code(text: str, meant: str | None) -> None:
    assert EXTRACTORS["code"](text) == meant


@pytest.mark.parametrize(
    ("text", "released"),
    [
        (BODY, BODY),
        (BODY + "\n```\nThis adds one.", BODY + "\nThis adds one."),  # no longer Python
        ('def f(x):\n    """Add\n    one."""\n\n    return x + 1', BODY),
        (
            "def f(x):\n  if x:\n     return 1\n  return 2",
            "def f(x):\n    if x:\n        return 1\n    return 2",
        ),
        ("  def f(x):\n      return x + 1", BODY),
        ("    return 1", "    return 1"),
        ("def f(x):\n    return g(x,\n             1)", "def f(x):\n    return g(x,\n        1)"),
        ("", None),
    ],
)
def test_code_as_released(text: str, released: str | None) -> None:
    assert EXTRACTORS["code_released"](text) == released


def test_nothing_takes_long_on_a_long_text() -> None:
    texts = [
        "1," * 50_000,
        "(" * 100_000,
        "\\boxed{" * 20_000,
        "The answer is: " * 20_000,
        "#" * 100_000,
        "    def\n" * 20_000,
        '"""' * 33_333,
    ]
    for name, extractor in EXTRACTORS.items():
        for text in texts:
            started = time.monotonic()
            extractor(text)
            assert time.monotonic() - started < 2, (name, text[:20])


def test_nothing_is_never_right() -> None:
    assert not any(comparer(None, "") or comparer(None, "0") for comparer in COMPARERS.values())
    assert COMPARERS["number"]("1/3", "1/3") and not COMPARERS["number"]("x", "x")
    assert COMPARERS["gsm8k_cot"]("1,234.", "1234") and COMPARERS["gsm8k_cot"](
        "$5", "Working.\n#### 5"
    )
    assert last_boxed("x") is None
