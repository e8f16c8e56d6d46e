"""The rows of GLUE's tasks: from the hub, or from the benchmark's original files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loraexp.config import HUB
from loraexp.data.rows import Files, Hub
from loraexp.data.tables import Columns, Parse, Rows, labelled
from loraexp.machine.hub import SourceError
from loraexp.tasks.classification import LabelledKeys


@dataclass(frozen=True, kw_only=True)
class GlueKeys(LabelledKeys):
    """The keys of one GLUE task, as its yaml has them."""

    # held_out, paper: what selects | the others, of a text model: the paper's prompt and scoring
    protocol: Literal[
        "held_out", "paper", "cg_lora", "lora_ga", "lora_one", "exact", "restricted"
    ] = "held_out"  # type: ignore[assignment]
    source: str  # on the hub, used where data_dir is null
    config: str
    revision: str | None
    text: list[str]
    folder: str  # of the original files: DIR/CoLA/train.tsv or DIR/train.tsv
    file_text: list[str]
    file_label: str
    file_columns: list[str] | None = None  # of files without a header line
    full_train: str | None = None
    full_train_without: str | None = None
    full_train_ids: list[str] | None = None
    dev_splits: list[str]


def glue_rows(keys: GlueKeys, parse: Parse) -> tuple[Rows, dict[str, Rows]]:
    """The rows of train and of each labelled dev split, for encoders and for text-to-text alike;
    see `loraexp.tasks.glue`."""
    columns = Columns(text=keys.text, label="label", parse=parse)

    def hub(split: str) -> Rows:
        return labelled(
            Hub(keys.source, keys.config, split, keys.revision, "task.data_dir"), columns
        )

    def files(key: str, directory: str) -> _Originals:
        return _Originals(keys, parse, key, Path(directory))

    train = files("task.data_dir", keys.data_dir).train() if keys.data_dir else hub("train")
    if keys.eval_data_dir == HUB or not (keys.eval_data_dir or keys.data_dir):
        return train, {s: hub(s.replace("dev", "validation")) for s in keys.dev_splits}
    if keys.eval_data_dir:
        return train, files("task.eval_data_dir", keys.eval_data_dir).dev()
    return train, files("task.data_dir", str(keys.data_dir)).dev()


@dataclass(frozen=True)
class _Originals:
    """One task's original files, in `directory/folder` or in `directory` itself."""

    keys: GlueKeys
    parse: Parse
    key: str
    directory: Path

    def train(self) -> Rows:
        full, without = self.keys.full_train, self.keys.full_train_without
        complete, left_out = self._find(full), self._find(without)
        if complete is None or left_out is None:
            return self._read(self._expect("train.tsv"))
        pairs = frozenset(
            tuple(line.split("\t")) for line in left_out.read_text("utf-8-sig").splitlines()
        )
        rows = self._read(complete, without=pairs, identity=self.keys.full_train_ids or ())
        return rows.noted(
            f"read from {full} without the pairs in {without}, because copies of train.tsv lack"
            " rows"
        )

    def dev(self) -> dict[str, Rows]:
        splits = self.keys.dev_splits
        here = [split for split in splits if self._find(f"{split}.tsv")] or splits[:1]
        missing = [f"{split}.tsv" for split in splits if split not in here]
        notes = (
            [f"not reported, because not in {self.directory}: {', '.join(missing)}"]
            if missing
            else []
        )
        return {split: self._read(self._expect(f"{split}.tsv")).noted(*notes) for split in here}

    def _places(self, file: str) -> tuple[Path, Path]:
        return (
            self.directory.expanduser() / self.keys.folder / file,
            self.directory.expanduser() / file,
        )

    def _find(self, file: str | None) -> Path | None:
        return (
            next((place for place in self._places(file) if place.is_file()), None) if file else None
        )

    def _expect(self, file: str) -> Path:
        path = self._find(file)
        if path is None:
            inside, itself = self._places(file)
            word = "null" if self.key == "task.data_dir" else HUB
            raise SourceError(
                f"{self.key}={self.directory}: neither {inside} nor {itself} is there; give the"
                f" folder of GLUE's original files, or set {self.key}={word} to load"
                f" {self.keys.source} from the hub"
            )
        return path

    def _read(self, path: Path, **left_out: Any) -> Rows:
        columns = Columns(
            text=self.keys.file_text,
            label=self.keys.file_label,
            parse=self.parse,
            skip_bad=self.keys.skip_bad,
            **left_out,
        )
        return labelled(Files((path,), tuple(self.keys.file_columns or ()), "tsv"), columns)
