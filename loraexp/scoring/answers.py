"""What a model answered: named, versioned readers of its text, and named comparers of an answer with the truth.

A name that ends in `_released` reads as the authors' code does, with its mistakes; the same name without that ending
reads what was meant. No text of a model is ever evaluated here, neither as Python nor by a computer-algebra system.
A reader's version changes when any string would be read differently: it goes into the record.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import isclose, isfinite

Read = Callable[[str], str | None]
Compare = Callable[[str, str], bool]

# The words that answer each benchmark of Commonsense170K, as its prompts ask for them (Hu et al. 2023, LLM-Adapters).
COMMONSENSE_WORDS: dict[str, tuple[str, ...]] = {
    "boolq": ("true", "false"),
    "piqa": ("solution1", "solution2"),
    "social_i_qa": ("answer1", "answer2", "answer3", "answer4", "answer5"),
    "hellaswag": ("ending1", "ending2", "ending3", "ending4"),
    "winogrande": ("option1", "option2"),
    "ARC-Easy": ("answer1", "answer2", "answer3", "answer4", "answer5"),
    "ARC-Challenge": ("answer1", "answer2", "answer3", "answer4", "answer5"),
    "openbookqa": ("answer1", "answer2", "answer3", "answer4", "answer5"),
}


@dataclass(frozen=True)
class Extractor:
    """`extractor(text)` is the answer in its plain form (a number as `3`, `-0.5` or `3/4`), or None where there is none."""

    name: str
    version: int
    read: Read
    about: str

    def __call__(self, text: str) -> str | None:
        return self.read(text)


@dataclass(frozen=True)
class Comparer:
    """`comparer(answer, truth)`: are they the same? No answer is never right."""

    name: str
    version: int
    same: Compare
    about: str

    def __call__(self, answer: str | None, truth: str) -> bool:
        return answer is not None and self.same(answer, truth)


# ---------------------------------------------------------------------------------------------------- numbers

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)|\d+)"  # 1234, 1,234,567 and 12,34,567
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{{1,2}}(?!\d))?"
_NUMBER = re.compile(
    r"(?P<sign>(?:^\s*[-+−–]\s*|(?<![\w)])[-+−–])?)(?:\\?[$€£¥₹]\s*(?P<late>[-−–]?))?"
    rf"(?:\\[dt]?frac\{{(?P<over>{_DECIMAL})\}}\{{(?P<under>{_DECIMAL})\}}"
    rf"|(?:(?P<whole>\d+) +)?(?P<top>{_DECIMAL}) ?/ ?(?P<bottom>{_DECIMAL})"
    rf"|(?P<plain>{_DECIMAL}))"
)


def first_number(text: str) -> Fraction | None:
    """The first number of a text: signs, thousands separators, decimals, currency, fractions, `\\frac{a}{b}`.

    `-$1,234.50` is −1234.5, `1 1/2` is 3/2, `50%` is 50; a division by zero is no number.
    """
    found = _NUMBER.search(text.replace("{,}", ",").replace("\\!", ""))
    if found is None:
        return None

    def value(group: str) -> Fraction:
        return Fraction(found[group].replace(",", ""))

    if found["plain"]:
        size = value("plain")
    else:
        top, bottom = ("over", "under") if found["over"] else ("top", "bottom")
        if value(bottom) == 0:
            return None
        size = value(top) / value(bottom) + (value("whole") if found["whole"] else 0)
    negative = (found["sign"] + (found["late"] or "")).strip() in ("-", "−", "–")
    return -size if negative else size


def plain(value: Fraction) -> str:
    """A number in one spelling: `18`, `-0.5`, or `1/3` where decimals do not end."""
    reduced = value.denominator
    for prime in (2, 5):
        while reduced % prime == 0:
            reduced //= prime
    if reduced != 1 or value.denominator == 1:
        return str(value)
    digits = 0
    while (value * 10**digits).denominator != 1:
        digits += 1
    whole = str(abs(int(value * 10**digits))).zfill(digits + 1)
    return f"{'-' if value < 0 else ''}{whole[:-digits]}.{whole[-digits:]}"


def _number_in(text: str | None) -> str | None:
    value = None if text is None else first_number(text)
    return None if value is None else plain(value)


def _after_first(text: str, marker: str) -> str | None:
    return text.partition(marker)[2] if marker in text else None


def _after_last(text: str, marker: str) -> str | None:
    return text.rpartition(marker)[2] if marker in text else None


def _hashes_released(text: str) -> str:
    found = re.search(r"####\s*(\d+)", text)
    return str(int(found[1])) if found else "0"


_SB_NUMBER = re.compile(r"[\-+]?\d*[\.,/]?\d+")


def _rounded_released(text: str, zero_below: bool) -> str | None:
    """LoRA-SB's number, rounded to an integer (ties to even); LoRA-DA's where `zero_below` is false."""
    found = _SB_NUMBER.search(text)
    if found is None:
        return None
    digits = found[0].replace(",", "")
    try:
        if "/" not in digits:
            value = float(digits)
        elif zero_below and digits.split("/")[1] == "0":
            value = float(digits.split("/")[0])
        else:
            value = float(Fraction(digits))
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
    return str(round(value)) if isfinite(value) else None


def _answer_is_released(text: str) -> str | None:
    after = _after_last(text, "The answer is: ")
    return None if after is None else _rounded_released(after.strip(), zero_below=True)


def _lora_da(text: str) -> str | None:
    return _number_in(_after_last(text, "####") if "####" in text else _after_last(text, "The answer is: "))


def _lora_da_released(text: str) -> str | None:
    after = _after_last(text, "####") if "####" in text else _after_last(text, "The answer is: ")
    return None if after is None else _rounded_released(after.strip(), zero_below=False)


def _cot_strict(text: str) -> str | None:
    found = re.search(r"The answer is (\-?[0-9\.\,]+).", text)
    return found[1].strip() if found else None


def _cot_flexible(text: str) -> str | None:
    found = [first or second for first, second in re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)]
    return found[-1].strip() if found else None


# ---------------------------------------------------------------------------------------------------- mathematics


def last_boxed(text: str) -> str | None:
    """What the last `\\boxed{…}` (or `\\fbox{…}`, or `\\boxed 7`) holds, braces nested in it and all."""
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


def _final_answer(text: str) -> str | None:
    """The last box, or else the rest of the line after the last "The answer is", without `$` and the final stop."""
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed.strip() or None
    ends = [found.end() for found in _FINAL.finditer(text)]
    if not ends:
        return None
    line = text[ends[-1] :].partition("\n")[0].partition(". I hope")[0].strip()
    answer = line.removesuffix(".").strip().strip("$").strip()
    return answer or None


def _final_answer_released(text: str) -> str | None:
    """LoRA-SB: after the last "The answer is: ", up to a stop that ends a line; a box is not looked for."""
    after = _after_last(text, "The answer is: ")
    return None if after is None else after.split(".\n")[0].strip().removesuffix(".").strip()


def normal_form(text: str) -> str:
    """A MATH answer with the spelling that does not matter taken out (after Hendrycks et al. 2021, `math_equivalence`).

    Spaces, `\\left \\right \\!`, `\\dfrac \\tfrac`, degrees, dollars, percent, units in `\\text{ …}`, a leading `x =`,
    `.5` for `0.5`, `\\frac12` and `1/2` for `\\frac{1}{2}`, `\\sqrt3` for `\\sqrt{3}`; and 0.5 is `\\frac{1}{2}`.
    """
    for old, new in (("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", "")):
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


def _same_math(answer: str, truth: str) -> bool:
    mine, theirs = normal_form(answer), normal_form(truth)
    if mine == theirs:
        return True
    both = _grouped(mine), _grouped(theirs)
    return None not in both and both[0] == both[1]


_WHOLE_NUMBER = re.compile(rf"-?{_DECIMAL}|-?\\frac\{{\d+\}}\{{\d+\}}")


def _grouped(text: str) -> Fraction | None:
    """A normal form that is one number and nothing else, thousands separators allowed."""
    return first_number(text) if _WHOLE_NUMBER.fullmatch(text) else None


def _same_math_released(answer: str, truth: str) -> bool:
    mine, theirs = normal_form(answer), normal_form(truth)
    return mine == theirs or _near_released(mine, theirs)


def _near_released(answer: str, truth: str) -> bool:
    """LoRA-SB's `math_equal` without its symbolic step: a relative 1e-4, and a factor of 100 forgiven either way."""
    value, expected = _decimal(answer), _decimal(truth)
    if value is not None and expected is not None:
        return any(isclose(near, value, rel_tol=1e-4) for near in (expected / 100, expected, expected * 100))
    bare = str.maketrans("", "", "{}()")
    return answer.translate(bare) == truth.translate(bare) != ""


def _same_number(answer: str, truth: str) -> bool:
    return _number_in(answer) == _number_in(truth) is not None


def _same_cot(answer: str, truth: str) -> bool:
    def stripped(text: str) -> str:
        for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"):
            text = re.sub(pattern, "", text)
        return text.lower()

    return stripped(answer) == stripped(truth)


# ---------------------------------------------------------------------------------------------------- words


def first_word(words: Iterable[str], text: str, lower: bool = False) -> str | None:
    """The first of the words in a text, wherever it stands, also inside another word (as the released code does)."""
    found = re.search("|".join(map(re.escape, words)), text.lower() if lower else text)
    return found[0] if found else None


# ---------------------------------------------------------------------------------------------------- code


def _code(text: str) -> str | None:
    """The first Python of an answer: of a fenced block its inside, else all up to a closing fence; tabs are 4 spaces."""
    opened = re.search(r"```(?:python|py|Python)?[ \t]*\n", text)
    before = text[: opened.start()] if opened else text
    # The prompt has opened a block already: code stands before the first fence unless that part is empty or prose.
    inside = text[opened.end() :] if opened and not re.search(r"^\s*(?:def|class|return|from|import|for|if)\b", before, re.M) else text
    inside = inside.partition("```")[0].expandtabs(4)
    lines = [line.rstrip() for line in inside.splitlines()]
    heads = [line for line in lines if re.match(r"\s*(?:async\s+def|def|class|from|import|@)\b", line) or line.lstrip()[:1] == "@"]
    margin = len(heads[0]) - len(heads[0].lstrip()) if heads else 0
    lines = [line[margin:] if line[:margin].isspace() or not margin else line.lstrip() for line in lines]
    return "\n".join(lines).strip("\n") or None


_STRINGS = re.compile(r'(""".*?"""|\'\'\'.*?\'\'\')', re.DOTALL)


def _code_released(text: str) -> str | None:
    """LoRA-GA and LoRA-One: fences and triple-quoted strings removed wherever they are, lines indented anew.

    The distinct indentations are ranked, and the n-th one deeper than the first line with "def" in it becomes n levels
    of 4 spaces: text after the block stays in the program, and continued lines move.
    """
    text = _STRINGS.sub("", text.replace("```", "").replace("\t", "    "))
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    depths = [len(line) - len(line.lstrip(" ")) for line in lines]
    base = next((depth for line, depth in zip(lines, depths, strict=True) if "def" in line), 0)
    deeper = sorted({depth for depth in depths if depth > base})
    level = {depth: deeper.index(depth) + 1 if depth > base else 0 for depth in depths}
    return "\n".join("    " * level[depth] + line.lstrip() for line, depth in zip(lines, depths, strict=True))


# ---------------------------------------------------------------------------------------------------- the names


def _whole(text: str) -> str | None:
    return text.strip() or None


def _extractors() -> list[Extractor]:
    made = [
        Extractor("text", 1, _whole, "the whole text"),
        Extractor("gsm8k_lora_ga", 1, lambda t: _number_in(_after_first(t, "####")), "the first number after the first ####"),
        Extractor(
            "gsm8k_lora_ga_released",
            1,
            _hashes_released,
            "digits right after a ####: 1,234 is 1, $5 and -3 and no answer are 0, 2.50 is 2",
        ),
        Extractor(
            "gsm8k_lora_sb",
            1,
            lambda t: _number_in(_after_last(t, "The answer is: ")),
            'the first number after the last "The answer is: "',
        ),
        Extractor(
            "gsm8k_lora_sb_released",
            1,
            _answer_is_released,
            'after the last "The answer is: ": one separator only (1,234,567 is 1234), rounded to an integer, 5/0 is 5',
        ),
        Extractor("gsm8k_lora_da", 1, _lora_da, 'the first number after the last ####, or else after the last "The answer is: "'),
        Extractor(
            "gsm8k_lora_da_released", 1, _lora_da_released, "the same places; one separator only, rounded to an integer, 5/0 is nothing"
        ),
        Extractor("gsm8k_cot_strict", 1, _cot_strict, "lm-eval gsm8k_cot 3.0, strict-match"),
        Extractor("gsm8k_cot_flexible", 1, _cot_flexible, "lm-eval gsm8k_cot 3.0, flexible-extract"),
        Extractor("math", 1, _final_answer, 'the last \\boxed{}, or else what follows the last "The answer is"'),
        Extractor("math_boxed", 1, last_boxed, "the last \\boxed{}"),
        Extractor("math_lora_sb_released", 1, _final_answer_released, 'after the last "The answer is: " only; a box is not looked for'),
        Extractor("code", 1, _code, "the first block of Python, its margin removed"),
        Extractor("code_released", 1, _code_released, "all text without fences and docstrings, indented anew by rank"),
    ]
    for benchmark, words in COMMONSENSE_WORDS.items():
        choices = "|".join(words)
        made += [
            Extractor(f"{benchmark}_first", 1, lambda t, w=words: first_word(w, t), f"first of {choices}, as it is written"),  # type: ignore[misc]
            Extractor(f"{benchmark}_first_lower", 1, lambda t, w=words: first_word(w, t, lower=True), f"first of {choices}, in any case"),  # type: ignore[misc]
        ]
    return made


EXTRACTORS = {extractor.name: extractor for extractor in _extractors()}
COMPARERS = {
    comparer.name: comparer
    for comparer in [
        Comparer("exact", 1, lambda answer, truth: answer == truth, "the same characters"),
        Comparer("number", 1, _same_number, "the same rational number"),
        Comparer("near_released", 1, _near_released, "relative 1e-4, and off by a factor of 100 counts as right"),
        Comparer("gsm8k_cot", 1, _same_cot, "lm-eval's exact match without commas, dollars, a final stop and case"),
        Comparer("math", 1, _same_math, "the same normal form, or the same number"),
        Comparer(
            "math_lora_sb_released",
            1,
            _same_math_released,
            "the same normal form, or near_released of it; differs from the released code: no symbolic step, which would evaluate the text",
        ),
    ]
}
