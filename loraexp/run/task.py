"""What a task is to a run: tokenised examples, a loss, outputs, and metrics; and how a task's keys
become one."""

from __future__ import annotations

import functools
import inspect
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np

from loraexp.run.batches import count_labels
from loraexp.run.evaluate import predict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from loraexp.machine.device import Runtime
    from loraexp.scoring.prompts import Tokenizer

Problem = Literal["single_label_classification", "regression", "generation"]
Kind = Literal["encoder", "seq2seq", "causal"]
Metrics = dict[str, float]


@dataclass(kw_only=True, eq=False)
class Task(ABC):
    """Examples of every split, how they become a batch and a loss, and how a model is scored on
    them.

    A subclass has `collate`, `sample_losses`, `outputs` and `compute_metrics`; the rest has a
    default.
    """

    several_labels: ClassVar[bool] = False  # whether a row has several label tokens

    name: str
    version: int
    problem: Problem
    metric: str  # the value that selects the best checkpoint; higher is better
    reports: Sequence[str]  # the splits that are reported
    splits: Mapping[str, Any]  # "train", "held_out" where the protocol has one, the reported ones
    # the split that selects; None: nothing does, the last weights stay
    selection: str | None = None
    num_labels: int | None = None  # of the model's head; None where the task adds none
    label_names: list[str] = field(default_factory=list)
    tokenizer: Any = None

    @abstractmethod
    def collate(
        self, examples: Any, rows: Sequence[int] | np.ndarray, *, pad_to: int | None = None
    ) -> dict[str, Tensor]:
        """The rows as one batch, padded to the longest of them (or to `pad_to` tokens)."""

    @abstractmethod
    def loss_sum(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """The sum of the labels' losses, and the number of labels."""

    @abstractmethod
    def sample_losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """`L_i` (n,): each row's own loss, which is the loss of a batch of that row alone."""

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits (n, C), or (n, L, V) at the label tokens: a row's own, whatever batch it is
        in."""

    def scores(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The score (n, C) of each class, of which the metrics are made."""
        return self.outputs(model, batch)

    def compute_metrics(self, scores: np.ndarray, labels: np.ndarray) -> Metrics:
        """The task's metrics of the scores (n, C) against the labels (n,)."""
        raise NotImplementedError(f"task={self.name} has no metrics of logits")

    def evaluate(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        split: str,
        *,
        batch_size: int,
        runtime: Runtime,
        folder: Path | None,
    ) -> Metrics:
        """The metrics of a split: here of the scores of its rows. `folder`: for what it saw, on the
        main process."""
        scores = predict(model, self, split, batch_size=batch_size, runtime=runtime)
        broken = int((~np.isfinite(scores)).any(axis=1).sum())
        if broken:
            raise FloatingPointError(
                f"{broken} of {len(scores)} rows of {split} have outputs that are not finite: lower"
                " lr or use precision=fp32"
            )
        return self.compute_metrics(scores, self.splits[split].labels)

    def answering(self) -> AbstractContextManager[None]:
        """What the evaluation of several splits, of one and the same model, is done within."""
        return nullcontext()

    def label_counts(self, split: str, rows: slice | Sequence[int] | np.ndarray) -> dict[str, int]:
        """How many of these rows of a split have each class, by name; nothing where there are no
        classes."""
        examples = self.splits[split]
        if self.problem != "single_label_classification" or examples.labels is None:
            return {}
        counts = np.bincount(
            examples.labels[rows].astype(np.int64), minlength=len(self.label_names)
        )
        return dict(zip(self.label_names, counts.tolist(), strict=True))

    def labels_in(self, examples: Any, rows: Sequence[int] | np.ndarray) -> int:
        """The labels that these rows bring into the loss: every process knows those of all."""
        return count_labels(self.collate(examples, rows))

    def describe(self) -> dict[str, Any]:
        """Per split: rows, fingerprint, source, its part in the protocol, what was cut, and what a
        task has to say besides."""
        return {split: self.described(split) | self.facts_of(split) for split in self.splits}

    def described(self, split: str) -> dict[str, object]:
        """What the record says of the rows of a split, whatever the task."""
        examples = self.splits[split]
        parts = {
            "trains": split == "train",
            "selects": split == self.selection,
            "reported": split in self.reports,
        }
        labels = self.label_counts(split, slice(None))
        return {
            "rows": len(examples),
            "fingerprint": examples.fingerprint,
            "source": examples.source,
            "part": [part for part, is_so in parts.items() if is_so],
            "cut": examples.cut,
            "unknown": examples.unknown,
            "notes": list(examples.notes),
            **({"labels": labels} if labels else {}),
        }

    def facts_of(self, split: str) -> dict[str, object]:
        """What the record says of a split beside that."""
        return {}


# --------------------------------------------------------------------------------------------------
# keys


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a run hands to its task beside the task's own keys."""

    tokenizer: Any
    cache_root: str | Path
    kind: Kind = "encoder"
    progress: Callable[[int, int], None] | None = None
    backend: Literal["hf", "vllm"] = "hf"
    unsafe_code: bool = False


Keys = TypeVar("Keys")
Builder = Callable[[Keys, Given], Task]


def of_keys(
    kind: type[Keys], *, kinds: frozenset[Kind]
) -> Callable[[Builder[Keys]], Callable[..., Task]]:
    """A task whose keys are the fields of a dataclass: `f(keys, given)` is called as `f(**fields,
    **given)`.

    Its signature and annotations are those of the fields, so that a configuration is checked
    against them; `kinds` are the kinds of model that it is for.
    """

    def decorate(build: Builder[Keys]) -> Callable[..., Task]:
        @functools.wraps(build)
        def made(**values: Any) -> Task:
            handed = {f.name: values.pop(f.name) for f in fields(Given) if f.name in values}
            return build(kind(**values), Given(**handed))

        both = [*_parameters(kind), *_parameters(Given)]
        signature = inspect.Signature(both)
        made.__signature__ = signature  # type: ignore[attr-defined]
        made.__annotations__ = {p.name: p.annotation for p in both} | {"return": Task}
        made.kinds = kinds  # type: ignore[attr-defined]
        return made

    return decorate


def _parameters(kind: type) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(kind)
    return [
        p.replace(annotation=hints[name]) for name, p in inspect.signature(kind).parameters.items()
    ]
