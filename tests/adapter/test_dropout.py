"""Adapter dropout: on what the low-rank branch reads, in training alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from loraexp import config
from loraexp.adapter.adapted import AdaptedLinear
from loraexp.adapter.layer import Factors, Start
from tests.support.runs import folder_of, metric_lines, run


def layer(dropout: float, start: Start = "shifted", base_weight: float = 1.0) -> AdaptedLinear:
    torch.manual_seed(0)
    base = nn.Linear(64, 32)
    with torch.no_grad():
        base.weight.mul_(base_weight)
    factors = Factors(A=torch.randn(4, 64), B=torch.randn(32, 4), start=start)
    return AdaptedLinear(base, factors, 0.5, "x", dropout)


def test_the_low_rank_branch_alone_reads_dropped_inputs() -> None:
    """`y = W0 x + b + η B A D x` with D of the drawn mask, its mean over masks the function without
    dropout."""
    adapted = layer(0.25)
    x = torch.randn(8, 64)
    torch.manual_seed(3)
    found = adapted(x)
    torch.manual_seed(3)
    dropped = nn.functional.dropout(x, 0.25)
    assert {round(ratio, 3) for ratio in (dropped / x).unique().tolist()} == {0.0, 1.333}
    expected = adapted.base(x) + 0.5 * dropped @ adapted.lora_A.mT @ adapted.lora_B.mT
    assert torch.allclose(found, expected, atol=1e-4)
    with torch.no_grad():
        mean = torch.stack([adapted(x) for _ in range(4000)]).mean(0)
    exact = adapted.eval()(x).detach()
    assert torch.allclose(exact, layer(0.0)(x), atol=1e-6)  # evaluation is without it
    assert float((mean - exact).abs().mean() / exact.abs().mean()) < 0.05


def test_training_from_the_pretrained_function_starts_there_with_every_mask() -> None:
    adapted, x = layer(0.5, start="pretrained"), torch.randn(8, 64)
    assert torch.allclose(adapted(x), adapted.base(x), atol=1e-4)


SHORT = (
    "task.limit_train=64",
    "task.limit_eval=32",
    "init.samples=16",
    "train.max_steps=4",
    "train.eval_every=4",
    "rank=4",
)


def test_a_run_trains_with_it_and_initialises_and_exports_as_it_should(tmp_path: Path) -> None:
    """The factors at step 0 are those of a run without dropout, the losses are not; PEFT is told
    the rate; the id tells them apart."""
    without, with_it = (
        run(*SHORT, "init=pissa", f"adapter.dropout={p}", out=tmp_path) for p in (0.0, 0.3)
    )
    assert without.folder == folder_of(*SHORT, "init=pissa", out=tmp_path) != with_it.folder

    def content(outcome: Any, part: str) -> bytes:
        return (outcome.folder / part).read_bytes()

    assert content(without, "init/factors.safetensors") == content(
        with_it, "init/factors.safetensors"
    )
    first = [
        next(line for line in metric_lines(outcome.folder) if "loss" in line)["loss"]
        for outcome in (without, with_it)
    ]
    assert first[0] != first[1]
    peft = json.loads((with_it.folder / "adapter" / "adapter_config.json").read_text())
    assert peft["lora_dropout"] == 0.3
    assert (
        json.loads((without.folder / "adapter" / "adapter_config.json").read_text())["lora_dropout"]
        == 0.0
    )


@pytest.mark.parametrize("rate", ["-0.1", "1"])
def test_a_rate_that_is_none_is_refused(rate: str) -> None:
    with pytest.raises(
        config.ConfigError,
        match=f"adapter.dropout={float(rate)}: expected a number at least 0 and at most 0.99",
    ):
        config.check(config.compose([f"adapter.dropout={rate}"]))
