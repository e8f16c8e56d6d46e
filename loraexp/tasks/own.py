"""A task of one's own data, said in one yaml: labelled texts for a head, or instructions for a
model of text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np

from loraexp.config import HUB
from loraexp.data.draw import HELD_OUT_FRACTION, HELD_OUT_MOST
from loraexp.data.layouts import BadRow, Row
from loraexp.data.pairs import Kind, Pair, Reading, TextExamples, encode_pairs
from loraexp.data.rows import Files, Hub, Source, column
from loraexp.data.tables import Columns, Parse, Rows, label_parser, labelled, plain
from loraexp.machine.hub import SourceError
from loraexp.run.task import Given, Task, of_keys
from loraexp.tasks.answering import GenerationTask
from loraexp.tasks.classification import Classification, LabelledKeys
from loraexp.tasks.generation import Reported, check_sizes, divide, reported

VERSION = 1  # of the way templates are filled; part of the cache key
PLACE = re.compile(r"\{(\w+)\}")  # a column in a template; other braces are text
MOST_CLASSES = 500  # that are taken from the labels themselves
USUAL = {
    "single_label_classification": ["accuracy", "macro_f1"],
    "regression": ["pearson", "spearmanr"],
}


@dataclass(frozen=True, kw_only=True)
class OwnKeys:
    """The keys of a task of one's own data; `prompt` and `response` make it instructions, else
    `label` is classified."""

    name: str = "data"
    version: int = 1
    format: Literal["csv", "tsv", "jsonl", "parquet", "hub"] = "csv"
    data_dir: str | None = None  # folder of the files
    source: str | None = None  # hub id, or folder in the hub's layout, with format=hub
    config: str | None = None
    revision: str | None = None
    train: str = "train.csv"  # a file of data_dir; with format=hub a split
    dev: str | None = None  # the same; None: a part of train
    text: list[str] | None = None
    label: str | None = None
    label_names: list[str] | None = None  # None: as the data has them
    problem: Literal["single_label_classification", "regression"] = "single_label_classification"
    metric: str | None = None
    metrics: list[str] | None = None
    selection: Literal["held_out", "paper"] = "held_out"
    prompt: str | None = None  # templates with {column}
    response: str | None = None
    learn_prompt: bool = False
    held_out: int = 200  # of instructions
    benchmarks: list[str] | None = None
    protocol: str | list[str] | None = None
    eval_data_dir: str | None = None
    max_length: int = 256
    limit_train: int | None = None
    limit_eval: int | None = None
    skip_bad: bool = False


@of_keys(OwnKeys, kinds=frozenset({"encoder", "causal", "seq2seq"}))
def data(keys: OwnKeys, given: Given) -> Task:
    """Rows of CSV, TSV, JSON lines, Parquet or the hub, e.g. `text,label` → `a lovely
    film,positive`.

    With `text` and `label` a model with a head learns classes (or scores); with the templates
    `prompt` and `response`, e.g. `Question: {question}\\nAnswer: ` and `{answer}`, a model of text
    learns to answer, selected by the likelihood of held-out answers. Without `dev`, a part of train
    that a hash of its texts draws stands for it.

    Raises: SourceError where the data are not there; ValueError naming file, row and fix of a bad
    row.
    """
    if (keys.prompt is None) != (keys.response is None):
        missing = "response" if keys.response is None else "prompt"
        raise ValueError(
            f"task.{missing}=null: instructions have a prompt and a response; set both, or neither"
        )
    if keys.prompt is not None:
        return instructions(keys, given)
    if given.kind != "encoder":
        raise ValueError(
            f"task={keys.name}: model.kind is {given.kind}, which writes text; set task.prompt and"
            " task.response (such as '{text}' and '{label}'), or choose an encoder"
        )
    return classes(keys, given)


def records(keys: OwnKeys, which: str) -> Source:
    """The rows of a file or a split. Raises: SourceError where there are none."""
    if keys.format == "hub":
        if keys.source is None:
            raise SourceError("task.source=null: with task.format=hub give the id of a data set")
        return Hub(keys.source, keys.config, which, keys.revision, "task.data_dir")
    if keys.data_dir is None:
        raise SourceError(
            f"task.data_dir=null: give the folder of {which}, or task.format=hub with task.source"
        )
    path = Path(keys.data_dir).expanduser() / which
    if not path.is_file():
        raise SourceError(
            f"task.data_dir={keys.data_dir}: {path} is not there; correct task.train or task.dev"
        )
    return Files((path,), form="json" if keys.format == "jsonl" else keys.format)


# --------------------------------------------------------------------------------------------------
# labelled texts


def classes(keys: OwnKeys, given: Given) -> Classification:
    """Labelled texts for a head."""
    if not keys.text or keys.label is None:
        raise ValueError(
            "task.text, task.label: give the columns of the text (one or two) and of the label"
        )
    rows = records(keys, keys.train)
    names = keys.label_names or (
        ["score"] if keys.problem == "regression" else names_of(rows, keys.label)
    )
    metrics = keys.metrics or USUAL[keys.problem]
    shared = LabelledKeys(
        name=keys.name,
        version=keys.version,
        problem=keys.problem,
        label_names=names,
        metric=keys.metric or metrics[0],
        metrics=metrics,
        protocol=keys.selection,
        max_length=keys.max_length,
        limit_train=keys.limit_train,
        limit_eval=keys.limit_eval,
        skip_bad=keys.skip_bad,
    )
    parse = label_parser(keys.problem, shared.label_names)
    train = read(keys, rows, parse)
    if keys.dev is not None:
        dev = read(keys, records(keys, keys.dev), parse)
        same = int(np.isin(dev.draw, train.draw).sum())
        dev = dev.noted(*[f"{same} of {len(dev)} texts are in train too"] * (same > 0))
    else:
        dev, train = train.split(min(len(train) // HELD_OUT_FRACTION, HELD_OUT_MOST))
        dev = dev.noted("a part of train, drawn by a hash of its texts, because task.dev is null")
    return Classification(shared, train, {"dev": dev}, given)


def read(keys: OwnKeys, rows: Source, parse: Parse) -> Rows:
    columns = Columns(
        text=keys.text or [], label=str(keys.label), parse=parse, skip_bad=keys.skip_bad
    )
    return labelled(rows, columns)


def names_of(rows: Source, label: str) -> list[str]:
    """The names of the classes: those that the set tells, or all labels there are, sorted, numbers
    as numbers."""
    if told := rows.classes(label):
        return list(told)
    found = {
        plain(row[label])
        for _, row in rows
        if not isinstance(row, BadRow) and row.get(label) is not None
    }
    if not found:
        return ["none"]  # reading the rows says what is wrong with them
    if len(found) > MOST_CLASSES:
        raise ValueError(
            f"task.label={label}: {rows.name} has {len(found):,} different labels; set"
            " task.problem=regression for scores, or name the classes in task.label_names"
        )
    numbers = all(name.lstrip("-").isdigit() for name in found)
    return sorted(found, key=(lambda name: int(name)) if numbers else str)


# --------------------------------------------------------------------------------------------------
# instructions


def instructions(keys: OwnKeys, given: Given) -> GenerationTask:
    """Prompts and responses by template, selected by likelihood; benchmarks where some are
    named."""
    kind = cast(Kind, given.kind)
    if given.kind == "encoder":
        raise ValueError(
            f"task={keys.name}: task.prompt needs a model that writes; choose one of kind causal or"
            " seq2seq"
        )
    check_sizes(keys.held_out, keys.max_length, kind, given.tokenizer)
    name = f"{keys.name} {keys.prompt!r} {keys.response!r}"
    pair = filled(str(keys.prompt), str(keys.response))
    how = Reading(
        name, VERSION * 1000 + keys.version, pair, kind, keys.max_length, skip_bad=keys.skip_bad
    )

    def examples(which: str) -> TextExamples:
        rows, root = records(keys, which), Path(given.cache_root)
        return encode_pairs(rows, how, given.tokenizer, cache_root=root, progress=given.progress)

    splits = divide(examples(keys.train), keys.held_out, keys.limit_train, keys.limit_eval)
    if keys.dev is not None:
        splits["dev"] = examples(keys.dev).limit(keys.limit_eval)
    asked, questions, notes = benchmarks_of(keys)
    task = GenerationTask(
        given,
        name=keys.name,
        version=keys.version,
        selection="held_out" if keys.held_out else None,
        splits=splits,
        learn_prompt=keys.learn_prompt,
        asked=asked,
        questions=questions,
        average=(),
        skip_bad=keys.skip_bad,
        recipe="",  # none that has a name: the templates are in the notes
        notes=(f"prompt {keys.prompt!r}, response {keys.response!r}", *notes),
    )
    by_likelihood = [split for split in ("dev", "held_out") if split in splits][:1]
    task.reports = (*by_likelihood, *task.reports)
    return task


def benchmarks_of(keys: OwnKeys) -> Reported:
    """The benchmarks that are scored besides, where some are named."""
    if not keys.benchmarks:
        return {}, {}, ()
    wanted = [keys.protocol] if isinstance(keys.protocol, str) else list(keys.protocol or ())
    if not wanted:
        raise ValueError(
            f"task.protocol=null: name the protocols that score {', '.join(keys.benchmarks)}"
        )
    directory = None if keys.eval_data_dir == HUB else keys.eval_data_dir
    key, limit = "task.eval_data_dir", keys.limit_eval
    return reported(wanted, keys.benchmarks, directory, key, limit, keys.skip_bad)


def filled(prompt: str, response: str) -> Callable[[Row], Pair]:
    """`(row) → Pair`, with every `{column}` of the templates replaced by the row's; BadRow names
    one that is not there.

    Written on a command line, where `\\n` is two letters, it is a new line too.
    """
    prompt, response = (template.replace("\\n", "\n") for template in (prompt, response))

    def fill(template: str, row: Row) -> str:
        return PLACE.sub(lambda place: words(column(row, place[1])), template)

    def pair(row: Row) -> Pair:
        made = Pair(fill(prompt, row), fill(response, row))
        if not made.response.strip():
            raise BadRow("its response is empty, expected text")
        return made

    return pair


def words(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else plain(value)
