"""What a model answered: named, versioned readers of its text, and named comparers of an answer
with the truth.

A name that ends in `_released` reads as the authors' code does, with its mistakes; the same name
without that ending reads what was meant. No text of a model is ever evaluated here as Python; the
algebra that compares expressions has a process of its own, with limits. A reader's version changes
when any string would be read differently: it goes into the record.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import isfinite

from loraexp.scoring import mathematics
from loraexp.scoring.algebra import ALGEBRA
from loraexp.scoring.code import python_of
from loraexp.scoring.numbers import last_number, number_in, plain, same_number

Read = Callable[[str], str | None]
Compare = Callable[[str, str], bool]

# The words that answer each benchmark of Commonsense170K, as its prompts ask for them (Hu et al.
# 2023, LLM-Adapters).
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
    """`extractor(text)` is the answer in its plain form (a number as `3`, `-0.5` or `3/4`), or None
    where there is none."""

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
    library: str | None = None  # whose version changes verdicts as well

    def __call__(self, answer: str | None, truth: str) -> bool:
        return answer is not None and self.same(answer, truth)


# --------------------------------------------------------------------------------------------------
# GSM8K


def _after_first(text: str, marker: str) -> str | None:
    return text.partition(marker)[2] if marker in text else None


def _after_last(text: str, marker: str) -> str | None:
    return text.rpartition(marker)[2] if marker in text else None


def _hashes_released(text: str) -> str:
    found = re.search(r"####\s*(\d+)", text)
    return str(int(found[1])) if found else "0"


_SB_NUMBER = re.compile(r"[\-+]?\d*[\.,/]?\d+")


def _rounded_released(text: str, zero_below: bool) -> str | None:
    """LoRA-SB's number, rounded to an integer (ties to even); LoRA-DA's where `zero_below` is
    false."""
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
    return number_in(
        _after_last(text, "####") if "####" in text else _after_last(text, "The answer is: ")
    )


def _lora_da_released(text: str) -> str | None:
    after = _after_last(text, "####") if "####" in text else _after_last(text, "The answer is: ")
    return None if after is None else _rounded_released(after.strip(), zero_below=False)


def _last_number(text: str) -> str | None:
    value = last_number(text)
    return None if value is None else plain(value)


def _last_number_released(text: str) -> str | None:
    found = re.findall(r"-?\d+\.?\d*", text.replace(",", ""))
    return found[-1] if found else None


def _within_released(answer: str, truth: str) -> bool:
    return abs(float(answer) - float(truth)) <= 0.001


def _cot_strict(text: str) -> str | None:
    found = re.search(r"The answer is (\-?[0-9\.\,]+).", text)
    return found[1].strip() if found else None


def _cot_flexible(text: str) -> str | None:
    found = [first or second for first, second in re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)]
    return found[-1].strip() if found else None


def _same_cot(answer: str, truth: str) -> bool:
    def stripped(text: str) -> str:
        for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"):
            text = re.sub(pattern, "", text)
        return text.lower()

    return stripped(answer) == stripped(truth)


# --------------------------------------------------------------------------------------------------
# words


def first_word(words: Iterable[str], text: str, lower: bool = False) -> str | None:
    """The first of the words in a text, wherever it stands, also inside another word (as the
    released code does)."""
    found = re.search("|".join(map(re.escape, words)), text.lower() if lower else text)
    return found[0] if found else None


# --------------------------------------------------------------------------------------------------
# code

_STRINGS = re.compile(r'(""".*?"""|\'\'\'.*?\'\'\')', re.DOTALL)


def _code_released(text: str) -> str | None:
    """LoRA-GA and LoRA-One: fences and triple-quoted strings removed wherever they are, lines
    indented anew.

    The distinct indentations are ranked, and the n-th one deeper than the first line with "def" in
    it becomes n levels of 4 spaces: text after the block stays in the program, and continued lines
    move.
    """
    text = _STRINGS.sub("", text.replace("```", "").replace("\t", "    "))
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    depths = [len(line) - len(line.lstrip(" ")) for line in lines]
    base = next((depth for line, depth in zip(lines, depths, strict=True) if "def" in line), 0)
    deeper = sorted({depth for depth in depths if depth > base})
    level = {depth: deeper.index(depth) + 1 if depth > base else 0 for depth in depths}
    return "\n".join(
        "    " * level[depth] + line.lstrip() for line, depth in zip(lines, depths, strict=True)
    )


# --------------------------------------------------------------------------------------------------
# the names


def _whole(text: str) -> str | None:
    return text.strip() or None


TABLE = (
    Extractor("text", 1, _whole, "the whole text"),
    Extractor(
        "gsm8k_lora_ga",
        2,
        lambda t: number_in(_after_first(t, "####")),
        "the first number after the first ####",
    ),
    Extractor(
        "gsm8k_lora_ga_released",
        1,
        _hashes_released,
        "digits right after a ####: 1,234 is 1, $5 and -3 and no answer are 0, 2.50 is 2",
    ),
    Extractor(
        "gsm8k_lora_sb",
        2,
        lambda t: number_in(_after_last(t, "The answer is: ")),
        'the first number after the last "The answer is: "',
    ),
    Extractor(
        "gsm8k_lora_sb_released",
        1,
        _answer_is_released,
        'after the last "The answer is: ": one separator only (1,234,567 is 1234), rounded to'
        " an integer, 5/0 is 5",
    ),
    Extractor(
        "gsm8k_lora_da",
        2,
        _lora_da,
        'the first number after the last ####, or else after the last "The answer is: "',
    ),
    Extractor(
        "gsm8k_lora_da_released",
        1,
        _lora_da_released,
        "the same places; one separator only, rounded to an integer, 5/0 is nothing",
    ),
    Extractor("gsm8k_llm_adapters", 1, _last_number, "the last number"),
    Extractor(
        "gsm8k_llm_adapters_released",
        1,
        _last_number_released,
        "the last -?digits.digits once commas are gone; 3/4 is 4",
    ),
    Extractor("gsm8k_cot_strict", 1, _cot_strict, "lm-eval gsm8k_cot 3.0, strict-match"),
    Extractor("gsm8k_cot_flexible", 1, _cot_flexible, "lm-eval gsm8k_cot 3.0, flexible-extract"),
    Extractor(
        "math",
        1,
        mathematics.final_answer,
        'the last \\boxed{}, or else what follows the last "The answer is"',
    ),
    Extractor("math_boxed", 1, mathematics.last_boxed, "the last \\boxed{}"),
    Extractor(
        "math_lora_sb_released",
        1,
        mathematics.final_answer_released,
        'after the last "The answer is: " only; a box is not looked for',
    ),
    Extractor(
        "code",
        2,
        python_of,
        "the first Python, by its fences and its grammar, its margin removed",
    ),
    Extractor(
        "code_released",
        1,
        _code_released,
        "all text without fences and docstrings, indented anew by rank",
    ),
)


def first_words() -> Iterator[Extractor]:
    """Of each question of common sense: the first of its choices' words."""
    for benchmark, words in COMMONSENSE_WORDS.items():
        choices = "|".join(words)
        yield Extractor(
            f"{benchmark}_first",
            1,
            partial(first_word, words),
            f"first of {choices}, as it is written",
        )
        yield Extractor(
            f"{benchmark}_first_lower",
            1,
            partial(first_word, words, lower=True),
            f"first of {choices}, in any case",
        )


EXTRACTORS = {extractor.name: extractor for extractor in (*TABLE, *first_words())}
COMPARERS = {
    comparer.name: comparer
    for comparer in [
        Comparer("exact", 1, lambda answer, truth: answer == truth, "the same characters"),
        Comparer("number", 2, same_number, "the same rational number"),
        Comparer(
            "near_released",
            1,
            mathematics.near_released,
            "relative 1e-4, and off by a factor of 100 counts as right",
        ),
        Comparer("within_released", 1, _within_released, "off by at most 0.001"),
        Comparer(
            "gsm8k_cot",
            1,
            _same_cot,
            "lm-eval's exact match without commas, dollars, a final stop and case",
        ),
        Comparer(
            "math",
            2,
            mathematics.same_mathematics,
            "the same normal form, the same number exactly, or else equal by algebra",
            ALGEBRA.about(),
        ),
        Comparer(
            "math_lora_sb_released",
            1,
            mathematics.same_mathematics_released,
            "the same normal form, or near_released of it; differs from the released code: no"
            " symbolic step, which would evaluate the text",
        ),
    ]
}
