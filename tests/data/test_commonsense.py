"""The commonsense sets: the authors' rows become those of LLM-Adapters, word for word."""

from __future__ import annotations

import re

import pytest

from loraexp.data import benchmarks
from tests.support.helpers import shared_data

HUB_ROWS = {
    "boolq": (
        {
            "question": "is house tax and property tax are same",
            "answer": True,
            "passage": "Property tax is …",
        },
        (
            "Please answer the following question with true or false, question: is house tax and "
            "property tax are same?\n\n"
            "Answer format: true/false"
        ),
        "true",
    ),
    "piqa": (
        {
            "goal": "dresser",
            "sol1": "replace drawer with bobby pin ",
            "sol2": "finish, woodgrain with  bobby pin ",
            "label": 1,
        },
        (
            "Please choose the correct solution to the question: dresser\n\nSolution1: replace "
            "drawer with bobby pin \n\n"
            "Solution2: finish, woodgrain with  bobby pin \n\nAnswer format: solution1/solution2"
        ),
        "solution2",
    ),
    "social_i_qa": (
        {
            "context": "Tracy didn't go home that evening and resisted Riley's attacks.",
            "question": "What does Tracy need to do before this?",
            "answerA": "make a new plan",
            "answerB": "Go home and see Riley",
            "answerC": "Find somewhere to go",
            "label": "3",
        },
        (
            "Please choose the correct answer to the question: Tracy didn't go home that evening "
            "and resisted Riley's attacks. "
            "What does Tracy need to do before this?\n\nAnswer1: make a new plan "
            "Answer2: Go home and see Riley Answer3: Find somewhere to go\n\n"
            "Answer format: answer1/answer2/answer3"
        ),
        "answer3",
    ),
    "winogrande": (
        {
            "sentence": (
                "Sarah was a much better surgeon than Maria so _ always got the easier cases."
            ),
            "option1": "Sarah",
            "option2": "Maria",
            "answer": "2",
        },
        (
            "Please choose the correct answer to fill in the blank to complete the given sentence: "
            "Sarah was a much better surgeon than Maria "
            "so _ always got the easier cases.\n\nOption1: Sarah Option2: Maria Answer format: "
            "option1/option2"
        ),
        "option2",
    ),
    "ARC-Easy": (
        {
            "id": "x",
            "question": "As children grow, their body height usually",
            "answerKey": "2",
            "choices": {
                "text": ["decreases", "increases", "remains the same"],
                "label": ["1", "2", "3"],
            },
        },
        (
            "Please choose the correct answer to the question: As children grow, their body height "
            "usually\n\nAnswer1: decreases "
            "Answer2: increases Answer3: remains the same\n\nAnswer format: answer1/answer2/answer3"
        ),
        "answer2",
    ),
    "openbookqa": (
        {
            "id": "x",
            "question_stem": "There is most likely going to be fog around:",
            "answerKey": "A",
            "choices": {
                "text": ["a marsh", "a tundra", "the plains", "a desert"],
                "label": ["A", "B", "C", "D"],
            },
        },
        (
            "Please choose the correct answer to the question: There is most likely going to be fog"
            " around:\n\nAnswer1: a marsh Answer2: a tundra Answer3: the plains Answer4: a"
            " desert\n\nAnswer format: answer1/answer2/answer3/answer4"
        ),
        "answer1",
    ),
}


@pytest.mark.parametrize("name", HUB_ROWS)
def test_a_row_of_the_authors_becomes_that_of_llm_adapters(name: str) -> None:
    row, instruction, answer = HUB_ROWS[name]
    read = benchmarks.named(name).row
    assert read(row) == {"instruction": instruction, "answer": answer}
    assert read({"instruction": instruction, "answer": answer}) == {
        "instruction": instruction,
        "answer": answer,
    }


PARTS = {  # a file of LLM-Adapters taken apart into the authors' columns
    "boolq": r"Please answer .*?, question: (?P<question>.*)\?\n\nAnswer format.*",
    "piqa": (
        r"Please .*? question: (?P<goal>.*)\n\nSolution1: (?P<sol1>.*)\n\n"
        r"Solution2: (?P<sol2>.*)\n\nAnswer format.*"
    ),
    "winogrande": (
        r"Please .*? sentence: (?P<sentence>.*)\n\nOption1: (?P<option1>.*) "
        r"Option2: (?P<option2>.*) Answer format.*"
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_every_row_of_llm_adapters_files_is_made_again_from_its_parts(name: str) -> None:
    import json

    rows = json.loads(shared_data("commonsense", name, "test.json").read_text())
    label = {
        "boolq": lambda a: a == "true",
        "piqa": lambda a: int(a[-1]) - 1,
        "winogrande": lambda a: a[-1],
    }[name]
    for row in rows:
        parts = re.fullmatch(PARTS[name], row["instruction"], re.DOTALL)
        assert parts is not None
        original = parts.groupdict() | {
            "label" if name == "piqa" else "answer": label(row["answer"])
        }
        assert benchmarks.named(name).row(original) == {
            "instruction": row["instruction"],
            "answer": row["answer"],
        }
