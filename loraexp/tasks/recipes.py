"""What the papers train generation on: which rows, put how, with the loss where; named by the
paper, as data.

A recipe is the training half of a protocol; the half that scores is in `loraexp.scoring.protocols`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from loraexp.data.benchmarks import gsm8k_answer
from loraexp.data.commonsense import ANSWERS
from loraexp.data.layouts import Blank, Row
from loraexp.data.pairs import Long, Pair
from loraexp.data.rows import choice, column, text
from loraexp.scoring.protocols import ALPACA as ALPACA_PROMPT
from loraexp.scoring.protocols import QUESTION_ANSWER

VERSION = 3  # of everything below; part of the cache key

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further"
    " context. Write a response that appropriately completes the request.\n\n###"
    " Instruction:\n{instruction}\n\n### Input:\n{given}\n\n### Response:"
)
ANSWER_IS = "\nThe answer is:"


@dataclass(frozen=True)
class Recipe:
    """`pair`: a row's prompt and response, None where the paper leaves the row out. `below`: only
    rows with fewer tokens. `rows`: only the first so many of what is left. `learn_prompt`: the
    prompt's tokens are in the loss. `long`: what is done with a prompt that leaves no room for an
    answer in `task.max_length`, see `Reading`."""

    pair: Callable[[Row], Pair | None]
    below: int | None = None
    rows: int | None = None
    learn_prompt: bool = False
    long: Long = "leave_out"


def question_answer(question: str) -> str:
    """LoRA-GA's and LoRA-One's prompt: `Q: Natalia sold clips to 48 of her friends … \\nA: `."""
    return QUESTION_ANSWER.format(question=question)


def alpaca(instruction: str, given: str = "") -> str:
    """Alpaca's prompt, as MetaMath, PiSSA, LoRA-XS and LoRA-SB put a question: it ends in `###
    Response:`."""
    return (
        WITH_INPUT.format(instruction=instruction, given=given)
        if given
        else ALPACA_PROMPT.format(instruction=instruction)
    )


def indented(instruction: str, spaces: int, *, after: str = "", between: str = "") -> str:
    """The prompts that commonsense is trained with, byte for byte: a body indented by so many
    spaces, with `after` behind the first line and `between` on the line before the response.

    AGI-Edgerunners/LLM-Adapters@8166572:finetune.py has 16 spaces, two behind the first line, and a
    line of 16 (its evaluation has one and none: `protocols.LLM_ADAPTERS`);
    CERT-Lab/lora-sb@4feb81c:utils/data_utils.py has 12.
    """
    margin = " " * spaces
    return (
        "Below is an instruction that describes a task. Write a response that appropriately"
        f" completes the request.{after}\n\n{margin}### Instruction:\n{margin}{instruction}\n"
        f"{between}\n{margin}### Response:\n{margin}"
    )


# --------------------------------------------------------------------------------------------------
# mathematics


def metamath_cut(row: Row) -> Pair:
    """A row's question, its answer cut before `The answer is:`, so that it ends in `#### 72`
    (LoRA-GA, LoRA-One, LoRA-DA).

    A row of Yu et al. 2024, "MetaMath": `query: Randy has 60 mango trees …`, `response: … ####
    35\nThe answer is: 35`, `type: GSM_Rephrased`.
    """
    answer = text(row, "response").split(ANSWER_IS)[0]
    if not answer.strip():
        raise Blank(
            f"column 'response' has nothing before {ANSWER_IS.strip()!r}, expected the working"
        )
    return Pair(question_answer(text(row, "query")), answer)


def metamath_gsm(row: Row) -> Pair | None:
    """The same of the rows whose type is of GSM8K; the others (MATH's) are left out."""
    return metamath_cut(row) if "GSM" in str(column(row, "type")) else None


def metamath_alpaca(row: Row) -> Pair:
    """Every row, as MetaMath trains it: `… ### Instruction:\\n{query}\\n\\n### Response:` and the
    whole answer."""
    return Pair(alpaca(text(row, "query")), text(row, "response"))


# Released loaders: YuanheZ/LoRA-One@01bba05:data.py has `load_meta_math` (type GSM, under 512
# tokens, the first 100,000) and `load_meta_math_full` (every type, under 512 tokens, all of them);
# zqy0126/LoRA-DA@928f484:data.py has both too and trains on the first (conf/lora_da.yaml:
# dataset_name meta_math).
METAMATH = {
    "lora_ga": Recipe(metamath_gsm, below=512, rows=100_000),
    "lora_one": Recipe(metamath_gsm, below=512, rows=100_000),
    "lora_one_whole": Recipe(metamath_cut, below=512),
    "lora_sb": Recipe(metamath_alpaca, rows=50_000),
    "lora_da": Recipe(metamath_gsm, below=512, rows=100_000),
}


def gsm8k_cut(row: Row) -> Pair:
    working, number = gsm8k_answer(row)
    return Pair(question_answer(text(row, "question")), f"{working}\n#### {number}")


def gsm8k_alpaca(row: Row) -> Pair:
    working, number = gsm8k_answer(row)
    return Pair(alpaca(text(row, "question")), f"{working}\n#### {number}{ANSWER_IS} {number}")


# GSM8K's own rows, written as MetaMathQA writes the same questions: no paper trains on them, every
# family scores them.
GSM8K = {
    "lora_ga": Recipe(gsm8k_cut),
    "lora_one": Recipe(gsm8k_cut),
    "lora_sb": Recipe(gsm8k_alpaca),
    "lora_da": Recipe(gsm8k_cut),
}


# --------------------------------------------------------------------------------------------------
# code


def code_feedback(row: Row) -> Pair | None:
    """A question and its answer up to the end of the first code block; rows without one are left
    out.

    Columns `query`, `answer`, or Code-Feedback's `messages`, of which the first question and answer
    are taken. A row of Zheng et al. 2024, "OpenCodeInterpreter": `query: Write a function that …`,
    `answer: Here is …```python\\ndef …``` …`.
    """
    if "messages" in row:
        said = {
            m.get("role"): m.get("content")
            for m in reversed(column(row, "messages"))
            if isinstance(m, Mapping)
        }
        row = {"query": said.get("user"), "answer": said.get("assistant")}
    query, answer = text(row, "query"), text(row, "answer")
    parts = answer.split("```")
    if len(parts) < 3:
        return None
    return Pair(alpaca(query), "```".join(parts[:2]) + "```")


CODE_FEEDBACK = {
    name: Recipe(code_feedback, below=1024, rows=100_000) for name in ("lora_ga", "lora_one")
}


# --------------------------------------------------------------------------------------------------
# instructions


def alpaca_row(row: Row) -> Pair:
    """A row of Taori et al. 2023: `instruction: Give three tips for staying healthy.`, `input:`,
    `output: 1. Eat a balanced …`.

    An input that is null or not there is none.
    """
    given = "" if row.get("input") is None else text(row, "input", empty=True).strip()
    return Pair(alpaca(text(row, "instruction"), given), text(row, "output"))


ALPACA = {"lora_one": Recipe(alpaca_row)}


def commonsense(prompt: Callable[[str], str]) -> Callable[[Row], Pair]:
    """A row of Hu et al. 2023, "LLM-Adapters", in that prompt: `instruction: Please answer the
    following question with true or false, question: …`, `output: the correct answer is true`,
    `answer: true`."""

    def pair(row: Row) -> Pair:
        if "answer" in row:
            choice(row, "answer", ANSWERS)
        return Pair(prompt(text(row, "instruction")), text(row, "output"))

    return pair


# AGI-Edgerunners/LLM-Adapters@8166572:finetune.py: `train_on_inputs=True` by default, so the loss
# is over the prompt too; `tokenizer(prompt, truncation=True, max_length=cutoff_len)` with no side
# given, which cuts on the right, and an end token only behind a row shorter than the limit.
COMMONSENSE = {
    "llm_adapters": Recipe(
        commonsense(lambda instruction: indented(instruction, 16, after=" " * 2, between=" " * 16)),
        learn_prompt=True,
        long="cut",
    ),
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
