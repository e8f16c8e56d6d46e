"""GLUE's tasks for encoders: from the hub, or from the benchmark's original files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from loraexp.data.tables import Parse, Rows, label_parser, read_hub, read_table
from loraexp.machine.hub import SourceError
from loraexp.tasks.classification import Classification


def glue(
    *,
    name: str,
    version: int,
    source: str,
    config: str,
    revision: str | None,
    text: list[str],
    folder: str,
    file_text: list[str],
    file_label: str,
    file_columns: list[str] | None = None,
    full_train: str | None = None,
    full_train_without: str | None = None,
    full_train_ids: list[str] | None = None,
    dev_splits: list[str],
    problem: Literal["single_label_classification", "regression"],
    label_names: list[str],
    metric: str,
    metrics: list[str],
    protocol: Literal["held_out", "paper"] = "held_out",
    max_length: int = 256,
    limit_train: int | None = None,
    limit_eval: int | None = None,
    data_dir: str | None = None,
    eval_data_dir: str | None = None,
    skip_bad: bool = False,
    tokenizer: Any,
    cache_root: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> Classification:
    """One GLUE task, e.g. CoLA's row `gj04  1    Our friends won't buy this analysis, let alone …` → acceptable.

    Wang et al. 2019, "GLUE". `data_dir` holds the original files, as `DIR/CoLA/train.tsv` or `DIR/train.tsv`; without
    it `source` is loaded from the hub. `eval_data_dir` is where the dev files are, when elsewhere. Where copies of the
    train file lack rows (MRPC), `full_train` minus the id pairs in `full_train_without` is read instead, if both are
    there. One of the dev splits is enough in a local folder; the notes say which are missing.

    Raises: SourceError where a file or the hub's copy is missing; ValueError naming file and line of a malformed row.
    """
    train, dev = glue_rows(
        source=source, config=config, revision=revision, text=text, folder=folder, file_text=file_text, file_label=file_label,
        file_columns=file_columns, full_train=full_train, full_train_without=full_train_without,
        full_train_ids=full_train_ids, dev_splits=dev_splits, parse=label_parser(problem, label_names), data_dir=data_dir,
        eval_data_dir=eval_data_dir, skip_bad=skip_bad,
    )  # fmt: skip
    return Classification(
        name=name, version=version, problem=problem, label_names=label_names, metric=metric, metrics=metrics,
        protocol=protocol, max_length=max_length, limit_train=limit_train, limit_eval=limit_eval, train=train, dev=dev,
        tokenizer=tokenizer, cache_root=cache_root, progress=progress,
    )  # fmt: skip


def glue_rows(
    *,
    source: str,
    config: str,
    revision: str | None,
    text: list[str],
    folder: str,
    file_text: list[str],
    file_label: str,
    file_columns: list[str] | None,
    full_train: str | None,
    full_train_without: str | None,
    full_train_ids: list[str] | None,
    dev_splits: list[str],
    parse: Parse,
    data_dir: str | None,
    eval_data_dir: str | None,
    skip_bad: bool,
) -> tuple[Rows, dict[str, Rows]]:
    """The rows of train and of each labelled dev split, for encoders and for text-to-text alike; see `glue`."""
    files = partial(_Originals, folder, file_columns, file_text, file_label, parse, skip_bad, source)
    hub = partial(read_hub, source, config, revision=revision, text=text, label="label", local_key="task.data_dir")
    if data_dir is None:
        train = hub("train")
    else:
        train = files("task.data_dir", Path(data_dir)).train(full_train, full_train_without, full_train_ids)
    if eval_data_dir is not None:
        dev = files("task.eval_data_dir", Path(eval_data_dir)).dev(dev_splits)
    elif data_dir is not None:
        dev = files("task.data_dir", Path(data_dir)).dev(dev_splits)
    else:
        dev = {split: hub(split.replace("dev", "validation")) for split in dev_splits}
    return train, dev


@dataclass(frozen=True)
class _Originals:
    """One task's original files, in `directory/folder` or in `directory` itself."""

    folder: str
    columns: list[str] | None
    text: list[str]
    label: str
    parse: Parse
    skip_bad: bool
    source: str
    key: str
    directory: Path

    def train(self, full: str | None, without: str | None, ids: list[str] | None) -> Rows:
        complete, left_out = self._find(full), self._find(without)
        if complete is None or left_out is None:
            return self._read(self._expect("train.tsv"))
        pairs = frozenset(tuple(line.split("\t")) for line in left_out.read_text("utf-8-sig").splitlines())
        rows = self._read(complete, without=pairs, identity=ids or ())
        return rows.noted(f"read from {full} without the pairs in {without}, because copies of train.tsv lack rows")

    def dev(self, splits: list[str]) -> dict[str, Rows]:
        here = [split for split in splits if self._find(f"{split}.tsv")] or splits[:1]
        missing = [f"{split}.tsv" for split in splits if split not in here]
        notes = [f"not reported, because not in {self.directory}: {', '.join(missing)}"] if missing else []
        return {split: self._read(self._expect(f"{split}.tsv")).noted(*notes) for split in here}

    def _places(self, file: str) -> tuple[Path, Path]:
        return self.directory.expanduser() / self.folder / file, self.directory.expanduser() / file

    def _find(self, file: str | None) -> Path | None:
        return next((place for place in self._places(file) if place.is_file()), None) if file else None

    def _expect(self, file: str) -> Path:
        path = self._find(file)
        if path is None:
            inside, itself = self._places(file)
            raise SourceError(
                f"{self.key}={self.directory}: neither {inside} nor {itself} is there; give the folder of GLUE's "
                f"original files, or set task.data_dir=null to load {self.source} from the hub"
            )
        return path

    def _read(self, path: Path, **left_out: Any) -> Rows:
        return read_table(
            path,
            form="tsv",
            columns=self.columns,
            text=self.text,
            label=self.label,
            parse=self.parse,
            skip_bad=self.skip_bad,
            **left_out,
        )
