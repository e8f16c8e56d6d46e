"""Initialising needs no more memory than training: LLaMA-2-7B's widths without numbers, on a card
that training just fits on."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from loraexp.adapter.layer import Factors, Layer
from loraexp.initializers import lora_da
from loraexp.machine import measure
from loraexp.run import workplace
from loraexp.run.ledger import bf16_loss
from loraexp.statistics import accumulators
from loraexp.statistics.probes import LOSS
from tests.support.skeletons import Subject

MODEL = ("model=llama-2-7b", "task=metamath", "train.batch_size=1", "init.samples=1")
LAYERS, TOKENS = 4, 4096  # as many activations as 16 layers have of 1,024 tokens


def subject(*words: str, **how: Any) -> Subject:
    return Subject(*MODEL, *words, layers=LAYERS, lengths=(TOKENS,), **how)


# With activations computed again there is least beside the weights: less than one input moment of
# 11008 numbers squared, and LoRA-SB trains next to nothing.
@pytest.mark.parametrize(
    ("init", "again"),
    [("lora_one", False), ("lora_ga", True), ("lora_da", True), ("corda", True), ("lora_sb", True)],
)
def test_a_card_that_training_fits_on_is_enough(init: str, again: bool) -> None:
    word = f"model.gradient_checkpointing={str(again).lower()}"
    training = subject(f"init={init}", word)
    training.initialised()
    needed = training.trained().peak
    tight = subject(f"init={init}", word, card=needed)
    assert tight.initialised().peak <= needed
    report = tight.made.ledger["statistics"]
    away = init in ("lora_da", "corda", "lora_sb")
    assert report["host"] == away and ("summed on the host" in report["way"]) == away


def test_with_more_room_there_are_fewer_sweeps() -> None:
    reports = []
    for size in (5, 80):
        one = subject("init=corda", card=size * 10**9)
        assert one.initialised().peak <= size * 10**9
        reports.append(one.made.ledger["statistics"])
    few, many = reports
    assert many["forward_sweeps"] < few["forward_sweeps"]
    assert few["state_bytes"] < many["state_bytes"]


def test_what_is_free_beside_work_is_what_its_peak_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    device, peak = torch.device("cpu"), [70]
    monkeypatch.setattr(measure, "reset_peak", lambda device: peak.__setitem__(0, 40))
    monkeypatch.setattr(measure, "peak_bytes", lambda device: peak[0])
    work: list[int] = []

    def needs(size: int) -> None:
        work.append(size)
        peak[0] += size

    assert measure.bytes_beside(device, lambda: needs(25)) is None and not work
    monkeypatch.setattr(measure, "free_bytes", lambda device: 100)
    assert measure.bytes_beside(device, lambda: needs(25)) == 75
    assert measure.bytes_beside(device, lambda: needs(130)) == -30


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("copied", [1, 64, 2**22])
def test_sums_of_narrow_activations_are_those_of_their_wide_copies(
    copied: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rows are copied at once."""
    generator = torch.Generator().manual_seed(0)
    h, mu = (torch.randn(3, 7, d, generator=generator).bfloat16() for d in (5, 6))
    flags = torch.rand(3, 7, generator=generator) > 0.3
    mask = accumulators.Mask(flags, flags.flatten().nonzero().squeeze(1)) if masked else None
    keep = flags.unsqueeze(-1) if masked else torch.ones(3, 7, 1)
    wide_h, wide_mu = (x.double() * keep for x in (h, mu))
    like = torch.zeros(6, 5)
    left, right = (torch.randn(d, 2, generator=generator) for d in (6, 5))
    monkeypatch.setattr(accumulators, "COPIED", copied)
    seen = accumulators.Seen(accumulators.Side(h, mask, 3), accumulators.Side(mu, mask, 3), 0, LOSS)
    gradient = wide_mu.flatten(0, 1).mT @ wide_h.flatten(0, 1)
    of_h = wide_h.flatten(0, 1).mT @ wide_h.flatten(0, 1)
    expected: list[tuple[Any, torch.Tensor]] = [
        (accumulators.Outer(LOSS, like), gradient),
        (accumulators.Outer(LOSS, like, left=left), left.double().mT @ gradient),
        (accumulators.Outer(LOSS, like, right=right), gradient @ right.double()),
        (accumulators.Diagonal(LOSS, like), wide_mu.square().sum((0, 1))),
        (accumulators.InputMoment(LOSS, like), of_h),
    ]
    for accumulator, value in expected:
        accumulator.add(seen)
        torch.testing.assert_close(accumulator.sums[0].double(), value, rtol=1e-5, atol=1e-5)
    count = int(flags.sum()) if masked else 21
    assert [int(accumulator.sums[1]) for accumulator, _ in expected[-2:]] == [count, count]


@pytest.mark.parametrize("rows", [3, 1024, 1030, 2500])
def test_what_bf16_loses_is_counted_some_rows_at_a_time(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    W, B, A = (torch.randn(n, m, generator=generator) for n, m in ((rows, 6), (rows, 2), (2, 6)))
    made = Factors(A=1e-2 * A, B=B, start="shifted")
    update = 3.0 * (B @ made.A)
    exact = W + update
    expected = (exact.bfloat16().float() - exact).square().sum() / update.square().sum()
    found = bf16_loss(Layer(name="it", W=W), made, 3.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("copied", [1, 13, 2**22])
def test_sums_on_the_host_are_those_of_the_device(
    copied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many columns come at once."""
    monkeypatch.setattr(accumulators, "COPIED", copied)
    generator = torch.Generator().manual_seed(0)
    h, mu = (torch.randn(3, 7, d, generator=generator).bfloat16() for d in (5, 6))
    flags = torch.rand(3, 7, generator=generator) > 0.3
    mask = accumulators.Mask(flags, flags.flatten().nonzero().squeeze(1))
    seen = accumulators.Seen(accumulators.Side(h, mask, 3), accumulators.Side(mu, mask, 3), 0, LOSS)
    like = torch.zeros(6, 5)
    for kind in (accumulators.Outer, accumulators.InputMoment):
        there, here = kind(LOSS, like, host=True), kind(LOSS, like)
        for accumulator in (there, here):
            accumulator.add(seen)
            accumulator.add(seen)
        torch.testing.assert_close(there.sums, here.sums, rtol=1e-6, atol=1e-6)


def test_a_layer_without_room_is_decomposed_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    W, G, h = (torch.randn(*size, generator=generator) for size in ((6, 5), (6, 5), (9, 5)))
    layer = Layer(
        name="it",
        W=W,
        gradient=G,
        input_moment=h.mT @ h,
        output_moment=G.square().sum(1),
        population=10,
    )
    initializer = partial(lora_da.lora_da)
    where: list[str] = []

    @contextlib.contextmanager
    def host() -> Iterator[torch.device]:
        where.append("host")
        yield torch.device("cpu")

    monkeypatch.setattr(workplace.devices, "on_host", host)
    found = []
    for free in (None, 2**30, 1):
        monkeypatch.setattr(measure, "free_bytes", lambda device, free=free: free)
        place = workplace.Workplace(initializer, 2, "bf16", host=False)
        before = len(where)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with place.of(layer) as (own, why):
                seed = torch.Generator().manual_seed(1)
                found.append(initializer(own, rank=2, scaling=1.0, generator=seed))
        away = [w for w in caught if "decomposed on the host" in str(w.message)]
        assert bool(why) == bool(away) == (free == 1)
        assert len(where) - before == {None: 0, 2**30: 1, 1: 2}[free]  # to count is not there
        assert why is None or "needs 0 MiB, and 0 MiB are free" in why
    for one in found[1:]:
        assert torch.equal(one.A, found[0].A) and torch.equal(one.B, found[0].B)
    moved = found[0].copied(torch.device("meta"))
    assert moved.A.device.type == moved.B.device.type == "meta" and moved.R is None
