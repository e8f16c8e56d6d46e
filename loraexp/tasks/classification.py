"""Tasks that label a sentence or a pair of sentences with a class or a score, for encoders with a
head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from loraexp.adapter.linalg import at_least_float32
from loraexp.data.draw import HELD_OUT_FRACTION, HELD_OUT_MOST
from loraexp.data.tables import Problem, Rows, plain
from loraexp.data.tokens import Examples, encode, tokenizer_fingerprint
from loraexp.machine.device import Batch
from loraexp.run.task import Given, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METRICS: dict[Problem, tuple[str, ...]] = {
    "single_label_classification": ("accuracy", "matthews_correlation", "f1", "macro_f1"),
    "regression": ("pearson", "spearmanr"),
}
LIKELIHOOD = "log_likelihood"  # every task with classes reports it


def likelihood(scores: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """`log_likelihood`: the mean over the rows of `log softmax(scores)` (n, C) at the true class
    (n,), in nats.

    At most 0; −log C for a model that knows nothing. It tells models apart that accuracy, a count
    of rows, cannot.
    """
    shifted = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
    logs = shifted[np.arange(len(labels)), labels.astype(np.int64)] - np.log(
        np.exp(shifted).sum(axis=1)
    )
    return {LIKELIHOOD: float(logs.mean())}


def divided(
    keys: LabelledKeys, train: Rows, dev: Mapping[str, Rows], *, held_out: bool
) -> dict[str, Rows]:
    """The rows of every split: train, the dev splits, and with `held_out` a part of train, set
    aside before the limits."""
    parts = dict(dev)
    if held_out:
        parts["held_out"], train = train.split(min(len(train) // HELD_OUT_FRACTION, HELD_OUT_MOST))
    limited = {"train": train.limit(keys.limit_train)}
    limited |= {split: rows.limit(keys.limit_eval) for split, rows in parts.items()}
    for split, rows in limited.items():
        if len(rows) == 0:
            raise ValueError(
                f"task={keys.name}: the split {split} has no rows ({rows.source}): give more rows"
            )
    return limited


@dataclass(frozen=True, kw_only=True)
class LabelledKeys:
    """The keys that every task of labelled texts has."""

    name: str
    version: int  # of the way a row becomes tokens; part of the cache key
    problem: Problem = "single_label_classification"
    label_names: list[str]
    metric: str  # selects the checkpoint
    metrics: list[str]
    protocol: Literal["held_out", "paper"] = "held_out"
    max_length: int = 256
    limit_train: int | None = None
    limit_eval: int | None = None  # of each other split
    data_dir: str | None = None
    eval_data_dir: str | None = None
    skip_bad: bool = False  # malformed rows are skipped and counted

    def __post_init__(self) -> None:
        if self.label_names is not None:  # [1, 2, 3] without quotes are names too
            object.__setattr__(self, "label_names", [plain(name) for name in self.label_names])

    def check(self, known: Sequence[str]) -> None:
        """Raises: ValueError for a metric that the problem does not have, or a limit that leaves
        nothing."""
        if unknown := set(self.metrics) - set(known):
            shown = list(self.metrics) if set(self.metrics) == unknown else sorted(unknown)
            raise ValueError(f"task.metrics={shown}: {self.problem} has {', '.join(known)}")
        twice = [name for name, count in Counter(self.label_names or ()).items() if count > 1]
        if twice:
            raise ValueError(
                f"task.label_names={self.label_names}: {', '.join(twice)} is there twice; give"
                " every class a name"
            )
        always = [LIKELIHOOD] if self.problem == "single_label_classification" else []
        if self.metric not in [*self.metrics, *always]:
            others = "".join(f" or {name}" for name in always)
            raise ValueError(
                f"task.metric={self.metric}: expected one of task.metrics,"
                f" {', '.join(self.metrics)}{others}"
            )
        for key in ("limit_train", "limit_eval"):
            limit = getattr(self, key)
            if limit is not None and limit < 1:
                raise ValueError(
                    f"task.{key}={limit}: expected a number of rows above 0, or null for all"
                )


class Classification(Task):
    """Labelled texts, divided by a protocol and tokenised.

    `protocol="held_out"`: a part of train, fixed for ever by a hash of its texts (a tenth, at most
    1,000 rows), selects the checkpoint, and the labelled dev splits are only reported.
    `protocol="paper"`: the first dev split selects and the dev splits are reported, as the papers
    do. `limit_train` and `limit_eval` (of each other split) keep that many rows, drawn by the same
    hash, in the order of the file; the held-out rows are set aside before the limit.
    """

    def __init__(
        self, keys: LabelledKeys, train: Rows, dev: Mapping[str, Rows], given: Given
    ) -> None:
        self._check(keys, given.tokenizer)
        reports, held_out = tuple(dev), keys.protocol == "held_out"
        limited = divided(keys, train, dev, held_out=held_out)
        tokens = partial(
            encode,
            tokenizer=given.tokenizer,
            tokenizer_key=tokenizer_fingerprint(given.tokenizer),
            problem=keys.problem,
            max_length=keys.max_length,
            version=keys.version,
            cache_root=Path(given.cache_root),
            progress=given.progress,
        )
        super().__init__(
            name=keys.name,
            version=keys.version,
            problem=keys.problem,
            metric=keys.metric,
            reports=reports,
            splits={split: tokens(rows) for split, rows in limited.items()},
            selection="held_out" if held_out else reports[0],
            num_labels=len(keys.label_names),
            label_names=list(keys.label_names),
            tokenizer=given.tokenizer,
        )
        self.metrics, self.protocol = tuple(keys.metrics), keys.protocol
        self._pad = int(given.tokenizer.pad_token_id)

    def _check(self, keys: LabelledKeys, tokenizer: PreTrainedTokenizerBase) -> None:
        if keys.problem not in METRICS:
            raise ValueError(f"task.problem={keys.problem}: expected {' or '.join(METRICS)}")
        if keys.protocol not in ("held_out", "paper"):
            raise ValueError(f"task.protocol={keys.protocol}: expected held_out or paper")
        keys.check(METRICS[keys.problem])
        if not 8 <= keys.max_length <= tokenizer.model_max_length:
            raise ValueError(
                f"task.max_length={keys.max_length}: expected 8 to {tokenizer.model_max_length}"
                " tokens"
            )
        if tokenizer.pad_token_id is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has no padding token: set tokenizer.pad_token"
            )

    def collate(
        self, examples: Examples, rows: Sequence[int] | NDArray[Any], *, pad_to: int | None = None
    ) -> dict[str, Tensor]:
        """The rows as one batch, padded on the right to the longest of them, or to `pad_to` tokens
        where given."""
        starts, ends = (
            examples.offsets[rows].tolist(),
            examples.offsets[np.asarray(rows) + 1].tolist(),
        )
        longest = max(end - start for start, end in zip(starts, ends, strict=True))
        width = pad_to or longest
        if width < longest:
            raise ValueError(
                f"pad_to={pad_to}: a row of the batch has {longest} tokens; expected at least that"
            )
        ids = np.full((len(starts), width), self._pad, dtype=np.int64)
        mask = np.zeros((len(starts), width), dtype=np.int64)
        types = None if examples.types is None else np.zeros((len(starts), width), dtype=np.int64)
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            ids[row, : end - start] = examples.tokens[start:end]
            mask[row, : end - start] = 1
            if types is not None and examples.types is not None:
                types[row, : end - start] = examples.types[start:end]
        batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if types is not None:
            batch["token_type_ids"] = torch.from_numpy(types)
        labels = torch.from_numpy(examples.labels[rows])
        lengths = [end - start for start, end in zip(starts, ends, strict=True)]
        return Batch(batch | {"labels": labels}, count=len(labels), lengths=lengths)

    def outputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits (batch, C), in float32 or better."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        return at_least_float32(model(**inputs).logits)

    def sample_losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Each row's cross-entropy (n,), or its squared error for regression."""
        return self._losses(model, batch, "none")

    def loss_sum(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """The sum over the batch of cross-entropies, or of squared errors for regression, and the
        number of labels."""
        return self._losses(model, batch, "sum"), len(batch["labels"])

    def _losses(self, model: nn.Module, batch: Mapping[str, Tensor], reduction: str) -> Tensor:
        logits, labels = self.outputs(model, batch), batch["labels"]
        if self.problem == "regression":
            return functional.mse_loss(
                logits.squeeze(-1), labels.to(logits.dtype), reduction=reduction
            )
        return functional.cross_entropy(logits, labels, reduction=reduction)

    def labels_in(self, examples: Any, rows: Sequence[int] | NDArray[Any]) -> int:
        """One label a row."""
        return len(rows)

    def compute_metrics(self, logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
        """The task's metrics of the logits (n, C) against the labels (n,).

        Raises: FloatingPointError where a logit is NaN or infinite: no class can honestly be read
        from it.
        """
        broken = int((~np.isfinite(logits)).any(axis=-1).sum())
        if broken:
            raise FloatingPointError(
                f"task={self.name}: {broken} of {len(logits)} rows have NaN or infinite logits: it"
                " diverged, lower lr"
            )
        from loraexp.scoring import metrics

        if self.problem == "regression":
            return metrics.compute(self.metrics, logits[:, 0], labels)
        return metrics.compute(self.metrics, logits.argmax(axis=-1), labels) | likelihood(
            logits, labels
        )

    def facts_of(self, split: str) -> dict[str, object]:
        return {"protocol": self.protocol, "tokens": int(self.splits[split].offsets[-1])}
