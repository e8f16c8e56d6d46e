"""Tokenised examples: flat arrays on disk, made once for each content, tokenizer and length, and
mapped into memory."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loraexp.data.tables import Problem, Rows
from loraexp.machine.files import DiskError, folder_once, sha256
from loraexp.machine.notation import read_json
from loraexp.machine.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LAYOUT = 1  # of the files in a cache entry
BATCH = 1024  # rows that the tokenizer sees at once
CHUNK = 1 << 22  # tokens that are looked at at once
# Share of unknown tokens that is said, and that is refused. Text in the language of a tokenizer has
# next to none (MiniLM's: 0.007 % of 5,000 tweets), in a script that it does not have 20 to 100 %.
UNUSUAL, ABSURD = 0.01, 0.5
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Examples:
    """The tokens of all rows one after another, row `i` at `offsets[i]:offsets[i + 1]`."""

    tokens: NDArray[np.int32]  # (T,)
    offsets: NDArray[np.int64]  # (n + 1,)
    # (T,) 0 for the first text, 1 for the second; None where the model takes none
    types: NDArray[np.int8] | None
    labels: NDArray[Any]  # (n,) int64 classes or float32 scores
    fingerprint: str  # of the raw rows
    source: str
    notes: tuple[str, ...] = ()
    cut: int = 0  # rows that were longer
    unknown: float = 0.0  # share of the texts' tokens that the vocabulary does not know

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row (n,)."""
        return np.diff(self.offsets)


def encode(
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokenizer_key: str,
    problem: Problem,
    max_length: int,
    version: int,
    cache_root: Path,
    progress: Progress | None = None,
) -> Examples:
    """Tokenise the rows, or find them tokenised: the cache key is content, tokenizer, length and
    template version."""
    fingerprint = rows.fingerprint()
    key = json.dumps([LAYOUT, fingerprint, tokenizer_key, problem, max_length, version])
    folder = cache_root.expanduser() / "tokens" / hashlib.sha256(key.encode()).hexdigest()
    arrays = cached(folder, lambda: _tokenise(rows, tokenizer, problem, max_length, progress))
    truncated = int(arrays["truncated"][0])
    notes: tuple[str, ...] = ()
    if truncated:
        notes = (f"{truncated} rows cut at {max_length} tokens",)
    bare = tokenizer.num_special_tokens_to_add(pair=len(rows.texts[0]) > 1)
    empty = float((np.diff(arrays["offsets"]) <= bare).mean())
    unknown = unknown_share(arrays["tokens"], tokenizer)
    notes += said_of_unknown(unknown, empty, tokenizer, rows.source)
    return Examples(
        arrays["tokens"],
        arrays["offsets"],
        arrays.get("types"),
        arrays["labels"],
        fingerprint,
        rows.source,
        rows.notes + notes,
        truncated,
        unknown,
    )


def unknown_share(tokens: NDArray[np.int32], tokenizer: PreTrainedTokenizerBase) -> float:
    """Of the tokens that stand for text, the share that stands for a piece that the vocabulary does
    not have."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.pad_token_id):
        return 0.0  # byte-level: a piece is never unknown, and the token serves another purpose
    special = np.array([i for i in tokenizer.all_special_ids if i != unknown], dtype=np.int32)
    missing = added = 0
    for start in range(0, len(tokens), CHUNK):
        part = tokens[start : start + CHUNK]
        missing += int(np.count_nonzero(part == unknown))
        added += int(np.count_nonzero(np.isin(part, special)))
    return missing / max(len(tokens) - added, 1)


def said_of_unknown(
    unknown: float, empty: float, tokenizer: PreTrainedTokenizerBase, source: str
) -> tuple[str, ...]:
    """A note, and a warning, where many tokens are unknown; `empty`: the share of rows without any
    token of their text.

    Raises: ValueError where it is most of them: the model would learn from what it cannot read.
    """
    words = f"of {source} are unknown to {type(tokenizer).__name__} ({tokenizer.unk_token})"
    lacking = f"{unknown:.1%} of the tokens {words}"
    if empty > unknown:
        lacking = f"{empty:.1%} of the rows {words}: no token stands for their text"
    if max(unknown, empty) > ABSURD:
        raise ValueError(
            f"{lacking}; expected at most {ABSURD:.0%}: the tokenizer is of another language or"
            " script; choose a model for this text, or set model.tokenizer to the one that the"
            " model was trained with"
        )
    if max(unknown, empty) <= UNUSUAL:
        return ()
    warnings.warn(lacking, stacklevel=2)
    return (lacking,)


def _tokenise(
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    problem: Problem,
    max_length: int,
    progress: Progress | None,
) -> Arrays:
    ids: list[NDArray[np.int32]] = []
    types: list[NDArray[np.int8]] = []
    truncated = 0
    for start in range(0, len(rows), BATCH):
        columns = map(list, zip(*rows.texts[start : start + BATCH], strict=True))
        encoded = tokenizer(
            *columns, truncation=True, max_length=max_length, return_attention_mask=False
        )
        ids.extend(np.array(row, dtype=np.int32) for row in encoded["input_ids"])
        types.extend(np.array(row, dtype=np.int8) for row in encoded.get("token_type_ids", ()))
        truncated += sum(bool(row.overflowing) for row in encoded.encodings)
        if progress is not None:
            progress(min(start + BATCH, len(rows)), len(rows))
    arrays: Arrays = {
        "tokens": np.concatenate(ids),
        "offsets": np.cumsum([0, *map(len, ids)], dtype=np.int64),
        "labels": rows.labels.astype(np.float32 if problem == "regression" else np.int64),
        "truncated": np.array([truncated]),
    }
    return arrays | ({"types": np.concatenate(types)} if types else {})


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over what the tokenizer does to a text, leaving out the padding and truncation that
    its last call set.

    Raises: ValueError for a tokenizer that is not a fast one.
    """
    from tokenizers import __version__

    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ValueError(
            f"{type(tokenizer).__name__} is not a fast tokenizer: give one that is saved with a"
            " tokenizer.json"
        )
    behaviour = json.loads(tokenizer.backend_tokenizer.to_str())
    behaviour.update(
        truncation=tokenizer.truncation_side, padding=None, inputs=tokenizer.model_input_names
    )
    return hashlib.sha256(json.dumps([__version__, behaviour], sort_keys=True).encode()).hexdigest()


def cached(folder: Path, build: Callable[[], Arrays]) -> Arrays:
    """The arrays in `folder`, mapped read-only; built and written there first where they are
    missing or damaged.

    Every array is checked against its sha256 at each load. The folder appears at once and complete
    (written beside, then renamed), so processes may race: the first one wins and the others read
    what it wrote.
    """
    arrays = _load(folder)
    if arrays is not None:
        return arrays
    damaged = folder.exists()
    if damaged:
        warnings.warn(f"the cache entry {folder} is damaged: it is built again", stacklevel=2)
    built = build()
    try:
        with folder_once(folder) as fresh:
            _save(fresh, built)
            if damaged and _load(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
    except DiskError as error:
        warnings.warn(f"not cached, read from memory: {error}", stacklevel=2)
        return built
    arrays = _load(folder)
    if arrays is None:
        raise OSError(
            f"the cache entry {folder} cannot be read after writing: check the disk, or set another"
            " cache_root"
        )
    return arrays


def _save(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    digests = {name: sha256(folder / f"{name}.npy") for name in arrays}
    (folder / "sha256.json").write_text(json.dumps(digests))


def _load(folder: Path) -> Arrays | None:
    """The arrays of a folder; None where it is not there, or damaged. A limit of this process (open
    files, memory) is no damage: it raises what the system says."""
    try:
        digests = read_json(folder / "sha256.json", dict)
        if digests.keys() != {path.stem for path in folder.glob("*.npy")}:
            return None
        if any(sha256(folder / f"{name}.npy") != digest for name, digest in digests.items()):
            return None
        # as plain arrays over the same memory: slicing a numpy.memmap costs many times slicing an
        # array
        return {
            name: np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray)
            for name in digests
        }
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, EOFError):
        return None
