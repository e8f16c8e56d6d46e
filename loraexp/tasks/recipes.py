"""What the papers train generation on: which rows, put how, with the loss where; named by the paper, as data.

A recipe is the training half of a protocol; the half that scores is in `loraexp.scoring.protocols`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from loraexp.data.benchmarks import ANSWERS, gsm8k_answer
from loraexp.data.pairs import Pair
from loraexp.data.rows import BadRow, Row, choice, column, text
from loraexp.scoring.protocols import ALPACA as ALPACA_PROMPT
from loraexp.scoring.protocols import LLM_ADAPTERS, QUESTION_ANSWER

VERSION = 1  # of everything below; part of the cache key

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{given}\n\n### Response:"
)
ANSWER_IS = "\nThe answer is:"


@dataclass(frozen=True)
class Recipe:
    """`pair`: a row's prompt and response, None where the paper leaves the row out. `below`: only rows with fewer tokens.
    `rows`: only the first so many of what is left. `learn_prompt`: the prompt's tokens are in the loss."""

    pair: Callable[[Row], Pair | None]
    below: int | None = None
    rows: int | None = None
    learn_prompt: bool = False


def question_answer(question: str) -> str:
    """LoRA-GA's and LoRA-One's prompt: `Q: Natalia sold clips to 48 of her friends … \\nA: `."""
    return QUESTION_ANSWER.format(question=question)


def alpaca(instruction: str, given: str = "") -> str:
    """Alpaca's prompt, as MetaMath, PiSSA, LoRA-XS and LoRA-SB put a question: it ends in `### Response:`."""
    return WITH_INPUT.format(instruction=instruction, given=given) if given else ALPACA_PROMPT.format(instruction=instruction)


def indented(instruction: str, spaces: int) -> str:
    """LLM-Adapters' prompt for commonsense, its body indented by 16 spaces there and by 12 in LoRA-SB's training."""
    return LLM_ADAPTERS.replace(" " * 16, " " * spaces).format(instruction=instruction)


# ------------------------------------------------------------------------------------------------ mathematics


def metamath_cut(row: Row) -> Pair | None:
    """MetaMathQA's GSM rows, answers cut before `The answer is:`, so that they end in `#### 72` (LoRA-GA, LoRA-One)."""
    pair = metamath_whole(row)
    if pair is None:
        return None
    answer = pair.response.split(ANSWER_IS)[0]
    if not answer.strip():
        raise BadRow(f"column 'response' has nothing before {ANSWER_IS.strip()!r}, expected the working")
    return Pair(pair.prompt, answer)


def metamath_whole(row: Row) -> Pair | None:
    """The same rows with their whole answers, which end in `The answer is: 72` (LoRA-DA, scored by what follows it).

    A row of Yu et al. 2024, "MetaMath": `query: Randy has 60 mango trees …`, `response: … #### 35\\nThe answer is: 35`,
    `type: GSM_Rephrased`.
    """
    if "GSM" not in str(column(row, "type")):
        return None
    return Pair(question_answer(text(row, "query")), text(row, "response"))


def metamath_alpaca(row: Row) -> Pair:
    """Every row, as MetaMath trains it: `… ### Instruction:\\n{query}\\n\\n### Response:` and the whole answer."""
    return Pair(alpaca(text(row, "query")), text(row, "response"))


METAMATH = {
    "lora_ga": Recipe(metamath_cut, below=512, rows=100_000),
    "lora_one": Recipe(metamath_cut, below=512, rows=100_000),
    "lora_sb": Recipe(metamath_alpaca, rows=50_000),
    "lora_da": Recipe(metamath_whole, below=512, rows=100_000),
}


def gsm8k_cut(row: Row) -> Pair:
    working, number = gsm8k_answer(row)
    return Pair(question_answer(text(row, "question")), f"{working}\n#### {number}")


def gsm8k_whole(row: Row) -> Pair:
    working, number = gsm8k_answer(row)
    return Pair(question_answer(text(row, "question")), f"{working}\n#### {number}{ANSWER_IS} {number}")


def gsm8k_alpaca(row: Row) -> Pair:
    working, number = gsm8k_answer(row)
    return Pair(alpaca(text(row, "question")), f"{working}\n#### {number}{ANSWER_IS} {number}")


# GSM8K's own rows, written as MetaMathQA writes the same questions: no paper trains on them, every family scores them.
GSM8K = {
    "lora_ga": Recipe(gsm8k_cut),
    "lora_one": Recipe(gsm8k_cut),
    "lora_sb": Recipe(gsm8k_alpaca),
    "lora_da": Recipe(gsm8k_whole),
}


# ------------------------------------------------------------------------------------------------ code


def code_feedback(row: Row) -> Pair | None:
    """A question and its answer up to the end of the first code block; rows without one are left out.

    Columns `query`, `answer`, or Code-Feedback's `messages`, of which the first question and answer are taken. A row of
    Zheng et al. 2024, "OpenCodeInterpreter": `query: Write a function that …`, `answer: Here is …```python\\ndef …``` …`.
    """
    if "messages" in row:
        said = {m.get("role"): m.get("content") for m in reversed(column(row, "messages")) if isinstance(m, Mapping)}
        row = {"query": said.get("user"), "answer": said.get("assistant")}
    query, answer = text(row, "query"), text(row, "answer")
    parts = answer.split("```")
    if len(parts) < 3:
        return None
    return Pair(alpaca(query), "```".join(parts[:2]) + "```")


CODE_FEEDBACK = {name: Recipe(code_feedback, below=1024, rows=100_000) for name in ("lora_ga", "lora_one")}


# ------------------------------------------------------------------------------------------------ instructions


def alpaca_row(row: Row) -> Pair:
    """A row of Taori et al. 2023: `instruction: Give three tips for staying healthy.`, `input:`, `output: 1. Eat a balanced …`."""
    return Pair(alpaca(text(row, "instruction"), text(row, "input", empty=True).strip()), text(row, "output"))


ALPACA = {"lora_one": Recipe(alpaca_row)}


def commonsense(prompt: Callable[[str], str]) -> Callable[[Row], Pair]:
    """A row of Hu et al. 2023, "LLM-Adapters", in that prompt: `instruction: Please answer the following question with true
    or false, question: …`, `output: the correct answer is true`, `answer: true`."""

    def pair(row: Row) -> Pair:
        if "answer" in row:
            choice(row, "answer", ANSWERS)
        return Pair(prompt(text(row, "instruction")), text(row, "output"))

    return pair


COMMONSENSE = {
    "llm_adapters": Recipe(commonsense(lambda instruction: indented(instruction, 16)), learn_prompt=True),
    "lora_sb": Recipe(commonsense(lambda instruction: indented(instruction, 12))),
    "lora_one": Recipe(commonsense(lambda instruction: alpaca(instruction) + "\n")),
}


TRAINING_SETS: dict[str, dict[str, Recipe]] = {
    "metamath": METAMATH,
    "gsm8k": GSM8K,
    "code_feedback": CODE_FEEDBACK,
    "alpaca": ALPACA,
    "commonsense": COMMONSENSE,
}


def chosen(recipes: Mapping[str, Recipe], name: str, rows: int | None) -> Recipe:
    """The recipe of that name, with another number of rows where one is given (0: all of them)."""
    if name not in recipes:
        raise ValueError(f"task.recipe={name}: expected one of {', '.join(recipes)}")
    return recipes[name] if rows is None else replace(recipes[name], rows=rows or None)
