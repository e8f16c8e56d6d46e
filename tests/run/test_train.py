"""The loop where it is exact: gradients do not depend on how a step is cut, padded or shared
between processes."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from loraexp import config
from loraexp.machine.device import Runtime
from loraexp.machine.measure import Stopwatch
from loraexp.machine.processes import Processes
from loraexp.models.unpadded import Unpadded
from loraexp.run.batches import PASS, count_labels, epoch_batches, micro_batches, schedule
from loraexp.run.train import accumulate_gradient
from tests.support import two_processes
from tests.support.adapters import adapted
from tests.support.forks import torchrun
from tests.support.runs import metric_lines, run


def gradient(model, task, adapters, parts, pad_to=None, unpadded=None) -> dict[str, torch.Tensor]:
    for p in adapters.trainable():
        p.grad = None
    batches = [task.collate(task.splits["train"], rows, pad_to=pad_to) for rows in parts]
    accumulate_gradient(
        model,
        task,
        batches,
        labels=sum(map(count_labels, batches)),
        runtime=Runtime(device=torch.device("cpu"), precision="fp32", processes=Processes("cpu")),
        clock=Stopwatch(),
        unpadded=unpadded,
    )
    return {name: p.grad.clone() for name, p in adapters.named_trainable().items()}


@pytest.mark.parametrize("task", ["task=tweets", "task=stsb"])
def test_the_gradient_does_not_depend_on_how_a_batch_is_cut(task: str, tmp_path: Path) -> None:
    if task == "task=stsb":
        folder = tmp_path / "STS-B"
        folder.mkdir()
        header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\t"
        header += "sentence1\tsentence2\tscore\n"
        lines = [
            f"{i}\tg\tf\ty\t{i}\ts\ts\t{'a man ' * (i % 5 + 1)}\ta dog runs {i}\t{i % 5}.0\n"
            for i in range(64)
        ]
        for name in ("train", "dev"):
            (folder / f"{name}.tsv").write_text(header + "".join(lines))
        model, made, adapters = adapted(task, f"task.data_dir={tmp_path}")
    else:
        model, made, adapters = adapted(task)
    rows = np.arange(21)
    lengths = made.splits["train"].lengths
    whole = gradient(model, made, adapters, [rows])
    auto = micro_batches(rows, lengths, "auto", price=5)
    assert len(auto) > 1
    for parts in (auto, micro_batches(rows, lengths, 4), [rows[:1], rows[1:3], rows[3:]]):
        for name, g in gradient(model, made, adapters, parts).items():
            torch.testing.assert_close(g, whole[name], rtol=1e-9, atol=1e-12)
    assert max(float(g.abs().max()) for g in whole.values()) > 1e-4


def test_padding_contributes_nothing() -> None:
    model, task, adapters = adapted()
    rows = np.arange(8)
    tight, loose = (gradient(model, task, adapters, [rows], pad_to) for pad_to in (None, 64))
    for name in tight:
        torch.testing.assert_close(loose[name], tight[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("length_buckets", [False, True])
def test_an_epoch_has_every_row_once_and_depends_on_seed_and_epoch_alone(
    length_buckets: bool,
) -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 1003)

    def rows(seed: int, epoch: int) -> list[np.ndarray]:
        return epoch_batches(lengths, 16, seed=seed, epoch=epoch, length_buckets=length_buckets)

    assert sorted(np.concatenate(rows(0, 0))) == list(range(1003))
    assert all(np.array_equal(a, b) for a, b in zip(rows(3, 1), rows(3, 1), strict=True))
    assert not np.array_equal(np.concatenate(rows(0, 0)), np.concatenate(rows(0, 1)))
    assert not np.array_equal(np.concatenate(rows(0, 0)), np.concatenate(rows(1, 0)))
    padded = sum(len(r) * lengths[r].max() for r in rows(0, 0))
    assert (padded < 1.05 * lengths.sum()) == length_buckets


def test_micro_batches_are_the_batch_sorted_by_length() -> None:
    lengths = np.array([5, 1, 9, 3, 7, 2])
    parts = micro_batches(np.array([0, 2, 3, 5]), lengths, 2)
    assert [p.tolist() for p in parts] == [[5, 3], [0, 2]]


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_is_cut_where_padding_and_passes_cost_least(seed: int) -> None:
    """By trying every cut into at most three pieces that equal pieces' memory holds."""
    lengths = np.random.default_rng(seed).integers(3, 60, 9)
    ordered = np.sort(lengths)
    most = 3 * ordered[-1]

    def price(places: tuple[int, ...]) -> float:
        sizes = [(j - i) * ordered[j - 1] for i, j in pairwise(places)]
        return sum(sizes) + PASS * len(sizes) if max(sizes) <= most else np.inf

    least = min(price((0, *inner, 9)) for k in range(3) for inner in combinations(range(1, 9), k))
    parts = micro_batches(np.arange(9), lengths, 3)
    assert sorted(np.concatenate(parts)) == list(range(9))
    assert price((0, *np.cumsum([len(part) for part in parts]).tolist())) == least


def test_plain_shuffling_in_pieces_computes_little_more_than_buckets() -> None:
    """Lengths as CoLA's: in a quarter of the memory a fifth more tokens than buckets at most, and
    cheaper than uncut or in equal pieces, passes counted."""
    lengths = 4 + np.random.default_rng(0).gamma(3.0, 2.5, 6400).astype(int)

    def tokens(length_buckets: bool, parts: int, world: int = 1) -> tuple[int, int]:
        rows = epoch_batches(lengths, 32, seed=0, epoch=0, length_buckets=length_buckets)
        pieces = [part for batch in rows for part in micro_batches(batch, lengths, parts, world)]
        return sum(len(part) * lengths[part].max() for part in pieces), len(pieces)

    buckets, plain, cut = tokens(True, 1), tokens(False, 1), tokens(False, 4)
    equal = tokens(False, 4, world=2)
    assert cut[0] <= 1.2 * buckets[0]
    costs = [count + PASS * passes for count, passes in (cut, equal, plain)]
    assert costs[0] < 0.95 * costs[1] and costs[0] < 0.85 * costs[2]


def test_auto_cuts_where_it_saves_time_and_never_to_save_memory() -> None:
    """Of every batch the cheapest of all cuts into at most eight, the batch whole among them: rows
    of equal length stay together, which a bound on memory would part."""
    equal = np.full(32, 20)
    assert [len(part) for part in micro_batches(np.arange(32), equal, "auto")] == [32]
    assert len(micro_batches(np.arange(32), equal, 4)) == 4
    far = np.array([4] * 24 + [60] * 8)
    assert [len(part) for part in micro_batches(np.arange(32), far, "auto")] == [24, 8]
    assert [part.tolist() for part in micro_batches(np.arange(32), far, "auto", world=2)] == [
        list(range(32))
    ]
    drawn = np.random.default_rng(0)
    for _ in range(50):
        lengths = 4 + drawn.gamma(3.0, 2.5, 32).astype(int)
        parts = micro_batches(np.arange(32), lengths, "auto")
        assert sorted(np.concatenate(parts)) == list(range(32))
        price = sum(len(part) * lengths[part].max() + PASS for part in parts)
        assert price <= 32 * lengths.max() + PASS
        assert len(parts) <= 8


def test_a_packed_step_has_the_gradient_of_the_padded_one() -> None:
    """Through the loop's own accumulation, adapters and new head, at once and in pieces."""
    model, made, adapters = adapted()
    rows = np.arange(21)
    whole = gradient(model, made, adapters, [rows])
    for parts in ([rows], [rows[:4], rows[4:]]):
        found = gradient(model, made, adapters, parts, unpadded=Unpadded(model))
        for name, g in found.items():
            torch.testing.assert_close(g, whole[name], rtol=1e-9, atol=1e-12)
    assert max(float(g.abs().max()) for g in whole.values()) > 1e-4


STILL = ("+model.config.hidden_dropout_prob=0", "+model.config.attention_probs_dropout_prob=0")


def losses(*overrides: str, out: Path) -> list[float]:
    outcome = run("train.log_every=1", *overrides, out=out)
    return [line["loss"] for line in metric_lines(outcome.folder) if "loss" in line]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_packed_run_learns_what_a_padded_one_does(precision: str, tmp_path: Path) -> None:
    """Without dropout the same losses up to rounding; with it the same run twice is the same."""
    tolerance = {"fp32": 1e-5, "bf16": 3e-2}[precision]
    chosen = (*STILL, f"precision={precision}")
    expected = losses(*chosen, out=tmp_path / "padded")
    found = losses(*chosen, "train.unpadded=true", out=tmp_path / "unpadded")
    assert len(found) == len(expected) > 1
    np.testing.assert_allclose(found, expected, rtol=tolerance)
    first, second = (
        losses(f"precision={precision}", "train.unpadded=true", out=tmp_path / which)
        for which in ("first", "second")
    )
    assert first == second != expected


def test_a_model_whose_rows_cannot_be_packed_is_refused_before_a_folder_is_made(
    tmp_path: Path,
) -> None:
    with pytest.raises(config.ConfigError, match=r"train\.unpadded=true: .*layers of distilbert"):
        run(
            "train.unpadded=true",
            "model.config.model_type=distilbert",
            "model.targets=[q_lin,v_lin]",
            out=tmp_path,
        )
    assert not list(tmp_path.iterdir())


def test_processes_share_equal_pieces() -> None:
    lengths = np.arange(1, 33)
    parts = micro_batches(np.arange(32), lengths, 4, world=2)
    assert [len(part) for part in parts] == [8, 8, 8, 8]


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_schedules_against_transformers(kind: str) -> None:
    """The same factors as the schedules that the papers' scripts take from transformers, one step
    later in the warm-up (theirs begins with a step at learning rate 0)."""
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    name = "constant_with_warmup" if kind == "constant" else kind
    theirs = get_scheduler(name, optimizer, num_warmup_steps=10, num_training_steps=100)
    for step in range(100):
        expected = theirs.get_last_lr()[0]
        ours = schedule(kind, step, 100, 0.1)
        assert ours == pytest.approx(expected + 0.1 if step < 10 else expected)
        optimizer.step()
        theirs.step()


def test_two_processes_have_the_gradient_of_one_and_one_record(tmp_path: Path) -> None:
    """Under torchrun with gloo: gradients of the joined batch to 1e-6, one record, one W&B run."""
    log = tmp_path / "said.txt"
    status, said = torchrun(two_processes.main, str(tmp_path), world=2, log=log)
    assert status == 0, said[-3000:]
    assert said.count("gradients agree") == 2 and said.count("sharded base agrees") == 2
    assert len(list(tmp_path.rglob("record.json"))) == 1
    assert len(list(tmp_path.rglob("run-*.wandb"))) == 1
    assert said.count("record: ") == 1
