"""What is on its way from the hub, as a bar: how much of it is here, and when the rest will be."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraexp.machine import progress, words

if TYPE_CHECKING:
    from loraexp.machine.repository import Repository


class Download:
    """Shows how much of the wanted files is on this machine, and when the rest will be; nothing
    where all of it is.
    """

    every = 0.5  # seconds

    def __init__(self, repository: Repository, which: dict[str, Any]) -> None:
        self.repository, self.which = repository, which
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        sizes: dict[Path, int] = {}
        while not self.ended.wait(self.every):  # the client lists the files first
            if sizes or (sizes := self._wanted()):
                break
        total = sum(sizes.values())
        done = self._done(sizes)
        if self.ended.is_set() or done >= total:
            return
        with progress.bar(
            f"download {self.repository.id}", total, done, spell=words.size
        ) as advance:
            while not self.ended.wait(self.every):
                now = self._done(sizes)
                advance(now - done)
                done = now

    def _wanted(self) -> dict[Path, int]:
        """The place of each wanted file in the cache, and its size."""
        from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

        here = self.repository
        wanted = filter_repo_objects(here.tree() or [], key=lambda file: file.path, **self.which)
        return {here.folder / "snapshots" / here.commit / file.path: file.size for file in wanted}

    def _done(self, sizes: dict[Path, int]) -> int:
        """Bytes that are here: of whole files, and of the parts that the client has written."""
        done = sum(size for path, size in sizes.items() if path.exists())
        for part in (self.repository.folder / "blobs").glob("*.incomplete"):
            with suppress(FileNotFoundError):  # it is whole by now
                done += part.stat().st_size
        return min(done, sum(sizes.values()))
