"""Protocols: prompts to the letter, every name resolvable, and what a row must have."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from loraexp import config
from loraexp.scoring import protocols
from loraexp.scoring.answers import COMMONSENSE_WORDS, COMPARERS, EXTRACTORS
from loraexp.scoring.protocols import PROTOCOLS, Protocol, find, mmlu_parts, names, of_file
from tests.support.helpers import shared_data

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes"
    " the request."
)
STEPS = f"{ALPACA}\n\n### Instruction:\nWhy?\n\n### Response: Let's think step by step."
PROMPTS = [
    ("gsm8k", "lora_ga", "Q: Why?\nA: "),
    ("gsm8k", "lora_one", "Q: Why?\nA: "),
    ("gsm8k", "lora_ga_released", "Q: Why?\nA:  "),  # its inference appends one more space
    ("gsm8k", "lora_sb", STEPS),
    ("gsm8k", "lora_da", STEPS),
    ("math", "lora_sb", STEPS),
    ("math", "milora", STEPS),
    ("boolq", "lora_sb", f"{ALPACA}\n\n### Instruction:\nWhy?\n\n### Response:\n"),
    ("boolq", "lora_one", f"{ALPACA}\n\n### Instruction:\nWhy?\n\n### Response:\n"),
    (
        "piqa",
        "llm_adapters",
        (
            f"{ALPACA} \n\n{' ' * 16}### Instruction:\n{' ' * 16}Why?\n\n{' ' * 16}###"
            f" Response:\n{' ' * 16}"
        ),
    ),
]


@pytest.mark.parametrize(("benchmark", "name", "expected"), PROMPTS)
def test_prompts_to_the_letter(benchmark: str, name: str, expected: str) -> None:
    assert find(benchmark, name).ask(question="Why?", instruction="Why?") == expected


def test_a_text_with_braces_stays_as_it_is() -> None:
    assert find("gsm8k", "lora_ga").ask(question="{x} \\boxed{1} {{") == "Q: {x} \\boxed{1} {{\nA: "


def test_the_prompt_of_code_ends_in_an_open_block() -> None:
    prompt = find("humaneval", "lora_one").ask(prompt='def f(x):\n    """Add {one}."""\n')
    assert prompt.startswith("Below is an instruction that describes a task.\n Write a response")
    assert (
        'code:\n```python\ndef f(x):\n    """Add {one}."""\n\n```\n\n### Response:\n```python\n'
        in prompt
        and prompt.endswith("```python\n")
    )
    assert (
        "Complete the following Python code: \nNotes: respond with the entire complete function"
        " definition\n" in prompt
    )
    assert (
        find("humaneval", "lora_one_released").ask(prompt="x")
        == find("humaneval", "lora_one").ask(prompt="x") + " "
    )


@pytest.mark.parametrize("key", PROTOCOLS, ids="/".join)
def test_every_protocol_is_whole(key: tuple[str, str]) -> None:
    protocol = PROTOCOLS[key]
    assert (protocol.benchmark, protocol.name) == key and find(*key) is protocol
    assert (
        protocol.extractor in EXTRACTORS
        and protocol.truth in EXTRACTORS
        and protocol.comparer in COMPARERS
    )
    assert protocol.source and json.dumps(protocol.describe())
    assert (protocol.decoding is None) == (protocol.kind == "choices") and bool(
        protocol.choices
    ) == (protocol.kind == "choices")
    assert bool(protocol.prompt) != (protocol.kind == "harness") and bool(protocol.task) == (
        protocol.kind == "harness"
    )
    if protocol.decoding is not None:
        assert protocol.decoding.beams == 1 or protocol.decoding.temperature == 0
        assert protocol.decoding.samples == 1 or protocol.decoding.temperature > 0


def test_the_families_there_must_be() -> None:
    assert {"lora_ga", "lora_one", "lora_sb", "lora_da", "cot"} <= set(names("gsm8k"))
    assert (
        {"lora_sb", "milora"} <= set(names("math"))
        and {"lora_ga", "lora_one"} <= set(names("humaneval"))
        and "lora_one" in names("mmlu")
    )
    assert len(COMMONSENSE_WORDS) == 8 and all(
        {"llm_adapters", "lora_sb", "lora_one"} <= set(names(of)) for of in COMMONSENSE_WORDS
    )


def decoding(benchmark: str, name: str) -> protocols.Decoding:
    found = find(benchmark, name).decoding
    assert found is not None
    return found


def test_decoding_is_the_papers() -> None:
    assert (
        decoding("gsm8k", "lora_ga").max_new_tokens == 512
        and decoding("gsm8k", "lora_sb").max_new_tokens == 256
    )
    assert (
        decoding("math", "lora_sb").max_new_tokens == 512
        and decoding("math", "milora").max_new_tokens == 2048
    )
    assert (
        decoding("humaneval", "lora_one").samples,
        decoding("humaneval", "lora_one").temperature,
    ) == (1, 0.0)
    assert (
        decoding("humaneval", "lora_ga").samples,
        decoding("humaneval", "lora_ga").temperature,
    ) == (5, 0.8)
    assert (
        decoding("boolq", "llm_adapters").beams,
        decoding("boolq", "llm_adapters").max_new_tokens,
    ) == (4, 32)
    assert decoding("boolq", "lora_sb").beams == decoding("boolq", "lora_one").beams == 1


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(
        ValueError,
        match=(
            "task.protocol=lora_gaa: gsm8k has cot, cot_flexible, llm_adapters, .*lora_ga,"
            " lora_ga_released"
        ),
    ):
        find("gsm8k", "lora_gaa")
    with pytest.raises(
        ValueError, match="benchmark gsm9k: there is none of this name; expected ARC-Challenge"
    ):
        find("gsm9k", "lora_ga")


def test_a_row_without_a_field_or_an_answer_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"protocol gsm8k/lora_ga: no text for \{question\} \(got \['query'\]\)"
    ):
        find("gsm8k", "lora_ga").ask(query="Why?")
    with pytest.raises(
        ValueError,
        match=(
            "no answer in 'It is seven.'; expected the first number after the first ####.*skip_bad"
        ),
    ):
        find("gsm8k", "lora_ga").read_truth("It is seven.")


@pytest.mark.parametrize(
    ("name", "output", "right"),
    [
        ("lora_ga", "#### 1,234", True),
        ("lora_ga", "#### 1", False),
        ("lora_ga_released", "#### 1", True),  # both are read as 1
        ("lora_sb", "The answer is: $1,234.00", True),
        ("lora_sb", "The answer is: 12.34", False),
        ("lora_sb_released", "The answer is: 123400", True),  # off by a factor of 100
        ("lora_da", "#### 1234", True),
        ("lora_da", "so 1234", False),
        ("llm_adapters", "She has 2 and then $1,234.00. That is all.", True),
        ("llm_adapters", "1234 and 5", False),
        ("llm_adapters_released", "so 1,234.0005", True),  # within 0.001
        ("llm_adapters_released", "so 1234.", True),
        ("llm_adapters_released", "nothing", False),
    ],
)
def test_from_output_to_verdict(name: str, output: str, right: bool) -> None:
    protocol = find("gsm8k", name)
    assert (
        protocol.right(protocol.read(output), protocol.read_truth("5 + 5 = 10\n#### 1,234"))
        is right
    )


def verdict(protocol: Protocol, output: str, truth: str) -> bool:
    return protocol.right(protocol.read(output), protocol.read_truth(truth))


def test_words_and_mathematics_to_verdicts() -> None:
    assert verdict(find("boolq", "lora_sb"), "The correct answer is True", "true")
    assert not verdict(find("boolq", "llm_adapters"), "The correct answer is True", "true")
    solution = r"Thus $x = \boxed{\frac{1}{2}}$."
    assert verdict(find("math", "lora_sb"), "The answer is: 1/2", solution) and verdict(
        find("math", "milora"), r"\boxed{0.5}", solution
    )
    assert not verdict(find("math", "lora_sb_released"), r"\boxed{0.5}", solution)


def test_mmlu_from_the_real_files() -> None:
    folder = shared_data("mmlu", "data")

    def rows(split: str) -> list[dict[str, str]]:
        with (folder / split / f"high_school_biology_{split}.csv").open(newline="") as file:
            return [
                dict(zip(("question", *"ABCD", "answer"), row, strict=True))
                for row in csv.reader(file)
            ]

    protocol, question = find("mmlu", "lora_one"), rows("test")[0]
    prompt = "".join(mmlu_parts(protocol, "high_school_biology", question, rows("dev")))
    assert prompt.startswith(
        "The following are multiple choice questions (with answers) about  high school biology.\n\n"
    )
    assert prompt.count("\nAnswer:") == 6 and prompt.endswith(f"\nD. {question['D']}\nAnswer:")
    direct = "".join(mmlu_parts(find("mmlu", "direct"), "high_school_biology", question, []))
    assert (
        direct == prompt.partition("\n\n")[0] + "\n\n" + prompt.rpartition("\n\n")[2]
        and direct.count("Answer:") == 1
    )
    assert f"Answer: {rows('dev')[0]['answer']}\n\n{rows('dev')[1]['question']}\nA. " in prompt
    with pytest.raises(ValueError, match="1 examples in its dev file; protocol lora_one shows 5"):
        mmlu_parts(protocol, "high_school_biology", question, rows("dev")[:1])


def test_a_protocol_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        'name: mine\nbenchmarks: [boolq, piqa]\nprompt: llm_adapters\nending: "!"\ndecoding:'
        ' {max_new_tokens: 8, stop: ["."]}\nextractor: "{benchmark}_first"\nsource: mine\n'
    )
    one, two = of_file(path)
    assert (one.benchmark, one.extractor, two.benchmark, two.extractor) == (
        "boolq",
        "boolq_first",
        "piqa",
        "piqa_first",
    )
    assert one.prompt.endswith(
        "### Response:\n" + " " * 16 + "!"
    ) and one.decoding == protocols.Decoding(max_new_tokens=8, stop=(".",))
    for line, message in (
        ("extractor: eyes", "extractor=eyes; expected one of"),
        ("colour: red", "a protocol has no key colour; expected"),
    ):
        path.write_text(
            f"name: mine\nbenchmarks: [gsm8k]\nprompt: text {{question}}\nsource: mine\n{line}\n"
        )
        with pytest.raises(ValueError, match=f"mine.yaml: {message}"):
            of_file(path)


def test_every_file_is_read_and_says_what_it_is() -> None:
    files = [config.file_of("protocol", name) for name in config.names("protocol")]
    made = [protocol for path in files for protocol in of_file(path)]
    assert len(made) == len(PROTOCOLS) >= 54 and all(
        path.read_text().startswith("# ") for path in files
    )
