"""Numbers as people and models write them: groups, decimals, currencies, fractions, LaTeX and
signs, as exact rationals."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

# 1,234,567 · 12,34,567 · 1'234'567 · 1.234.567 · 1234
_GROUPS = (
    r"\d{1,3}(?:,\d{3})+(?!\d)|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)|"
    r"\d{1,3}(?:['’]\d{3})+(?!\d)|\d{1,3}(?:\.\d{3}){2,}(?!\.?\d)"
)
_SPACED = r"\d{1,3}(?: \d{3})+(?!\d)(?:\.\d+)?"  # 1 234 567
_DECIMAL = (
    r"(?:\d{1,3}(?:\.\d{3})+,\d{1,2}(?![\d,])"  # 1.234,56
    rf"|(?:{_GROUPS}|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)(?:[eE][-+]?\d{{1,2}}(?!\d))?"
)
_POWER = (
    r"(?: ?(?:\\times|\\cdot|×|x|\*) ?10 ?\^ ?(?:\{ ?(?P<power>-?\d{1,2})"
    r" ?\}|(?P<power1>-?\d{1,2})(?!\d)))?"
)
_WORD = r"(?: (?P<word>thousand|million|billion|trillion)\b)?"
_CURRENCY = r"(?:\\?[$€£¥₹]|Rs\.?|INR|USD|EUR|GBP)"


def _braced(name: str) -> str:
    """One argument of \\frac: {-3}, {1,234} or a digit without braces."""
    sign, digit = f"(?P<{name}_sign>[-−–]?)", rf"(?P<{name}_digit>\d)"
    return rf" ?(?:\{{ ?{sign} ?(?P<{name}>{_DECIMAL}) ?\}}|{digit})"


_NUMBER = re.compile(
    r"(?P<sign>(?:^\s*[-+−–]\s*|(?<![\w)])[-+−–]"
    rf" ?(?={_CURRENCY})|(?<![\w)])[-+−–])?)(?:{_CURRENCY}\s*(?P<late>[-−–]?))?"
    rf"(?:(?:(?P<units>\d+) ?)?\\[dtc]?frac{_braced('over')}{_braced('under')}"
    rf"|(?:(?P<whole>\d+) +(?:and +|& *)?(?!0\d))(?P<part>\d+) ?/ ?(?P<of>\d+)"
    rf"|(?P<top>{_SPACED}|{_DECIMAL}) ?/ ?(?P<bottom>{_DECIMAL})"
    rf"|(?P<plain>{_SPACED}|{_DECIMAL}){_POWER}{_WORD})"
)
_AFTER = re.compile(r"\s*(?:\\?%|percent|\^ ?\{? ?\\circ ?\}?|°|degrees?)?\.?\s*", re.IGNORECASE)
_WORDS = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SPACES = re.compile(r"\\[,;: ]|~|[\u00a0\u2009\u202f\u2007]")


def _clean(text: str) -> str:
    """Thin and hard spaces as spaces, LaTeX's protected commas as commas, ½ as 1/2."""
    text = _SPACES.sub(" ", text.replace("{,}", ",").replace("\\!", ""))
    if text.isascii():
        return text
    return re.sub(
        "[¼-¾⅐-⅞]", lambda found: f" {unicodedata.normalize('NFKC', found[0])}", text
    ).replace("⁄", "/")


def _size(text: str) -> Fraction:
    if re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d{1,2}", text):
        text = text.replace(".", "").replace(",", ".")
    elif re.fullmatch(r"\d{1,3}(?:\.\d{3}){2,}", text):
        text = text.replace(".", "")
    return Fraction(re.sub(r"[,'’ ]", "", text))


def _value(found: re.Match[str]) -> Fraction | None:
    negative = (found["sign"] + (found["late"] or "")).strip() in ("-", "−", "–")
    if found["plain"]:
        size = _size(found["plain"]) * _WORDS.get(found["word"] or "", 1)
        size *= Fraction(10) ** int(found["power"] or found["power1"] or 0)
        return -size if negative else size
    if found["top"]:
        top, bottom, whole = _size(found["top"]), _size(found["bottom"]), 0
    elif found["part"]:
        top, bottom, whole = Fraction(found["part"]), Fraction(found["of"]), int(found["whole"])
    else:
        top, bottom = (_size(found[name] or found[f"{name}_digit"]) for name in ("over", "under"))
        whole = int(found["units"] or 0)
        negative ^= bool(found["over_sign"]) ^ bool(found["under_sign"])
    if bottom == 0:
        return None
    size = top / bottom + whole
    return -size if negative else size


def first_number(text: str) -> Fraction | None:
    """The first number of a text.

    `-$1,234.50` is −1234.5; `10\\,000`, `10 000`, `10'000` and `10{,}000` are 10000; `1 1/2`,
    `1\\frac12` and `1½` are 3/2; `Rs.500` is 500, `50%` 50, `1.5 million` and `1.5 \\times 10^6`
    1500000; a division by zero is no number.
    """
    found = _NUMBER.search(_clean(text))
    return None if found is None else _value(found)


def last_number(text: str) -> Fraction | None:
    """The last number of a text."""
    found = list(_NUMBER.finditer(_clean(text)))
    return _value(found[-1]) if found else None


def whole_number(text: str) -> Fraction | None:
    """The value of a text that is one number and nothing else (but for a percent or degree sign,
    and a final stop)."""
    cleaned = _clean(text).strip()
    found = _NUMBER.match(cleaned)
    return _value(found) if found is not None and _AFTER.fullmatch(cleaned, found.end()) else None


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


def number_in(text: str | None) -> str | None:
    """The first number of a text in one spelling."""
    value = None if text is None else first_number(text)
    return None if value is None else plain(value)


def same_number(answer: str, truth: str) -> bool:
    return number_in(answer) == number_in(truth) is not None
