"""The stand-in hub as fixtures: one server a session, and for each test caches of its own and no
fault.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub_repositories import fill
from tests.support.hub_server import Hub

TOKEN_NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN")


@pytest.fixture(scope="session")
def server() -> Iterator[Hub]:
    import datasets

    datasets.disable_progress_bars()
    with Hub() as hub:
        yield fill(hub)


@pytest.fixture
def hub(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """The clients of this process ask the server, with a cache that is empty and without waiting
    between attempts.
    """
    import datasets
    from huggingface_hub import HfFileSystem, constants

    from loraexp.machine import repository
    from loraexp.run import kept

    home = tmp_path / "home"
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "AGENT_HARNESSES_PATH": str(home / "harnesses.json"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    for name, place in {
        "HF_DATASETS_CACHE": "datasets",
        "DOWNLOADED_DATASETS_PATH": "datasets/downloads",
    }.items():
        monkeypatch.setattr(datasets.config, name, home / place)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
    monkeypatch.setattr(
        datasets.config,
        "HUB_DATASETS_URL",
        server.url + "/datasets/{repo_id}/resolve/{revision}/{path}",
    )
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for name in TOKEN_NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(repository, "commits_known", {})
    monkeypatch.setattr(repository, "files_there", set())
    HfFileSystem.clear_instance_cache()
    kept.clear()
    server.clear()
    server.members, server.tokens = set(), set()
    return server


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the clients are told not to use the network."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def start(hub: Hub, home: Path, code: str) -> subprocess.Popen[str]:
    """Python in a process of its own, which reads from the hub into `home`."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HF_HUB_OFFLINE", *TOKEN_NAMES)
    }
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home)}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
