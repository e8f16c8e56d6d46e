"""Unpadded rows: the padded pass without its padding, to the last layer and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from loraexp import config
from loraexp.models.attention import DroppedAttention, Layout, attend
from loraexp.models.dropout import dropped, kept_share, multiplier
from loraexp.models.load import recompute
from loraexp.models.unpadded import DECODERS, ENCODERS, Unpadded, layers

LENGTHS, WIDTH = [5, 9, 2, 9], 11
CPU = torch.device("cpu")


def model_of(kind: str, **changed: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    keys: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 100,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
    }
    if kind in DECODERS:  # four heads that share two of keys and values
        keys |= {"num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 2, "eos_token_id": 3}
    keys |= {"mistral": {"sliding_window": None}, "electra": {"embedding_size": 32}}.get(kind, {})
    family = (
        AutoModelForCausalLM if kind in {*DECODERS, "phi"} else AutoModelForSequenceClassification
    )
    torch.manual_seed(0)
    made = family.from_config(
        AutoConfig.for_model(kind, **keys | changed), attn_implementation="sdpa"
    )
    return made.double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.randint(4, 100, mask.shape, generator=generator)
    return ids.where(mask.bool(), torch.tensor(1)), mask


def loss_and_gradients(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    ids, mask = batch()
    model.zero_grad()
    causal = model.config.model_type in DECODERS
    reads = {"use_cache": False} if causal else {"attention_mask": mask}
    logs = model(input_ids=ids, **reads).logits.log_softmax(-1)[..., 0]
    loss = -(logs * mask if causal else logs).sum()
    loss.backward()
    return loss.detach(), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("kind", sorted(ENCODERS | DECODERS))
def test_packed_rows_have_the_gradient_of_padded_ones(kind: str) -> None:
    """Of every weight, embeddings too; and a pass outside is as it was."""
    model = model_of(kind).eval()
    loss, gradients = loss_and_gradients(model)
    packed = Unpadded(model)
    seen: list[int] = []
    watch = packed.layers[1].register_forward_hook(lambda *a: seen.append(a[2].shape[:2].numel()))
    with packed.rows(LENGTHS, WIDTH, CPU):
        found, others = loss_and_gradients(model)
    assert seen == [sum(LENGTHS)]  # no token of a layer is padding
    watch.remove()
    torch.testing.assert_close(found, loss, rtol=1e-12, atol=0)
    assert others.keys() == gradients.keys()
    for name, expected in gradients.items():
        torch.testing.assert_close(others[name], expected, rtol=1e-9, atol=1e-12)
    after, again = loss_and_gradients(model)
    assert torch.equal(after, loss)
    assert all(torch.equal(again[name], g) for name, g in gradients.items())
    assert max(float(g.abs().max()) for g in gradients.values()) > 0.1


def test_a_layer_that_is_computed_again_sees_the_same_rows() -> None:
    model = model_of("llama").train()
    _, gradients = loss_and_gradients(model)
    recompute(model)
    with Unpadded(model).rows(LENGTHS, WIDTH, CPU):
        _, found = loss_and_gradients(model)
    for name, expected in gradients.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "changed", "reason"),
    [
        ("distilbert", {"dim": 32, "n_heads": 4, "hidden_dim": 64}, "layers of distilbert"),
        ("mistral", {"sliding_window": 4}, "layers with sliding_attention"),
        ("phi", {"num_key_value_heads": 4}, "layers of phi"),
    ],
)
def test_layers_that_are_not_known_are_refused(
    kind: str, changed: dict[str, Any], reason: str
) -> None:
    with pytest.raises(
        ValueError, match=rf"train\.unpadded=true: .* {reason}.*train\.unpadded=false"
    ):
        layers(model_of(kind, **changed))


# --------------------------------------------------------------------------------------------------
# attention


@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize("first", [False, True])
def test_the_gradient_of_attention_is_that_of_its_formula(p: float, first: bool) -> None:
    """With the masks of dropout drawn alike, against autograd through the padded formula."""
    layout = Layout.of(LENGTHS, WIDTH, CPU)
    generator = torch.Generator().manual_seed(0)

    def drawn(rows: int) -> Tensor:
        made = torch.randn(rows, 4, 8, generator=generator, dtype=torch.float64)
        return made.requires_grad_()

    q, k, v = drawn(len(LENGTHS) if first else sum(LENGTHS)), *(drawn(sum(LENGTHS)) for _ in "kv")
    torch.manual_seed(3)
    found = attend(q, k, v, layout, scale=0.3, causal=False, p=p)
    ends = np.cumsum(LENGTHS).tolist()
    torch.manual_seed(3)
    longest = max(LENGTHS)
    shape = torch.Size([len(LENGTHS) * 4, 1 if first else longest, longest])
    D = multiplier(shape, p, q).view(len(LENGTHS), 4, *shape[1:]) if p else q.new_ones(1)
    parts = []
    for row, end in enumerate(ends):
        tokens = slice(end - LENGTHS[row], end)
        own = slice(row, row + 1) if first else tokens
        scores = torch.einsum("qhd,khd->hqk", q[own], k[tokens]) * 0.3
        share = scores.softmax(-1)
        if p:
            share = share * D[row][:, : share.shape[1], : share.shape[2]]
        parts.append(torch.einsum("hqk,khd->qhd", share, v[tokens]))
    expected = torch.cat(parts)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    g = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(found, (q, k, v), g),
        torch.autograd.grad(expected, (q, k, v), g),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_attention_knows_its_own_derivative() -> None:
    def drawn(rows: int) -> Tensor:
        return torch.randn(3, rows, 5, dtype=torch.float64, requires_grad=True)

    def seeded(*given: Tensor) -> Tensor:
        torch.manual_seed(0)
        return DroppedAttention.apply(*given, None, 0.7, 0.3)

    torch.manual_seed(1)
    assert torch.autograd.gradcheck(seeded, (drawn(2), drawn(4), drawn(4)))


# --------------------------------------------------------------------------------------------------
# dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_sixteen_bits_drop_as_many_as_they_say(p: float) -> None:
    """The share of zeros within five standard errors, one value beside zero, and the mean of all
    exactly that of the share; as many in every quarter of a draw, whose bits have different
    places."""
    torch.manual_seed(0)
    count = 1_000_000
    mask = multiplier(torch.Size([count]), p, torch.empty(0, dtype=torch.float64))
    share = kept_share(p)
    assert abs(share - (1 - p)) <= 2**-17
    assert set(mask.unique().tolist()) == {0.0, 1 / share}
    error = (share * (1 - share) / count) ** 0.5
    assert abs(float((mask > 0).double().mean()) - share) < 5 * error
    for lane in range(4):
        assert abs(float((mask[lane::4] > 0).double().mean()) - share) < 10 * error
    neighbours = float(((mask[1:] > 0) & (mask[:-1] > 0)).double().mean())
    assert abs(neighbours - share**2) < 5 * error


def test_dropout_is_the_seeds_and_spares_what_does_not_train() -> None:
    x = torch.randn(7, 5)
    torch.manual_seed(0)
    one, other = dropped(x, 0.5), dropped(x, 0.5)
    torch.manual_seed(0)
    assert torch.equal(dropped(x, 0.5), one) and not torch.equal(one, other)
    assert dropped(x, 0.0) is x and not dropped(x, 1.0).any()
    model = nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5)).eval()
    assert torch.equal(model(x), model[0](x))


def test_a_run_that_is_packed_is_another_run_and_an_old_one_keeps_its_id() -> None:
    def plain(*words: str) -> dict[str, Any]:
        return config.check(config.compose(["model=minilm", "task=tweets", *words]))[1]

    old = {k: v for k, v in plain().items()}
    old["train"] = {k: v for k, v in old["train"].items() if k != "unpadded"}
    assert (
        config.run_id(old) == config.run_id(plain()) != config.run_id(plain("train.unpadded=true"))
    )
