"""A task in one CSV file of labelled texts that has no published split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from loraexp.data.tables import Rows, label_parser, read_table
from loraexp.machine import hub
from loraexp.tasks.classification import Classification


def labelled_csv(
    *,
    name: str,
    version: int,
    source: str,
    sha256: str | None = None,
    text: list[str],
    label: str,
    dev_rows: int,
    label_names: list[str],
    metric: str,
    metrics: list[str],
    protocol: Literal["held_out", "paper"] = "held_out",
    max_length: int = 128,
    limit_train: int | None = None,
    limit_eval: int | None = None,
    data_dir: str | None = None,
    eval_data_dir: str | None = None,
    skip_bad: bool = False,
    tokenizer: Any,
    cache_root: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> Classification:
    """Labelled texts, e.g. the tweets' row `negative,0.7991,self-driving cars just seem lazy and a waste of money`.

    Duplicate texts are dropped first (the first label stays). Then `dev_rows` rows are the dev split and the rest is
    train, by a hash of the text: the same rows on every machine, whatever the run's seed. Such files are often sorted
    by topic or label, so their rows are put in the order of that hash: the head of train is a random sample.
    `data_dir` is a folder that holds the file in place of `source`; `eval_data_dir` one whose file, as a whole, is the
    dev split, and its texts are taken out of train.

    Raises: SourceError where the file is missing or not the expected one; ValueError naming file and line of a bad row.
    """
    if dev_rows < 1:
        raise ValueError(f"task.dev_rows={dev_rows}: expected a number of rows above 0")

    def read(directory: str | None, key: str) -> Rows:
        path = _locate(source, sha256, directory, key)
        parse = label_parser("single_label_classification", label_names)
        rows = read_table(path, form="csv", text=text, label=label, parse=parse, skip_bad=skip_bad).without_duplicates()
        return rows.take(np.argsort(rows.draw, kind="stable"))

    everything = read(data_dir, "task.data_dir")
    if eval_data_dir is None:
        dev, train = everything.split(dev_rows)
    else:
        dev = read(eval_data_dir, "task.eval_data_dir")
        train = everything.take(np.flatnonzero(~np.isin(everything.draw, dev.draw)))
    return Classification(
        name=name, version=version, problem="single_label_classification", label_names=label_names, metric=metric,
        metrics=metrics, protocol=protocol, max_length=max_length, limit_train=limit_train, limit_eval=limit_eval,
        train=train, dev={"dev": dev}, tokenizer=tokenizer, cache_root=cache_root, progress=progress,
    )  # fmt: skip


def _locate(source: str, sha256: str | None, directory: str | None, key: str) -> Path:
    if directory is not None:
        path = Path(directory).expanduser() / Path(source).name
        if not path.is_file():
            remedy = f"give the folder that holds it, or set {key}=null"
            raise hub.SourceError(f"{key}={directory}: {path} is not there; {remedy}")
        return path
    path = Path(hub.resolve(source, key="task.source"))
    if not path.is_file():
        raise hub.SourceError(f"task.source={source}: {path} is not a file; give the path of a CSV file")
    hub.verify(path, sha256, key="task.sha256")
    return path
