"""The stand-in hub's models: a tiny one of every family, with the files that a real repository
has."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

WIDTH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
LLAMA = {"num_key_value_heads": 2, "max_position_embeddings": 2048}
T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
TOKENS = {"vocab_size": 512, "pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 1}
SHAPES: dict[str, dict[str, Any]] = {
    "bert": TOKENS | WIDTH | {"max_position_embeddings": 512},
    "roberta": TOKENS | WIDTH | {"max_position_embeddings": 514},
    "t5": TOKENS | T5,
    "llama": TOKENS | WIDTH | LLAMA,
}
KIND = {"bert": "encoder", "roberta": "encoder", "t5": "seq2seq", "llama": "causal"}
# Beside the weights that are read, a real repository has those of other libraries: nobody may fetch
# them.
UNREAD = {
    "README.md": b"---\nlicense: mit\n---\n",
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "pytorch_model.bin": b"pickle" * 100,
    "tf_model.h5": b"tensorflow" * 100,
    "flax_model.msgpack": b"flax" * 100,
    "rust_model.ot": b"rust" * 100,
    "onnx/model.onnx": b"onnx" * 100,
    "onnx/config.json": b"{}",
}
MODELS = {
    "FacebookAI/roberta-base": "roberta",
    "google-t5/t5-base": "t5",
    "meta-llama/Llama-2-7b-hf": "llama",
}


def model_files(
    family: str, *, seed: int = 0, shards: bool = False, pickle: bool = False
) -> dict[str, bytes]:
    """A checkpoint as the hub has it: weights as safetensors, in one file or in `shards`, or as a
    `pickle` alone.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from loraexp.models.tokenizer import trained

    classes: dict[str, Any] = {
        "encoder": AutoModel,
        "seq2seq": AutoModelForSeq2SeqLM,
        "causal": AutoModelForCausalLM,
    }
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = classes[KIND[family]].from_config(AutoConfig.for_model(family, **SHAPES[family]))
        model.save_pretrained(folder, **({"max_shard_size": "60KB"} if shards else {}))
        tokenizer = trained("trained:512", KIND[family])
        tokenizer.model_max_length = 512 if family != "llama" else 2048
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        if pickle:
            weights = io.BytesIO()
            torch.save(model.state_dict(), weights)
            files = {
                name: content
                for name, content in files.items()
                if not name.endswith(".safetensors")
            }
            return files | UNREAD | {"pytorch_model.bin": weights.getvalue()}
    return files | UNREAD
