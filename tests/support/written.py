"""Tiny models of text of many families, whose answers differ, and a tokenizer without a file."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.support.hub_models import T5

SIZE = {
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SIDES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "decoder_start_token_id": 2,
    "init_std": 0.3,
    "max_position_embeddings": 1024,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SIZE | {"hidden_size": 32, "max_position_embeddings": 8192},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024},
    "t5": T5,
    "bart": SIDES,
    "pegasus": SIDES,
    "marian": SIDES,
    "led": SIDES | {"max_encoder_position_embeddings": 1024, "attention_window": 64},
}


def byte_tokenizer() -> Any:
    """Byte-level BPE without merges beyond the bytes: no text is unknown, and it needs no file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<s>"]
    vocabulary = {
        token: index
        for index, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer, inner.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", bos_token="<s>"
    )


def made(kind: str, **overrides: Any) -> nn.Module:
    """A tiny model of fixed random weights, scaled up so that its answers are not all one token."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    settings = FAMILIES[kind] | {"vocab_size": 272}
    settings |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2} | overrides
    with torch.random.fork_rng():
        torch.manual_seed(0)
        causal = kind in ("llama", "gpt2")
        builder = AutoModelForCausalLM if causal else AutoModelForSeq2SeqLM
        model = builder.from_config(AutoConfig.for_model(kind, **settings))
        for parameter in model.parameters():
            parameter.data.mul_(4)
    return model.eval()
