"""The adapted layer against explicit matrix products; its files against PEFT."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from loraexp import config, models
from loraexp.adapter.adapted import AdaptedLinear, attach, scaling_factor
from loraexp.adapter.formats import load_raw, merge, save_peft, save_raw
from loraexp.adapter.layer import Factors
from loraexp.config.settings import ModelSettings

ALL_FACTORS = [(with_R, start) for with_R in (False, True) for start in ("pretrained", "shifted")]


def factors(d_out: int, d_in: int, rank: int, with_R: bool, start: str, seed: int = 0) -> Factors:
    g = torch.Generator().manual_seed(seed)
    R = torch.randn(rank, rank, generator=g) if with_R else None
    train = frozenset({"R"} if with_R else {"A", "B"})
    return Factors(
        A=torch.randn(rank, d_in, generator=g),
        B=torch.randn(d_out, rank, generator=g),
        R=R,
        start=start,
        train=train,
    )


def move(layer: AdaptedLinear, seed: int = 1) -> None:
    """As training would: the trained factors leave their start."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.factors.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=g)


@pytest.mark.parametrize(("with_R", "start"), ALL_FACTORS)
def test_forward_is_the_explicit_matrix_product(with_R: bool, start: str) -> None:
    made = factors(7, 5, 3, with_R, start)
    base = nn.Linear(5, 7)
    W0, bias = base.weight.detach().double(), base.bias.detach().double()
    layer = AdaptedLinear(base, made, scaling=1.7, name="x")
    move(layer)
    layer.double()
    B, A = layer.lora_B.detach().double(), layer.lora_A.detach().double()
    middle = layer.lora_R.detach().double() if with_R else torch.eye(3, dtype=torch.float64)
    W = W0 + 1.7 * B @ middle @ A
    if start == "pretrained":
        torch.testing.assert_close((layer.offset_B @ layer.offset_A).float(), made.product())
        W = W - 1.7 * layer.offset_B @ layer.offset_A
    x = torch.randn(4, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ W.T + bias, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.update(), W - W0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("with_R", "start"), ALL_FACTORS)
def test_start_says_where_training_begins(with_R: bool, start: str) -> None:
    base, x = nn.Linear(5, 7), torch.randn(9, 5)
    plain = base(x).detach()
    made = factors(7, 5, 3, with_R, start)
    moved = float((AdaptedLinear(base, made, 0.5, "x")(x) - plain).detach().abs().max())
    assert (moved < 1e-5) == (start == "pretrained")


def test_only_what_is_said_trains_and_gets_gradients() -> None:
    layer = AdaptedLinear(
        nn.Linear(5, 7),
        dataclasses.replace(factors(7, 5, 3, False, "shifted"), train=frozenset({"B"})),
        1.0,
        "x",
    )
    layer(torch.randn(2, 5)).sum().backward()
    assert (
        layer.lora_B.grad is not None
        and layer.lora_A.grad is None
        and layer.base.weight.grad is None
    )


def test_factors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"layer x: factors A \(3, 6\), B \(7, 3\) do not fit a weight of shape \(7, 5\)",
    ):
        AdaptedLinear(nn.Linear(5, 7), factors(7, 6, 3, False, "shifted"), 1.0, "x")


def test_bf16_base_keeps_float32_factors_and_a_small_update_is_not_lost() -> None:
    """An update far below a bf16 step of the weight survives beside it; edited into the weight it
    vanishes."""
    base = nn.Linear(64, 64, bias=False).bfloat16()
    made = factors(64, 64, 2, False, "shifted")
    made = dataclasses.replace(made, A=made.A * 1e-3, B=made.B * 1e-3)
    layer = AdaptedLinear(base, made, 1.0, "x")
    assert layer.lora_A.dtype == torch.float32
    edited = (base.weight.float() + layer.update()).bfloat16()
    lost = float(
        (edited.float() - base.weight.float() - layer.update()).norm() / layer.update().norm()
    )
    x = torch.randn(32, 64).bfloat16()
    low = (x @ layer.lora_A.bfloat16().mT @ layer.lora_B.bfloat16().mT).detach()
    kept = float(
        (low.float() - x.float() @ layer.update().mT).norm()
        / (x.float() @ layer.update().mT).norm()
    )
    assert kept < 0.02 < 0.5 < lost


def test_scaling_rules() -> None:
    assert scaling_factor("lora", 16, 8) == 2.0
    assert scaling_factor("rslora", 16, 4) == 8.0
    with pytest.raises(ValueError, match=r"adapter.scaling='x': expected lora or rslora"):
        scaling_factor("x", 16, 8)  # type: ignore[arg-type]


def minilm(num_labels: int = 3) -> tuple[nn.Module, ModelSettings]:
    settings, _ = config.check(config.compose([]))
    return (
        models.open(settings.model).load(dtype=torch.float32, head_seed=3, num_labels=num_labels),
        settings.model,
    )


@pytest.mark.parametrize(("with_R", "start"), ALL_FACTORS)
def test_peft_loads_the_saved_adapter_on_the_original_base(
    tmp_path, with_R: bool, start: str
) -> None:
    from peft import PeftModel

    model, settings = minilm()
    head = models.head(model)
    targets = models.target_layers(model, ["query", "value"], head)
    made = {
        name: dataclasses.replace(f, A=f.A * 0.05, B=f.B * 0.05)
        for i, name in enumerate(targets)
        # two ranks: PEFT's patterns are needed
        for f in [factors(384, 384, 4 + i % 2, with_R, start, seed=i)]
    }
    adapters = attach(model, made, 2.0, head)
    for layer in adapters:
        move(layer)
    tokens = torch.randint(5, 30000, (4, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model.eval()(input_ids=tokens).logits
        save_peft(
            adapters,
            tmp_path,
            base=str(settings.path),
            revision=None,
            task_type="SEQ_CLS",
            head=head,
        )
        save_raw(adapters, tmp_path / "factors.safetensors")
        original, _ = minilm()
        theirs = PeftModel.from_pretrained(original, tmp_path).eval()(input_ids=tokens).logits
        again, _ = minilm()
        load_raw(again, tmp_path / "factors.safetensors")
        reloaded = again.eval()(input_ids=tokens).logits
        merged = merge(adapters).eval()(input_ids=tokens).logits
        plain, _ = minilm()
        # the adapter does something
        assert (plain.eval()(input_ids=tokens).logits - ours).abs().max() > 1e-3
    for other in (theirs, merged):
        assert (other - ours).abs().max() <= 1e-5 * max(1.0, float(ours.abs().max()))
    assert torch.equal(reloaded, ours)


def test_targets_that_match_nothing_list_the_linear_layers() -> None:
    model, _ = minilm()
    with pytest.raises(
        ValueError,
        match=(
            r"model.targets: no linear layer is named 'q_proj'; the model has dense, key, query,"
            r" value"
        ),
    ):
        models.target_layers(model, ["q_proj"], ["classifier"])


def test_the_head_depends_on_the_seed_alone() -> None:
    settings, _ = config.check(config.compose(["model=tiny-bert"]))

    def head(seed: int) -> torch.Tensor:
        torch.rand(seed + 3)  # whatever was drawn before
        return (
            models.open(settings.model)
            .load(dtype=torch.float32, head_seed=seed, num_labels=2)
            .classifier.weight
        )

    assert torch.equal(head(1), head(1)) and not torch.equal(head(1), head(2))
