"""JSON, YAML and CSV that somebody else may have written: what is read is whole, or one line says
which file, which line, what is wrong there."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

import yaml

from loraexp.machine.files import Damaged
from loraexp.machine.words import one_line

Kind = TypeVar("Kind")
WORDS = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}
FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same reader in C, several times faster
DEEPEST = 900  # brackets inside each other that Python reads, about
# what opens a level of YAML; the reader in C would overflow the stack where they are many in each
# other, and end the process
LEVELS = re.compile(r"[\[{]|[-?:][ \t]")
DIGITS = 4300  # what Python reads as a whole number
# a half of a surrogate pair without the other one, which is no character
HALF = re.compile(
    r"(?<!\\)(?:\\\\)*(?P<half>\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    r"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)
TEXTS = re.compile(r'"(?:\\.|[^"\\])*"')
PIECES = re.compile(rf"{TEXTS.pattern}|[\[\]{{}}]")


def parsed(text: str | bytes, constants: bool = False) -> Any:
    """The value that a JSON text spells; with `constants` also NaN and infinity, as Python and
    pandas write them.

    Raises: Damaged saying the line, and what is wrong there: also what Python would take and nobody
    else (NaN), or would fail on later (half of a surrogate pair).
    """
    if isinstance(text, bytes):
        text = decoded(text)
    try:
        value = json.loads(text, parse_constant=None if constants else refuse)
    except json.JSONDecodeError as error:
        raise Damaged(
            f"line {error.lineno}: not JSON ({error.msg} at column {error.colno})"
        ) from None
    except RecursionError:
        raise Damaged(f"line {line_of_depth(text)}: brackets nested too deeply") from None
    except Damaged as error:
        found = re.search(rf"{re.escape(str(error))}\b", outside_texts(text))
        raise Damaged(f"line {line_at(text, found)}: {error} is not JSON") from None
    except ValueError:
        found = re.search(rf"\d{{{DIGITS + 1},}}", outside_texts(text))
        long = f"a number of {len(found[0])} digits" if found else "a number that is too long"
        raise Damaged(f"line {line_at(text, found)}: {long}") from None
    if "\\u" in text and (found := HALF.search(text)) is not None and not encodable(value):
        raise Damaged(
            f"line {line_at(text, found)}: {found['half']} is half of a surrogate pair, no"
            " character"
        )
    return value


def encodable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def decoded(content: bytes) -> str:
    """Raises: Damaged where the bytes are not UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Damaged(f"line {line}: not UTF-8 (byte {content[error.start]:#04x})") from None


def refuse(word: str) -> None:
    raise Damaged(word)


def line_at(text: str, found: re.Match[str] | None) -> int:
    return text.count("\n", 0, found.start()) + 1 if found is not None else 1


def outside_texts(text: str) -> str:
    """A JSON text with spaces in the place of what stands in quotes."""
    return TEXTS.sub(lambda found: " " * len(found[0]), text)


def line_of_depth(text: str) -> int:
    """The line where brackets are too many inside each other."""
    depth = 0
    for piece in PIECES.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(piece[0], 0)
        if depth > DEEPEST:
            return line_at(text, piece)
    return 1


def read_json(path: Path, kind: type[Kind]) -> Kind:
    """The value of a JSON file, of this kind.

    Raises: Damaged naming file, line and what is wrong there; OSError where it cannot be read.
    """
    try:
        return of_kind(parsed(path.read_bytes()), kind)
    except Damaged as error:
        raise Damaged(f"{path}: {error}") from None


def read_yaml(path: Path, kind: type[Kind]) -> Kind:
    """The value of a YAML file, of this kind, in safe types alone.

    Raises: Damaged naming file, line and what is wrong there; OSError where it cannot be read.
    """
    try:
        return of_kind(yaml_value(decoded(path.read_bytes())), kind)
    except Damaged as error:
        raise Damaged(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise Damaged(f"{path}: {where}not YAML ({one_line(problem)})") from None
    except RecursionError:
        raise Damaged(f"{path}: nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise Damaged(f"{path}: {one_line(error)}") from None


def yaml_value(text: str) -> object:
    """The value that a YAML text spells, in safe types alone. Raises: YAMLError, RecursionError."""
    many = sum(1 for _ in LEVELS.finditer(text)) > 5000
    return yaml.load(text, Loader=yaml.SafeLoader if many else FAST)


def of_kind(value: object, kind: type[Kind]) -> Kind:
    if not isinstance(value, kind):
        there = "nothing" if value is None else WORDS.get(type(value), type(value).__name__)
        raise Damaged(f"holds {there}, expected {WORDS.get(kind, kind.__name__)}")
    return value


def csv_lines(stream: TextIO) -> Iterator[tuple[int, list[str]]]:
    """`(number of its last line, the fields)` of each row of a CSV file, the heading too; empty
    lines are none."""
    reader = csv.reader(stream)
    return ((reader.line_num, fields) for fields in reader if fields)
