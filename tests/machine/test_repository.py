"""Models of the hub through the real clients: what is fetched, at which commit, and what is said
when it fails.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from loraexp import config, models
from loraexp.machine import progress, repository, words
from loraexp.machine.hub import SourceError
from loraexp.machine.repository import MODEL, Repository
from tests.support.hub import offline, start
from tests.support.hub_models import KIND, MODELS, UNREAD, model_files
from tests.support.hub_server import Fault, Hub

BERT = "acme/bert"


def repo(id: str = BERT, revision: str | None = None) -> Repository:
    return Repository(id, "model", revision, MODEL)


def settings(*overrides: str) -> Any:
    return config.check(config.compose(overrides))[0].model


def bert(*overrides: str) -> Any:
    """An encoder of the user's own, on the hub."""
    return settings("model=roberta-base", f"model.path={BERT}", "model.revision=null", *overrides)


# ---- what is read


@pytest.mark.parametrize("name", ["roberta-base", "t5-base", "llama-2-7b"])
def test_every_family_loads_and_only_its_safetensors_are_fetched(
    name: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real layout: beside the weights lie those of other libraries; LLaMA's are gated and in
    shards.
    """
    hub.members = {"member"}
    monkeypatch.setenv("HF_TOKEN", "member")
    chosen = settings(
        f"model={name}",
        *(["task=gsm8k"] if name == "llama-2-7b" else []),
        *(["task=cola_t5"] if name == "t5-base" else []),
    )
    model = models.open(chosen).load(dtype=torch.float32, head_seed=0)
    tokenizer = models.open(chosen).tokenizer
    family = MODELS[chosen.path]
    files = hub.repositories["models", chosen.path].commits[chosen.revision]
    assert sorted(hub.transfers) == sorted(path for path in files if path not in UNREAD)
    assert (
        model.config.model_type == family
        and KIND[family] == chosen.kind
        and tokenizer.vocab_size == 512
    )
    assert models.open(chosen).commit == chosen.revision
    if name == "llama-2-7b":
        assert sum(path.endswith(".safetensors") for path in hub.transfers) > 1
    before = hub.count()
    models.open(chosen).load(dtype=torch.float32, head_seed=0)
    assert models.open(chosen).tokenizer.vocab_size == 512
    assert hub.count() == before  # what is in the cache by its commit is not asked for again
    offline(monkeypatch)
    again = models.open(chosen).load(dtype=torch.float32, head_seed=0)
    assert hub.count() == before
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_a_pickle_is_read_only_where_it_is_trusted(hub: Hub) -> None:
    with pytest.raises(
        SourceError,
        match=(
            "acme/pickled at [0-9a-f]{40}: only .bin weights are there; set model.allow_pickle=true"
        ),
    ):
        models.open(bert("model.path=acme/pickled")).load(dtype=torch.float32, head_seed=0)
    assert "pytorch_model.bin" not in hub.transfers
    model = models.open(bert("model.path=acme/pickled", "model.allow_pickle=true")).load(
        dtype=torch.float32, head_seed=0
    )
    plain = models.open(bert()).load(dtype=torch.float32, head_seed=0)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True)
    )


def test_a_repository_without_weights_says_what_is_there(hub: Hub) -> None:
    hub.repository("acme/empty").add({"config.json": b"{}", "README.md": b""})
    with pytest.raises(
        SourceError,
        match="no model.safetensors is there, only README.md, config.json; set model.path",
    ):
        repository.checkpoint(repo("acme/empty"), pickle=False)


# ---- which commit


def moved(hub: Hub, id: str) -> tuple[str, Callable[[], str]]:
    """A repository, and a function that moves its main to other weights."""
    made = hub.repository(id)
    first = made.add(model_files("bert"))
    return first, lambda: made.add(model_files("bert", seed=1))


def test_a_revision_that_moves_is_one_commit_in_a_folder_of_results(
    hub: Hub, tmp_path: Path
) -> None:
    first, move = moved(hub, "acme/moving")
    with repository.pins(tmp_path / "grid"):
        assert repo("acme/moving").commit == first
    second = move()
    assert second != first
    with repository.pins(tmp_path / "grid"):
        assert repo("acme/moving").commit == repo("acme/moving", "main").commit == first
        assert repository.checkpoint(repo("acme/moving"), pickle=False).name == first
    with repository.pins(tmp_path / "other"):
        assert repo("acme/moving").commit == second
    assert json.loads((tmp_path / "grid" / "hub.json").read_text()) == {
        "models/acme/moving@main": first
    }
    assert repo("acme/moving", second).commit == second  # who names a commit gets it


def test_what_was_read_is_noted_with_its_commit(hub: Hub, tmp_path: Path) -> None:
    first, _ = moved(hub, "acme/noted")
    with repository.pins(tmp_path), repository.reading() as read:
        repository.definition(repo("acme/noted"))
    assert read == {"models/acme/noted@main": first}


def test_offline_a_null_revision_is_the_one_in_the_cache(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import snapshot_download

    first, move = moved(hub, "acme/cached")
    # by any client
    snapshot_download(
        "acme/cached", allow_patterns=["*.json", "*.safetensors"], ignore_patterns=["*/*"]
    )
    move()
    offline(monkeypatch)
    with repository.pins(tmp_path):
        assert repo("acme/cached").commit == first
        assert (
            repository.checkpoint(repo("acme/cached"), pickle=False) / "model.safetensors"
        ).exists()


def test_a_folder_of_the_same_name_is_not_taken_for_a_commit(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "FacebookAI" / "roberta-base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    expected = (
        "FacebookAI/roberta-base is a folder here, and model.revision=e2da.* set model.path=./Face"
    )
    with pytest.raises(config.ConfigError, match=expected):
        settings("model=roberta-base")
    local = settings(
        "model=roberta-base", "model.path=./FacebookAI/roberta-base", "model.revision=null"
    )
    assert models.open(local).place == tmp_path / "FacebookAI" / "roberta-base"
    assert models.open(local).commit is None
    assert hub.count() == 0


# ---- failures


@contextmanager
def token(hub: Hub, monkeypatch: pytest.MonkeyPatch, value: str, *, known: bool) -> Any:
    hub.tokens = {value} if known else set()
    monkeypatch.setenv("HF_TOKEN", value)
    yield


LLAMA = "meta-llama/Llama-2-7b-hf"
LLAMA_COMMIT = "01c7f73d771dfac7d292323805ebc428287df4f9"
FAILURES: dict[str, tuple[str, str | None, list[Fault], str]] = {
    "gated, no token": (
        LLAMA,
        LLAMA_COMMIT,
        [],
        rf"{LLAMA} at {LLAMA_COMMIT}: 401 Access to model {LLAMA} is restricted. You must have "
        rf"access to "
        r"it and be authenticated to access it; accept its licence at "
        r"{url}/meta-llama/Llama-2-7b-hf, "
        r"then `hf auth login` or set HF_TOKEN",
    ),
    "no such revision": (
        BERT,
        "v9",
        [],
        r"acme/bert at v9: 404 Invalid rev id: v9; set model.revision to one that is there, or "
        r"drop it "
        r"\(model.revision=null takes the newest\)",
    ),
    "no such commit": (
        BERT,
        "0" * 40,
        [],
        r"acme/bert at 0{40}: 404 Invalid rev id: 0{40}; set model.revision to one that is there",
    ),
    "misspelt": (
        "acme/brt",
        None,
        [],
        r"acme/brt: 401 Repository not found; correct model.path, or, if it is private, "
        r"`hf auth login` or set HF_TOKEN; or set model.path=DIR",
    ),
    "busy": (
        BERT,
        None,
        [Fault("api/models", status=429, headers={"Retry-After": "7"})],
        r"acme/bert: 429 Too Many Requests; wait, then the same",
    ),
    "down": (
        BERT,
        None,
        [Fault("api/models", status=503)],
        r"acme/bert: 503 Service Unavailable; the hub is not well: wait, then the same command",
    ),
    "cut off": (
        BERT,
        None,
        [Fault("api/models", reset_after=0)],
        r"acme/bert: {url} does not answer or broke off \(Re\w+Error: .+\); when it is",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_keeps_the_reason_and_names_the_remedy(case: str, hub: Hub) -> None:
    id, revision, faults, expected = FAILURES[case]
    hub.faults = faults
    with pytest.raises(SourceError) as caught:
        repository.checkpoint(repo(id, revision), pickle=False)
    assert re.match(expected.replace("{url}", hub.url), str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value) and caught.value.__cause__ is not None
    hub.faults = []
    # one failure decides nothing for what follows
    assert repository.checkpoint(repo(), pickle=False).is_dir()


def test_a_token_that_may_not_read_is_told_apart_from_none(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = "01c7f73d771dfac7d292323805ebc428287df4f9"
    with token(hub, monkeypatch, "stranger", known=True):
        with pytest.raises(
            SourceError,
            match=(
                "403 Access to model .* not in the authorized list; accept .* when access is"
                " granted"
            ),
        ):
            repository.definition(repo(LLAMA, revision))
        with pytest.raises(
            SourceError, match="acme/brt: 404 Repository not found; correct model.path"
        ):
            repository.definition(repo("acme/brt"))
    with (
        token(hub, monkeypatch, "expired", known=False),
        pytest.raises(
            SourceError,
            match=(
                "401 Invalid credentials in Authorization header; the token is not accepted: `hf"
                " auth login`"
            ),
        ),
    ):
        repository.definition(repo())
    hub.members = {"member"}
    with token(hub, monkeypatch, "member", known=True):
        assert (repository.definition(repo(LLAMA, revision)) / "config.json").exists()


def test_offline_and_not_in_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    for revision in (None, "e2da8e2f811d1448a5b465c236feacd80ffbac7b"):
        with pytest.raises(
            SourceError,
            match=(
                "not in the cache .*, and HF_HUB_OFFLINE is set; unset HF_HUB_OFFLINE, or set"
                " model.path=DIR"
            ),
        ):
            repository.checkpoint(repo("FacebookAI/roberta-base", revision), pickle=False)
    assert hub.count() == 0


def test_nobody_there_is_one_line_within_seconds(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        SourceError,
        match=r"acme/bert: http://127.0.0.1:9 does not answer or broke off \(ConnectError: "
        r".*refused\)",
    ):
        repository.definition(repo())


def test_a_hub_that_never_answers_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a commit, of which the client would ask without a limit."""
    monkeypatch.setattr(repository, "PATIENCE", 0.2)
    hub.faults = [Fault("GET /api/models", delay=20)]
    for revision in (None, "e2da8e2f811d1448a5b465c236feacd80ffbac7b"):
        start = time.perf_counter()
        with pytest.raises(
            SourceError, match=r"does not answer or broke off \(ReadTimeout: .*\); when"
        ):
            repository.definition(repo("FacebookAI/roberta-base", revision))
        assert time.perf_counter() - start < 10


def test_a_busy_hub_is_asked_again(hub: Hub) -> None:
    hub.faults = [
        Fault("GET /api/models", status=503, times=1),
        Fault("GET /api/models", status=429, times=1),
    ]
    assert repository.checkpoint(repo(), pickle=False).is_dir()


def test_a_slow_hub_is_waited_for(hub: Hub) -> None:
    hub.faults = [Fault("GET /api/models/acme/bert/revision", delay=4, times=1)]
    assert repository.checkpoint(repo(), pickle=False).is_dir()
    assert hub.count("GET /api/models/acme/bert/revision") == 1


@pytest.mark.parametrize("kind", ["reset_after", "truncate_after"])
def test_a_download_that_breaks_off_goes_on(kind: str, hub: Hub) -> None:
    hub.faults = [Fault("GET /store/.*safetensors", **{kind: 3000})]
    with pytest.raises(
        SourceError,
        match=r"acme/bert: .* does not answer or broke off \(\w+: .+\); when .*, the same "
        r"command goes on",
    ) as caught:
        repository.checkpoint(repo(), pickle=False)
    assert "\n" not in str(caught.value)
    hub.clear()
    folder = repository.checkpoint(repo(), pickle=False)
    # the files that were complete are not fetched again
    assert set(hub.transfers) == {"model.safetensors"}
    files = hub.repositories["models", BERT].commits[folder.name]
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    hub.clear()
    hub.faults = [Fault("GET /store/.*safetensors", **{kind: 3000}, times=1)]
    hub.repository("acme/once").add(model_files("bert", seed=2))
    # one break is mended on the way
    assert repository.checkpoint(repo("acme/once"), pickle=False).is_dir()


# ---- what is shown


def test_a_download_shows_how_much_of_how_much(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    bars: list[dict[str, Any]] = []

    @contextmanager
    def bar(description: str, total: int, done: int = 0, *, spell: Any) -> Any:
        bars.append({"description": description, "total": spell(total), "done": [done]})
        yield bars[-1]["done"].append

    monkeypatch.setattr(progress, "bar", bar)
    monkeypatch.setattr(repository.Download, "every", 0.02)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    hub.faults = [Fault("GET /store/.*safetensors", stall=0.5)]
    folder = repository.checkpoint(repo(), pickle=False)
    size = (folder / "model.safetensors").stat().st_size
    (weights,) = [bar for bar in bars if bar["total"] == words.size(size)]
    assert weights["description"] == "download acme/bert"
    assert 0.4 * size < sum(weights["done"]) <= size  # it stood at half of it for half a second
    bars.clear()
    repository.checkpoint(repo(), pickle=False)
    assert not bars  # nothing is downloaded, nothing is shown


def test_sizes_as_one_says_them() -> None:
    assert [words.size(n) for n in (12, 2500, 8.1e6, 13.48e9)] == [
        "12 B",
        "2.5 kB",
        "8.1 MB",
        "13.5 GB",
    ]


def test_clients_print_nothing_of_their_own(hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    hub.faults = [
        Fault("GET /store/.*safetensors", reset_after=3000, times=1),
        Fault("GET /api/models", status=429, times=1),
    ]
    repository.checkpoint(repo(), pickle=False)
    assert capfd.readouterr() == ("", "")


# ---- two at once


def test_two_processes_on_one_cold_cache(hub: Hub, tmp_path: Path) -> None:
    """Both read the same commit and weights, also where the revision has to be asked for."""
    code = f"""
import hashlib
from pathlib import Path
from loraexp.machine import repository
with repository.pins(Path({str(tmp_path / "results")!r})):
    folder = repository.checkpoint(repository.Repository({BERT!r}, "model", None, repository.MODEL),
    pickle=False)
print(folder.name, hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())
"""
    two = [start(hub, tmp_path / "shared", code) for _ in range(2)]
    said = [process.communicate(timeout=60) for process in two]
    assert [process.returncode for process in two] == [0, 0], said
    assert said[0] == said[1] and said[0][1] == ""
    assert hub.count("GET /api/models/acme/bert/revision/main") == 1
