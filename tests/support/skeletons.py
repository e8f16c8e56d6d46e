"""Models of the papers' size without numbers: the real code initialises, trains and evaluates them
on the meta device, and every byte and every call of it can be counted.

What the host reads of a tensor's values is answered by a fixed number, ones; what it decides by
them is what it decides where all is well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from loraexp import config, models
from loraexp.adapter.adapted import Adapters, attach, scaling_factor, train_everything
from loraexp.config.settings import Settings
from loraexp.data.pairs import TextExamples
from loraexp.data.tokens import Examples
from loraexp.initializers import lora_da
from loraexp.machine import measure
from loraexp.machine.device import Runtime, unread_masks
from loraexp.machine.processes import Processes
from loraexp.run import initialise, train
from loraexp.run.batches import Batches
from loraexp.run.experiment import make
from loraexp.run.task import Task
from loraexp.sweep import sizes
from loraexp.tasks.classification import Classification
from loraexp.tasks.text import TextTask
from tests.support import autocast
from tests.support.alive import Alive

META = torch.device("meta")
WHOLE = {torch.int64: 2**20}  # whatever is counted is plenty


class Answers(TorchDispatchMode):
    """Whatever is read of a value on the host is one, or true, or a whole number of `WHOLE`."""

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        keywords = keywords or {}
        name = function.overloadpacket.__name__
        source = arguments[1] if name == "copy_" else arguments[0] if arguments else None
        from_meta = isinstance(source, Tensor) and source.device == META
        if from_meta and name in ("_local_scalar_dense", "item", "is_nonzero", "equal"):
            return WHOLE.get(source.dtype, torch.ones((), dtype=source.dtype).item())
        copied = name in ("_to_copy", "to")  # the latter in inference mode
        if from_meta and copied and torch.device(keywords.get("device", META)) != META:
            return torch.ones(source.shape, dtype=keywords.get("dtype") or source.dtype)
        if from_meta and name == "copy_" and arguments[0].device != META:
            return arguments[0].fill_(1)
        if from_meta and name == "eq" and source.dim() == 0:
            return torch.tensor(False)  # whether it is zero
        if from_meta and name == "linalg_cholesky_ex":
            L, _ = function(*arguments, **keywords)
            return L, torch.zeros(L.shape[:-2], dtype=torch.int32, device=META)
        if from_meta and name in ("index", "nonzero"):
            return self.chosen(function, arguments, keywords)
        return function(*arguments, **keywords)

    @staticmethod
    def chosen(function: Any, arguments: Any, keywords: Any) -> Any:
        """By a mask everything is chosen."""
        if function.overloadpacket.__name__ == "nonzero":
            (mask,) = arguments
            return torch.empty(mask.numel(), mask.dim(), dtype=torch.int64, device=META)
        x, indices = arguments
        every = [
            torch.empty(i.numel(), dtype=torch.int64, device=META)
            if i is not None and i.dtype == torch.bool and i.dim() == 1
            else i
            for i in indices
        ]
        return function(x, every, **keywords)


class Unmarked:
    """An event of a device that has none."""

    def record(self) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Unmarked) -> float:
        return 0.0


def flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    **_: Any,
) -> Tensor:
    """Attention as an accelerator computes it: without a (length, length) product."""
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    made: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, True)[0]
    return made


@contextlib.contextmanager
def card_of(size: int | None, alive: Alive) -> Iterator[None]:
    """Within: the device is a card with so many bytes; None: nobody knows how many it has."""

    def free(device: torch.device) -> int | None:
        alive.forget()
        return None if size is None else size - alive.now

    with (
        mock.patch.object(measure, "free_bytes", free),
        mock.patch.object(measure, "reset_peak", lambda device: alive.reset()),
        mock.patch.object(measure, "peak_bytes", lambda device: alive.recent),
    ):
        yield


def sound(read: list[Tensor]) -> list[float]:
    """What LoRA-DA looks at: its step is one (largest entry, median, whether a factor failed, least
    output moment), and nothing exceeds its tolerance."""
    return [1.0, 1.0, 0.0, 1.0] + [0.0] * (len(read) - 4)


@contextlib.contextmanager
def without_numbers() -> Iterator[None]:
    """Within: the code of a run works on the meta device as on an accelerator."""
    with (
        Answers(),
        mock.patch.object(measure, "event", lambda device: Unmarked()),
        mock.patch.object(functional, "scaled_dot_product_attention", flash),
        mock.patch.object(lora_da, "numbers", sound),
        autocast.autocast_of(META.type),
        unread_masks(META),
    ):
        yield


# --------------------------------------------------------------------------------------------------
# rows and models


@dataclass
class Padding:
    """All that a collated batch needs of a tokenizer."""

    pad_token_id: int = 0


def task_of(settings: Settings, lengths: tuple[int, ...], answer: int) -> Task:
    """Rows of these lengths: of texts with `answer` tokens of it to be learnt, or labelled."""
    ends = np.cumsum(lengths)
    tokens = np.ones(int(ends[-1]), dtype=np.int32)
    if settings.model.kind == "encoder":
        task = object.__new__(Classification)
        labels = np.zeros(len(lengths), dtype=np.int64)
        rows: Any = Examples(tokens, np.concatenate([[0], ends]), None, labels, "", "made")
        own = {"problem": "single_label_classification", "metric": "accuracy", "num_labels": 2}
        named = own | {"label_names": ["no", "yes"], "tokenizer": Padding()}
        Task.__init__(task, name="made", version=1, reports=("dev",), splits={}, **named)
        task.splits, task.metrics, task._pad = {"train": rows, "dev": rows}, ("accuracy",), 0
        return task
    prompts = np.array([length - answer for length in lengths], dtype=np.int32)
    digests = np.zeros((len(lengths), 2), dtype=np.uint64)
    text = TextExamples(tokens, ends - np.array(lengths), ends, prompts, digests, "made")
    return TextTask(
        name="made",
        version=1,
        kind=settings.model.kind,
        tokenizer=Padding(),
        metric="log_likelihood",
        reports=(),
        splits={"train": text, "dev": text},
    )


def of_depth(settings: Settings, layers: int | None) -> Settings:
    """The same model with fewer layers."""
    architecture = settings.model.config
    if layers is None or architecture is None:
        return settings
    names = ("num_hidden_layers", "num_layers", "num_decoder_layers")
    fewer = {name: layers for name in names if name in architecture}
    return replace(settings, model=replace(settings.model, config=architecture | fewer))


class Subject:
    """A model without numbers, adapted and trained by the code of a run; each part says how many
    bytes were alive at its peak, and what calls it made."""

    def __init__(
        self,
        *words: str,
        lengths: tuple[int, ...],
        answer: int = 0,
        layers: int | None = None,
        card: int | None = None,
    ) -> None:
        self.card = card
        composed = config.compose(["precision=bf16", "init.cache=false", "device=cuda", *words])
        self.settings = of_depth(sizes.offline(config.check(composed)[0]), layers)
        self.processes = Processes("cpu")
        self.runtime = Runtime(
            device=META, precision=self.settings.precision, processes=self.processes
        )
        self.task = task_of(self.settings, lengths, answer or max(lengths) - 1)
        full = config.Component.of(self.settings.init, "init").full
        dtype = models.dtype_of(self.settings.model, self.settings.precision, full=full)
        own = self.task.num_labels
        self.base = models.open(self.settings.model)
        self.model = self.base.bare(dtype, **({"num_labels": own} if own else {}))
        for parameter in self.model.parameters():
            parameter.requires_grad_(full)
        if self.settings.model.gradient_checkpointing:
            how = {"use_reentrant": False}
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
        self.model.eval()
        self.head = self.base.head
        self.adapters: Adapters | None = None
        self.optimizer: Any = None

    @contextlib.contextmanager
    def watched(self) -> Iterator[Alive]:
        """Within: what is alive is counted, weights among it."""
        alive = Alive()
        held: list[Any] = [*self.model.parameters(), *self.model.buffers()]
        if self.optimizer is not None:
            held += [x for s in self.optimizer.state.values() for x in s.values()]
        for tensor in held:
            alive.note(tensor)
        with card_of(self.card, alive), without_numbers(), alive:
            yield alive

    def initialised(self) -> Alive:
        """Statistics and factors, in their layers."""
        settings, initializer = self.settings, make(self.settings.init)
        with self.watched() as alive:
            if config.Component.of(settings.init, "init").full:
                self.adapters = train_everything(self.model)
                return alive
            scaling = scaling_factor(settings.adapter.scaling, settings.alpha, settings.rank)
            self.made = initialise.initialize(
                self.model,
                models.target_layers(self.model, settings.model.targets, self.head),
                self.task,
                initializer,
                scaling=scaling,
                settings=settings,
                runtime=self.runtime,
            )
            self.adapters = attach(self.model, self.made.factors, scaling, self.head)
        return alive

    def trained(self, steps: int = 2) -> Alive:
        """Steps of the rule; the peak of the first lacks the optimizer's moments."""
        assert self.adapters is not None
        with self.watched() as alive:
            rule = make(self.settings.optimizer)
            self.optimizer = rule(self.adapters, lr=1e-4, weight_decay=0.0)
            for group in self.optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
            self.model.train()
            batches = Batches(self.task, self.settings.train, 0, self.runtime)
            for number in range(steps):
                clock = measure.Stopwatch(META)
                train.step(self.loop(), batches.of(number), number, steps, clock)
        return alive

    def evaluated(self) -> Alive:
        """The scores, or the likelihood, of the rows."""
        size, runtime = self.settings.train.eval_batch_size, self.runtime
        with self.watched() as alive:
            if isinstance(self.task, TextTask):
                self.task.likelihood(self.model, "dev", batch_size=size, runtime=runtime)
            else:
                self.task.evaluate(
                    self.model, None, "dev", batch_size=size, runtime=runtime, folder=None
                )
        return alive

    def loop(self) -> train.Loop:
        """What a step reads of a run; nothing is recorded."""
        nothing: Any = None
        return train.Loop(
            model=self.model,
            task=self.task,
            adapters=self.adapters or nothing,
            optimizer=self.optimizer,
            settings=self.settings,
            record=nothing,
            checkpoint=nothing,
            phase=nothing,
            runtime=self.runtime,
            keep=lambda step: None,
            say=lambda line: None,
            unpadded=None,
        )
