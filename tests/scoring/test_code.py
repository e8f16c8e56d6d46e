"""HumanEval's 164 canonical solutions in every form that people and models write code in: all of
them pass."""

from __future__ import annotations

import ast
import gzip
import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from loraexp.scoring import sandbox
from loraexp.scoring.code import python_of
from loraexp.scoring.generate import continuation
from loraexp.scoring.samples import Question, case
from tests.support.helpers import shared_data

Row = dict[str, Any]
Form = Callable[[Row], str]


@cache
def rows() -> list[Row]:
    with gzip.open(shared_data("humaneval", "HumanEval.jsonl.gz"), "rt") as file:
        return [json.loads(line) for line in file]


def body(row: Row) -> str:
    """The canonical solution, indented by 4: what continues the prompt."""
    return str(row["canonical_solution"])


def whole(row: Row) -> str:
    """The complete function, its imports, helpers and docstring included."""
    return str(row["prompt"]) + body(row)


def bare(row: Row) -> str:
    """The function alone, its docstring dropped."""
    tree = ast.parse(whole(row))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) and len(node.body) > 1:
            node.body = node.body[1:]
    return ast.unparse(tree)


def block(text: str, info: str = "python", fence: str = "```") -> str:
    return f"{fence}{info}\n{text.rstrip()}\n{fence}\n"


def indented(text: str, by: str) -> str:
    return "".join(by + line if line.strip() else line for line in text.splitlines(keepends=True))


def first_line_short(text: str, by: int) -> str:
    """The first line with `by` spaces less, as a decoder that drops them leaves it."""
    first, _, rest = text.lstrip("\n").partition("\n")
    return first.removeprefix(" " * by) + "\n" + rest


PROSE = "\nThis function solves the task. If the list is empty, it returns 0.\n"
FORMS: dict[str, Form] = {
    "the body": body,
    "the body, closed": lambda row: body(row) + "```\n" + PROSE,
    "the body, its first line a space short": lambda row: first_line_short(body(row), 1),
    "the body, stripped": lambda row: body(row).strip(),
    "the body in a block": lambda row: block(body(row)),
    "the whole": whole,
    "the whole, closed": lambda row: whole(row) + "```" + PROSE,
    "the whole and prose without a fence": lambda row: whole(row) + "\n" + PROSE,
    "the whole without docstrings": bare,
    "the whole, indented": lambda row: indented(whole(row), "    "),
    "the whole, tabs": lambda row: re.sub(
        r"(?m)^( {4})+", lambda m: "\t" * (len(m[0]) // 4), bare(row)
    ),
    "python": lambda row: block(whole(row)) + PROSE,
    "python3": lambda row: block(whole(row), "python3"),
    "PYTHON": lambda row: block(whole(row), "PYTHON"),
    "a space before python": lambda row: block(whole(row), " python "),
    "py": lambda row: block(whole(row), "py"),
    "{.python}": lambda row: block(whole(row), "{.python}"),
    "python with a title": lambda row: block(whole(row), 'python title="solution.py"'),
    "a block without a language": lambda row: block(whole(row), ""),
    "tildes": lambda row: block(whole(row), "python", "~~~"),
    "four backticks": lambda row: block(whole(row), "python", "````"),
    "CRLF": lambda row: (block(whole(row)) + PROSE).replace("\n", "\r\n"),
    "CRLF without a fence": lambda row: whole(row).replace("\n", "\r\n"),
    "a block never closed": lambda row: "Here it is:\n```python\n" + whole(row),
    "code on the fence's line": lambda row: f"```{bare(row).lstrip()}\n```",
    "a shell block first": lambda row: (
        block("pip install numpy\npython solution.py", "bash") + block(whole(row))
    ),
    "a shell block without a language first": lambda row: (
        block("$ pip install numpy", "") + block(whole(row))
    ),
    "prose that begins with if": lambda row: (
        "if you want it fast, take this:\n" + block(whole(row))
    ),
    "prose that begins with for": lambda row: (
        "for this task we write a loop.\n\n" + block(whole(row))
    ),
    "prose that begins with return": lambda row: (
        "return the result as follows:\n\n" + block(whole(row))
    ),
    "prose with inline code": lambda row: (
        f"We define `{row['entry_point']}(x)`:\n\n" + block(whole(row)) + "\nUse `print`."
    ),
    "one word of prose": lambda row: "Solution\n" + block(whole(row)),
    "in a list": lambda row: (
        "1. Write it:\n\n" + indented(block(whole(row)), "   ") + "\n2. Test it."
    ),
    "an example of its use afterwards": lambda row: (
        block(whole(row)) + "Use:\n" + block(f"print({row['entry_point']}())")
    ),
    "imports in a block of their own": lambda row: (
        block("import math") + "and\n" + block(whole(row))
    ),
    "the prompt's block closed, then another": lambda row: "```\n\nSure:\n\n" + block(whole(row)),
    "a test in the same block": lambda row: block(
        whole(row) + f"\n\nassert callable({row['entry_point']})"
    ),
    "cut off in what follows": lambda row: (
        whole(row) + f"\n\ndef test_{row['entry_point']}():\n    assert (1 =="
    ),
    "twice": lambda row: block(whole(row)) + "or, the same:\n" + block(whole(row)),
}


def programs(form: Form) -> list[str]:
    return [
        case(
            Question("", row["test"], opening=row["prompt"], entry=row["entry_point"]),
            python_of(form(row)) or "",
        ).whole()
        for row in rows()
    ]


RUN_ALL = """
import contextlib, io
failed = []
for number, source in {sources!r}.items():
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(source, str(number), "exec"), {{"__name__": "__main__"}})
    except BaseException as error:
        failed.append((number, repr(error)[:200]))
assert not failed, f'{{len(failed)}} failed: {{failed[:5]}}'
"""


@cache
def failures(sources: tuple[str, ...]) -> str:
    """What is wrong with the programs, run together in one sandbox; nothing where all come to their
    end."""
    limits = sandbox.Limits(seconds=120.0)
    outcome = sandbox.run(RUN_ALL.format(sources=dict(enumerate(sources))), limits=limits)
    return "" if outcome.passed else outcome.output[-3000:]


PASSED: set[str] = set()


@pytest.mark.parametrize("name", FORMS)
def test_every_canonical_solution_passes_in_this_form(name: str) -> None:
    if sandbox.problem():
        pytest.skip(str(sandbox.problem()))
    made = programs(FORMS[name])
    assert len(made) == 164
    # an equal program has passed in another form
    new = tuple(dict.fromkeys(source for source in made if source not in PASSED))
    assert failures(new) == ""
    PASSED.update(new)


def llama_like() -> Any:
    """A tokenizer that joins as LLaMA's: ▁ for a space, one in front of a text, and a decoder that
    strips one space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = sorted({"▁", *"".join(whole(row) for row in rows()).replace(" ", "▁")})
    vocabulary = {
        token: index
        for index, token in enumerate(["<unk>", "<s>", "</s>", *characters, "▁▁", "▁▁▁▁"])
    }
    inner = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[("▁", "▁"), ("▁▁", "▁▁")], unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="</s>", bos_token="<s>"
    )


def test_an_answer_keeps_its_first_space() -> None:
    """Alone, a LLaMA's tokens of a body begin with 3 spaces and not with 4; with the prompt they
    are the body."""
    tokenizer = llama_like()
    alone = 0
    for row in rows():
        prompt = tokenizer(row["prompt"])["input_ids"]
        new = tokenizer(whole(row))["input_ids"][len(prompt) :]
        assert continuation(tokenizer, prompt, new) == body(row)
        alone += tokenizer.decode(new) == body(row)
    assert alone < 164 / 10


def test_a_wrong_solution_does_not_pass() -> None:
    if sandbox.problem():
        pytest.skip(str(sandbox.problem()))
    failed = re.search(r"(\d+) failed", failures(tuple(programs(lambda row: "    return None\n"))))
    assert failed is not None and int(failed[1]) > 150


def test_there_are_enough_forms() -> None:
    assert len(FORMS) >= 15
