"""What is asked and answered: questions, samples and their file, marks given while they come."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from loraexp.machine.escapes import printable
from loraexp.machine.files import replace
from loraexp.machine.progress import Advance, tally
from loraexp.scoring import judge
from loraexp.scoring.backends import Answering
from loraexp.scoring.passes import joined, part_of
from loraexp.scoring.prompts import Asked
from loraexp.scoring.protocols import Protocol


@dataclass(frozen=True)
class Question:
    """One row to be scored: its prompt, the truth as the protocol reads it, and where it came from.

    For code, `truth` is the program that tests it, with the function's name in `entry` and what the
    program begins with in `opening`. For choices it is one of the protocol's.
    """

    prompt: str
    truth: str
    source: str = ""
    opening: str = ""
    entry: str = ""


@dataclass
class Sample:
    """What `samples.jsonl` holds of one answer."""

    index: int
    protocol: str
    prompt: str
    truth: str
    output: str
    answer: str | None
    right: bool
    source: str = ""
    scores: list[float] | None = None
    detail: str = ""
    inside: bool = False  # code: tested in the program's own process (see judge.needs_itself)


class Marks:
    """What is known of a protocol's answers while they come: read and compared once, and counted
    for the bar."""

    def __init__(self, protocol: Protocol, truths: Sequence[str], advance: Advance | None) -> None:
        self._protocol, self._truths, self._advance = protocol, truths, advance
        self._known: dict[tuple[str, str], tuple[str | None, bool]] = {}
        self._done = self._answered = self._right = 0

    def mark(self, text: str, truth: str) -> tuple[str | None, bool]:
        """(the answer in a text, whether it is the truth); code is not run here, so none of it is
        right yet."""
        key = (text, truth)
        if key not in self._known:
            answer = self._protocol.read(text)
            self._known[key] = (
                answer,
                self._protocol.kind != "code" and self._protocol.right(answer, truth),
            )
        return self._known[key]

    def told(self, request: Asked, found: str | Sequence[float], of: int) -> None:
        """Hear of an answer of lm-eval's request: a text, or a log-probability of each choice."""
        if self._advance is None:
            return
        self._done += 1
        number = request.doc.get("index", request.doc_id)
        assert number is not None
        truth = self._truths[number]
        if isinstance(found, str):
            answer, right = self.mark(found, truth)
        else:
            answer = self._protocol.choices[int(np.argmax(found))]
            right = answer == truth
        self._answered += answer is not None
        self._right += right
        shown = {"answered": f"{self._answered}/{self._done}"}
        self._advance(
            1,
            total=of,
            **(
                shown
                if self._protocol.kind == "code"
                else shown | {"right": f"{self._right}/{self._done}"}
            ),
        )


def metrics_of(protocol: Protocol, samples: Sequence[Sample]) -> dict[str, float]:
    name = "accuracy" if protocol.kind == "harness" else protocol.metric
    found = {name: float(np.mean([sample.right for sample in samples]))}
    return (
        found
        if protocol.kind == "choices"
        else found | {"answered": float(np.mean([sample.answer is not None for sample in samples]))}
    )


def run_tests(samples: list[Sample], questions: Sequence[Question], how: Answering) -> None:
    """Run each answer against its question's tests, this process's part of them on its part of the
    CPUs."""
    runnable = [number for number, sample in enumerate(samples) if sample.answer is not None]
    mine = [runnable[k] for k in part_of(how.processes, len(runnable))]
    cases = [
        case(questions[samples[number].index], samples[number].answer or "") for number in mine
    ]
    with tally("tests") as progress:
        beside = how.processes.world if how.processes is not None else 1
        workers = max(1, (os.cpu_count() or 1) // beside)
        outcomes = judge.judge_all(
            cases, unsafe_code=how.unsafe_code, workers=workers, progress=progress
        )
    found = {
        number: (outcome.passed, f"{outcome.status}: {outcome.detail}".rstrip(": "), outcome.inside)
        for number, outcome in zip(mine, outcomes, strict=True)
    }
    for number, verdict in joined(how.processes, found).items():
        samples[number].right, samples[number].detail, samples[number].inside = verdict


def case(question: Question, completion: str) -> judge.Case:
    """HumanEval's check: the question's opening, the completion, its tests, and the call of them
    (Chen et al. 2021)."""
    return judge.Case(
        program=f"{question.opening}{completion}\n",
        opening=question.opening,
        test=question.truth,
        entry=question.entry,
    )


def write_samples(folder: Path | None, samples: Sequence[Sample]) -> None:
    """`samples.jsonl`: one line for each answer, added to what other protocols wrote; earlier lines
    of this one go."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "samples.jsonl"
    mine = {sample.protocol for sample in samples}
    kept = (
        [line for line in path.read_text().splitlines() if json.loads(line)["protocol"] not in mine]
        if path.exists()
        else []
    )
    lines = kept + [printable(json.dumps(asdict(sample), ensure_ascii=False)) for sample in samples]
    replace(path, "".join(f"{line}\n" for line in lines).encode())
