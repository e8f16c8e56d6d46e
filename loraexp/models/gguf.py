"""A model in one .gguf file, turned once into a folder that loads like any other."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path

from loraexp.machine import files
from loraexp.machine.files import cache_home, folder_once
from loraexp.machine.hub import SourceError, verify
from loraexp.machine.progress import notice

MARK = "converted.txt"  # written last: a folder without it is not complete


@cache
def converted(
    file: Path, *, kind: str, sha256: str | None = None, root: Path | None = None
) -> Path:
    """The folder with `file`'s model (safetensors, float32, dequantised) and tokenizer; made at the
    first call.

    The weights are what the quantised ones stand for, so nothing is lost; the quantisation's entry
    in the configuration is left out, because the folder holds plain weights. The folder's name is
    the file's sha256, which is `sha256` where one is given: about 0.1 s in each process.

    Raises: SourceError where the package that reads the format is missing, the file is another one
    than expected, or it holds no causal model.
    """
    if kind != "causal":
        raise SourceError(
            f"model.path={file}: a .gguf file holds a causal model, and model.kind is {kind};"
            " expected causal"
        )
    verify(file, sha256, key="model.sha256")
    digest = files.sha256(file)
    folder = (root or cache_home() / "models") / f"{file.stem}-{digest[:16]}"
    if (folder / MARK).exists():
        return folder
    notice(f"converting {file.name} to {folder}, once")
    with folder_once(folder) as fresh:
        _convert(file, fresh)
        (fresh / MARK).write_text(f"{file} sha256 {digest}\n")
    return folder


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):  # a bar of its own, which no setting turns off
            tokenizer = AutoTokenizer.from_pretrained(
                file.parent, gguf_file=file.name, trust_remote_code=False
            )
            model = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
            )
    except ImportError as error:
        raise SourceError(
            f"model.path={file}: reading it needs the package gguf: pip install gguf"
        ) from error
    model.config.__dict__.pop("quantization_config", None)
    for mark in ("is_quantized", "quantization_method", "hf_quantizer"):
        model.__dict__.pop(mark, None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
