"""What makes a run the run it is: its id, its folder, and how the folders that older versions named
are found.

The id is a hash of names and values. No module path enters it, so code may move; a key that is
absent, null, or equal to its default in `settings` says nothing, so keys may be added; and what
says only how or where a run happens is left out.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import typing
from collections.abc import Mapping
from pathlib import Path

import yaml

from loraexp.config import settings as schema
from loraexp.config.settings import Plain

RECORD, STORED = "record.json", "config.yaml"  # in a run's folder: what became of it, what it is
# Keys that say how and where a run happens, not what it is.
FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
NOT_IDENTITY = frozenset(
    {
        "output_root",  # where results go
        "cache_root",
        "device",  # cuda:1 computes what cuda:0 does; precision, which moves numbers, stays
        "wandb",  # who gets a copy
        "force",  # whether to run again
        "sweep",  # how many runs share a step
        "train.gpus_per_run",
        "train.shard",  # who holds which weights, not what becomes of them
        "train.log_every",  # how often it is written down
        "train.checkpoint_every",
        "train.keep_checkpoint",
        "train.eval_batch_size",  # rows that are evaluated together: padding is masked
        "init.cache",  # statistics from disk are the statistics
        "init.memory_budget",  # more sweeps over the same rows, the same numbers
        "init.show",  # what is printed
        "evaluate.unsafe_code",  # permissions
        "model.allow_pickle",
        "model.facts",  # what planning needs to know of a file, before it is there
        "task.facts",
    }
)
# What stays although it sounds like a manner: `train.keep_factors_every` (a figure needs the files
# it leaves), `train.report_during` (its numbers are read from metrics.jsonl), `train.micro_batches`
# and `model.gradient_checkpointing` (cost and memory are results too), `train.eval_every` (the best
# of more evaluations is another one), `init.batch_size` (what is drawn together), `task.data_dir`
# (other files; `match_key` is without it).

# Keys that say where the data of a run were read: two runs that differ in nothing else are one cell
# of a table.
WHERE = frozenset({"task.data_dir", "task.eval_data_dir"})

# Keys that a function got later, with the value that is what it did before: with that value they
# are left out.
LATER = {
    "lora_pro.first_step": "plain",
    "lora_pro.moments": "float32",
    "lora_pro_low_memory.first_step": "plain",
    "p_lora.flavour": "paper",
}
# Initializers whose loss is a mean over samples today and was one over label tokens before there
# was `init.weighting`.
ONCE_BY_TOKENS = frozenset({"lora_da", "lora_da_fa", "lora_ga", "lora_one", "lora_sb", "one_step"})


def identity(plain: Mapping[str, object], without: frozenset[str] = NOT_IDENTITY) -> Plain:
    """The names and values of a resolved configuration that make the run what it is."""
    return content(in_words_of_today(plain), "", without, defaults())


def in_words_of_today(stored: Mapping[str, object]) -> Mapping[str, object]:
    """A configuration with the value of a key that it is too old to have, where that is not what
    null means today."""
    init, model = stored.get("init"), stored.get("model")
    if not isinstance(init, Mapping) or not isinstance(model, Mapping) or "weighting" in init:
        return stored
    # one label a sample: both means are the same
    if name_of(init) not in ONCE_BY_TOKENS or model.get("kind") == "encoder":
        return stored
    return {**stored, "init": {**init, "weighting": "tokens"}}


def name_of(node: Mapping[str, object]) -> str:
    """The name of a node's function, wherever it is."""
    return str(node.get("_target_", "")).rpartition(".")[2]


def content(
    node: Mapping[str, object], where: str, without: frozenset[str], known: Mapping[str, object]
) -> Plain:
    """`node` without the keys `without`, without nulls and what they leave empty, without defaults;
    functions by name."""
    kept: Plain = {}
    function = name_of(node)
    for key, value in node.items():
        path = f"{where}.{key}" if where else str(key)
        later = f"{function}.{key}"
        if path in without or key == "_partial_" or (path in known and known[path] == value):
            continue
        if later in LATER and LATER[later] == value:
            continue
        if key == "_target_":
            value = function
        elif isinstance(value, Mapping):
            value = content(value, path, without, known)
        if value is not None and value != {}:
            kept[str(key)] = value
    return kept


def defaults(kind: type = schema.Settings) -> Plain:
    """The dotted keys that have a default in `settings`, with it. Such a default is for good:
    another one is another key."""
    return dict(defaults_of(kind, ""))


@functools.cache
def defaults_of(kind: type, where: str) -> tuple[tuple[str, object], ...]:
    hints = typing.get_type_hints(kind)
    found: list[tuple[str, object]] = []
    for field in dataclasses.fields(kind):
        name = {"calibration": "init"}.get(field.name, field.name)  # as the configuration calls it
        path = f"{where}.{name}" if where else name
        if dataclasses.is_dataclass(hints[field.name]):
            found += defaults_of(hints[field.name], path)
        elif field.default is not dataclasses.MISSING:
            found.append((path, field.default))
    return tuple(found)


def run_id(plain: Mapping[str, object]) -> str:
    """Ten letters for what a run is."""
    return digest(identity(plain))


def match_key(plain: Mapping[str, object]) -> str:
    """Hash of what a run is, wherever its data were read."""
    return digest(identity(plain, NOT_IDENTITY | WHERE))


def digest(value: object) -> str:
    """Ten letters for a value; 128 and 128.0 are one number, whichever the command line had."""
    text = json.dumps(whole(value), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def whole(value: object) -> object:
    """`value` with every float that is a whole number as an integer."""
    if isinstance(value, dict):
        return {key: whole(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [whole(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


# --------------------------------------------------------------------------------------------------
# folders


def run_folder(plain: Plain, own: str | None = None) -> Path:
    """`<output_root>/<task>-<model>/<init>-s<seed>-<run_id>`, or the folder where an older version
    filed this very run; `own` is the id where it is known."""
    task, model, init = (plain[group]["name"] for group in ("task", "model", "init"))
    return folder_of(
        Path(plain["output_root"]) / f"{task}-{model}",
        f"{init}-s{plain['seed']}",
        own or run_id(plain),
        STORED,
    )


def computed_folder(root: Path, sweep: str, compute: Mapping[str, object]) -> Path:
    """`<root>/computed/<sweep>-<id>` of a sweep without runs; the id is that of its function and
    keywords."""
    return folder_of(root / "computed", sweep, run_id(compute), RECORD)


def folder_of(parent: Path, prefix: str, own: str, file: str) -> Path:
    """`parent/prefix-own`; where it is not there, its sibling `prefix-*` whose `file` says that it
    is the same.

    Of several the finished one, then the newest. A file is read once, and again when it has
    changed.
    """
    folder = parent / f"{prefix}-{own}"
    if folder.exists():
        return folder
    same = [other for other in siblings(parent).get(prefix, ()) if id_in(other / file) == own]
    return max(same, key=_rank, default=folder)


def siblings(parent: Path) -> Mapping[str, tuple[Path, ...]]:
    """The folders in `parent` by what stands before the last hyphen of their names."""
    try:
        return _siblings(str(parent), parent.stat().st_mtime_ns)
    except OSError:
        return {}


@functools.lru_cache(maxsize=256)
def _siblings(parent: str, stamp: int) -> Mapping[str, tuple[Path, ...]]:
    found: dict[str, tuple[Path, ...]] = {}
    for name in sorted(os.listdir(parent)):
        prefix, hyphen, _ = name.rpartition("-")
        if hyphen:
            found[prefix] = (*found.get(prefix, ()), Path(parent) / name)
    return found


def id_in(path: Path) -> str | None:
    """The id that the run of a config.yaml, or the computed sweep of a record.json, has today; None
    for one that says none."""
    try:
        return _id_in(str(path), path.stat().st_mtime_ns)
    except OSError:
        return None


@functools.lru_cache(maxsize=65536)
def _id_in(path: str, stamp: int) -> str | None:
    try:
        text = Path(path).read_text()
        if path.endswith(".json"):
            stored = json.loads(text)["config"]["compute"]
        else:
            # the reader in C ends the process where brackets are thousands deep
            shallow = text.count("[") + text.count("{") + text.count("- ") < 5000
            stored = yaml.load(text, Loader=FAST if shallow else yaml.SafeLoader)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        return None  # damaged: nobody's folder
    return run_id(stored) if isinstance(stored, dict) else None


def _rank(folder: Path) -> tuple[bool, int]:
    """Whether a folder's run is finished, and when it was last written."""
    path = folder / RECORD
    try:
        return json.loads(path.read_text()).get("status") == "finished", path.stat().st_mtime_ns
    except (OSError, ValueError, AttributeError, RecursionError):
        return False, 0
