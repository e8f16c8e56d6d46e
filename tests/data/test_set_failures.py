"""What is said when a data set of the hub cannot be read: the client's reason, and what to type."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from loraexp.data import benchmarks
from loraexp.machine.hub import SourceError
from tests.support.hub_rows import GLUE_COMMIT, cola, read_hub
from tests.support.hub_server import Fault, Hub
from tests.support.hub_sets import glue

AT, ON = r" \(cola, train\) at \w+: ", "; when it is reachable, the same command goes on"
BROKEN = r"http://127.0.0.1:\d+ does not answer or broke off"
FAILURES: dict[str, tuple[dict[str, Any], list[Fault], str]] = {
    "misspelt": (
        {"source": "nyu-mll/gleu"},
        [],
        rf"nyu-mll/gleu{AT}401 Repository not found; correct task.source, or, if it is private",
    ),
    "no such commit": (
        {"revision": "0" * 40},
        [],
        r"nyu-mll/glue \(cola, train\) at 0+: 404 Invalid rev id: 0+; set task.revision to one "
        r"that is there",
    ),
    "no such configuration": (
        {"config": "colaa"},
        [],
        r"nyu-mll/glue \(colaa, train\) at \w+: BuilderConfig 'colaa' not found. Available: "
        r"\['cola', .*\]; correct task.config",
    ),
    "no such split": (
        {"split": "dev"},
        [],
        r"nyu-mll/glue \(cola, dev\) at \w+: no split dev; there are train, validation: correct "
        r"task",
    ),
    "busy": (
        {},
        [Fault("datasets/nyu-mll", status=429)],
        rf"nyu-mll/glue{AT}429 Too Many Requests; wait, then the same command",
    ),
    "cut off": (
        {},
        [Fault("GET /store/.*parquet", reset_after=300)],
        rf"nyu-mll/glue{AT}{BROKEN} \(\w+: .*\){ON}",
    ),
    "cut short": (
        {},
        [Fault("GET /store/.*parquet", truncate_after=300)],
        rf"nyu-mll/glue{AT}{BROKEN} \(RemoteProtocolError: .*\){ON}",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_keeps_the_reason_and_names_the_remedy(case: str, hub: Hub) -> None:
    changed, faults, expected = FAILURES[case]
    hub.faults = faults
    with pytest.raises(SourceError) as caught:
        len(cola(**changed).table)
    assert re.match(expected, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    hub.faults = []
    assert len(cola().table) == 96


def test_nobody_there_is_one_line_within_seconds(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(SourceError) as caught:
        len(cola().table)
    assert re.fullmatch(
        rf"nyu-mll/glue \(cola, train\) at {GLUE_COMMIT}: {BROKEN} \(ConnectError: .*refused\){ON} "
        "with the files that are complete; or set task.data_dir=DIR",
        str(caught.value),
    )
    assert time.perf_counter() - start < 5


def test_a_gated_set_names_its_licence_page(hub: Hub) -> None:
    hub.repository("acme/gated", "datasets", gated=True).add(glue())
    with pytest.raises(
        SourceError,
        match=rf"acme/gated \(cola, train\): 401 Access to dataset .* accept its licence at "
        rf"{hub.url}/datasets/acme/gated, then `hf auth",
    ):
        len(cola(source="acme/gated", revision=None).table)


def test_a_column_that_is_not_there(hub: Hub) -> None:
    with pytest.raises(
        SourceError,
        match=(
            "no column premise; its columns are sentence, label, idx: correct task.text or"
            " task.source"
        ),
    ):
        read_hub(cola(), text=["premise"], label="label")


def test_a_damaged_file_is_one_line(hub: Hub) -> None:
    files = {**glue(), "cola/train-00000-of-00001.parquet": b"PAR1 no"}
    hub.repository("acme/damaged", "datasets").add(files)
    with pytest.raises(
        SourceError,
        match=r"acme/damaged \(cola, train\): .*(Parquet|parquet).*; correct task.source, or "
        r"set task.data_dir=DIR",
    ) as caught:
        len(cola(source="acme/damaged", revision=None).table)
    assert "\n" not in str(caught.value)


def test_a_benchmark_that_a_folder_lacks_names_the_key_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError,
        match=(
            "task.data_dir=.*: none of .*boolq/test.json.* is there; .*set task.eval_data_dir=DIR"
            " to the folder"
        ),
    ):
        benchmarks.read(
            ["boolq"], directory=str(tmp_path), key="task.data_dir", limit=None, skip_bad=False
        )


def test_a_benchmark_that_the_hub_lacks_names_the_key_of_its_own(hub: Hub) -> None:
    hub.faults = [Fault("datasets/google/boolq", status=503)]
    with pytest.raises(
        SourceError, match=r"google/boolq \(validation\): 503 .*or set task.eval_data_dir=DIR"
    ):
        benchmarks.read(["boolq"], directory=None, key="task.data_dir", limit=None, skip_bad=False)
