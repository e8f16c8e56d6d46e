"""MATH-500's truths as people and models write them: spellings that mean the same, and changes that
do not.

python -m tests.support.spellings      what each way of comparing finds, in a table
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from functools import cache

from tests.support.helpers import shared_data

Change = Callable[[str], str]
FRACTION = r"\\[dt]?frac\{([\w\\ ]+)\}\{([\w\\ ]+)\}"


@cache
def truths() -> list[str]:
    return [
        json.loads(line)["answer"]
        for line in shared_data("math", "math500_test.jsonl").read_text().splitlines()
    ]


def slashes(text: str) -> str:
    return re.sub(
        rf"(\d)? ?{FRACTION}", lambda m: f"{m[1] + ' ' if m[1] else ''}{m[2]}/{m[3]}", text
    )


def sign_moved(text: str) -> str:
    moved = re.sub(r"^-\\d?frac\{(\w+)\}", r"\\frac{-\1}", text)
    return moved if moved != text else re.sub(r"\\frac\{-(\w+)\}", r"-\\frac{\1}", text)


def grouped(separator: str) -> Change:
    def change(text: str) -> str:
        return re.sub(
            r"(?<![\d.^_{])\d{4,}(?![\d_])",
            lambda m: f"{int(m[0]):,}".replace(",", separator),
            re.sub(r",(\\!)? ?", "", text),
        )

    return lambda text: change(text) if re.fullmatch(r"(\\\$)?\d+(,(\\!)? ?\d{3})*", text) else text


def decimals(text: str) -> str:
    found = re.fullmatch(r"(-?)\\[dt]?frac\{?(\d+?)\}?\{?(\d+)\}?", text)
    if not found:
        return text
    value = Fraction(int(found[2]), int(found[3]))
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return f"{found[1]}{float(value)!r}" if rest == 1 else text


def plain_text(text: str) -> str:
    for old, new in (
        ("^\\circ", " degrees"),
        ("\\%", "%"),
        ("\\$", "$"),
        ("\\pi", "π"),
        ("\\infty", "∞"),
        ("\\cup", "∪"),
        ("\\le ", "≤ "),
    ):
        text = text.replace(old, new)
    return re.sub(r"\\(?:text|mbox)\{([^}]*)\}", r"\1", text)


def brackets(text: str) -> str:
    if "\\left" in text:
        return text.replace("\\left", "").replace("\\right", "")
    return text.replace("(", "\\left(").replace(")", "\\right)")


SPELLINGS: dict[str, Change] = {
    "itself": lambda text: text,
    "in dollars": lambda text: f"${text}$",
    r"in \( \)": lambda text: rf"\({text}\)",
    "with a final stop": lambda text: f"{text}.",
    r"\dfrac": lambda text: text.replace("\\frac", "\\dfrac"),
    r"\left and \right": brackets,
    "a/b": slashes,
    "the sign in the fraction": sign_moved,
    "58{,}500": grouped("{,}"),
    r"58\,500": grouped("\\,"),
    "58 500": grouped(" "),
    "plain text": plain_text,
    "decimals": decimals,
    "spaces around signs": lambda text: re.sub(r"(?<=\w)([+=])(?=\w)", r" \1 ", text),
    "x = …": lambda text: (
        text if "=" in text or "\\text" in text or re.search(r"[,\\]", text) else f"x = {text}"
    ),
}


def last_digit(text: str) -> str:
    numbers = list(re.finditer(r"(?<!\^)\d+", re.sub(r"\}\^\d", lambda m: "}^" + "a", text)))
    return (
        text[: numbers[-1].start()] + str(int(numbers[-1][0]) + 1) + text[numbers[-1].end() :]
        if numbers
        else text
    )


def negated(text: str) -> str:
    if text.startswith("-"):
        return text[1:]
    return (
        f"-{text}"
        if re.fullmatch(r"[\d.]+|\\frac\{\w+\}\{\w+\}|\d*\\sqrt\{\d+\}|\\pi", text) and text != "0"
        else text
    )


def swapped(text: str) -> str:
    found = re.fullmatch(r"(\(|\\left ?\()([^,]*),([^,]*)(\)|\\right ?\))", text)
    return (
        f"{found[1]}{found[3]},{found[2]}{found[4]}"
        if found and found[2].strip() != found[3].strip()
        else text
    )


CHANGES: dict[str, Change] = {
    "the last number plus one": last_digit,
    "the sign": negated,
    "the order of a pair": swapped,
    "another word": lambda text: re.sub(r"^\\text\{.*\}$", r"\\text{ west}", text),
    "times 100": lambda text: str(int(text) * 100) if text.isdecimal() and text != "0" else text,
    "over 100": lambda text: (
        str(Fraction(int(text), 100)) if text.isdecimal() and text != "0" else text
    ),
    "plus 1e-5": lambda text: f"{text}.00001" if text.isdecimal() else text,
    "another base": lambda text: re.sub(
        r"(\d)_\{?(\d)\}?", lambda m: f"{m[1]}_{int(m[2]) + 1}", text
    ),
    "an end of an interval": lambda text: (
        re.sub(r"^\(([^,]*\\infty|-?\d+), ?([^,]*)([)\]])$", r"[\1,\2)", text)
        if "infty" in text
        else text
    ),
    "without its last": lambda text: (
        text.rpartition(",")[0]
        if re.fullmatch(r"[^(\[]*,[^(\[]*", text) and "\\!" not in text
        else text
    ),
}


def main() -> int:
    """Three ways of comparing on all spellings, and on all changes."""
    from loraexp.scoring.algebra import Algebra
    from loraexp.scoring.mathematics import normal_form, same_mathematics, same_mathematics_released
    from loraexp.scoring.numbers import whole_number

    asked = Algebra()

    def by_form(answer: str, truth: str) -> bool:
        forms = normal_form(answer), normal_form(truth)
        numbers = [whole_number(form) for form in forms]
        return forms[0] == forms[1] or numbers[0] is not None and numbers[0] == numbers[1]

    ways = {
        "as released": same_mathematics_released,
        "normal form": by_form,
        "math-verify": asked.equal,
        "both": same_mathematics,
    }
    for title, changes, wanted in (
        ("equal, accepted", SPELLINGS, True),
        ("not equal, accepted", CHANGES, False),
    ):
        print(f"{title:<28}{'cases':>7}" + "".join(f"{way:>13}" for way in ways))
        for name, change in changes.items():
            cases = [
                (change(truth), truth) for truth in truths() if wanted or change(truth) != truth
            ]
            found = [sum(same(answer, truth) for answer, truth in cases) for same in ways.values()]
            print(
                f"{name:<28}{len(cases):>7}" + "".join(f"{count:>13}" for count in found),
                flush=True,
            )
    for way, same in ways.items():
        began = time.perf_counter()
        for truth in truths():
            same(SPELLINGS["a/b"](truth), truth)
        print(f"{way:<28}{(time.perf_counter() - began) * 2:.2f} ms a comparison")
    return 0


if __name__ == "__main__":
    sys.exit(main())
