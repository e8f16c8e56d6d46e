"""A model in one .gguf file, turned once into a folder that loads like any other, and that is
proven to be what it was turned into before it is used."""

from __future__ import annotations

import io
import os
import shutil
import uuid
from contextlib import redirect_stderr, suppress
from functools import cache
from pathlib import Path

from loraexp.machine import files
from loraexp.machine.files import Damaged, cache_home, folder_once, write_json
from loraexp.machine.hub import SourceError, verify
from loraexp.machine.notation import read_json
from loraexp.machine.progress import notice

# written last: the digest of the .gguf file, and of every file that was made of it
MARK = "converted.json"


@cache
def converted(
    file: Path, *, kind: str, sha256: str | None = None, root: Path | None = None
) -> Path:
    """The folder with `file`'s model (safetensors, float32, dequantised) and tokenizer; made at the
    first call.

    The weights are what the quantised ones stand for, so nothing is lost; the quantisation's entry
    in the configuration is left out, because the folder holds plain weights. The folder's name is
    the file's sha256, which is `sha256` where one is given; a folder of which any file is not what
    it was when it was made is made anew. That reads both once in each process.

    Raises: SourceError where the package that reads the format is missing, the file is another one
    than expected, or it holds no causal model.
    """
    if kind != "causal":
        raise SourceError(
            f"model.path={file}: a .gguf file holds a causal model, and model.kind is {kind};"
            " expected causal"
        )
    verify(file, sha256, key="model.sha256")
    digest = sha256 or files.digest_now(file)
    folder = (root or cache_home() / "models") / f"{file.stem}-{digest[:16]}"
    wrong = damage(folder, digest) if folder.exists() else None
    if folder.exists() and wrong is None:
        return folder
    if wrong is not None:
        notice(f"{folder}: {wrong}; converting {file.name} again")
        aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        with suppress(FileNotFoundError):  # another process saw it first
            os.replace(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        notice(f"converting {file.name} to {folder}, once")
    with folder_once(folder) as fresh:
        convert(file, fresh)
        digests = {path.name: files.sha256(path) for path in sorted(fresh.iterdir())}
        write_json(fresh / MARK, {"source": str(file), "sha256": digest, "files": digests})
    return folder


def damage(folder: Path, source: str) -> str | None:
    """What of a folder is not as it was made of a .gguf file with this digest; None: nothing."""
    try:
        said = read_json(folder / MARK, dict)
        written: dict[str, str] = said["files"]
        if said["sha256"] != source:
            return f"it was made of another file, with sha256 {said['sha256']}"
        for name, digest in written.items():
            if files.digest_now(folder / name) != digest:
                return f"{name} is not what was written there, by its checksum"
    except FileNotFoundError as error:
        name = Path(error.filename).name
        return f"{name} is missing" if name != MARK else "it has no checksums"
    except (Damaged, KeyError, TypeError, AttributeError):
        return f"{MARK} cannot be read"
    return None


def convert(file: Path, folder: Path) -> None:
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
