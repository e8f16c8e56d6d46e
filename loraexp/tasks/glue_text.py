"""GLUE as text to text: an encoder-decoder reads a sentence after an instruction and writes the name of its class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from loraexp.adapter.linalg import at_least_float32
from loraexp.data.pairs import Kind, Pair, Reading, TextExamples, encode_pairs
from loraexp.data.rows import Row
from loraexp.data.tables import Rows, label_parser
from loraexp.tasks.classification import METRICS, divided
from loraexp.tasks.glue import glue_rows
from loraexp.tasks.text import IGNORED, TextTask

VERSION = 1  # of the prompts below; part of the cache key
RESULT = "\nresult: "
# LoRA-GA and LoRA-One: instruction + text(s) + "\nresult: ". STS-B is in neither paper; its line is T5's own task name.
LORA_GA = {
    "cola": "classify the grammaticality of the text: {0}",
    "sst2": "classify the sentiment of the text: {0}",
    "mrpc": "classify the semantic similarity of the text: {0}\n{1}",
    "qqp": "classify the semantic similarity of the text: {0}\n{1}",
    "mnli": "classify the semantic similarity of the text: {0}\n{1}",
    "qnli": "classify the semantic similarity of the question and the sentence: {0}\n{1}",
    "rte": "classify the semantic similarity of the text: {0}\n{1}",
    "stsb": "rate the semantic similarity of the text: {0}\n{1}",
}
# CG-LoRA prints CoLA's alone ("classify the grammaticality of {sentence}"); the others follow its form.
CG_LORA = {
    "cola": "classify the grammaticality of {0}",
    "sst2": "classify the sentiment of {0}",
    "mrpc": "classify the semantic similarity of {0}\n{1}",
    "qqp": "classify the semantic similarity of {0}\n{1}",
    "mnli": "classify the entailment of {0}\n{1}",
    "qnli": "classify the entailment of {0}\n{1}",
    "rte": "classify the entailment of {0}\n{1}",
    "stsb": "rate the semantic similarity of {0}\n{1}",
}
Scoring = Literal["class_probability", "first_token"]


@dataclass(frozen=True)
class Protocol:
    """How a row is put to the model, and how its classes are compared."""

    prompts: Mapping[str, str]
    ending: str
    scoring: Scoring


PROTOCOLS = {
    "cg_lora": Protocol(CG_LORA, "", "class_probability"),
    "lora_ga": Protocol(LORA_GA, RESULT, "first_token"),
    "lora_one": Protocol(LORA_GA, RESULT, "first_token"),
}
SCORES = [f"{step / 5:.1f}" for step in range(26)]  # STS-B's, as T5 writes them: to the nearest 0.2 (Raffel et al. 2020)


def glue_text(
    *,
    name: str,
    version: int,
    benchmark: str,
    source: str,
    config: str,
    revision: str | None,
    text: list[str],
    folder: str,
    file_text: list[str],
    file_label: str,
    file_columns: list[str] | None = None,
    full_train: str | None = None,
    full_train_without: str | None = None,
    full_train_ids: list[str] | None = None,
    dev_splits: list[str],
    problem: Literal["single_label_classification", "regression"],
    label_names: list[str] | None,
    metric: str,
    metrics: list[str],
    protocol: Literal["cg_lora", "lora_ga", "lora_one"] = "lora_ga",
    selection: Literal["held_out", "paper"] = "held_out",
    max_length: int = 256,
    limit_train: int | None = None,
    limit_eval: int | None = None,
    data_dir: str | None = None,
    eval_data_dir: str | None = None,
    skip_bad: bool = False,
    tokenizer: Any,
    kind: Kind,
    cache_root: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> GlueText:
    """One GLUE task as text, e.g. `classify the grammaticality of the text: They drank the pub dry.` → `acceptable`.

    The rows, splits and limits are those of the task for encoders (`loraexp.tasks.glue`); `selection` is its
    `protocol`. `protocol`: the prompt and the scoring of a paper, see `PROTOCOLS`.

    Raises: SourceError where a file or the hub's copy is missing; ValueError naming file and line of a malformed row.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"task.protocol={protocol}: expected {' or '.join(PROTOCOLS)}")
    if selection not in ("held_out", "paper"):
        raise ValueError(f"task.selection={selection}: expected held_out or paper")
    names = SCORES if problem == "regression" else list(label_names or [])
    train, dev = glue_rows(
        source=source, config=config, revision=revision, text=text, folder=folder, file_text=file_text, file_label=file_label,
        file_columns=file_columns, full_train=full_train, full_train_without=full_train_without,
        full_train_ids=full_train_ids, dev_splits=dev_splits, parse=label_parser(problem, names), data_dir=data_dir,
        eval_data_dir=eval_data_dir, skip_bad=skip_bad,
    )  # fmt: skip
    rows = divided(name, train, dev, held_out=selection == "held_out", limit_train=limit_train, limit_eval=limit_eval)
    chosen = PROTOCOLS[protocol]
    if benchmark not in chosen.prompts:
        raise ValueError(f"task.benchmark={benchmark}: expected one of {', '.join(chosen.prompts)}")
    pair = _pair(chosen, benchmark, names, problem)
    # The names are in the key: another word for a class is another target.
    how = Reading(f"glue {benchmark} {protocol} {names}", VERSION * 1000 + version, pair, kind, max_length, cut_prompt=True)
    splits = {
        split: _labelled(encode_pairs(_Labelled(part), how, tokenizer, cache_root=Path(cache_root), progress=progress), part)
        for split, part in rows.items()
    }
    reports = tuple(dev)
    return GlueText(
        name=name, version=version, kind=kind, tokenizer=tokenizer, metric=metric, metrics=metrics, scoring=chosen.scoring,
        classes=names, problem=problem, protocol=protocol, selection="held_out" if selection == "held_out" else reports[0],
        reports=reports, splits=splits,
    )  # fmt: skip


glue_text.kinds = frozenset({"seq2seq"})  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _Labelled:
    """Labelled rows, already read, as records."""

    rows: Rows

    @property
    def name(self) -> str:
        return self.rows.source

    def identity(self) -> str:
        return self.rows.fingerprint()

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        for number, (texts, label) in enumerate(zip(self.rows.texts, self.rows.labels.tolist(), strict=True), start=1):
            yield f"{self.rows.source} row {number}", {"texts": texts, "label": label}


def _pair(protocol: Protocol, benchmark: str, names: Sequence[str], problem: str) -> Callable[[Row], Pair]:
    def pair(row: Row) -> Pair:
        index = round(row["label"] * 5) if problem == "regression" else int(row["label"])
        return Pair(protocol.prompts[benchmark].format(*row["texts"]) + protocol.ending, names[index])

    return pair


def _labelled(examples: TextExamples, rows: Rows) -> TextExamples:
    labels = rows.labels
    notes = rows.notes + examples.notes
    return TextExamples(
        tokens=examples.tokens, starts=examples.starts, ends=examples.ends, prompts=examples.prompts, digests=examples.digests,
        source=examples.source, notes=notes, labels=labels,
    )  # fmt: skip


class GlueText(TextTask):
    """Text-to-text rows whose answer is one of a few names, scored exactly: no text is generated or parsed.

    `class_probability`: `log p(name, </s> | prompt)`, the sum over all of the name's tokens (CG-LoRA). `first_token`:
    the logit of each name's first token (LoRA-GA, LoRA-One). One forward pass scores all names: the encoder runs once,
    and the decoder takes the names side by side, padded to the longest, which a decoder that looks back never sees.
    """

    def __init__(self, *, metrics: Sequence[str], scoring: Scoring, classes: Sequence[str], protocol: str, **common: Any) -> None:
        super().__init__(**common)
        self.metrics, self.scoring, self.classes, self.protocol = tuple(metrics), scoring, list(classes), protocol
        self.label_names = list(classes)
        known = METRICS[self.problem]  # type: ignore[index]
        if unknown := set(self.metrics) - set(known):
            raise ValueError(f"task.metrics={sorted(unknown)}: {self.problem} has {', '.join(known)}")
        if self.metric not in self.metrics:
            raise ValueError(f"task.metric={self.metric}: expected one of task.metrics, {', '.join(self.metrics)}")
        self.names = self._names()
        firsts = self.names[:, 0].tolist()
        if scoring == "first_token" and len(set(firsts)) < len(firsts):
            same = [name for name, first in zip(classes, firsts, strict=True) if firsts.count(first) > 1]
            raise ValueError(
                f"task={self.name}: {', '.join(same)} begin with the same token, so the first token cannot tell them apart; "
                "set task.protocol=cg_lora, which compares whole names"
            )

    def _names(self) -> Tensor:
        """The labels (C, L) of the names: their tokens and the end token, −100 behind."""
        encoded = self.tokenizer(self.classes, add_special_tokens=False)["input_ids"]
        rows = [torch.tensor([*ids, self.tokenizer.eos_token_id]) for ids in encoded]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)

    def scores(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The score (n, C) of each name after each prompt: the highest is the model's answer."""
        mask = batch["attention_mask"]
        names = self.names.to(mask.device)
        body: Any = getattr(model, "module", model)
        read = body.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        if self.scoring == "first_token":
            logits = model(
                encoder_outputs=(read,), attention_mask=mask, decoder_input_ids=self._shifted(model, names[:1, :1].expand(len(mask), 1))
            ).logits
            return at_least_float32(logits[:, 0]).index_select(1, names[:, 0])
        classes, length = names.shape
        labels = names.repeat(len(mask), 1)  # (n·C, L): all names of a row, one after another
        each = (read.repeat_interleave(classes, dim=0), mask.repeat_interleave(classes, dim=0))
        logits = model(encoder_outputs=each[:1], attention_mask=each[1], decoder_input_ids=self._shifted(model, labels)).logits
        losses = functional.cross_entropy(at_least_float32(logits).flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        return -losses.view(len(mask), classes, length).sum(dim=2)

    def compute_metrics(self, logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
        """The task's metrics of the scores (n, C) against the classes (n,), or against STS-B's real scores."""
        from loraexp.scoring import metrics as measures

        chosen = logits.argmax(axis=-1)
        if self.problem == "regression":
            return measures.compute(self.metrics, chosen / 5, labels)
        return measures.compute(self.metrics, chosen, labels.astype(np.int64))

    def _describe(self, split: str, examples: TextExamples) -> dict[str, Any]:
        said = super()._describe(split, examples) | {"protocol": self.protocol, "scoring": self.scoring}
        if self.problem == "single_label_classification" and examples.labels is not None:
            counts = np.bincount(examples.labels.astype(np.int64), minlength=len(self.classes))
            said["labels"] = {name: int(count) for name, count in zip(self.classes, counts, strict=True)}
        return said
