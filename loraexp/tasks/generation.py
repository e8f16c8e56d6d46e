"""Tasks that train on prompts and answers and are scored by what the model then writes, or finds likely."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loraexp import harness, protocols, sandbox
from loraexp.generation import bare, is_seq2seq
from loraexp.harness import Question
from loraexp.progress import tally
from loraexp.protocols import Protocol
from loraexp.tasks import benchmarks
from loraexp.tasks.benchmarks import Questions
from loraexp.tasks.pairs import Kind, Reading, TextExamples, encode_pairs
from loraexp.tasks.recipes import VERSION, Recipe, chosen
from loraexp.tasks.records import Records, Row
from loraexp.tasks.text import TextTask

AVERAGE = "average"  # the split that is the mean over the benchmarks


class GenerationTask(TextTask):
    """Trained by a recipe, selected by the likelihood of held-out answers, reported by benchmarks under named protocols.

    A reported split is `BENCHMARK/PROTOCOL`, so a record says which protocol made which number. `held_out` rows of the
    training set, drawn by a hash of their prompt, leave it and select the checkpoint (metric `log_likelihood`, the mean
    log-probability of an answer's token); with 0 nothing is held out and the last weights are kept, as in the papers.
    """

    def __init__(
        self, *, asked: Mapping[str, tuple[str, Protocol]], questions: Mapping[str, Questions], average: Sequence[str],
        unsafe_code: bool, skip_bad: bool, recipe: str, notes: Sequence[str], **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(metric="log_likelihood", reports=[*asked, *(f"{AVERAGE}/{name}" for name in average)], **common)
        self.asked, self.unsafe_code, self.skip_bad, self.recipe, self.notes = dict(asked), unsafe_code, skip_bad, recipe, tuple(notes)
        self.questions = dict(questions)
        self.found: dict[str, dict[str, float]] = {}  # of the splits evaluated so far
        self.skipped: dict[str, int] = {}  # prompts that did not fit the model's window, by split
        if any(protocol.kind == "code" for _, protocol in self.asked.values()):
            sandbox.require(unsafe_code)  # before anything is trained
        self._readable()

    def _readable(self) -> None:
        """Every row has a truth that its protocols can read, before anything is trained; those without are refused or dropped."""
        for split, (benchmark, protocol) in self.asked.items():
            if protocol.kind != "generate":
                continue
            held = self.questions[benchmark]
            bad: list[int] = []
            for number, row in enumerate(held.rows):
                try:
                    protocol.read_truth(row["answer"])
                except ValueError as error:
                    if not self.skip_bad:
                        raise ValueError(f"{held.source} row {number + 1}: {error}") from None
                    bad.append(number)
            if bad:
                rows = [row for number, row in enumerate(held.rows) if number not in set(bad)]
                note = f"{len(bad)} rows without an answer that {split} can read skipped"
                self.questions[benchmark] = Questions(rows, held.source, (*held.notes, note))

    # ------------------------------------------------------------------------------------------------ scoring

    def evaluate(
        self, model: nn.Module, tokenizer: Any, split: str, *, batch_size: int, device: torch.device, precision: str, folder: Path | None
    ) -> dict[str, float]:
        """The metrics of a split: held-out likelihood, or a benchmark under a protocol; every answer goes to `samples.jsonl`."""
        if split in self.splits:
            return self.likelihood(model, split, batch_size=batch_size, device=device, precision=precision)
        name, _, protocol_name = split.partition("/")
        if name == AVERAGE:
            return benchmarks.average({key: values for key, values in self.found.items() if key.endswith(f"/{protocol_name}")})
        benchmark, protocol = self.asked[split]
        rows = self._fitting(model, tokenizer, protocol, self.questions[benchmark].rows)
        how: dict[str, Any] = {"batch_size": batch_size, "precision": precision, "folder": folder}
        with tally(f"eval {split}") as progress:
            if protocol.kind == "harness":
                self.found[split] = run_task(model, tokenizer, protocol, rows, progress=progress, **how)
            else:
                source = self.questions[benchmark].source
                asked = [question(protocol, row, f"{source} row {number}") for number, row in enumerate(rows, start=1)]
                self.found[split] = harness.score(
                    model, tokenizer, protocol, asked, device=device, unsafe_code=self.unsafe_code, progress=progress, **how
                )
        return self.found[split]

    def _fitting(self, model: nn.Module, tokenizer: Any, protocol: Protocol, rows: list[Row]) -> list[Row]:
        """All rows, which are refused when one does not fit; with `skip_bad` those whose prompt and answer fit the window."""
        if not self.skip_bad or protocol.kind == "harness":
            return rows
        room = protocol.decoding.max_new_tokens if protocol.decoding else 0
        kept = [row for row in rows if fits(model, tokenizer, ask(protocol, row), room)]
        if not kept:
            raise ValueError(
                f"protocol {protocol.benchmark}/{protocol.name}: no prompt fits the model's window; choose a model with a longer one"
            )
        if len(kept) < len(rows):
            name = f"{protocol.benchmark}/{protocol.name}"
            self.skipped[name] = len(rows) - len(kept)
            warnings.warn(f"{self.skipped[name]} of {len(rows)} prompts of {name} skipped: longer than the window", stacklevel=2)
        return kept

    # ------------------------------------------------------------------------------------------------ the record

    def describe(self) -> dict[str, Any]:
        """What was trained on and by which recipe; each benchmark's rows, source and the protocols that it is scored by."""
        described = super().describe()
        described["train"] |= {"recipe": self.recipe, "recipe_version": VERSION, "notes": [*described["train"]["notes"], *self.notes]}
        for benchmark, held in self.questions.items():
            made_by = {split: protocol.describe() for split, (of, protocol) in self.asked.items() if of == benchmark}
            described[benchmark] = {
                "rows": len(held.rows), "fingerprint": held.fingerprint(), "source": held.source, "part": ["reported"],
                "notes": list(held.notes), "protocols": made_by,
            }  # fmt: skip
        return described


def ask(protocol: Protocol, row: Row) -> str:
    """The prompt of a benchmark's row."""
    if "shots" in row:
        return protocols.mmlu_prompt(protocol, row["subject"], row, row["shots"])
    return protocol.ask(**row)


def fits(model: nn.Module, tokenizer: Any, prompt: str, room: int) -> bool:
    window = None if is_seq2seq(model) else getattr(bare(model).config, "max_position_embeddings", None)
    return window is None or len(tokenizer(prompt)["input_ids"]) + room <= window


def question(protocol: Protocol, row: Row, source: str) -> Question:
    """A benchmark's row as it is scored."""
    if protocol.kind == "code":
        return Question(prompt=ask(protocol, row), truth=row["test"], source=source, opening=row["prompt"], entry=row["entry_point"])
    truth = row["answer"] if protocol.kind == "choices" else protocol.read_truth(row["answer"])
    return Question(prompt=ask(protocol, row), truth=truth, source=source)


def run_task(model: nn.Module, tokenizer: Any, protocol: Protocol, rows: list[Row], **how: Any) -> dict[str, float]:
    """A task of lm-eval's own on our rows, which it reads from a file."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return harness.run_task(model, tokenizer, protocol, files=file, **how)


# ---------------------------------------------------------------------------------------------------- building


def build(
    *,
    name: str,
    version: int,
    kind: Kind,
    recipes: Mapping[str, Recipe],
    recipe: str | None,
    protocol: str | list[str],
    names: list[str],
    train: Records,
    rows: int | None,
    held_out: int,
    max_length: int,
    limit_train: int | None,
    limit_eval: int | None,
    eval_dir: str | None,
    eval_key: str,
    skip_bad: bool,
    unsafe_code: bool,
    tokenizer: Any,
    cache_root: str | Path,
    progress: Any,
    average: bool = False,
) -> GenerationTask:
    """The task of a recipe (by default the first protocol's), its training records, and benchmarks by name.

    Raises: ValueError for a name that is none, or where no benchmark has a protocol; whatever reading the data raises.
    """
    wanted = [word.strip() for word in protocol.split(",")] if isinstance(protocol, str) else list(protocol)
    trained_by = recipe or wanted[0].removesuffix("_released")
    if recipe is None and trained_by not in recipes:
        raise ValueError(f"task.protocol={wanted[0]}: nothing is trained by it alone; set task.recipe to one of {', '.join(recipes)}")
    made = chosen(recipes, trained_by, rows)
    if held_out < 0:
        raise ValueError(f"task.held_out={held_out}: expected a number of rows, 0 for none")
    offered = {of: protocols.names(of) for of in names}
    for word in wanted:
        if not any(word in there for there in offered.values()):
            known = sorted({other for there in offered.values() for other in there})
            raise ValueError(f"task.protocol={word}: expected one of {', '.join(known)}")
    questions, notes = benchmarks.read(names, directory=eval_dir, key=eval_key, limit=limit_eval, skip_bad=skip_bad)
    asked = {f"{of}/{word}": (of, protocols.find(of, word)) for word in wanted for of in questions if word in offered[of]}
    if not asked:
        raise ValueError(f"task.protocol={wanted}: none of the benchmarks found ({', '.join(questions)}) has it")
    how = Reading(f"{name} {trained_by}", VERSION * 1000 + version, made.pair, kind, max_length, made.below, made.rows, skip_bad)
    everything = encode_pairs(train, how, tokenizer, cache_root=Path(cache_root), progress=progress)
    splits = divide(everything, held_out, limit_train, limit_eval)
    return GenerationTask(
        name=name, version=version, kind=kind, tokenizer=tokenizer, selection="held_out" if held_out else None, splits=splits,
        learn_prompt=made.learn_prompt, asked=asked, questions=questions, average=wanted if average else (),
        unsafe_code=unsafe_code, skip_bad=skip_bad, recipe=trained_by, notes=notes,
    )  # fmt: skip


def divide(everything: TextExamples, held_out: int, limit_train: int | None, limit_eval: int | None) -> dict[str, TextExamples]:
    """Train, and the rows held out of it before any limit; at most a tenth of a small set."""
    if not held_out:
        return {"train": everything.limit(limit_train)}
    if len(everything) < 2:
        raise ValueError(
            f"{everything.source}: {len(everything)} row, and task.held_out takes one of it; give more rows, or set task.held_out=0"
        )
    aside, train = everything.split(max(1, min(held_out, len(everything) // 10)))
    if not len(aside) or not len(train):
        raise ValueError(f"{everything.source}: too few different prompts to hold some out; set task.held_out=0")
    return {"train": train.limit(limit_train), "held_out": aside.limit(limit_eval)}
