"""The Python in what a model wrote: found by its fences and by its grammar, never run here.

The prompt of the code protocols has opened a block already, so an answer may be code up to a
closing fence, prose and a block, or several blocks. What parses as Python decides, not a list of
words that code begins with.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from keyword import iskeyword

LEVEL = 4  # spaces of one level, as the openings have them
_FENCE = re.compile(r"(?:`{3,}|~{3,})")
# after an opening fence: python, {.python}, py title="x"
_INFO = re.compile(r"[ \t]*(?:\{[ \t]*\.?)?([\w+#.-]*)([^\n`]*)(?:\n|$)")
_PYTHON = re.compile(r"(?:i?python|py)[\d.]*", re.IGNORECASE)
LONGEST = 30_000  # characters that are looked at: more than the longest answer of any protocol
_TRIES = 60  # cuts that are tried on a text whose end is not Python


def python_of(text: str) -> str | None:
    """The first Python of an answer, its margin removed: whole definitions from column 0, a
    function's body from 4.

    Of the parts between fences, the first that parses and defines a function or is the body of one;
    else the first that parses; else the first block that calls itself Python, so that a program
    with an error fails as what it is. A part whose end is not Python (prose without a fence, an
    answer cut off) loses that end.
    """
    text = text[:LONGEST].replace("\r\n", "\n").replace("\r", "\n").expandtabs(LEVEL)
    parts = [part for part in _parts(text) if part.strip()]
    fitted = [fit for part in parts if (fit := _fitted(part)) is not None]
    for code, whole in fitted:
        if whole:
            return code
    if fitted:
        return fitted[0][0]
    return (_dedented(parts[0]).strip("\n") or None) if parts else None


def _parts(text: str) -> Iterator[str]:
    """What may be code: the text before the first fence, and every block that is not in another
    language.

    Blocks that call themselves Python come before those that call themselves nothing where neither
    parses.
    """
    first = _FENCE.search(text)
    if first is None:
        yield text
        return
    leading = text[: first.start()]
    if _fitted(leading) is not None or first.start() == 0 or not leading.strip():
        yield leading
    blocks = list(_blocks(text, first.start()))
    yield from (inside for language, inside in blocks if language and _PYTHON.fullmatch(language))
    yield from (inside for language, inside in blocks if not language)
    yield leading


def _blocks(text: str, start: int) -> Iterator[tuple[str, str]]:
    """(language, inside) of each fenced block; the fence that closes the prompt's own block opens
    none."""
    position = start
    while (opening := _FENCE.search(text, position)) is not None:
        info = _INFO.match(text, opening.end())
        # the code begins on the fence's own line
        if info is not None and (iskeyword(info[1]) or info[2].lstrip()[:1] in tuple("=(:[@")):
            info = None
        begins = info.end() if info else opening.end()
        closing = re.compile(re.escape(opening[0][:3])).search(text, begins)
        yield (info[1] if info else ""), text[begins : closing.start() if closing else len(text)]
        if closing is None:
            return
        # A bare fence may have closed the prompt's block, so that the next one opens: what is
        # between is tried as well.
        position = closing.end() if info is not None and info[1] else closing.start()


def _fitted(part: str) -> tuple[str, bool] | None:
    """The part as Python, and whether it defines a function or is the body of one; None where it is
    neither, or says nothing."""
    lines = [line.rstrip() for line in _dedented(part).split("\n")]
    moved = _first_line_moved(lines)
    for shape in [lines] if moved == lines else [lines, moved]:
        for end in _ends(shape):
            tree = _parsed("\n".join(shape[:end]))
            if tree is not None and _says(tree):
                return _shaped(shape[:end], tree)
    return None


def _shaped(lines: list[str], tree: ast.Module) -> tuple[str, bool]:
    code = "\n".join(lines).strip("\n")
    if _leaves(tree):
        inside = _multiline_strings(tree)
        body = [
            line if not line or number in inside else " " * LEVEL + line
            for number, line in enumerate(lines, start=1)
        ]
        return "\n".join(body).strip("\n"), True
    defined = any(
        isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        for node in tree.body
    )
    return code, defined


def _dedented(part: str) -> str:
    """The part with the indentation of its first line removed from every line."""
    lines = part.strip("\n").split("\n")
    first = next((line for line in lines if line.strip()), "")
    margin = len(first) - len(first.lstrip(" "))
    return "\n".join(
        line[margin:] if line[:margin].isspace() or not margin else line.lstrip(" ")
        for line in lines
    )


def _first_line_moved(lines: list[str]) -> list[str]:
    """The lines as they are if the first one has lost some of its indentation, as a decoder or a
    strip takes it."""
    filled = [number for number, line in enumerate(lines) if line.strip()]
    if len(filled) < 2:
        return lines
    least = min(len(lines[number]) - len(lines[number].lstrip(" ")) for number in filled[1:])
    return [
        line if number <= filled[0] else line[least:] if line.strip() else ""
        for number, line in enumerate(lines)
    ]


def _ends(lines: list[str]) -> Iterator[int]:
    """Where the code may end: at the last line, or before one of the last few that begin at the
    margin."""
    yield len(lines)
    starts = [
        number
        for number, line in enumerate(lines)
        if line.strip() and not line.startswith(" ") and number
    ]
    yield from starts[::-1][:_TRIES]


def _parsed(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _says(tree: ast.Module) -> bool:
    """Is there more than bare words and strings, which prose and a docstring are as well?"""
    words = (
        ast.Name,
        ast.Constant,
        ast.Attribute,
        ast.Tuple,
        ast.Compare,
        ast.BoolOp,
        ast.UnaryOp,
        ast.Subscript,
    )
    return any(
        not (isinstance(node, ast.Expr) and isinstance(node.value, words)) for node in tree.body
    )


def _leaves(tree: ast.Module) -> bool:
    """Does it return or yield outside every function in it: is it the body of one?"""
    inner = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Return, ast.Yield, ast.YieldFrom)):
            return True
        waiting += [child for child in ast.iter_child_nodes(node) if not isinstance(child, inner)]
    return False


def _multiline_strings(tree: ast.Module) -> set[int]:
    """The numbers of the lines that begin inside a string: their spaces are its characters."""
    inside: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.JoinedStr, ast.Constant)) or node.end_lineno is None:
            continue
        if isinstance(node, ast.JoinedStr) or isinstance(node.value, (str, bytes)):
            inside.update(range(node.lineno + 1, node.end_lineno + 1))
    return inside
