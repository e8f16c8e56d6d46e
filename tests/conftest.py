"""One thread, no network, outputs and caches of the tests apart from the user's."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("LORAEXP_CONFIG_DIR", None)  # the user's own things are none of a test's
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# A test run begun by nohup, or in the background of a script, ignores these, and so would the
# commands that the tests start.
if threading.current_thread() is threading.main_thread():
    for number, ignored in (
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, ignored)

import pytest
import torch

from tests.support import process
from tests.support.hub import hub, server  # noqa: F401 - fixtures


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tokens and statistics are cached for the session, in a folder of its own."""
    os.environ["LORAEXP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="module")
def process_of_a_file(
    caches: None, one_thread: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """What the fixtures of a file set ends with it."""
    with process.put_back(tmp_path_factory.getbasetemp()):
        yield


@pytest.fixture(autouse=True)
def process_of_a_test(
    process_of_a_file: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """What a test sets ends with it: the next one finds the process as this one did."""
    with process.put_back(tmp_path_factory.getbasetemp()):
        yield


# What holds a GPU without one, file by file: see tests/README.md.
ACCELERATOR = {
    "adapter/test_calls.py",
    "adapter/test_exact.py",
    "finished/test_on_a_device.py",
    "machine/test_claims.py",
    "machine/test_locks.py",
    "machine/test_placement.py",
    "optimizers/test_unread.py",
    "run/test_autocast.py",
    "run/test_host_memory.py",
    "run/test_initialising_memory.py",
    "run/test_lifetimes.py",
    "run/test_other_models_without_numbers.py",
    "run/test_packed_waits.py",
    "run/test_quantised.py",
    "run/test_seven_billion.py",
    "run/test_sharding.py",
    "run/test_signals.py",
    "run/test_waits.py",
    "scoring/test_waits.py",
    "statistics/test_checkpointing.py",
    "sweep/test_cards.py",
}


# Files of more than half a minute: begun last, one of them would leave the other worker without
# anything to do. Those that start processes take turns with those that do not.
LONG = (
    "run/test_sharding.py",
    "sweep/test_sweeps.py",
    "sweep/test_ray.py",
    "run/test_waits.py",
    "sweep/test_launch.py",
    "sweep/test_plan.py",
    "run/test_signals.py",
    "run/test_initialise.py",
    "run/test_run.py",
    "run/test_packed.py",
    "cli/test_own.py",
    "run/test_seven_billion.py",
    "scoring/test_text_processes.py",
    "theory/test_theory.py",
    "sweep/test_slurm.py",
    "scoring/test_waits.py",
    "run/test_resuming.py",
    "house/test_outputs.py",
    "run/test_campaign.py",
    "run/test_quantised.py",
    "sweep/test_cards.py",
    "sweep/test_packs.py",
)


def file_of(item: pytest.Item) -> str:
    """`package/test_file.py` of a test."""
    return "/".join(item.path.parts[-2:])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if file_of(item) in ACCELERATOR:
            item.add_marker(pytest.mark.accelerator)
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(file_of(item), len(LONG)))  # stable: files stay whole


@pytest.fixture(autouse=True)
def gpu_tests(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
