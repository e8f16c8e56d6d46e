"""GLUE as text to text: an encoder-decoder reads a sentence after an instruction and writes the
name of its class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from loraexp.adapter.linalg import at_least_float32
from loraexp.data.layouts import Row
from loraexp.data.pairs import Kind, Pair, Reading, TextExamples, encode_pairs
from loraexp.data.tables import Rows, label_parser
from loraexp.machine.device import is_accelerator, on_device
from loraexp.run.task import Given, of_keys
from loraexp.tasks.classification import METRICS, divided, likelihood
from loraexp.tasks.glue_prompts import PROTOCOLS, SAME, SCORES, WORDS, Protocol, Scoring, scoring_of
from loraexp.tasks.originals import GlueKeys, glue_rows
from loraexp.tasks.text import IGNORED, TextTask

VERSION = 1  # of the prompts below; part of the cache key


@dataclass(frozen=True, kw_only=True)
class GlueTextKeys(GlueKeys):
    """The keys of one GLUE task as text: those of the task for encoders, whose `protocol` is
    `selection` here."""

    benchmark: str  # its name among the prompts
    label_names: list[str] | None  # type: ignore[assignment]  # None: numbers, to the nearest 0.2
    protocol: Literal["cg_lora", "lora_ga", "lora_one", "exact", "restricted"] = "lora_ga"
    selection: Literal["held_out", "paper"] = "held_out"


def as_text(keys: GlueKeys) -> GlueTextKeys:
    """The keys of the same task as text: what selects stays, the paper's prompt is LoRA-GA's where
    none is named."""
    named = keys.protocol in PROTOCOLS
    usual = "cg_lora" if keys.problem == "regression" else "lora_ga"  # numbers share first tokens
    words = None if keys.problem == "regression" else WORDS.get(keys.config, keys.label_names)
    texts = {
        "label_names": words,
        "benchmark": keys.config,
        "protocol": keys.protocol if named else usual,
    }
    return GlueTextKeys(**vars(keys) | texts, selection="held_out" if named else keys.protocol)  # type: ignore[arg-type]


@of_keys(GlueTextKeys, kinds=frozenset({"seq2seq"}))
def glue_text(keys: GlueTextKeys, given: Given) -> GlueText:
    """One GLUE task as text under a paper's protocol, see `of_text`."""
    return of_text(keys, given)


def of_text(keys: GlueTextKeys, given: Given) -> GlueText:
    """One GLUE task as text, e.g. `classify the grammaticality of the text: They drank the pub
    dry.` → `acceptable`.

    The rows, splits and limits are those of the task for encoders (`loraexp.tasks.glue`).
    `protocol`: the prompt and the scoring of a paper, see `PROTOCOLS`.

    Raises: SourceError where a file or the hub's copy is missing; ValueError naming file and line
    of a malformed row.
    """
    if keys.protocol not in PROTOCOLS:
        raise ValueError(f"task.protocol={keys.protocol}: expected {' or '.join(PROTOCOLS)}")
    if keys.selection not in ("held_out", "paper"):
        raise ValueError(f"task.selection={keys.selection}: expected held_out or paper")
    chosen = PROTOCOLS[keys.protocol]
    if keys.benchmark not in chosen.prompts:
        raise ValueError(
            f"task.benchmark={keys.benchmark}: expected one of {', '.join(chosen.prompts)}"
        )
    keys.check(METRICS[keys.problem])
    names = SCORES if keys.problem == "regression" else list(keys.label_names or [])
    train, dev = glue_rows(keys, label_parser(keys.problem, names, SAME))
    reports, held_out = tuple(dev), keys.selection == "held_out"
    return GlueText(
        name=keys.name,
        version=keys.version,
        kind=cast(Kind, given.kind),
        tokenizer=given.tokenizer,
        problem=keys.problem,
        metric=keys.metric,
        metrics=tuple(keys.metrics),
        selection="held_out" if held_out else reports[0],
        reports=reports,
        splits=_examples(keys, chosen, names, divided(keys, train, dev, held_out=held_out), given),
        label_names=names,
        protocol=keys.protocol,
        scoring=scoring_of(keys.protocol, keys.benchmark),
    )


def _examples(
    keys: GlueTextKeys,
    protocol: Protocol,
    names: Sequence[str],
    rows: Mapping[str, Rows],
    given: Given,
) -> dict[str, TextExamples]:
    # The names are in the key: another word for a class is another target.
    name = f"glue {keys.benchmark} {keys.protocol} {list(names)}"
    pair = _pair(protocol, keys.benchmark, names, keys.problem)
    version = VERSION * 1000 + keys.version
    kind = cast(Literal["causal", "seq2seq"], given.kind)
    how = Reading(name, version, pair, kind, keys.max_length, long="cut_prompt")
    made = {}
    for split, part in rows.items():
        tokens = encode_pairs(
            _Labelled(part),
            how,
            given.tokenizer,
            cache_root=Path(given.cache_root),
            progress=given.progress,
        )
        made[split] = replace(tokens, labels=part.labels, notes=part.notes + tokens.notes)
    return made


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
        for number, (texts, label) in enumerate(
            zip(self.rows.texts, self.rows.labels.tolist(), strict=True), start=1
        ):
            yield f"{self.rows.source} row {number}", {"texts": texts, "label": label}


def _pair(
    protocol: Protocol, benchmark: str, names: Sequence[str], problem: str
) -> Callable[[Row], Pair]:
    def pair(row: Row) -> Pair:
        index = round(row["label"] * 5) if problem == "regression" else int(row["label"])
        return Pair(
            protocol.prompts[benchmark].format(*row["texts"]) + protocol.ending, names[index]
        )

    return pair


@dataclass(kw_only=True, eq=False)
class GlueText(TextTask):
    """Text-to-text rows whose answer is one of a few names, scored exactly: no text is generated or
    parsed.

    `class_probability`: `log p(name, </s> | prompt)`, the sum over all of the name's tokens
    (CG-LoRA). `first_token`: the logit of each name's first token (LoRA-GA, LoRA-One, on CoLA and
    MRPC). `exact`: is each token of the name, its end included, the arg max over the whole
    vocabulary, so that the model would write it and nothing else (the same papers, elsewhere)? A
    row whose arg max is no name at all is wrong, whatever its class. One forward pass scores all
    names: an encoder runs once, and its decoder takes the names side by side, padded to the
    longest, which a decoder that looks back never sees.
    """

    metrics: tuple[str, ...]
    scoring: Scoring
    protocol: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.names = self._names()
        firsts = self.names[:, 0].tolist()
        if self.scoring == "exact" and self.problem == "regression":
            raise ValueError(
                f"task={self.name}: a score has no exact match; set task.protocol=cg_lora, which"
                " compares whole names"
            )
        if self.scoring == "first_token" and len(set(firsts)) < len(firsts):
            same = [
                name
                for name, first in zip(self.label_names, firsts, strict=True)
                if firsts.count(first) > 1
            ]
            raise ValueError(
                f"task={self.name}: {', '.join(same)} begin with the same token, so the first token"
                " cannot tell them apart; set task.protocol=cg_lora, which compares whole names"
            )

    def _names(self) -> Tensor:
        """The labels (C, L) of the names: their tokens and the end token, −100 behind."""
        encoded = self.tokenizer(self.label_names, add_special_tokens=False)["input_ids"]
        rows = [torch.tensor([*ids, self.tokenizer.eos_token_id]) for ids in encoded]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)

    def scores(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The score (n, C) of each name after each prompt: the highest is the model's answer."""
        return (
            self._of_decoder(model, batch) if self.kind == "causal" else self._of_both(model, batch)
        )

    def _of_decoder(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """A causal model reads each prompt once for each name, with the name behind it, or once for
        first tokens."""
        prompt = batch["attention_mask"].bool() & (batch["labels"] == IGNORED)
        names, lengths = on_device(self.names, prompt.device), prompt.sum(dim=1)
        # an accelerator is not asked where the longest ends: what is behind it is masked
        ask = not is_accelerator(prompt.device)
        width = int(lengths.max()) if ask else prompt.shape[1]
        ids, prompt = batch["input_ids"][:, :width], prompt[:, :width]
        if self.scoring == "first_token":
            last = model(input_ids=ids, attention_mask=prompt.long(), use_cache=False).logits[
                torch.arange(len(lengths), device=lengths.device), lengths - 1
            ]
            return at_least_float32(last).index_select(1, names[:, 0])
        most = names.shape[1]
        place = torch.arange(width + most, device=ids.device) - lengths.unsqueeze(1)
        words = names[:, place.clamp(0, most - 1)].transpose(0, 1)  # (n, C, L)
        named = (place.ge(0) & place.lt(most)).unsqueeze(1) & (words != IGNORED)
        asked = functional.pad(ids, (0, most)).unsqueeze(1)
        inside = (named | place.lt(0).unsqueeze(1)).flatten(0, 1)
        labels = words.masked_fill(~named, IGNORED).flatten(0, 1)
        whole = torch.where(named, words, asked).flatten(0, 1).masked_fill(~inside, self._pad)
        logits = model(input_ids=whole, attention_mask=inside.long(), use_cache=False).logits
        return self._of_names(logits[:, :-1], labels[:, 1:], len(lengths))

    def _of_both(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        mask = batch["attention_mask"]
        names = on_device(self.names, mask.device)
        body: Any = getattr(model, "module", model)
        read = body.get_encoder()(
            input_ids=batch["input_ids"], attention_mask=mask
        ).last_hidden_state
        if self.scoring == "first_token":
            first = self._shifted(model, names[:1, :1].expand(len(mask), 1))
            logits = model(
                encoder_outputs=(read,),
                attention_mask=mask,
                decoder_input_ids=first,
                use_cache=False,
            ).logits
            return at_least_float32(logits[:, 0]).index_select(1, names[:, 0])
        classes = len(names)
        labels = names.repeat(len(mask), 1)  # (n·C, L): all names of a row, one after another
        each = (read.repeat_interleave(classes, dim=0), mask.repeat_interleave(classes, dim=0))
        asked = {
            "attention_mask": each[1],
            "decoder_input_ids": self._shifted(model, labels),
            "use_cache": False,
        }
        logits = model(encoder_outputs=each[:1], **asked).logits
        return self._of_names(logits, labels, len(mask))

    def _of_names(self, logits: Tensor, labels: Tensor, rows: int) -> Tensor:
        """log p (n, C) of the names whose tokens are the labels (n·C, L); for exact match beside it
        whether each is the arg max (n, 2 C)."""
        flat = at_least_float32(logits).flatten(0, 1)
        losses = functional.cross_entropy(
            flat, labels.flatten(), ignore_index=IGNORED, reduction="none"
        )
        scores = -losses.view(rows, -1, labels.shape[1]).sum(dim=2)
        if self.scoring != "exact":
            return scores
        matched = ((logits.argmax(dim=-1) == labels) | (labels == IGNORED)).all(dim=1)
        return torch.cat([scores, matched.view(rows, -1).to(scores.dtype)], dim=1)

    def compute_metrics(self, logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
        """The task's metrics of the scores (n, C) against the classes (n,), or against STS-B's real
        scores.

        `log_likelihood` is of the true name among the names.
        """
        from loraexp.scoring import metrics as measures

        if self.scoring == "exact":
            logits, matched = np.split(logits, 2, axis=1)
            chosen = np.where(matched.any(axis=1), matched.argmax(axis=1), -1)
        else:
            chosen = logits.argmax(axis=-1)
        if self.problem == "regression":
            return measures.compute(self.metrics, chosen / 5, labels)
        return measures.compute(self.metrics, chosen, labels.astype(np.int64)) | likelihood(
            logits, labels
        )

    def facts_of(self, split: str) -> dict[str, object]:
        return super().facts_of(split) | {"protocol": self.protocol, "scoring": self.scoring}
