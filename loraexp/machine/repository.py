"""A repository of the hub at one commit: which commit a revision is, and its files, downloaded once
and shown meanwhile.

Everything that is read from the hub is read through here, by a full commit id. So what is in the
cache is used without a request, the record can say what was loaded, and no client falls back to
another version on its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loraexp.machine import files, progress, remedies, words
from loraexp.machine.download import Download
from loraexp.machine.hub import SourceError, Unreachable
from loraexp.machine.locks import locked
from loraexp.machine.notation import read_json
from loraexp.machine.remedies import Keys, patiently

COMMIT = re.compile(r"[0-9a-f]{40}")
CONNECT, PATIENCE = 6.0, 20.0  # seconds that a connection may take, and then an answer
MODEL = Keys("model.path", "model.revision", "model.path")
PINS = "hub.json"  # in the folder of results: the commit that each revision was there

_folder: Path | None = None  # of results, whose pins hold
# pins that hold before any folder's: this process's own, or those of a finished run
commits_known: dict[str, str] = {}
_open: list[dict[str, str]] = []  # what is read within each open `reading`
# kind, id and commit of what the hub has told this process about
files_there: set[tuple[str, str, str]] = set()


@dataclass(frozen=True)
class Repository:
    """A model or a data set of the hub: `revision` as it was asked for, null for the newest."""

    id: str
    kind: Literal["model", "dataset"]
    revision: str | None
    keys: Keys
    part: str = ""  # what of it is wanted, for messages

    @property
    def commit(self) -> str:
        """The commit that is read: the revision itself, or what it was when this folder of results
        first used it.

        Raises: SourceError where the hub does not know it, or cannot be asked.
        """
        if self.revision is not None and COMMIT.fullmatch(self.revision):
            commit = self.revision
        else:
            commit = _pinned(self.name, self._newest)
        note({self.name: commit})
        return commit

    @property
    def name(self) -> str:
        """For pins and records: `models/google-t5/t5-base@main`."""
        return f"{self.kind}s/{self.id}@{self.revision or 'main'}"

    def _newest(self) -> str:
        from huggingface_hub import constants

        name = self.revision or "main"
        if constants.HF_HUB_OFFLINE:
            known = self.folder / "refs" / name
            if known.is_file():
                return known.read_text().strip()
        with self.failures():
            return str(self._ask(name).sha)

    def _ask(self, revision: str) -> Any:
        """What the hub says of the repository: a question with a limit, unlike most of clients."""
        from huggingface_hub import HfApi

        limits: Any = (CONNECT, PATIENCE, PATIENCE, PATIENCE)
        ask = HfApi().repo_info
        answer = patiently(
            lambda: ask(self.id, repo_type=self.kind, revision=revision, timeout=limits)
        )
        files_there.add((self.kind, self.id, str(answer.sha)))
        return answer

    @property
    def folder(self) -> Path:
        """Where the client keeps its files."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        return Path(constants.HF_HUB_CACHE).expanduser() / repo_folder_name(
            repo_id=self.id, repo_type=self.kind
        )

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Within, whatever a client of the hub raises becomes a SourceError of one line, and
        clients print nothing.
        """
        from huggingface_hub import constants

        try:
            with quiet():
                yield
        except SourceError:
            raise
        except Exception as error:
            endpoint = constants.ENDPOINT
            page = f"{endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{self.id}"
            said = remedies.line(
                error,
                self.id + self.part,
                self.revision,
                self.keys,
                page,
                endpoint,
                words.from_home(constants.HF_HUB_CACHE),
            )
            raise Unreachable(said) from error

    def snapshot(self, *patterns: str, ignore: Sequence[str] = ()) -> Path:
        """The folder with the files that match; what is not in the cache yet is downloaded, and
        shown.

        Raises: SourceError with the client's reason and what to type.
        """
        from huggingface_hub import HfApi, constants, snapshot_download

        commit = self.commit
        which: dict[str, Any] = {"allow_patterns": list(patterns), "ignore_patterns": list(ignore)}

        def fetch() -> Path:
            place = snapshot_download(
                self.id, repo_type=self.kind, revision=commit, etag_timeout=PATIENCE, **which
            )
            if self.tree() is None and not constants.HF_HUB_OFFLINE:
                # The client could not list the files, and says so only where it has none of them at
                # all.
                next(iter(HfApi().list_repo_tree(self.id, repo_type=self.kind, revision=commit)))
                raise ConnectionError("the list of files could not be kept in the cache")
            return Path(place)

        with self.failures(), Download(self, which):
            new = (self.kind, self.id, commit) not in files_there
            if new and self.tree() is None and not constants.HF_HUB_OFFLINE:
                self._ask(commit)
            return patiently(fetch)

    def tree(self) -> list[Any] | None:
        """The repository's files at the commit, as the cache lists them; None where it was never
        listed.
        """
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        try:
            return get_cached_repo_tree(self.id, repo_type=self.kind, revision=self.commit)
        except CachedRepoTreeNotFoundError:
            return None


def _pinned(key: str, newest: Callable[[], str]) -> str:
    """The commit under `key`, asked for once in a folder of results, whatever number of processes
    works in it.
    """
    if key in commits_known:
        return commits_known[key]
    if _folder is None:
        commits_known[key] = newest()
        return commits_known[key]
    _folder.mkdir(parents=True, exist_ok=True)
    path = _folder / PINS
    with locked(_folder / f".{PINS}.lock"):
        try:
            pins: dict[str, str] = read_json(path, dict) if path.exists() else {}
        except files.Damaged as error:
            raise SourceError(
                f"{error}; delete it: the commits of today are then written there"
            ) from error
        if key not in pins:
            pins[key] = newest()
            files.write_json(path, dict(sorted(pins.items())))
    return pins[key]


@contextmanager
def pins(folder: Path) -> Iterator[None]:
    """Within, a revision that can move (null, a branch, a tag) is the commit that it was when
    `folder` first used it.

    So all runs of a grid read the same files, also those that run on another day.
    """
    global _folder, commits_known
    before = _folder, commits_known
    _folder, commits_known = folder, {}
    try:
        yield
    finally:
        _folder, commits_known = before


def assume(commits: Mapping[str, str]) -> None:
    """From here on a revision is the commit that a finished run read, as its record has it under
    `hub`.
    """
    global commits_known
    commits_known = dict(commits)


@contextmanager
def reading() -> Iterator[dict[str, str]]:
    """Collects what is read within: the commit of every repository, by its name."""
    read: dict[str, str] = {}
    _open.append(read)
    try:
        yield read
    finally:
        _open.pop()


def note(commits: Mapping[str, str]) -> None:
    """Say that these were read, now or by whoever made what is used again."""
    for read in _open:
        read.update(commits)


@contextmanager
def quiet() -> Iterator[None]:
    """Within, the clients print neither bars nor warnings of their own: this project shows the one
    and raises the other."""
    from huggingface_hub.utils import logging as client

    with progress.silent(client):
        yield


# ---- -- models

DEFINITION = (
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.tiktoken",
)  # architecture, tokenizer, and lists of shards


def definition(repository: Repository) -> Path:
    """The folder with a model's small files: its architecture and its tokenizer."""
    return repository.snapshot(*DEFINITION, ignore=["*/*"])


def checkpoint(repository: Repository, *, pickle: bool) -> Path:
    """The folder with a model's weights too: safetensors alone, or with `pickle` what is there.

    Raises: SourceError where there are none, or only a pickle.
    """
    folder = definition(repository)
    for name in ("model.safetensors", *(["pytorch_model.bin"] if pickle else [])):
        index = folder / f"{name}.index.json"
        shards = listed(index) if index.exists() else [name]
        repository.snapshot(*shards)
        if all((folder / shard).exists() for shard in shards):
            return folder
    raise SourceError(f"{repository.id} at {repository.commit}: {_absent(repository)}")


def listed(index: Path) -> list[str]:
    """The files that a list of shards names, each beside it.

    Raises: SourceError where it is damaged, or names a file elsewhere.
    """
    try:
        places = read_json(index, dict).get("weight_map")
    except files.Damaged as error:
        raise SourceError(f"{error}; fetch the model's files again") from error
    if not isinstance(places, dict) or not places:
        raise SourceError(f"{index}: has no weight_map; fetch the model's files again")
    for name in places.values():
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise SourceError(
                f"{index}: names the file {name!r}, expected one beside it: do not load this model"
            )
    return sorted(set(places.values()))


def _absent(repository: Repository) -> str:
    from huggingface_hub import HfApi

    with repository.failures():
        names = patiently(
            lambda: HfApi().list_repo_files(repository.id, revision=repository.commit)
        )
    if any(name.startswith("pytorch_model") and name.endswith(".bin") for name in names):
        trust = "set model.allow_pickle=true if you trust them (loading a .bin can run code)"
        return f"only .bin weights are there; {trust}"
    there = f"no model.safetensors is there, only {', '.join(sorted(names)[:8])}"
    return f"{there}; set model.path to a repository with weights"
