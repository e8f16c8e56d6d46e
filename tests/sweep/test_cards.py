"""Which cards of a node the workers of a sweep use, with four faked ones."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest

from loraexp import config
from loraexp.config import ConfigError
from loraexp.machine import locks
from loraexp.sweep import cards, worker
from tests.support.small_sweep import go, written

FOUR = ["0", "1", "2", "3"]


def hold(place: Path, each: int, mine: Any) -> None:
    cards.Held.locks = []
    mine.put(cards.take(dict(zip(FOUR, FOUR, strict=True)), each, place))
    time.sleep(120)


@pytest.mark.parametrize(("workers", "each"), [(4, 1), (2, 2)])
def test_workers_share_the_cards_and_nobody_another_ones(
    workers: int, each: int, tmp_path: Path
) -> None:
    fork = multiprocessing.get_context("fork")
    mine = fork.SimpleQueue()
    processes = [fork.Process(target=hold, args=(tmp_path, each, mine)) for _ in range(workers)]
    for process in processes:
        process.start()
    held = [mine.get() for _ in processes]
    assert all(len(own) == each for own in held)
    assert sorted(card for own in held for card in own) == FOUR
    late = fork.Process(target=hold, args=(tmp_path, each, mine))
    late.start()
    time.sleep(1.5)
    assert mine.empty()  # all are taken
    processes[0].kill()
    freed = mine.get()  # a dead worker holds none
    assert len(freed) == each and set(freed) <= set(FOUR)
    for process in (*processes, late):
        process.kill()
        process.join()


def test_a_sweep_gives_each_run_its_cards(tmp_path: Path, monkeypatch: Any) -> None:
    """Two workers on four cards, two cards a run: torchrun with two processes in each."""
    monkeypatch.setattr(cards, "of_node", lambda: FOUR)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    path, out = written(tmp_path, rows={"lora": {"label": "LoRA"}}), tmp_path / "out"
    assert go(path, out, "hydra/launcher=joblib", "train.gpus_per_run=2") == 0
    found = [json.loads(path.read_text()) for path in out.rglob("record.json")]
    assert [record["status"] for record in found] == ["finished"] * 2
    used = [record["environment"] for record in found]
    assert [one["processes"] for one in used] == [2, 2]
    assert all(one["devices"] == ["cpu", "cpu"] for one in used)
    assert {one["visible"] for one in used} <= {"0,1", "2,3", "0,2", "0,3", "1,2", "1,3"}


@pytest.mark.parametrize(
    ("hydra", "each", "more"),
    [
        (["hydra/launcher=joblib"], 1, ["hydra.launcher.n_jobs=4"]),
        (["hydra/launcher=joblib"], 2, ["hydra.launcher.n_jobs=2"]),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"], 1, []),
        (["hydra/launcher=ray"], 2, []),  # its actors are: see test_ray.py
        (["hydra/launcher=submitit_slurm"], 4, ["hydra.launcher.gpus_per_node=4"]),
        (["hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=8"], 4, []),
        ([], 1, []),
    ],
)
def test_launchers_are_asked_for_cards(hydra: list[str], each: int, more: list[str]) -> None:
    assert cards.asked(hydra, FOUR, each) == [*hydra, *more]
    if "slurm" not in "".join(hydra):
        assert cards.asked(hydra, [], each) == hydra  # a node without cards


@pytest.mark.parametrize(
    ("hydra", "each", "said"),
    [
        ([], 8, "train.gpus_per_run=8: this node has 4; expected at most that"),
        (
            ["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"],
            2,
            "hydra.launcher.n_jobs=3: this node has 4 devices, 2 a run; expected at most 2",
        ),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=-1"], 1, "expected at most 4 workers"),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=all"], 1, "expected a number of workers"),
    ],
)
def test_more_than_there_are_is_refused(hydra: list[str], each: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cards.asked(hydra, FOUR, each)


@pytest.mark.parametrize(
    ("visible", "there", "names"),
    [
        (None, 2, ["0", "1"]),
        ("2,3", 2, ["2", "3"]),
        ("GPU-1a, GPU-2b", 2, ["GPU-1a", "GPU-2b"]),
        (" 1 , 0 ", 2, ["1", "0"]),
        ("0,-1,1", 1, ["0"]),  # CUDA reads no further than to what is no card
        ("-1", 0, []),
        ("NoDevFiles", 0, []),
        (
            "MIG-1a,MIG-2b, MIG-1a",
            1,
            ["MIG-1a", "MIG-2b"],
        ),  # a process sees one slice, the next one another
        ("MIG-1a", 0, []),
        ("", 0, []),
    ],
)
def test_cards_have_the_names_that_the_scheduler_gave(
    visible: str | None, there: int, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: there > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    monkeypatch.delenv(cards.VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(cards.VISIBLE, visible)
    assert cards.of_node() == names


# As cuda.h declares them: CUdevice is an int, CUuuid a struct of 16 chars, CUresult an enumeration.
BYTES = ctypes.c_ubyte * 16
INIT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint)
GET = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.c_int)
UUID = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(BYTES), ctypes.c_int)


class Driver:
    """Two cards, of which the system's order is not CUDA's, behind functions of C with the types of
    the driver's own."""

    def __init__(self, first: int = 0, broken: str = "", old: bool = False) -> None:
        order = [7, 9] if first == 0 else [9, 7]

        def get(device: Any, ordinal: int) -> int:
            if not 0 <= ordinal < 2:
                return 101  # CUDA_ERROR_INVALID_DEVICE
            device[0] = order[ordinal]
            return 0

        def uuid(own: Any, device: int) -> int:
            own[0][:] = bytes([device]) * 16
            return int(broken == "uuid" and device == 9)

        self.cuInit = INIT(lambda flags: int(broken == "cuInit" or flags != 0))
        self.cuDeviceGet = GET(get)
        self.cuDeviceGetUuid = UUID(uuid)
        if not old:
            self.cuDeviceGetUuid_v2 = UUID(uuid)


NINE = "GPU-09090909-0909-0909-0909-090909090909"


def test_a_card_is_the_same_by_its_number_and_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sweeps on one node: whoever names it first has it, whatever the other calls it."""
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver())
    by_number = cards.identities(["0", "1"])
    assert by_number["1"] == NINE and len(set(by_number.values())) == 2
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver(old=True))  # of before CUDA 11.4
    assert cards.identities(["0", "1"]) == by_number
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver(first=1))  # CUDA_VISIBLE_DEVICES=GPU-09,…
    assert cards.identities(["GPU-09", "GPU-07"])["GPU-09"] == NINE
    assert cards.identities(["1"]) == {"1": NINE}  # CUDA_VISIBLE_DEVICES=1: its number there is 0
    monkeypatch.setattr(cards.Held, "locks", [])
    monkeypatch.setenv(cards.VISIBLE, "0,1")
    assert cards.take(by_number, 2, tmp_path) == ["0", "1"]
    first, cards.Held.locks = cards.Held.locks, []
    assert all(locks.held(tmp_path / name) for name in by_number.values())
    first[0].close()  # of card 0, which is GPU-07 to the other sweep
    other = {"GPU-09": NINE, "GPU-07": by_number["0"]}
    assert cards.take(other, 1, tmp_path) == ["GPU-07"]
    for lock in [*first, *cards.Held.locks]:
        lock.close()


@pytest.mark.parametrize("broken", ["cuInit", "uuid"])
def test_cards_that_the_driver_does_not_name_keep_the_names_that_they_have(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver(broken=broken))
    assert cards.identities(["0", "1"]) == {"0": "0", "1": "1"}
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver())
    assert cards.identities(["0", "1", "2"]) == {"0": "0", "1": "1", "2": "2"}  # two are there
    assert cards.identities(["MIG-1a"]) == {"MIG-1a": "MIG-1a"}

    def absent(_: str) -> Any:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert cards.identities(["0"]) == {"0": "0"} and cards.identities([]) == {}


def test_slices_of_a_card_are_not_put_together() -> None:
    with pytest.raises(ConfigError, match="train.gpus_per_run=2: CUDA_VISIBLE_DEVICES names sl"):
        cards.asked(["hydra/launcher=joblib"], ["MIG-1a", "MIG-2b"], 2)
    assert cards.asked(["hydra/launcher=joblib"], ["MIG-1a", "MIG-2b"], 1)[1].endswith("n_jobs=2")


@pytest.mark.parametrize("launcher", ["joblib", "ray"])
def test_a_card_by_its_number_is_none_of_a_worker_that_has_its_own(launcher: str) -> None:
    words = [f"hydra/launcher={launcher}"]
    cards.check_named(words, ["cuda", "auto", "cpu", "cuda:0"])
    cards.check_named([], ["cuda:1"])
    with pytest.raises(ConfigError, match="device=cuda:1: a worker .* expected device=cuda, "):
        cards.check_named(words, ["auto", "cuda:1"])


@pytest.mark.parametrize(
    ("hydra", "there", "sharing"),
    [
        ([], [], 1),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"], [], 3),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=-2"], [], 7),
        (["hydra/launcher=joblib"], [], 8),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"], FOUR, 1),  # of its own card
        (["hydra/launcher=ray"], [], 0),
        (["hydra/launcher=submitit_slurm"], FOUR, 0),
    ],
)
def test_how_many_workers_share_the_memory_of_this_machine(
    hydra: list[str], there: list[str], sharing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards, "of_node", lambda: there)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert cards.sharing(hydra) == sharing


def test_a_worker_keeps_as_many_cards_as_its_largest_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that began with a run of one card would have none for the next, of two."""
    taken: list[int] = []
    monkeypatch.setattr(cards, "take", lambda _, each: taken.append(each))
    monkeypatch.setattr(worker, "attempt", lambda *_: [])
    cfg = config.compose([f"output_root={tmp_path}", "train.gpus_per_run=1"])
    worker.run_group(cfg, before={}, parent=-1, others={}, devices={"0": "0"}, each=2)
    assert taken == [2]
