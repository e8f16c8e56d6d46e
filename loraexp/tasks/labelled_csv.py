"""A task in one CSV file of labelled texts that has no published split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loraexp.config import HUB
from loraexp.data.rows import Files
from loraexp.data.tables import Columns, Rows, label_parser, labelled
from loraexp.machine import hub
from loraexp.run.task import Given, of_keys
from loraexp.tasks.classification import Classification, LabelledKeys


@dataclass(frozen=True, kw_only=True)
class CsvKeys(LabelledKeys):
    """The keys of a task in one CSV file."""

    source: str
    sha256: str | None = None
    text: list[str]
    label: str
    dev_rows: int
    max_length: int = 128


@of_keys(CsvKeys, kinds=frozenset({"encoder"}))
def labelled_csv(keys: CsvKeys, given: Given) -> Classification:
    """Labelled texts, e.g. the tweets' row `negative,0.7991,self-driving cars just seem lazy and a
    waste of money`.

    Duplicate texts are dropped first (the first label stays). Then `dev_rows` rows are the dev
    split and the rest is train, by a hash of the text: the same rows on every machine, whatever the
    run's seed. Such files are often sorted by topic or label, so their rows are put in the order of
    that hash: the head of train is a random sample. `data_dir` is a folder that holds the file in
    place of `source`; `eval_data_dir` one whose file, as a whole, is the dev split, and its texts
    are taken out of train.

    Raises: SourceError where the file is missing or not the expected one; ValueError naming file
    and line of a bad row.
    """
    if keys.dev_rows < 1:
        raise ValueError(f"task.dev_rows={keys.dev_rows}: expected a number of rows above 0")
    everything = _read(keys, keys.data_dir, "task.data_dir")
    if keys.eval_data_dir == HUB:
        raise ValueError(
            f"task.eval_data_dir={HUB}: task={keys.name} is one file; give a folder, or null"
        )
    if keys.eval_data_dir is None:
        dev, train = everything.split(keys.dev_rows)
    else:
        dev = _read(keys, keys.eval_data_dir, "task.eval_data_dir")
        train = everything.take(np.flatnonzero(~np.isin(everything.draw, dev.draw)))
    return Classification(keys, train, {"dev": dev}, given)


def _read(keys: CsvKeys, directory: str | None, key: str) -> Rows:
    path = _locate(keys.source, keys.sha256, directory, key)
    parse = label_parser(keys.problem, keys.label_names)
    columns = Columns(text=keys.text, label=keys.label, parse=parse, skip_bad=keys.skip_bad)
    rows = labelled(Files((path,), form="csv"), columns).without_duplicates()
    return rows.take(np.argsort(rows.draw, kind="stable"))


def _locate(source: str, sha256: str | None, directory: str | None, key: str) -> Path:
    if directory is not None:
        path = Path(directory).expanduser() / Path(source).name
        if not path.is_file():
            remedy = f"give the folder that holds it, or set {key}=null"
            raise hub.SourceError(f"{key}={directory}: {path} is not there; {remedy}")
        return path
    path = Path(hub.resolve(source, key="task.source"))
    if not path.is_file():
        raise hub.SourceError(
            f"task.source={source}: {path} is not a file; give the path of a CSV file"
        )
    hub.verify(path, sha256, key="task.sha256")
    return path
