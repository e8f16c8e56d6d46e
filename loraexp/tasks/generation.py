"""Tasks that train on prompts and answers and are scored by what the model then writes, or finds
likely."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from loraexp.config import HUB
from loraexp.data import benchmarks
from loraexp.data.benchmarks import Questions
from loraexp.data.pairs import Kind, Reading, TextExamples, encode_pairs
from loraexp.data.rows import Files, Hub, Records, Row, find
from loraexp.machine.progress import bar
from loraexp.run.task import Given, of_keys
from loraexp.scoring import backends, harness, judge, protocols, sandbox
from loraexp.scoring.answers import COMMONSENSE_WORDS
from loraexp.scoring.backends import Answering, Backend
from loraexp.scoring.generate import shortened, tokens_beyond
from loraexp.scoring.protocols import Protocol
from loraexp.scoring.samples import Question
from loraexp.tasks.recipes import TRAINING_SETS, VERSION, chosen
from loraexp.tasks.text import TextTask

if TYPE_CHECKING:
    from loraexp.machine.processes import Processes

AVERAGE = "average"  # the split that is the mean over the benchmarks
EACH = "{benchmark}"  # in a file's name: of every benchmark, one file after another


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
        *,
        asked: Mapping[str, tuple[str, Protocol]],
        questions: Mapping[str, Questions],
        average: Sequence[str],
        backend: Backend,
        unsafe_code: bool,
        skip_bad: bool,
        recipe: str,
        notes: Sequence[str],
        **common: Any,
    ) -> None:
        averages = {f"{averaged(asked, name)}/{name}": name for name in average}
        super().__init__(metric="log_likelihood", reports=[*asked, *averages], **common)
        self.averages = averages
        self.asked, self.unsafe_code, self.skip_bad, self.recipe, self.notes = (
            dict(asked),
            unsafe_code,
            skip_bad,
            recipe,
            tuple(notes),
        )
        self.questions, self.backend = dict(questions), backend
        self.found: dict[str, dict[str, float]] = {}  # of the splits evaluated so far
        # all that could end an evaluation is found before anything is trained
        backends.require(backend, self.kind)
        if any(protocol.kind == "code" for _, protocol in self.asked.values()):
            sandbox.require(unsafe_code)
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
        tokenizer: Any,
        split: str,
        *,
        batch_size: int,
        device: torch.device,
        precision: str,
        folder: Path | None,
        processes: Processes | None = None,
    ) -> dict[str, float]:
        """The metrics of a split: held-out likelihood, or a benchmark under a protocol; every
        answer goes to `samples.jsonl`."""
        if split in self.splits:
            return self.likelihood(
                model,
                split,
                batch_size=batch_size,
                device=device,
                precision=precision,
                processes=processes,
            )
        if split in self.averages:
            ending = f"/{self.averages[split]}"
            return benchmarks.average(
                {key: values for key, values in self.found.items() if key.endswith(ending)}
            )
        benchmark, protocol = self.asked[split]
        held = self.questions[benchmark]
        how = Answering(
            batch_size=batch_size,
            precision=precision,
            backend=self.backend,
            processes=processes,
            unsafe_code=self.unsafe_code,
        )
        with bar(f"eval {split}", 0) as advance:
            if protocol.kind == "harness":
                rows = [held.rows[number] for number in self.usable[split]]
                shorter = {
                    self.prompts[split][number]: prompt
                    for number, prompt in self.shorter[split].items()
                }
                self.found[split] = harness.run_task(
                    model, tokenizer, protocol, rows, how, folder, advance, shorter
                )
            else:
                asked = [self.question(split, number) for number in self.usable[split]]
                self.found[split] = harness.score(
                    model, tokenizer, protocol, asked, how, folder, advance
                )
        return self.found[split]

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


# --------------------------------------------------------------------------------------------------
# building


@dataclass(frozen=True, kw_only=True)
class GenerationKeys:
    """The keys of a set of prompts and answers, as its yaml has them."""

    name: str
    version: int
    training_set: str  # its columns, and how each paper puts them: loraexp.tasks.recipes
    source: str  # on the hub, used where data_dir is null
    config: str | None = None
    revision: str | None
    files: list[str]  # of data_dir, the first that is there
    protocol: str | list[str]
    recipe: str | None = None  # how it is trained; None: the first protocol's
    benchmarks: list[str]
    average: bool = False
    rows: int | None = None  # of the training set, from its head; None: the recipe's number, 0: all
    held_out: int = 200
    max_length: int = 1024
    limit_train: int | None = None
    limit_eval: int | None = None
    data_dir: str | None = None
    eval_data_dir: str | None = None
    skip_bad: bool = False

    @property
    def wanted(self) -> list[str]:
        """The protocols that score, by name."""
        if isinstance(self.protocol, str):
            return [word.strip() for word in self.protocol.split(",")]
        return list(self.protocol)

    @property
    def where(self) -> tuple[str | None, str]:
        """The folder of the benchmarks' files, None for the hub, and the key that says so."""
        if self.eval_data_dir is None:
            return self.data_dir, "task.data_dir"
        return None if self.eval_data_dir == HUB else self.eval_data_dir, "task.eval_data_dir"

    @property
    def trained_by(self) -> str:
        """The name of the recipe. Raises: ValueError where nothing is trained by the first protocol
        alone."""
        recipes = TRAINING_SETS[self.training_set]
        usual = self.wanted[0].removesuffix("_released")
        if self.recipe is None and usual not in recipes:
            raise ValueError(
                f"task.protocol={self.wanted[0]}: nothing is trained by it alone; set task.recipe"
                f" to one of {', '.join(recipes)}"
            )
        return self.recipe or usual


@of_keys(GenerationKeys, kinds=frozenset({"causal", "seq2seq"}))
def generation(keys: GenerationKeys, given: Given) -> GenerationTask:
    """A set of prompts and answers, trained by a recipe and scored by protocols, e.g. GSM8K's row
    `question: Natalia sold clips …`.

    `training_set` names its recipes in `loraexp.tasks.recipes`, whose docstrings show a row of each
    set; by default the first protocol's trains. `data_dir` holds one of `files`, in the hub's
    columns, or else `source` is read from the hub. `eval_data_dir` (by default the same folder)
    holds the benchmarks' files; `hub` reads them there.

    Raises: SourceError where files or the hub's copy are missing; ValueError naming file, row and
    fix of a bad row, for a name that is none, or where no benchmark has a protocol.
    """
    if keys.training_set not in TRAINING_SETS:
        raise ValueError(
            f"task.training_set={keys.training_set}: expected one of {', '.join(TRAINING_SETS)}"
        )
    kind, trained_by, tokenizer = cast(Kind, given.kind), keys.trained_by, given.tokenizer
    made = chosen(TRAINING_SETS[keys.training_set], trained_by, keys.rows)
    check_sizes(keys.held_out, keys.max_length, kind, tokenizer)
    train: Records = Hub(keys.source, keys.config, "train", keys.revision, "task.data_dir")
    if keys.data_dir is not None:
        train = Files(training_files(keys.data_dir, keys.files, keys.benchmarks))
    asked, questions, notes = reported(
        keys.wanted, keys.benchmarks, *keys.where, keys.limit_eval, keys.skip_bad
    )
    how = Reading(
        f"{keys.name} {trained_by}",
        VERSION * 1000 + keys.version,
        made.pair,
        kind,
        keys.max_length,
        made.below,
        made.rows,
        keys.skip_bad,
        made.long,
    )
    everything = encode_pairs(
        train, how, tokenizer, cache_root=Path(given.cache_root), progress=given.progress
    )
    return GenerationTask(
        name=keys.name,
        version=keys.version,
        kind=kind,
        tokenizer=tokenizer,
        selection="held_out" if keys.held_out else None,
        splits=divide(everything, keys.held_out, keys.limit_train, keys.limit_eval),
        learn_prompt=made.learn_prompt,
        asked=asked,
        questions=questions,
        average=keys.wanted if keys.average else (),
        backend=given.backend,
        unsafe_code=given.unsafe_code,
        skip_bad=keys.skip_bad,
        recipe=trained_by,
        notes=notes,
    )


def check_sizes(held_out: int, max_length: int, kind: Kind, tokenizer: Any) -> None:
    if held_out < 0:
        raise ValueError(f"task.held_out={held_out}: expected a number of rows, 0 for none")
    if kind == "causal" and max_length > tokenizer.model_max_length:
        window = tokenizer.model_max_length
        raise ValueError(
            f"task.max_length={max_length}: the model's window is {window} tokens; set"
            f" task.max_length to {window} or less"
        )


def reported(
    wanted: Sequence[str],
    names: list[str],
    directory: str | None,
    key: str,
    limit: int | None,
    skip_bad: bool,
) -> tuple[dict[str, tuple[str, Protocol]], dict[str, Questions], tuple[str, ...]]:
    """Every split that is reported, with its benchmark and protocol; the benchmarks' rows; notes on
    those not found."""
    offered = {of: protocols.names(of) for of in names}
    for word in wanted:
        if not any(word in there for there in offered.values()):
            known = sorted({other for there in offered.values() for other in there})
            raise ValueError(f"task.protocol={word}: expected one of {', '.join(known)}")
    questions, notes = benchmarks.read(
        names, directory=directory, key=key, limit=limit, skip_bad=skip_bad
    )
    asked = {
        f"{of}/{word}": (of, protocols.find(of, word))
        for word in wanted
        for of in questions
        if word in offered[of]
    }
    if not asked:
        raise ValueError(
            f"task.protocol={wanted}: none of the benchmarks found ({', '.join(questions)}) has it"
        )
    return asked, questions, notes


def training_files(directory: str, names: Sequence[str], of: Sequence[str]) -> tuple[Path, ...]:
    """The first of `names` (paths or patterns) that is in the folder; with `{benchmark}` in it
    those of all of them.

    Raises: SourceError where none is there, or where a pattern fits several files.
    """
    folder = Path(directory).expanduser()
    for name in names:
        if EACH in name:
            parts = tuple(
                path for one in of if (path := folder / name.replace(EACH, one)).is_file()
            )
            if parts:
                return parts
        elif any(folder.glob(name)):
            return (
                find(directory, [names[0], name], key="task.data_dir", what="the training rows"),
            )
    return (find(directory, names, key="task.data_dir", what="the training rows"),)


def divide(
    everything: TextExamples, held_out: int, limit_train: int | None, limit_eval: int | None
) -> dict[str, TextExamples]:
    """Train, and the rows held out of it before any limit; at most a tenth of a small set."""
    if not held_out:
        return {"train": everything.limit(limit_train)}
    if len(everything) < 2:
        raise ValueError(
            f"{everything.source}: {len(everything)} row, and task.held_out takes one of it; give"
            " more rows, or set task.held_out=0"
        )
    aside, train = everything.split(max(1, min(held_out, len(everything) // 10)))
    if not len(aside) or not len(train):
        raise ValueError(
            f"{everything.source}: too few different prompts to hold some out; set task.held_out=0"
        )
    return {"train": train.limit(limit_train), "held_out": aside.limit(limit_eval)}
