"""How many tokens an architecture has positions for, asked of its configuration alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Side = Literal["encoder", "decoder"]

# some begin behind the position of the padding
FROM_PAD = frozenset(
    {
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "camembert",
        "roberta-prelayernorm",
        "data2vec-text",
        "mpnet",
        "longformer",
    }
)


def positions(own: PretrainedConfig, side: Side = "encoder") -> int | None:
    """How many tokens an architecture has positions for; None where these are relative, and any
    number is read. `side`: of an encoder-decoder whose two sides differ (LED)."""
    if not getattr(own, "position_biased_input", True):
        return None
    found = getattr(own, f"max_{side}_position_embeddings", None)
    found = getattr(own, "max_position_embeddings", None) if found is None else found
    if found is None or found < 1:  # T5, Funnel and BLOOM have none, XLNet says -1
        return None
    return int(found) - (own.pad_token_id + 1 if own.model_type in FROM_PAD else 0)
