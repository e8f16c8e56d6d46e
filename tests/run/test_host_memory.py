"""What a checkpoint of `init=full` holds in the host's memory: one tensor at a time, never the
model, its best state or its moments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing.reductions import StorageWeakRef

from loraexp.machine.files import DiskFull
from loraexp.machine.tensors import entry, read_tensors, write_tensors
from loraexp.run import experiment, model_files, train
from loraexp.run.checkpoint import Checkpoint
from loraexp.tasks.classification import Classification
from tests.support import pretend
from tests.support.pretend import DEVICE, Pretend, pretend_device
from tests.support.runs import folder_of, metric_lines, run

FULL = ("init=full", "train.max_steps=6", "train.eval_every=2", "train.log_every=2", "lr=1e-3")


class Copies:
    """Bytes that were copied from the device to the host, as long as anybody holds them."""

    def __init__(self) -> None:
        self.held: list[tuple[StorageWeakRef, int]] = []
        self.peak = self.total = self.largest = 0

    def note(self, tensor: torch.Tensor) -> None:
        size = tensor.untyped_storage().nbytes()
        self.held = [(seen, n) for seen, n in self.held if not seen.expired()]
        self.held.append((StorageWeakRef(tensor.untyped_storage()), size))
        self.total += size
        self.largest = max(self.largest, size)
        self.peak = max(self.peak, sum(n for _, n in self.held))


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[Copies]:
    found, computed = Copies(), pretend.computed

    def watched(function: Any, arguments: Any, keywords: Any, *mode: Any) -> Any:
        result = computed(function, arguments, keywords, *mode)
        moved = function.overloadpacket.__name__ == "_to_copy"
        if moved and isinstance(arguments[0], Pretend) and not isinstance(result, Pretend):
            found.note(result)
        return result

    monkeypatch.setattr(pretend, "computed", watched)
    with pretend_device():
        yield found


def test_a_checkpoint_holds_one_tensor_at_a_time(
    copies: Copies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    at_end: list[int] = []
    save = Checkpoint.save

    def seen(self: Checkpoint, state: Any) -> None:
        save(self, state)
        sizes.append(sum(path.stat().st_size for path in self.folder.glob("*.safetensors")))
        at_end.append(copies.peak)

    monkeypatch.setattr(Checkpoint, "save", seen)
    # transformers looks where tensors lie in memory, which these do not say
    monkeypatch.setattr(experiment.Experiment, "save", lambda *_, **__: None)
    outcome = run(*FULL, f"device={DEVICE.type}", "train.select=best", out=tmp_path)
    weights = 4 * outcome.record["parameters"]["trainable"]
    assert len(sizes) == 3 and sizes[0] > 3 * weights  # weights and both moments are written
    assert copies.total > 9 * weights
    # what is alive at once is one tensor and small change; here the embeddings are most of a model
    assert at_end[-1] <= copies.largest + 8192 < 0.4 * sizes[0]


def test_a_saved_model_holds_one_tensor_at_a_time(
    copies: Copies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the start and of the result, on one device."""
    peaks: list[tuple[int, int]] = []
    write = model_files.write_model

    def seen(*arguments: Any, **options: Any) -> None:
        copies.held, copies.peak, copies.total = [], 0, 0
        write(*arguments, **options)
        peaks.append((copies.peak, copies.total))

    monkeypatch.setattr(experiment, "write_model", seen)
    outcome = run(*FULL, f"device={DEVICE.type}", out=tmp_path)
    saved = load_file(outcome.folder / "adapter" / "model.safetensors")
    largest = max(x.nbytes for x in saved.values())
    assert peaks == [(largest, 4 * outcome.record["parameters"]["total"])] * 2


def test_the_best_weights_come_back_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metric falls after step 2: its weights are the result, bit for bit."""
    values = iter([0.9, 0.5, 0.4, 0.3, 0.2])
    at: dict[int, dict[str, torch.Tensor]] = {}
    judge = train.judge

    def noted(loop: Any, state: Any, batches: Any) -> None:
        at[state.step] = loop.adapters.state()
        judge(loop, state, batches)

    monkeypatch.setattr(
        Classification, "compute_metrics", lambda *_, **__: {"accuracy": next(values)}
    )
    monkeypatch.setattr(train, "judge", noted)
    outcome = run(*FULL, "train.select=best", "train.keep_checkpoint=true", out=tmp_path)
    assert outcome.record["best"]["step"] == 2
    names = {path.name for path in (outcome.folder / "checkpoint").iterdir()}
    assert names == {
        "state.pt",
        "weights-0000002.safetensors",
        "weights-0000006.safetensors",
        "moments-0000006.safetensors",
    }
    saved = load_file(outcome.folder / "adapter" / "model.safetensors")
    for name, value in at[2].items():
        assert torch.equal(saved[name], value), name
    assert any(not torch.equal(saved[name], value) for name, value in at[6].items())


def interrupted(out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose second evaluation failed: it has a best step, and a later checkpoint."""
    compute, calls = Classification.compute_metrics, iter(range(9))

    def failing(self: Classification, *arguments: Any) -> dict[str, float]:
        if next(calls) == 1:
            raise RuntimeError("the scorer broke")
        return compute(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the scorer broke"):
        patch.setattr(Classification, "compute_metrics", failing)
        run(*FULL, "train.select=best", out=out)
    return folder_of(*FULL, "train.select=best", out=out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(*FULL, "train.select=best", out=tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("damage", [None, "best", "weights", "moments", "missing"])
def test_a_run_that_goes_on_ends_bit_for_bit_as_one_that_never_stopped(
    damage: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Any
) -> None:
    folder = interrupted(tmp_path, monkeypatch)
    checkpoint = Checkpoint(folder / "checkpoint", folder.name)
    broken = checkpoint.weights_at(2 if damage == "best" else 4)
    broken = checkpoint.moments_at(4) if damage in ("moments", "missing") else broken
    if damage == "missing":
        broken.unlink()
    elif damage is not None:
        content = bytearray(broken.read_bytes())
        content[len(content) // 2] ^= 1
        broken.write_bytes(content)
    notes: list[str] = []
    again = run(*FULL, "train.select=best", out=tmp_path, notes=notes)
    assert again.record["resumed"][0]["step"] == (0 if damage else 4)
    if damage:
        assert notes[0].startswith(f"{broken} is ") and "from the first step" in notes[0]
    model = "adapter/model.safetensors"
    assert (again.folder / model).read_bytes() == (whole.folder / model).read_bytes()
    assert metric_lines(again.folder) == metric_lines(whole.folder)


# --------------------------------------------------------------------------------------------------
# the files


def test_a_file_written_one_tensor_at_a_time_is_what_safetensors_reads(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    tensors = {
        "odd": torch.arange(3, dtype=torch.uint8),
        "narrow": torch.randn(5, 3).bfloat16(),
        "turned": torch.randn(4, 6).T,
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "whole numbers": torch.arange(7),
        "flags": torch.tensor([True, False]),
    }
    write_tensors(path, {name: entry(value) for name, value in tensors.items()})
    for back in (load_file(path), read_tensors(path)):
        assert back.keys() == tensors.keys()
        for name, value in tensors.items():
            assert back[name].dtype == value.dtype and torch.equal(back[name], value), name
    header = json.loads(path.read_bytes()[8:].split(b"}}")[0] + b"}}")
    assert all(one["data_offsets"][0] % tensors[k].itemsize == 0 for k, one in header.items())


def test_numbers_that_are_read_from_a_file_are_not_in_the_memory_of_the_process(
    tmp_path: Path,
) -> None:
    path, size = tmp_path / "large.safetensors", 2**24
    write_tensors(path, {"x": entry(torch.ones(size))})
    before = own_kilobytes()
    tensors = read_tensors(path)
    into = torch.zeros(1)
    into.copy_(tensors["x"].sum())
    assert into.item() == size
    assert own_kilobytes() - before < 4 * size / 1024 / 4


def own_kilobytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def test_a_tensor_that_has_no_place_in_the_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="z: torch.complex64"):
        write_tensors(tmp_path / "x", {"z": entry(torch.zeros(1, dtype=torch.complex64))})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    write_tensors(path, {"x": entry(torch.ones(3))})

    def full() -> torch.Tensor:
        raise OSError(28, "No space left on device")

    late = entry(torch.ones(3))
    with pytest.raises(DiskFull, match="some.safetensors: no space left"):
        write_tensors(path, {"x": late, "y": type(late)((3,), torch.float32, full)})
    assert torch.equal(load_file(path)["x"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
