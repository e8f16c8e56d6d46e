"""How a number is made: evaluation protocols by name, as data (prompt, decoding, reader of the
answer, comparer).

A protocol named like a method follows that paper as meant; with `_released` it follows the authors'
code to the letter, mistakes included. `find("gsm8k", "lora_sb").ask(question=…)` is the prompt. A
protocol's version changes when any number that it makes could change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from loraexp import config
from loraexp.machine.notation import read_yaml
from loraexp.scoring.answers import COMPARERS, EXTRACTORS

# --------------------------------------------------------------------------------------------------
# templates

QUESTION_ANSWER = "Q: {question}\nA: "
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes"
    " the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
)
STEP_BY_STEP = ALPACA.replace("{instruction}", "{question}") + " Let's think step by step."
# LLM-Adapters' template stands indented in its source, and its first line ends in a space.
LLM_ADAPTERS = (
    "Below is an instruction that describes a task. Write a response that appropriately completes"
    " the request. \n\n                ### Instruction:\n                {instruction}\n\n         "
    "       ### Response:\n                "
)
COMPLETE_CODE = (
    "Below is an instruction that describes a task.\n Write a response that appropriately completes"
    " the request.\n\n### Instruction:\nComplete the following Python code: \nNotes: respond with"
    " the entire complete function definition\ndo not add any comments, be as concise in your code"
    " as possible\nuse only built-in libraries, assume no additional imports other than those"
    " provided (if any)\nuse `    ` (4 spaces) for each level of"
    " indentation\n\ncode:\n```python\n{prompt}\n```\n\n### Response:\n```python\n"
)
MULTIPLE_CHOICE = "{shots}{question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\nAnswer:"


# --------------------------------------------------------------------------------------------------
# the data


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How text is generated. Temperature 0 is greedy (or beam search); `samples` answers are drawn
    where it is above."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    samples: int = 1


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """`kind`: generate text and read it | score the `choices` by likelihood | run the code |
    lm-eval's own task."""

    benchmark: str
    name: str
    version: int = 1
    kind: Literal["generate", "choices", "code", "harness"] = "generate"
    prompt: str = ""
    decoding: Decoding | None = None
    extractor: str = "text"  # reads the answer from what the model wrote
    truth: str = "text"  # reads the truth from the row's own answer
    comparer: str = "exact"
    choices: tuple[str, ...] = ()
    # " A" after the prompt, or the last token of "A" by itself
    choice_tokens: Literal["continuation", "alone"] = "continuation"
    shots: int = 0
    # what begins each example in lm-eval's own prompt: one that is too long for the window is cut
    # there
    edge: str = ""
    task: str | None = None  # lm-eval's name of it, and the metric that it reports there
    metric: str = "accuracy"
    source: str
    differs: str = ""

    def ask(self, **fields: str) -> str:
        """The prompt of a row. Raises: ValueError naming a field that the template needs and the
        row lacks."""
        for _, field, _, _ in Formatter().parse(self.prompt):
            if field is not None and not isinstance(fields.get(field), str):
                raise ValueError(
                    f"protocol {self.benchmark}/{self.name}: no text for {{{field}}} (got"
                    f" {sorted(fields)}); give the row that column"
                )
        return self.prompt.format(**fields)

    def read(self, text: str) -> str | None:
        """The answer in what a model wrote."""
        return EXTRACTORS[self.extractor](text)

    def read_truth(self, answer: str) -> str:
        """The truth in a row's answer. Raises: ValueError where there is none to be read."""
        truth = EXTRACTORS[self.truth](answer)
        if truth is None:
            raise ValueError(
                f"protocol {self.benchmark}/{self.name}: no answer in {answer[-80:]!r}; expected"
                f" {EXTRACTORS[self.truth].about}; correct the row, or set task.skip_bad=true"
            )
        return truth

    def right(self, answer: str | None, truth: str) -> bool:
        """Is the answer that was read the truth?"""
        return COMPARERS[self.comparer](answer, truth)

    def describe(self) -> dict[str, Any]:
        """For the record: everything that makes the number, with the versions of reader and
        comparer."""
        comparer = COMPARERS[self.comparer]
        versions = {
            "extractor_version": EXTRACTORS[self.extractor].version,
            "comparer_version": comparer.version,
        }
        return (
            asdict(self)
            | versions
            | ({"comparer_library": comparer.library} if comparer.library else {})
        )


# --------------------------------------------------------------------------------------------------
# the files

TEMPLATES = {
    "question_answer": QUESTION_ANSWER,
    "alpaca": ALPACA,
    "alpaca_step_by_step": STEP_BY_STEP,
    "llm_adapters": LLM_ADAPTERS,
    "complete_code": COMPLETE_CODE,
    "multiple_choice": MULTIPLE_CHOICE,
}
# keys of a file that are no fields of a protocol
_OWN = {"name", "benchmarks", "prompt", "ending", "field"}


def of_file(path: Path) -> list[Protocol]:
    """The protocols of a file of `conf/protocol`, one for each of its benchmarks.

    `prompt`: a template's name, or the text itself; `ending` is put behind it, and `field` is what
    the row's column is called where the template says `instruction`. `{benchmark}` in the reader's
    name is the benchmark's.

    Raises: ValueError naming file, key and what is expected.
    """
    keys = read_yaml(path, dict)
    known = _OWN | {field.name for field in fields(Protocol)} - {"benchmark"}
    unknown = sorted(set(keys) - known)
    if unknown or not {"name", "benchmarks", "source"} <= set(keys):
        said = f"has no key {unknown[0]}" if unknown else "needs name, benchmarks and source"
        raise ValueError(f"{path}: a protocol {said}; expected some of {', '.join(sorted(known))}")
    prompt = TEMPLATES.get(keys.get("prompt", ""), keys.get("prompt", "")) + keys.get("ending", "")
    if "field" in keys:
        prompt = prompt.replace("{instruction}", f"{{{keys['field']}}}")
    how = keys.get("decoding")
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in keys.items()
        if key not in _OWN
    }
    given |= {
        "prompt": prompt,
        "decoding": Decoding(**how | {"stop": tuple(how.get("stop", ()))}) if how else None,
    }
    made = []
    for benchmark in keys["benchmarks"]:
        reader = given.get("extractor", "text").replace("{benchmark}", benchmark)
        made.append(
            _sound(
                path,
                Protocol(**given | {"extractor": reader}, benchmark=benchmark, name=keys["name"]),
            )
        )
    return made


def _sound(path: Path, protocol: Protocol) -> Protocol:
    for key, table in (("extractor", EXTRACTORS), ("truth", EXTRACTORS), ("comparer", COMPARERS)):
        if getattr(protocol, key) not in table:
            raise ValueError(
                f"{path}: {key}={getattr(protocol, key)}; expected one of"
                f" {', '.join(sorted(table))}"
            )
    return protocol


PROTOCOLS: dict[tuple[str, str], Protocol] = {}
_read: set[Path] = set()  # the files that they are of


def known() -> list[tuple[str, str]]:
    """Benchmark and name of every protocol; a user's own files may have come since the last
    time."""
    for name in config.names("protocol"):
        path = config.file_of("protocol", name).absolute()
        if path not in _read:
            for protocol in of_file(path):
                PROTOCOLS.setdefault((protocol.benchmark, protocol.name), protocol)
            _read.add(path)
    return list(PROTOCOLS)


known()


def benchmarks() -> list[str]:
    """The benchmarks that have a protocol."""
    return sorted({of for of, _ in known()})


def names(benchmark: str) -> list[str]:
    """The protocols of a benchmark. Raises: ValueError where there is no such benchmark."""
    found = [name for of, name in known() if of == benchmark]
    if not found:
        raise ValueError(
            f"benchmark {benchmark}: there is none of this name; expected {', '.join(benchmarks())}"
        )
    return found


def find(benchmark: str, name: str) -> Protocol:
    """A protocol by name. Raises: ValueError that lists the names there are."""
    if (benchmark, name) not in PROTOCOLS and name not in names(benchmark):
        raise ValueError(f"task.protocol={name}: {benchmark} has {', '.join(names(benchmark))}")
    return PROTOCOLS[benchmark, name]


# --------------------------------------------------------------------------------------------------
# MMLU's prompt


def mmlu_parts(
    protocol: Protocol, subject: str, row: Mapping[str, str], examples: Sequence[Mapping[str, str]]
) -> list[str]:
    """Hendrycks' prompt in its parts: a header that names the subject, `protocol.shots` solved
    examples, the question.

    Two spaces before the subject, as the original's `format_subject` leaves them. Raises:
    ValueError where there are fewer examples than shots.
    """
    if len(examples) < protocol.shots:
        raise ValueError(
            f"MMLU {subject}: {len(examples)} examples in its dev file; protocol {protocol.name}"
            f" shows {protocol.shots}"
        )
    header = (
        "The following are multiple choice questions (with answers) about "
        f" {subject.replace('_', ' ')}.\n\n"
    )
    shown = [
        protocol.ask(**{**example, "shots": ""}) + f" {example['answer']}\n\n"
        for example in examples[: protocol.shots]
    ]
    return [header, *shown, protocol.ask(**{**row, "shots": ""})]


def parts(protocol: Protocol, prompt: str) -> list[str]:
    """A prompt that lm-eval made, in its examples and the question: joined, they are the prompt."""
    if not protocol.edge:
        return ["", prompt]
    first, *rest = prompt.split(protocol.edge)
    return ["", *([first] if first else []), *(protocol.edge + part for part in rest)]
