"""A model without numbers (on the meta device) as it would compute on a card: attention by a fused
kernel, autocast by CUDA's lists, and rows of a length without a text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from loraexp.config.settings import ModelSettings
from loraexp.data.pairs import TextExamples
from loraexp.data.tokens import Examples
from loraexp.machine.device import unread_masks
from loraexp.machine.meta import META
from loraexp.models.load import recompute
from loraexp.run.task import Task
from loraexp.tasks.classification import Classification
from loraexp.tasks.text import TextTask


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


class Fused(TorchFunctionMode):
    """Within: attention that may be fused is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if named(func) == "scaled_dot_product_attention":
            return flash(*args, **kwargs)
        return func(*args, **kwargs)


# torch's ATen/autocast_mode.h, of what models here call; in-place operations are in none of them
LOWER = frozenset(
    {"addbmm", "addmm", "baddbmm", "bmm", "chain_matmul", "conv1d", "conv2d", "conv3d", "einsum"}
    | {"linear", "matmul", "mm", "multi_dot", "mv", "scaled_dot_product_attention"}
)
SINGLE = frozenset(
    {"binary_cross_entropy_with_logits", "cosine_similarity", "cross_entropy", "cumprod", "cumsum"}
    | {"dist", "exp", "expm1", "group_norm", "kl_div", "l1_loss", "layer_norm", "log", "log10"}
    | {"log1p", "log2", "log_softmax", "mse_loss", "nll_loss", "norm", "normalize", "pow", "prod"}
    | {"reciprocal", "rms_norm", "rsqrt", "smooth_l1_loss", "softmax", "softmin", "softplus"}
    | {"sum", "tan"}
)


def named(func: Any) -> str:
    """What a function of torch is called, whether it was written as an operator or not."""
    name: str = getattr(func, "__name__", "")
    return name.strip("_") if name.startswith("__") else name


class Autocast(TorchFunctionMode):
    """Within: products in bfloat16, and sums, norms and losses in float32, as CUDA's autocast has
    it; a trained weight is cast once."""

    def __init__(self) -> None:
        super().__init__()
        self.cast: dict[int, tuple[Tensor, Tensor]] = {}

    def __exit__(self, *error: Any) -> None:
        self.cast.clear()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def lowered(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dtype != torch.float32:
            return x
        if not (x.is_leaf and x.requires_grad):
            return x.to(torch.bfloat16)
        if id(x) not in self.cast:
            self.cast[id(x)] = x, x.to(torch.bfloat16)
        return self.cast[id(x)][1]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, named(func)
        if name in LOWER:
            args = [self.lowered(x) for x in args]
            kwargs = {key: self.lowered(x) for key, x in kwargs.items()}
        elif name in SINGLE and kwargs.get("dtype") is None:
            args = [raised(x) for x in args]
            kwargs = {key: raised(x) for key, x in kwargs.items()}
        return func(*args, **kwargs)


def raised(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x


@contextlib.contextmanager
def on_a_card(*, fused: bool = True) -> Iterator[None]:
    """Within: passes on the meta device keep what they would on a card."""
    with Fused() if fused else contextlib.nullcontext(), unread_masks(META):
        yield


def checkpointed(model: nn.Module, *, lower: bool, fused: bool = True) -> None:
    """Let blocks be computed again in the backward pass, as a card would: modes end where it
    begins."""

    class Again:
        """Entered anew for every backward pass through a block: statistics make several."""

        def __enter__(self) -> None:
            self.modes = contextlib.ExitStack()
            if fused:
                self.modes.enter_context(Fused())
            if lower:
                self.modes.enter_context(Autocast())

        def __exit__(self, *_: object) -> None:
            self.modes.close()

    recompute(model, context_fn=lambda: (contextlib.nullcontext(), Again()))


# --------------------------------------------------------------------------------------------------
# rows


class Padding:
    """All that a collated batch needs of a tokenizer."""

    pad_token_id = 0


def task_of(
    model: ModelSettings, lengths: tuple[int, ...], answer: int, names: tuple[str, ...]
) -> Task:
    """Rows of these lengths: of texts with `answer` tokens of it to be learnt, or labelled."""
    ends = np.cumsum(lengths)
    tokens = np.ones(int(ends[-1]), dtype=np.int32)
    if model.kind == "encoder":
        task = object.__new__(Classification)
        labels = np.zeros(len(lengths), dtype=np.int64)
        rows: Any = Examples(tokens, np.concatenate([[0], ends]), None, labels, "", "made")
        own: Any = {"problem": "single_label_classification", "metric": "accuracy"}
        held: Any = {"label_names": list(names), "num_labels": len(names), "tokenizer": Padding()}
        Task.__init__(task, name="made", version=1, reports=("dev",), splits={}, **own, **held)
        task.splits, task._pad, task.metrics = {"train": rows, "dev": rows}, 0, ("accuracy",)
        return task
    prompts = np.array([length - answer for length in lengths], dtype=np.int32)
    digests = np.zeros((len(lengths), 2), dtype=np.uint64)
    text = TextExamples(tokens, ends - np.array(lengths), ends, prompts, digests, "made")
    return TextTask(
        name="made",
        version=1,
        kind=model.kind,
        tokenizer=Padding(),
        metric="log_likelihood",
        reports=(),
        splits={"train": text, "dev": text},
    )
