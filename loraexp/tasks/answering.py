"""Tasks that are scored by what the model then writes, or finds likely: the questions of
benchmarks, each asked under its protocols."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from loraexp.data import benchmarks
from loraexp.data.benchmarks import Questions
from loraexp.data.layouts import Row
from loraexp.data.pairs import Kind
from loraexp.machine.progress import bar
from loraexp.run.task import Given
from loraexp.scoring import backends, harness, judge, protocols, sandbox
from loraexp.scoring.answers import COMMONSENSE_WORDS
from loraexp.scoring.backends import Answering
from loraexp.scoring.prompts import Tokenizer, shortened, tokens_beyond
from loraexp.scoring.protocols import Protocol
from loraexp.scoring.samples import Question
from loraexp.tasks.recipes import VERSION
from loraexp.tasks.text import TextTask

if TYPE_CHECKING:
    from loraexp.machine.device import Runtime

AVERAGE = "average"  # the split that is the mean over the benchmarks


class GenerationTask(TextTask):
    """Trained by a recipe, selected by the likelihood of held-out answers, reported by benchmarks
    under named protocols.

    A reported split is `BENCHMARK/PROTOCOL`, so a record says which protocol made which number.
    `held_out` rows of the training set, drawn by a hash of their prompt, leave it and select the
    checkpoint (metric `log_likelihood`, the mean log-probability of an answer's token); with 0
    nothing is held out and the last weights are kept, as in the papers.
    """

    def __init__(
        self,
        given: Given,
        *,
        asked: Mapping[str, tuple[str, Protocol]],
        questions: Mapping[str, Questions],
        average: Sequence[str],
        skip_bad: bool,
        recipe: str,
        notes: Sequence[str],
        **common: Any,
    ) -> None:
        averages = {f"{averaged(asked, name)}/{name}": name for name in average}
        super().__init__(
            kind=cast(Kind, given.kind),
            tokenizer=given.tokenizer,
            metric="log_likelihood",
            reports=[*asked, *averages],
            **common,
        )
        self.averages, self.asked, self.questions = averages, dict(asked), dict(questions)
        self.backend, self.unsafe_code = given.backend, given.unsafe_code
        self.skip_bad, self.recipe, self.notes = skip_bad, recipe, tuple(notes)
        self.found: dict[str, dict[str, float]] = {}  # of the splits evaluated so far
        # all that could end an evaluation is found before anything is trained
        backends.require(self.backend, self.kind)
        if any(protocol.kind == "code" for _, protocol in self.asked.values()):
            sandbox.require(self.unsafe_code)
        self.prompts: dict[str, list[str]] = {}  # by split: what lm-eval's own task asks
        # by split: the prompts that were cut to fit the window
        self.shorter: dict[str, dict[int, str]] = {}
        # numbers of the rows that are scored
        self.usable = {split: self._usable(split) for split in self.asked}

    def _usable(self, split: str) -> list[int]:
        """The rows that the split's protocol can read; a prompt that a causal model's window does
        not hold is cut.

        Raises: ValueError naming the first bad row's file and number, unless `skip_bad`, or where
        no row is left.
        """
        benchmark, protocol = self.asked[split]
        held = self.questions[benchmark]
        prompts = harness.prompts_of(protocol, held.rows) if protocol.kind == "harness" else None
        self.prompts[split] = prompts or []
        most = (
            self.tokenizer.model_max_length - self._room(protocol)
            if self.kind == "causal"
            else sys.maxsize
        )
        kept, cut = [], {}
        for number, (row, place) in enumerate(zip(held.rows, held.places, strict=True)):
            try:
                if prompts is None:
                    question(protocol, row, place)
                parts = (
                    ask_parts(protocol, row)
                    if prompts is None
                    else protocols.parts(protocol, prompts[number])
                )
                if tokens_beyond(self.tokenizer, "".join(parts), most):
                    cut[number] = shortened(self.tokenizer, parts, most)
            except ValueError as error:
                if not self.skip_bad:
                    raise ValueError(f"{place}: {error}") from None
                continue
            kept.append(number)
        self.shorter[split] = cut
        if not kept:
            raise ValueError(
                f"{split}: none of the {len(held.rows)} rows of {held.source} can be asked and"
                " read; give others"
            )
        for count, what in (
            (len(held.rows) - len(kept), "rows skipped"),
            (len(cut), f"prompts cut from the left to {most} tokens"),
        ):
            if count:
                warnings.warn(f"{split}: {count} of {len(held.rows)} {what}", stacklevel=2)
        return kept

    def _room(self, protocol: Protocol) -> int:
        """Tokens that follow a prompt: the longest answer, or the longest choice."""
        if protocol.decoding is not None:
            return protocol.decoding.max_new_tokens
        return max(
            len(self.tokenizer(f" {choice}", add_special_tokens=False)["input_ids"])
            for choice in protocol.choices
        )

    # ----------------------------------------------------------------------------------------------
    # scoring

    def evaluate(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        split: str,
        *,
        batch_size: int,
        runtime: Runtime,
        folder: Path | None,
    ) -> dict[str, float]:
        """The metrics of a split: held-out likelihood, or a benchmark under a protocol; every
        answer goes to `samples.jsonl`."""
        if split in self.splits:
            return self.likelihood(model, split, batch_size=batch_size, runtime=runtime)
        if split in self.averages:
            ending = f"/{self.averages[split]}"
            return benchmarks.average(
                {key: values for key, values in self.found.items() if key.endswith(ending)}
            )
        how = Answering(
            batch_size=batch_size,
            precision=runtime.precision,
            backend=self.backend,
            processes=runtime.processes,
            unsafe_code=self.unsafe_code,
        )
        self.found[split] = self._scored(model, tokenizer, split, how, folder)
        return self.found[split]

    def _scored(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        split: str,
        how: Answering,
        folder: Path | None,
    ) -> dict[str, float]:
        """The metrics of a benchmark under its protocol."""
        benchmark, protocol = self.asked[split]
        numbers = self.usable[split]
        with bar(f"eval {split}", 0) as advance:
            if protocol.kind != "harness":
                asked = [self.question(split, number) for number in numbers]
                return harness.score(model, tokenizer, protocol, asked, how, folder, advance)
            rows = [self.questions[benchmark].rows[number] for number in numbers]
            prompts = self.prompts[split]
            shorter = {prompts[number]: cut for number, cut in self.shorter[split].items()}
            return harness.run_task(model, tokenizer, protocol, rows, how, folder, advance, shorter)

    def answering(self) -> AbstractContextManager[None]:
        """vLLM's copy of the model is made once for all splits."""
        return backends.one_copy()

    def question(self, split: str, number: int) -> Question:
        """A row of a benchmark as it is scored under the split's protocol, its prompt within the
        window."""
        benchmark, protocol = self.asked[split]
        held = self.questions[benchmark]
        asked = question(protocol, held.rows[number], held.places[number])
        return dataclasses.replace(asked, prompt=self.shorter[split].get(number, asked.prompt))

    # ----------------------------------------------------------------------------------------------
    # the record

    def describe(self) -> dict[str, Any]:
        """What was trained on and by which recipe; each benchmark's rows, source and the protocols
        that it is scored by."""
        described = super().describe()
        described["train"] |= {
            "recipe": self.recipe,
            "recipe_version": VERSION,
            "notes": [*described["train"]["notes"], *self.notes],
        }
        for benchmark, held in self.questions.items():
            made_by = {
                split: (
                    protocol.describe()
                    | {
                        "skipped": len(held.rows) - len(self.usable[split]),
                        "cut": len(self.shorter[split]),
                    }
                )
                for split, (of, protocol) in self.asked.items()
                if of == benchmark
            }
            described[benchmark] = {
                "rows": len(held.rows),
                "fingerprint": held.fingerprint(),
                "source": held.source,
                "part": ["reported"],
                "skipped": held.skipped,
                "notes": list(held.notes),
                "protocols": made_by,
            }
            if any(
                protocol.kind == "code" for of, protocol in self.asked.values() if of == benchmark
            ):
                described[benchmark]["tests_inside"] = tests_inside(held)
        return described


def averaged(asked: Mapping[str, tuple[str, Protocol]], protocol: str) -> str:
    """The name of the mean over the benchmarks that have the protocol: "average" is that of all
    eight, and of no fewer."""
    members = {benchmark for benchmark, named in asked.values() if named.name == protocol}
    return AVERAGE if members == set(COMMONSENSE_WORDS) else f"{AVERAGE}_of_{len(members)}"


def ask_parts(protocol: Protocol, row: Row) -> list[str]:
    """The prompt of a benchmark's row: what stays in front, the examples, the question."""
    if "shots" in row:
        return protocols.mmlu_parts(protocol, row["subject"], row, row["shots"])
    return ["", protocol.ask(**row)]


def ask(protocol: Protocol, row: Row) -> str:
    """The prompt of a benchmark's row."""
    return "".join(ask_parts(protocol, row))


def question(protocol: Protocol, row: Row, place: str) -> Question:
    """A benchmark's row as it is scored. Raises: ValueError where the protocol reads no truth in
    it."""
    if protocol.kind == "code":
        return Question(
            prompt=ask(protocol, row),
            truth=row["test"],
            source=place,
            opening=row["prompt"],
            entry=row["entry_point"],
        )
    truth = row["answer"] if protocol.kind == "choices" else protocol.read_truth(row["answer"])
    return Question(prompt=ask(protocol, row), truth=truth, source=place)


def tests_inside(held: Questions) -> dict[str, str]:
    """The tests that need the function itself, by their place, and why: each runs in the process of
    its program."""
    reasons = {
        place: judge.needs_itself(row["test"], row["entry_point"])
        for row, place in zip(held.rows, held.places, strict=True)
    }
    return {place: reason for place, reason in reasons.items() if reason}
