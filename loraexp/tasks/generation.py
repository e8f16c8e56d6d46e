"""Training sets of prompts and answers, by the recipe of a paper, with the benchmarks that score
them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from loraexp.config import HUB
from loraexp.data import benchmarks
from loraexp.data.benchmarks import Questions
from loraexp.data.pairs import Kind, Reading, TextExamples, encode_pairs
from loraexp.data.rows import Files, Hub, Records, find
from loraexp.run.task import Given, of_keys
from loraexp.scoring import protocols
from loraexp.scoring.protocols import Protocol
from loraexp.tasks.answering import GenerationTask
from loraexp.tasks.recipes import TRAINING_SETS, VERSION, Recipe, chosen

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EACH = "{benchmark}"  # in a file's name: of every benchmark, one file after another
# by split its benchmark and protocol, the benchmarks' rows, notes
Reported = tuple[dict[str, tuple[str, Protocol]], dict[str, Questions], tuple[str, ...]]


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
    made = chosen(TRAINING_SETS[keys.training_set], keys.trained_by, keys.rows)
    kind = cast(Kind, given.kind)
    check_sizes(keys.held_out, keys.max_length, kind, given.tokenizer)
    rows = training_rows(keys)  # found before the questions are read, and these before it is
    asked, questions, notes = reported(
        keys.wanted, keys.benchmarks, *keys.where, keys.limit_eval, keys.skip_bad
    )
    everything = trained(keys, made, rows, given)
    return GenerationTask(
        given,
        name=keys.name,
        version=keys.version,
        selection="held_out" if keys.held_out else None,
        splits=divide(everything, keys.held_out, keys.limit_train, keys.limit_eval),
        learn_prompt=made.learn_prompt,
        asked=asked,
        questions=questions,
        average=keys.wanted if keys.average else (),
        skip_bad=keys.skip_bad,
        recipe=keys.trained_by,
        notes=notes,
    )


def training_rows(keys: GenerationKeys) -> Records:
    """The training set, in the folder or on the hub."""
    if keys.data_dir is not None:
        return Files(training_files(keys.data_dir, keys.files, keys.benchmarks))
    return Hub(keys.source, keys.config, "train", keys.revision, "task.data_dir")


def trained(keys: GenerationKeys, recipe: Recipe, rows: Records, given: Given) -> TextExamples:
    """The training rows as the recipe puts them."""
    how = Reading(
        f"{keys.name} {keys.trained_by}",
        VERSION * 1000 + keys.version,
        recipe.pair,
        cast(Kind, given.kind),
        keys.max_length,
        recipe.below,
        recipe.rows,
        keys.skip_bad,
        recipe.long,
    )
    root = Path(given.cache_root)
    return encode_pairs(rows, how, given.tokenizer, cache_root=root, progress=given.progress)


def check_sizes(
    held_out: int, max_length: int, kind: Kind, tokenizer: PreTrainedTokenizerBase
) -> None:
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
) -> Reported:
    """Every split that is reported, with its benchmark and protocol; the benchmarks' rows; notes on
    those not found. Without benchmarks the held-out rows alone are scored, and a protocol may be
    that of any."""
    offered = {of: protocols.names(of) for of in names or protocols.benchmarks()}
    for word in wanted:
        if not any(word in there for there in offered.values()):
            known = sorted({other for there in offered.values() for other in there})
            raise ValueError(f"task.protocol={word}: expected one of {', '.join(known)}")
    if not names:
        return {}, {}, ()
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
