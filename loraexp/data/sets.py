"""A split of a data set as a table in memory-mapped files: of the hub at one commit, or of a folder
in the hub's layout.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from loraexp.machine import progress, remedies
from loraexp.machine.hub import SourceError, resolve
from loraexp.machine.remedies import Keys, patiently
from loraexp.machine.repository import Repository, quiet

READ = re.compile(r"hf://datasets/(.+)@([0-9a-f]{40})/")  # a file that a prepared set was made from


@dataclass(frozen=True)
class Split:
    """`source`: a hub id, or a folder. `folder_key`: the key of a folder of original files that may
    stand in its place.
    """

    source: str
    config: str | None
    split: str
    revision: str | None
    folder_key: str

    @property
    def name(self) -> str:
        """For the record and messages; of the hub's sets with the commit that was read."""
        name = f"{self.source}{self.part}"
        return name if isinstance(self.located, Path) else f"{name} at {self.repository.commit}"

    @property
    def part(self) -> str:
        return f" ({self.config}, {self.split})" if self.config else f" ({self.split})"

    @cached_property
    def located(self) -> Path | str:
        return resolve(self.source, key="task.source", revision=self.revision)

    @cached_property
    def repository(self) -> Repository:
        return Repository(
            self.source,
            "dataset",
            self.revision,
            Keys("task.source", "task.revision", self.folder_key),
            self.part,
        )

    @cached_property
    def table(self) -> Any:
        """The rows, as a `datasets.Dataset`.

        Raises: SourceError with the client's reason and what to type.
        """
        if isinstance(self.located, Path):
            return self._local(self.located)
        folder = self._prepared()
        if folder is None:
            self._prepare()
            folder = self._prepared()
        if folder is None:
            raise SourceError(
                f"{self.name}: its client prepared another commit; type the same command again"
            )
        return self._read(folder)

    def classes(self, column: str) -> list[str] | None:
        """The names of a column's classes in the order of their numbers, where the set has some."""
        names = getattr(self.table.features.get(column), "names", None)
        return list(names) if names else None

    def _local(self, folder: Path) -> object:
        import datasets

        with silent():
            try:
                return datasets.load_dataset(str(folder), self.config, split=self.split)
            except Exception as error:
                reason = remedies.reason(error)
                raise SourceError(
                    f"{self.name}: {reason}; correct task.source or {self.folder_key}"
                ) from error

    def _prepare(self) -> None:
        """Download the configuration's files at the commit, and have the client write its tables
        from them.
        """
        import datasets

        here = self.repository
        here.snapshot("README.md")
        with silent(), here.failures():
            builder: Any = patiently(lambda: self._builder(datasets))
        urls = [str(url) for urls in builder.config.data_files.values() for url in urls]
        # none of what lies elsewhere
        paths = [url.partition(f"@{here.commit}/")[2] for url in urls]
        here.snapshot(*(glob.escape(path) for path in paths if path))
        with silent(), here.failures():
            patiently(builder.download_and_prepare)

    def _builder(self, datasets: Any) -> Any:
        """The client's builder of this commit: it silently takes another one from its cache where
        the hub fails it.
        """
        builder = datasets.load_dataset_builder(
            self.source, self.config, revision=self.repository.commit
        )
        if builder.hash != self.repository.commit:
            raise ConnectionError(
                f"the hub stopped answering, and the cache has another commit, {builder.hash}"
            )
        return builder

    def _prepared(self) -> Path | None:
        """The folder of tables that the client has written of this very commit and configuration,
        if it has.
        """
        import datasets

        owner, _, name = self.source.rpartition("/")
        root = Path(datasets.config.HF_DATASETS_CACHE).expanduser()
        for place in sorted(
            root.glob(
                f"{owner}___*/*/*/{self.repository.commit}"
                if owner
                else f"*/*/*/{self.repository.commit}"
            )
        ):
            if not (place / "dataset_info.json").is_file():
                continue
            info = datasets.DatasetInfo.from_directory(str(place))
            wanted = self.config is None or info.config_name == self.config
            if wanted and plain(info.dataset_name or "") == plain(name) and self._made_of(info):
                return place
        return None

    def _made_of(self, info: Any) -> bool:
        """Whether the files that the tables were made from, where the client noted them, are of
        this very commit.
        """
        read = {
            match.groups() for url in info.download_checksums or {} if (match := READ.match(url))
        }
        return read <= {(self.source, self.repository.commit)}

    def _read(self, folder: Path) -> Any:
        import datasets

        info = datasets.DatasetInfo.from_directory(str(folder))
        splits = info.splits or {}
        if self.split not in splits:
            there = ", ".join(splits)
            raise SourceError(
                f"{self.name}: no split {self.split}; there are {there}: correct task.source, or"
                f" set {self.folder_key}=DIR"
            )
        paths = sorted(folder.glob(f"*-{self.split}.arrow")) or sorted(
            folder.glob(f"*-{self.split}-[0-9]*-of-[0-9]*.arrow")
        )
        with silent():
            parts = [
                datasets.Dataset.from_file(str(path), info=info, split=self.split) for path in paths
            ]
            table = datasets.concatenate_datasets(parts) if parts else None
        if table is None or len(table) != splits[self.split].num_examples:
            raise SourceError(
                f"{self.name}: the tables in {folder} are incomplete; remove that folder, and type"
                " the same command again"
            )
        return table


def plain(name: str) -> str:
    """A data set's name without what the client's folders spell differently."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@contextmanager
def silent() -> Iterator[None]:
    """Within, `datasets` prints neither bars nor warnings of its own."""
    import datasets

    with progress.silent(datasets.logging), quiet():
        yield
