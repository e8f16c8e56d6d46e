"""bf16 as a card computes it, on one that pretends: CUDA's autocast lists, under every initializer
and every rule."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from loraexp import config
from loraexp.run import experiment
from tests.support import autocast
from tests.support.pretend import DEVICE, Mode, pretend_device

SHORT = (
    "experiment=smoke",
    "wandb.mode=disabled",
    f"device={DEVICE.type}",
    "task.limit_train=32",
    "task.limit_eval=8",
    "task.max_length=16",
    "init.samples=16",
    "train.batch_size=8",
    "train.eval_every=0",
    "train.log_every=1",
)
BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture
def device() -> Iterator[Mode]:
    with pretend_device() as mode:
        yield mode


def started(*words: str, out: Path) -> Any:
    return experiment.run(*config.check(config.compose([*SHORT, f"output_root={out}", *words])))


def test_the_lists_are_those_of_torch() -> None:
    lists = {which: {name for name, _ in autocast.listed(which)} for which in autocast.LISTS}
    assert {"linear", "matmul", "scaled_dot_product_attention"} <= lists["LOWER_PRECISION_FP"]
    assert {"layer_norm", "exp", "nll_loss", "mse_loss"} <= lists["FP32"]
    assert {"softmax", "log_softmax", "sum"} <= lists["FP32_SET_OPT_DTYPE"]
    assert {"addcmul", "scatter_add"} <= lists["PROMOTE"]


def test_each_operation_has_the_type_that_it_has_on_a_card(device: Mode) -> None:
    wide, narrow = torch.ones(4, 4, device=DEVICE), torch.ones(4, 4, device=DEVICE).to(BF16)
    labels = torch.zeros(4, dtype=torch.long, device=DEVICE)
    double = wide.to(torch.float64)
    pairs = {
        "linear": lambda: functional.linear(wide, narrow),
        "matmul": lambda: wide @ narrow,
        "attention": lambda: functional.scaled_dot_product_attention(wide, wide, wide),
    }
    singles = {
        "layer_norm": lambda: functional.layer_norm(narrow, (4,)),
        "softmax": lambda: narrow.softmax(-1),
        "sum": lambda: narrow.sum(),
        "norm": lambda: torch.norm(narrow),
        "exp": lambda: narrow.exp(),
        "pow": lambda: narrow.pow(2),
        "cross entropy": lambda: functional.cross_entropy(narrow, labels),
        "the widest": lambda: torch.addcmul(narrow, wide, narrow),
    }
    as_given = {"add": lambda: narrow + narrow, "gelu": lambda: functional.gelu(narrow)}
    with torch.autocast(DEVICE.type, dtype=BF16):
        for name, of in {**pairs, **singles, **as_given}.items():
            assert of().dtype == (FP32 if name in singles else BF16), name
        assert (double @ double).dtype == torch.float64
        assert narrow.sum(dtype=BF16).dtype == BF16  # as it is told
        with torch.autocast(DEVICE.type, enabled=False):
            assert (wide @ wide).dtype == FP32 and narrow.exp().dtype == BF16
        with pytest.raises(RuntimeError, match="unsafe to autocast"):
            functional.binary_cross_entropy(wide, wide)
    assert (wide @ wide).dtype == FP32 and narrow.exp().dtype == BF16


def test_gradients_of_what_is_kept_in_float32_are_float32(device: Mode) -> None:
    weight = torch.full((3, 4), 0.1, device=DEVICE).requires_grad_()
    x = torch.ones(2, 4, device=DEVICE)
    with torch.autocast(DEVICE.type, dtype=BF16):
        y = functional.linear(x, weight)
        loss = functional.cross_entropy(y, torch.zeros(2, dtype=torch.long, device=DEVICE))
    loss.backward()
    assert (y.dtype, loss.dtype) == (BF16, FP32)
    assert weight.grad is not None and weight.grad.dtype == FP32
    assert weight.grad.cpu()[0].tolist() == pytest.approx([-2 / 3] * 4, rel=1e-2)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The loss of the base on the calibration rows in float32."""
    with pretend_device():
        place = tmp_path_factory.mktemp("exact")
        return ledger_of(started("init=lora", "train.max_steps=0", out=place))["loss"]["before"]


def ledger_of(outcome: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((outcome.folder / "init" / "ledger.json").read_text())
    return found


@pytest.mark.parametrize("init", config.names("init"))
def test_every_initializer_works_in_bf16(
    init: str, exact: float, device: Mode, tmp_path: Path
) -> None:
    """Nothing is mixed, the products of the model are in bf16, and what is made is in float32."""
    words = [f"init={init}", "init.cache=false", "precision=bf16", "train.max_steps=1"]
    outcome = started(*words, out=tmp_path)
    assert outcome.record["status"] == "finished"
    assert device.products[BF16] > 0
    if init == "full":
        return
    ledger = ledger_of(outcome)
    assert ledger["loss"]["before"] == pytest.approx(exact, rel=0.02)
    assert math.isfinite(ledger["loss"]["after"])
    made = load_file(outcome.folder / "init" / "factors.safetensors")
    assert {x.dtype for x in made.values()} == {FP32}
    assert all(bool(x.isfinite().all()) for x in made.values())


@pytest.mark.parametrize("rule", config.names("optimizer"))
def test_every_rule_works_in_bf16(rule: str, device: Mode, tmp_path: Path) -> None:
    """Two steps on weights in float32, whose losses are those of a run in float32."""
    losses = []
    for precision in ("bf16", "fp32"):
        init = f"init={'lora_fa' if rule == 'lora_fa' else 'lora'}"  # which has A frozen
        words = [f"optimizer={rule}", init, f"precision={precision}", "train.max_steps=2"]
        outcome = started(*words, "lr=1e-3", out=tmp_path)
        lines = (outcome.folder / "metrics.jsonl").read_text().splitlines()
        losses.append([line["loss"] for line in map(json.loads, lines) if "loss" in line])
        kept = load_file(outcome.folder / "adapter" / "factors.safetensors")
        assert {x.dtype for x in kept.values()} == {FP32}
    assert len(losses[0]) == 2 and losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("precision=fp16", "precision=fp16: expected fp32 or bf16"),
        ("model.dtype=float16", "model.dtype=float16: gradients underflow in it"),
    ],
)
def test_fp16_is_refused(word: str, said: str, device: Mode, tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match=said):
        started(word, out=tmp_path)
    assert not list(tmp_path.rglob("record.json"))
