"""A model on rows that lie one after another: no token between its first and its last layer is
padding.

There a model looks at each token alone, but in attention. So the rows' tokens go through the layers
as one line of T, and attention alone sees them as rows again. Of an encoder whose head reads each
row's first token, the last layer computes that token only. Both are the padded pass exactly, up to
rounding, where there is no dropout; with it the masks are others of the same distribution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from loraexp.machine.device import Batch
from loraexp.models.attention import Layout, attend
from loraexp.models.dropout import short_dropout

NAME = "unpadded"  # of the attention, among those of transformers
# an encoder's layers of BERT's parts, under a head that reads the first token of the last alone
ENCODERS = frozenset({"bert", "camembert", "electra", "roberta", "xlm-roberta"})
# layers that are given the rotation of each position, and look at all positions before their own
DECODERS = frozenset({"llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3"})


def layers(model: Any) -> list[nn.Module]:
    """The layers between embeddings and head.

    Raises: ValueError for a model whose layers are not known to work on packed rows.
    """
    config, body = model.config, model.base_model
    kind = config.model_type
    if kind in ENCODERS and hasattr(model, "classifier") and not config.is_decoder:
        return list(body.encoder.layer)
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        windows |= {"sliding_attention"}
    if kind in DECODERS and not windows:
        return list(body.layers)
    reason = f"with {', '.join(sorted(windows))}" if windows and kind in DECODERS else f"of {kind}"
    raise ValueError(
        f"train.unpadded=true: rows cannot lie one after another in layers {reason}; expected an"
        f" encoder of {', '.join(sorted(ENCODERS))} with a head, or a causal model of"
        f" {', '.join(sorted(DECODERS))} with full attention; set train.unpadded=false"
    )


class Unpadded:
    """The passes of a model over packed rows, within `rows`; outside it the model is as it was."""

    def __init__(self, model: nn.Module) -> None:
        from transformers import AttentionInterface

        body: Any = getattr(model, "module", model)
        self.config, self.layers = body.config, layers(body)
        self.encoder = body.config.model_type in ENCODERS
        self.dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout)]
        self.layout: Layout | None = None
        self._rotation: tuple[Tensor, Tensor] | None = None
        AttentionInterface.register(NAME, attention)

    def of(self, batch: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """The same for the rows of a batch that knows their lengths."""
        assert isinstance(batch, Batch) and batch.lengths is not None
        ids = batch["input_ids"]
        return self.rows(batch.lengths, ids.shape[1], ids.device)

    @contextmanager
    def rows(self, lengths: Sequence[int], width: int, device: torch.device) -> Iterator[None]:
        """Within: a pass of the model is of rows of these lengths, given padded on the right to
        `width`; so is the backward pass of a layer that is computed again in it."""
        self.layout, usual = Layout.of(lengths, width, device), self.config._attn_implementation
        handles = [
            layer.register_forward_pre_hook(self._enter, with_kwargs=True) for layer in self.layers
        ]
        last: Any = self.layers[-1]
        if self.encoder:
            last.forward = self._first_tokens
        else:
            handles.append(last.register_forward_hook(self._leave))
        self.config._attn_implementation = NAME
        for dropout in self.dropouts:
            dropout.forward = short_dropout(dropout)  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            self.config._attn_implementation = usual
            for handle in handles:
                handle.remove()
            if self.encoder:
                del last.forward
            for dropout in self.dropouts:
                del dropout.forward
            self.layout = self._rotation = None

    def _enter(
        self, layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before a layer: the line of tokens in place of rows, and where they are."""
        layout, (hidden, *others) = self.layout, arguments
        assert layout is not None
        if layer is self.layers[0]:
            hidden = hidden.flatten(0, 1).index_select(0, layout.slots)[None]
            if "position_embeddings" in keywords:
                cos, sin = keywords["position_embeddings"]
                self._rotation = cos[:, layout.columns], sin[:, layout.columns]
        if self._rotation is not None:
            keywords = keywords | {"position_embeddings": self._rotation}
        return (hidden, *others), keywords | {"layout": layout}

    def _leave(self, layer: nn.Module, arguments: tuple[Any, ...], hidden: Tensor) -> Tensor:
        """After the last layer: rows again, zero at padding."""
        layout = self.layout
        assert layout is not None
        rows = len(layout.lengths)
        padded = hidden.new_zeros(rows * layout.width, hidden.shape[-1])
        return padded.index_copy(0, layout.slots, hidden[0]).view(rows, layout.width, -1)

    def _first_tokens(self, hidden: Tensor, *_: object, layout: Layout, **__: object) -> Tensor:
        """The last layer of an encoder for each row's first token (B, 1, d)."""
        layer: Any = self.layers[-1]
        own, tokens = layer.attention.self, hidden[0]
        first = tokens.index_select(0, layout.firsts)
        q, k, v = (
            module(x).unflatten(-1, (-1, own.attention_head_size))
            for module, x in ((own.query, first), (own.key, tokens), (own.value, tokens))
        )
        p = own.dropout.p if own.training else 0.0
        seen = attend(q, k, v, layout, scale=own.scaling, causal=False, p=p).flatten(1)
        mixed = layer.attention.output(seen, first)
        done: Tensor = layer.output(layer.intermediate(mixed), mixed)
        return done[:, None]


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    """As transformers calls it: (1, H, T, d) → (1, T, H, d)."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    causal = bool(getattr(module, "is_causal", False))
    return attend(q, k, v, layout, scale=scaling, causal=causal, p=dropout)[None], None
