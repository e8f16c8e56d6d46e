"""`train.micro_batches=auto`: the batch's own gradient, by the passes that take least time, never
by slower ones than the batch whole."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from loraexp import config
from loraexp.machine.device import Runtime
from loraexp.machine.processes import Processes
from loraexp.run.batches import MOST_PIECES, PASS, micro_batches, pass_price
from loraexp.run.loop import unpadded_of
from tests.support.adapters import adapted
from tests.support.runs import metric_lines, run

CPU, CARD = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("price", [5, PASS, 400])
@pytest.mark.parametrize("seed", range(3))
def test_the_cut_is_the_cheapest_of_all_at_the_price_of_a_pass(seed: int, price: int) -> None:
    """By trying every cut of ten rows, the batch whole among them."""
    lengths = np.random.default_rng(seed).integers(3, 120, 10)
    ordered = np.sort(lengths)

    def cost(places: tuple[int, ...]) -> int:
        return sum(int((j - i) * ordered[j - 1]) + price for i, j in pairwise(places))

    cuts = ((0, *inner, 10) for k in range(MOST_PIECES) for inner in combinations(range(1, 10), k))
    least = min(map(cost, cuts))
    parts = micro_batches(np.arange(10), lengths, "auto", price=price)
    assert sorted(np.concatenate(parts)) == list(range(10))
    assert cost((0, *np.cumsum([len(part) for part in parts]).tolist())) == least <= cost((0, 10))


def test_a_pass_is_worth_more_tokens_where_a_token_is_less_work() -> None:
    def of(width: int, device: torch.device) -> int:
        layers = (nn.Linear(width, width, bias=False, device="meta") for _ in range(3))
        vocabulary = nn.Linear(width, 50_000, device="meta")
        return pass_price(nn.Sequential(*layers, vocabulary), device)

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert of(384, CPU) == of(4096, CPU) == PASS == pass_price(nn.Embedding(4, 4), CPU)
        assert of(96, CPU) == 16 * PASS
        torch.set_num_threads(8)
        assert of(384, CPU) == 4 * PASS
    finally:
        torch.set_num_threads(threads)
    assert of(4096, CARD) == 448  # ⌈75 · 10⁸ / 4096²⌉
    small = of(384, CARD)
    far = np.array([4] * 24 + [60] * 8)
    assert len(micro_batches(np.arange(32), far, "auto")) == 2
    assert len(micro_batches(np.arange(32), far, "auto", price=small)) == 1


STILL = ("+model.config.hidden_dropout_prob=0", "+model.config.attention_probs_dropout_prob=0")


def trained(*overrides: str, out: Path) -> tuple[list[float], bool]:
    """The losses of a run, and whether its passes were without padding."""
    outcome = run("train.log_every=1", "train.length_buckets=false", *overrides, out=out)
    losses = [line["loss"] for line in metric_lines(outcome.folder) if "loss" in line]
    return losses, outcome.record["cost"]["train_unpadded"]


def test_an_encoder_on_a_cpu_runs_without_padding(tmp_path: Path) -> None:
    """The run that `train.unpadded=true` makes, bit for bit, and without dropout the padded one up
    to rounding."""
    auto = trained("train.micro_batches=auto", out=tmp_path / "auto")
    assert auto == trained("train.unpadded=true", out=tmp_path / "unpadded")
    assert auto[1] and len(auto[0]) > 1
    still, packed = trained(*STILL, "train.micro_batches=auto", out=tmp_path / "still")
    padded, plain = trained(*STILL, out=tmp_path / "padded")
    assert packed and not plain
    np.testing.assert_allclose(still, padded, rtol=1e-5)


def test_only_passes_known_to_be_faster_are_without_padding() -> None:
    """Not those of causal models, whose layers could do without, of an accelerator, or of layers
    that cannot; nor any that nobody asked for."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=20, intermediate_size=16, **sizes))
    encoder, _, _ = adapted("task=tweets")

    def packed(model: nn.Module, *words: str, device: torch.device = CPU) -> bool:
        settings = config.check(config.compose(["experiment=smoke", *words]))[0]
        runtime = Runtime(device=device, precision="fp32", processes=Processes("cpu"))
        return unpadded_of(model, settings, runtime) is not None

    auto = "train.micro_batches=auto"
    assert packed(encoder, auto) and packed(llama, "train.unpadded=true")
    assert not packed(encoder) and not packed(encoder, "train.micro_batches=4")
    assert not packed(llama, auto)
    assert not packed(encoder, auto, device=CARD)
    encoder.config.model_type = "distilbert"  # type: ignore[union-attr]
    assert not packed(encoder, auto)
