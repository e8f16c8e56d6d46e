"""The eight commonsense sets in the one form that LLM-Adapters (Hu et al. 2023) gave them: an
instruction and an answer.

A row of the authors' own layout, as the hub has it, is put into that form; a row that is in it
already passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loraexp.data.layouts import BadRow, Row
from loraexp.data.rows import choice, column, text

ANSWERS = [
    "true",
    "false",
    *(f"{word}{i}" for word in ("solution", "answer", "ending", "option") for i in range(1, 6)),
]
Read = Callable[[Row], Row]


def given(row: Row) -> Row:
    """`instruction`, `answer`, e.g. `Please answer the following question with true or false, …` →
    `true`.
    """
    return {"instruction": text(row, "instruction"), "answer": choice(row, "answer", ANSWERS)}


def either(original: Read) -> Read:
    """Reads a row in LLM-Adapters' form, or else by `original`."""
    return lambda row: given(row) if "instruction" in row else original(row)


def asked(
    beginning: str,
    word: str,
    options: Sequence[str],
    right: int,
    between: str = " ",
    before: str = "\n\n",
) -> Row:
    """The question, its options by number, and which words may answer."""
    listed = between.join(
        f"{word.capitalize()}{i}: {option}" for i, option in enumerate(options, start=1)
    )
    words = "/".join(f"{word}{i}" for i in range(1, len(options) + 1))
    return {
        "instruction": f"{beginning}\n\n{listed}{before}Answer format: {words}",
        "answer": f"{word}{right + 1}",
    }


QUESTION = "Please choose the correct answer to the question: {}"


@either
def boolq(row: Row) -> Row:
    """Clark et al. 2019: `question` without its mark, `answer` true or false; the passage is not
    shown.
    """
    answer = column(row, "answer")
    if not isinstance(answer, bool):
        raise BadRow(f"column 'answer' holds {answer!r}, expected true or false")
    ask = "Please answer the following question with true or false, question: {}?"
    ask += "\n\nAnswer format: true/false"
    return {"instruction": ask.format(text(row, "question")), "answer": str(answer).lower()}


@either
def piqa(row: Row) -> Row:
    """Bisk et al. 2020: `goal`, `sol1`, `sol2`, `label` 0 or 1."""
    right = choice(row, "label", ("0", "1"))
    beginning = f"Please choose the correct solution to the question: {text(row, 'goal')}"
    return asked(
        beginning, "solution", [text(row, "sol1"), text(row, "sol2")], int(right), between="\n\n"
    )


@either
def social_i_qa(row: Row) -> Row:
    """Sap et al. 2019: `context`, `question`, `answerA` to `answerC`, `label` 1 to 3."""
    right = choice(row, "label", ("1", "2", "3"))
    options = [text(row, f"answer{letter}") for letter in "ABC"]
    return asked(
        QUESTION.format(f"{text(row, 'context')} {text(row, 'question')}"),
        "answer",
        options,
        int(right) - 1,
    )


@either
def hellaswag(row: Row) -> Row:
    """Zellers et al. 2019: `activity_label`, `ctx`, four `endings`, `label` 0 to 3."""
    endings = column(row, "endings")
    if not isinstance(endings, list) or len(endings) != 4:
        raise BadRow(f"column 'endings' holds {endings!r}, expected four texts")
    right = choice(row, "label", ("0", "1", "2", "3"))
    context = f"{text(row, 'activity_label')}: {text(row, 'ctx')}"
    beginning = f"Please choose the correct ending to complete the given sentence: {context}"
    return asked(beginning, "ending", endings, int(right))


@either
def winogrande(row: Row) -> Row:
    """Sakaguchi et al. 2020: `sentence` with a gap, `option1`, `option2`, `answer` 1 or 2."""
    right = choice(row, "answer", ("1", "2"))
    beginning = (
        "Please choose the correct answer to fill in the blank to complete the given sentence: "
    )
    options = [text(row, "option1"), text(row, "option2")]
    return asked(beginning + text(row, "sentence"), "option", options, int(right) - 1, before=" ")


def lettered(question: str) -> Read:
    """Clark et al. 2018 (ARC), Mihaylov et al. 2018 (OpenBookQA): `choices` with `text` and
    `label`, `answerKey`.
    """

    @either
    def read(row: Row) -> Row:
        choices = column(row, "choices")
        labels = list(choices["label"])
        right = labels.index(choice(row, "answerKey", labels))
        return asked(QUESTION.format(text(row, question)), "answer", list(choices["text"]), right)

    return read


arc, openbookqa = lettered("question"), lettered("question_stem")
