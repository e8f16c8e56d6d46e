"""MATH: where the answer of a text is, and whether it is the truth in another spelling.

A text is never evaluated as Python, and by a computer-algebra system only in a process of its own,
with limits of time and memory (`loraexp.scoring.algebra`).
"""

from __future__ import annotations

import re
from math import isclose, isfinite

from loraexp.scoring.algebra import ALGEBRA
from loraexp.scoring.numbers import whole_number

# --------------------------------------------------------------------------------------------------
# where it is


def last_boxed(text: str) -> str | None:
    """What the last `\\boxed{…}` (or `\\fbox{…}`, or `\\boxed 7`) holds, braces nested in it and
    all."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].split("box", 1)[1].removeprefix("ed")
    if not rest.startswith("{"):
        words = rest.split("$")[0].split()
        return words[0] if words and rest[:1] == " " else None
    depth = 0
    for position, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:position]
    return None


_FINAL = re.compile(r"(?:[Tt]he (?:final )?answer is|[Ff]inal [Aa]nswer)\s*:?\s*")


def final_answer(text: str) -> str | None:
    """The last box, or else the rest of the line after the last "The answer is", without `$` and
    the final stop."""
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed.strip() or None
    ends = [found.end() for found in _FINAL.finditer(text)]
    if not ends:
        return None
    line = text[ends[-1] :].partition("\n")[0].partition(". I hope")[0].strip()
    answer = line.removesuffix(".").strip().strip("$").strip()
    return answer or None


def final_answer_released(text: str) -> str | None:
    """LoRA-SB: after the last "The answer is: ", up to a stop that ends a line; a box is not looked
    for."""
    if "The answer is: " not in text:
        return None
    after = text.rpartition("The answer is: ")[2]
    return after.split(".\n")[0].strip().removesuffix(".").strip()


# --------------------------------------------------------------------------------------------------
# is it the same?

_SYMBOLS = {
    "π": "\\pi",
    "∞": "\\infty",
    "∪": "\\cup",
    "∩": "\\cap",
    "−": "-",
    "–": "-",
    "×": "\\cdot",
    "·": "\\cdot",
    "≤": "\\le",
    "≥": "\\ge",
    "≠": "\\ne",
    "±": "\\pm",
    "√": "\\sqrt",
    "°": "",
    "\\leq": "\\le",
    "\\geq": "\\ge",
    "\\neq": "\\ne",
    "\\degree": "",
    "{,}": ",",
    "\\times": "\\cdot",
    "\\lbrace": "\\{",
    "\\rbrace": "\\}",
}
_WRAPPED = re.compile(
    r"\s*(?:\$\$?(?P<a>.*?)\$\$?|\\\((?P<b>.*)\\\)|\\\[(?P<c>.*)\\\]|\\boxed\{(?P<d>.*)\})"
    r"\s*[.,;]?\s*",
    re.DOTALL,
)
_TEXT = r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{(?P<inside>[^{}]*)\}"
# after a value, not in its place
_UNIT = re.compile(rf"(?<=[\w}})\]])\s*{_TEXT}(?:\s*\^\s*\{{?\d\}}?)?\s*$")
_NOT_UNITS = r"(?!(?:pi|sqrt|sin|cos|tan|cot|log|ln|exp|infty|i|e|and|or|cup|mod)\b)"
_PLAIN_UNIT = re.compile(
    rf"^(-?\\?\$?[\d.,]+(?:/\d+)?)\s*(?:{_NOT_UNITS}[A-Za-z]{{2,}}\.?\s*)+(?:\^\s*\{{?\d\}}?)?$"
)
_SPACE = re.compile(r"\\[!,;: ]|\\q?quad|~|\s")
_SIZE = re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\s*\.?")


def unwrapped(text: str) -> str:
    """What stands in `$…$`, `\\(…\\)`, `\\[…\\]` or a box, without the stop that ends a
    sentence."""
    text = text.strip()
    while (found := _WRAPPED.fullmatch(text)) is not None:
        inside = next(part for part in found.groups() if part is not None)
        if inside.strip() == text or "$" in inside.replace("\\$", ""):
            break
        text = inside.strip()
    return re.sub(r"(?<!\\)[.,;]+\s*$", "", text).strip()


def normal_form(text: str) -> str:
    """A MATH answer with the spelling that does not matter taken out.

    Wrappers, spaces, sizes of brackets, `\\dfrac`, degrees, dollars, percent, the unit after a
    value, a leading `x =`, `.5` for `0.5`, `\\frac12` for `\\frac{1}{2}`, a sign inside a fraction,
    `\\text{ east}` for `east`, π for `\\pi`.
    """
    text = unwrapped(text)
    for old, new in _SYMBOLS.items():
        if old[0] == "\\":  # a word of TeX ends where its letters end
            text = new.join(re.split(re.escape(old) + r"(?![a-zA-Z])", text))
        else:
            text = text.replace(old, new)
    text = _SIZE.sub("", text)
    text = re.sub(
        r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\?%|\\?\$|(?<=\d)\s*(?:degrees?|percent)\b", "", text
    )
    text = _PLAIN_UNIT.sub(r"\1", _UNIT.sub("", text.strip()))
    text = re.sub(_TEXT, lambda found: found["inside"].strip(), text)
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left.strip()) <= 2:
        text = right
    text = re.sub(
        r"(?<=\d) +(\d+)/(\d+)", r"\\frac{\1}{\2}", re.sub(r"\\[dtc]frac", r"\\frac", text)
    )
    text = _SPACE.sub("", text)
    text = re.sub(r"(^|[^\w.])\.(?=\d)", r"\g<1>0.", text)
    text = re.sub(r"\\sqrt(?!\{|\[)(\\?\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac(?!\{)(\w)", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac\{[^{}]*\})(?!\{)(\w)", r"\1{\2}", text)
    text = re.sub(r"\\frac\{-([^{}+-]+)\}", r"-\\frac{\1}", text)
    text = re.sub(
        r"_\{(\w)\}|\^\{(\w)\}", lambda found: f"_{found[1]}" if found[1] else f"^{found[2]}", text
    )
    text = re.sub(r"^\(([A-Za-z])\)$", r"\1", text)
    return text.casefold() if re.fullmatch(r"[A-Za-z]{2,}", text) else text


_BASE = re.compile(r"[\d\w]_\{?\d")
_OPEN = re.compile(r"^(\\\{|[(\[])")


def _balanced(text: str) -> bool:
    """Does no brace close before it opens, or stay open? What is put in a box must not leave it."""
    depth = 0
    for character in re.sub(r"\\[{}]", "", text):
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0


def same_mathematics(answer: str, truth: str) -> bool:
    """The same normal form; of two numbers the same value, exactly; of other expressions what
    algebra finds equal.

    Numbers in another base are the same only in the same base, and (1, 2) is not 1, 2.
    """
    mine, theirs = normal_form(answer), normal_form(truth)
    if mine == theirs:
        return mine != ""
    numbers = whole_number(mine), whole_number(theirs)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if not mine or not theirs or not _balanced(mine) or _BASE.search(mine) or _BASE.search(theirs):
        return False
    brackets = [_OPEN.match(form) for form in (mine, theirs)]
    if (
        "," in mine + theirs
        and [found and found[0].strip("\\{") for found in brackets].count(None) == 1
    ):
        return False
    words = [re.fullmatch(r"[A-Za-z]{2,}", form) for form in (mine, theirs)]
    return not any(words) and ALGEBRA.equal(mine, theirs)


# --------------------------------------------------------------------------------------------------
# as released


def normal_form_released(text: str) -> str:
    """After Hendrycks et al. 2021, `math_equivalence`, as LoRA-SB's evaluation has it.

    Spaces, `\\left \\right \\!`, `\\dfrac \\tfrac`, degrees, dollars, percent, what follows
    `\\text{ `, a leading `x =`, `.5` for `0.5`, `\\frac12` and `1/2` for `\\frac{1}{2}`, `\\sqrt3`
    for `\\sqrt{3}`; and 0.5 is `\\frac{1}{2}`.
    """
    for old, new in (
        ("\n", ""),
        ("\\!", ""),
        ("\\\\", "\\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\left", ""),
    ):
        text = text.replace(old, new)
    for gone in ("\\right", "^{\\circ}", "^\\circ", "\\$", "\\%", "%"):
        text = text.replace(gone, "")
    text = text.split("\\text{ ")[0]
    text = re.sub(r"(^|[ {])\.", r"\g<1>0.", text)
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left.strip()) <= 2:
        text = right
    text = re.sub(r"\\sqrt(?!\{)\s*(\S)", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac(?!\{)(\S)(?!\{)(\S)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac(?!\{)(\S)(?=\{)", r"\\frac{\1}", text)
    text = re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", text)
    return "\\frac{1}{2}" if text == "0.5" else text


def _decimal(text: str) -> float | None:
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if isfinite(value) else None


def near_released(answer: str, truth: str) -> bool:
    """LoRA-SB's `math_equal` without its symbolic step: a relative 1e-4, and a factor of 100
    forgiven either way."""
    value, expected = _decimal(answer), _decimal(truth)
    if value is not None and expected is not None:
        return any(
            isclose(near, value, rel_tol=1e-4)
            for near in (expected / 100, expected, expected * 100)
        )
    bare = str.maketrans("", "", "{}()")
    return answer.translate(bare) == truth.translate(bare) != ""


def same_mathematics_released(answer: str, truth: str) -> bool:
    mine, theirs = normal_form_released(answer), normal_form_released(truth)
    return mine == theirs or near_released(mine, theirs)
