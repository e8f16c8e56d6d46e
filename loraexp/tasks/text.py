"""Tasks whose answer is text: what causal and encoder-decoder models share, from tokens to the loss
of the answer's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from loraexp.data.pairs import Kind, TextExamples
from loraexp.machine.device import Batch, Runtime
from loraexp.run.evaluate import of_batches
from loraexp.run.task import Problem, Task
from loraexp.tasks.losses import cross_entropies

# the label of a token that is not in the loss: padding, and prompts unless they are learnt
IGNORED = -100
KINDS = frozenset({"causal", "seq2seq"})
# bytes of the logits that are there at once where only likelihoods are wanted: soft caps copy them
LOGITS = 2**30


@dataclass(kw_only=True, eq=False)
class TextTask(Task):
    """Prompts and responses, tokenised, for a causal model or an encoder-decoder.

    Example of a row, as a causal model sees it: `<s> Q: … \\n A:` (no labels), then `48/2 = 24 …
    #### 72 </s>` (labels). An encoder-decoder reads the prompt in its encoder and has the response
    as the decoder's labels. Padding never has labels, in T5 either (the released codes of LoRA-GA
    and LoRA-One leave T5's padding in the loss). With `learn_prompt` the prompt's tokens of a
    causal model are labels too. Rows stand alone in a batch (no packing): nothing attends across
    them, and the loop's length buckets keep the padding small.
    """

    several_labels: ClassVar[bool] = True

    kind: Kind
    splits: Mapping[str, TextExamples]
    problem: Problem = "generation"
    learn_prompt: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"task={self.name}: model.kind is {self.kind}; expected causal or seq2seq, for"
                " example model=smollm2-135m or model=t5-base"
            )
        if self.learn_prompt and self.kind == "seq2seq":
            raise ValueError(
                f"task={self.name}: its protocol learns the prompt, which an encoder-decoder"
                " cannot; choose a causal model"
            )
        self.reports = tuple(self.reports)
        self._pad = int(self.tokenizer.pad_token_id)

    # ----------------------------------------------------------------------------------------------
    # batches

    def collate(
        self,
        examples: TextExamples,
        rows: Sequence[int] | NDArray[Any],
        *,
        pad_to: int | None = None,
    ) -> dict[str, Tensor]:
        """The rows as one batch, padded on the right to the longest of them, or the input to
        `pad_to` tokens where given."""
        starts, ends = examples.starts[rows].tolist(), examples.ends[rows].tolist()
        middles = (examples.starts[rows] + examples.prompts[rows]).tolist()
        pieces = [
            examples.tokens[a:b]
            for a, b in zip(starts, ends if self.kind == "causal" else middles, strict=True)
        ]
        ids, mask = padded(pieces, self._pad, pad_to)
        if self.kind == "seq2seq":
            labels, _ = padded(
                [examples.tokens[a:b] for a, b in zip(middles, ends, strict=True)], IGNORED
            )
        else:
            labels = np.where(mask == 1, ids, IGNORED)
            for row, (start, middle) in enumerate(zip(starts, middles, strict=True)):
                # The first token has nothing before it, so nothing predicts it: it is no label even
                # where prompts are.
                labels[row, : 1 if self.learn_prompt else max(middle - start, 1)] = IGNORED
        here = labels != IGNORED
        return Batch(
            {
                "input_ids": torch.from_numpy(ids),
                "attention_mask": torch.from_numpy(mask),
                "labels": torch.from_numpy(labels),
            },
            count=int(here.sum()),
            most=int(here.sum(axis=1).max()),
            first=int(here.any(axis=0).argmax()),
            lengths=[len(piece) for piece in pieces],
        )

    # ----------------------------------------------------------------------------------------------
    # the model

    def _predictions(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (n, L, V) and the labels (n, L) that each of them predicts, −100 where none."""
        labels = batch["labels"]
        if self.kind == "seq2seq":
            reads = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            shifted = self._shifted(model, labels)
            return model(**reads, use_cache=False, decoder_input_ids=shifted).logits, labels
        # Token t is predicted at t − 1; logits before the first label of the batch are not
        # computed. The last position predicts nothing: a label for it is cheaper than a copy of all
        # logits but its own. Padding stands behind every token, where none looks: a mask of it
        # would change nothing, and keep the fastest kernels of attention away.
        first = known(batch, "first")
        if first is None:
            first = int((labels != IGNORED).any(dim=0).nonzero()[0])
        logits = model(
            input_ids=batch["input_ids"],
            use_cache=False,
            logits_to_keep=labels.shape[1] - first + 1,
        ).logits
        return logits, functional.pad(labels[:, first:], (0, 1), value=IGNORED)

    def _shifted(self, model: nn.Module, labels: Tensor) -> Tensor:
        """What the decoder reads to predict `labels`: its start token, then the labels but the
        last, padding where none."""
        body: Any = getattr(model, "module", model)
        start = body.config.decoder_start_token_id
        shifted = functional.pad(labels[:, :-1], (1, 0), value=int(start))
        return shifted.masked_fill(shifted == IGNORED, self._pad)

    def _token_losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropies (n, L) in float32 or better, 0 where there is no label, and the
        labels."""
        logits, labels = self._predictions(model, batch)
        losses = cross_entropies(logits.flatten(0, 1), labels.flatten(), IGNORED)
        return losses.view(labels.shape), labels

    def loss_sum(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """The sum of the cross-entropies of the batch's label tokens, and their number."""
        losses, labels = self._token_losses(model, batch)
        count = known(batch, "count")
        return losses.sum(), int((labels != IGNORED).sum()) if count is None else count

    def scored(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """`loss_sum` where nothing is differentiated: of a batch whose logits would be too many,
        some rows after others."""
        labels = batch["labels"]
        body: Any = getattr(model, "module", model)
        width = body.dtype.itemsize * body.config.get_text_config().vocab_size
        rows = max(1, LOGITS // (width * labels.shape[1]))
        if rows >= len(labels):
            return self.loss_sum(model, batch)
        count, first = known(batch, "count"), known(batch, "first")
        sums = []
        for start in range(0, len(labels), rows):
            own = {name: x[start : start + rows] for name, x in batch.items()}
            sums.append(self.loss_sum(model, Batch(own, count=0, first=first))[0])
        total = int((labels != IGNORED).sum()) if count is None else count
        return torch.stack(sums).sum(), total

    def sample_losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """`L_i` (n,): the mean over each row's label tokens, which is the loss of a batch of that
        row alone."""
        losses, labels = self._token_losses(model, batch)
        return losses.sum(dim=1) / (labels != IGNORED).sum(dim=1).clamp_min(1)

    def outputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits at the label tokens (n, L, V), in their own dtype, each row's from its first
        label on; exact zeros behind its last.

        A row's outputs do not depend on the batch it is in, so neither do the probes that belong to
        its place.
        """
        logits, labels = self._predictions(model, batch)
        here = labels != IGNORED
        counts = here.sum(dim=1)
        most = known(batch, "most") or int(counts.max())
        order = torch.argsort(here.to(torch.int8), dim=1, descending=True, stable=True)[:, :most]
        gathered = logits[torch.arange(len(order), device=order.device).unsqueeze(1), order]
        behind = torch.arange(order.shape[1], device=labels.device) >= counts.unsqueeze(1)
        return gathered.masked_fill_(behind.unsqueeze(-1), 0.0)

    def likelihood(
        self, model: nn.Module, split: str, *, batch_size: int, runtime: Runtime
    ) -> dict[str, float]:
        """`log_likelihood`: the mean log-probability of a label token of the split, in nats (at
        most 0; higher is better).

        The batches' sums are added in one order, whatever process made them.

        Raises: FloatingPointError where it is not a number.
        """

        def summed(batch: Mapping[str, Tensor]) -> tuple[float, int]:
            loss, labels = self.scored(model, batch)
            return float(loss), labels

        batches = of_batches(model, self, split, summed, batch_size=batch_size, runtime=runtime)
        parts = [value for _, value in batches]
        total, count = sum(loss for loss, _ in parts), sum(labels for _, labels in parts)
        if not np.isfinite(total):
            raise FloatingPointError(
                f"task={self.name}: the loss of {split} is {total}: it diverged, lower lr or use"
                " precision=fp32"
            )
        return {"log_likelihood": -total / count}

    def labels_in(self, examples: TextExamples, rows: Sequence[int] | NDArray[Any]) -> int:
        """Their answers' tokens; of a learnt prompt all but the first."""
        if self.kind == "causal" and self.learn_prompt:
            return int((examples.lengths[rows] - 1).sum())
        prompts = examples.prompts[rows]
        unseen = np.maximum(prompts, 1) if self.kind == "causal" else prompts
        return int((examples.lengths[rows] - unseen).sum())

    # ----------------------------------------------------------------------------------------------
    # the record

    def facts_of(self, split: str) -> dict[str, object]:
        """Tokens, and the rows that are not there."""
        examples = self.splits[split]
        unseen = 0 if self.learn_prompt else examples.prompts
        return {
            "tokens": int(examples.lengths.sum()),
            "label_tokens": int((examples.lengths - unseen).sum()),
            "skipped": examples.skipped,
            "left_out": examples.left_out,
        }


def known(batch: Mapping[str, Tensor], fact: str) -> int | None:
    """What the host knows of a batch, None where it would have to ask the device."""
    value: int | None = getattr(batch, fact, None)
    return value


def padded(
    pieces: Sequence[NDArray[Any]], value: int, width: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of different lengths as one array, padded on the right with `value`, and the mask of
    what is not padding."""
    longest = max(map(len, pieces))
    if width is not None and width < longest:
        raise ValueError(
            f"pad_to={width}: a row of the batch has {longest} tokens; expected at least that"
        )
    ids = np.full((len(pieces), width or longest), value, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, piece in enumerate(pieces):
        ids[row, : len(piece)] = piece
        mask[row, : len(piece)] = 1
    return ids, mask
