"""The adapters of several runs on one base: outputs and gradients are those of each by itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from loraexp.adapter.adapted import Adapters, attach
from loraexp.adapter.draws import Draws, Indivisible
from loraexp.adapter.layer import Factors
from loraexp.adapter.stacked import StackedModel

WIDTH, ROWS, LENGTH = 12, 3, 5


class Small(nn.Module):
    """Attention with dropout between two linear layers, and a head."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * WIDTH, 4)
        self.noise = 0.0

    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        h = self.dropout(functional.gelu(self.first(x)))
        p = self.dropout.p if self.training else 0.0
        h = h + functional.scaled_dot_product_attention(h, h, h, dropout_p=p)
        if self.noise:
            h = h + self.noise * torch.randn_like(h)
        return Output(logits=self.head(self.second(h).mean(1)) * scale)


class Output(dict):
    """As transformers returns it: by key and by attribute."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def factors(seed: int, rank: int, *, R: bool, start: str, train: set[str]) -> dict[str, Factors]:
    g = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64) / 3

    return {
        name: Factors(
            A=drawn(rank, WIDTH),
            B=drawn(d_out, rank),
            R=drawn(rank, rank) if R else None,
            start=start,  # type: ignore[arg-type]
            train=frozenset(train),
        )
        for name, d_out in (("first", WIDTH), ("second", 2 * WIDTH))
    }


KINDS: list[dict[str, Any]] = [
    {"rank": 2, "R": False, "start": "shifted", "train": {"A", "B"}},
    {"rank": 5, "R": False, "start": "pretrained", "train": {"A", "B"}},
    {"rank": 3, "R": True, "start": "shifted", "train": {"R"}},
    {"rank": 4, "R": True, "start": "pretrained", "train": {"A", "B", "R"}},
    {"rank": 3, "R": False, "start": "shifted", "train": {"B"}},
]


def runs(dropout: float = 0.0, of_adapter: float = 0.0) -> list[Adapters]:
    """A run of each kind on the same frozen weights, each with its own head and scaling."""
    torch.manual_seed(0)
    base = Small(dropout).double()
    made = []
    for i, kind in enumerate(KINDS):
        shared = {id(p): p for m in (base.first, base.second) for p in m.parameters()}
        model = copy.deepcopy(base, shared)
        torch.manual_seed(i)
        nn.init.normal_(model.head.weight)
        given = factors(i, **kind)
        made.append(attach(model, given, 0.5 + i, ["head"], dropout=of_adapter * (i % 2)))
        model.train()
    return made


def batch() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(9)
    x = torch.randn(ROWS, LENGTH, WIDTH, generator=g, dtype=torch.float64)
    return x, torch.randint(0, 4, (ROWS,), generator=g)


def loss_of(model: Any) -> Tensor:
    x, labels = batch()
    logits: Tensor = model(x, scale=1.5).logits
    return functional.cross_entropy(logits, labels, reduction="sum")


def gradients(run: Adapters) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in run.named_trainable().items()}  # type: ignore[union-attr]


def states() -> list[Tensor]:
    made = []
    for seed in range(len(KINDS)):
        made.append(torch.Generator().manual_seed(seed).get_state())
    return made


@pytest.mark.parametrize(("dropout", "of_adapter"), [(0.0, 0.0), (0.3, 0.0), (0.3, 0.2)])
def test_outputs_gradients_and_draws_are_those_of_each_run_alone(
    dropout: float, of_adapter: float
) -> None:
    """Two passes, so that the second begins where the generators were left."""
    together, apart = runs(dropout, of_adapter), runs(dropout, of_adapter)
    draws = Draws(torch.default_generator, states())
    stacked = StackedModel(together, draws)
    untouched = torch.default_generator.get_state()
    expected: list[list[Tensor]] = []
    after: list[Tensor] = []
    for state, run in zip(states(), apart, strict=True):
        torch.default_generator.set_state(state)
        losses = [loss_of(run.model), loss_of(run.model)]
        sum(losses).backward()  # type: ignore[union-attr]
        expected.append(losses)
        after.append(torch.default_generator.get_state())
    torch.default_generator.set_state(untouched)
    for turn in range(2):
        stacked.begin()
        losses = [loss_of(view) for view in stacked.views]
        torch.stack(losses).sum().backward()
        for i, loss in enumerate(losses):
            torch.testing.assert_close(loss, expected[i][turn], rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.default_generator.get_state(), untouched)
    assert all(map(torch.equal, draws.states, after))
    for run, other in zip(together, apart, strict=True):
        mine, theirs = gradients(run), gradients(other)
        assert mine.keys() == theirs.keys() and len(mine) >= 4
        for name, value in mine.items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-10, atol=1e-12)


def test_factors_that_change_are_stacked_anew() -> None:
    together, apart = runs(), runs()
    stacked = StackedModel(together, Draws(torch.default_generator, states()))
    for _ in range(2):
        stacked.begin()
        for view, run in zip(stacked.views, apart, strict=True):
            torch.testing.assert_close(loss_of(view), loss_of(run.model), rtol=1e-12, atol=0)
        for run in (*together, *apart):
            with torch.no_grad():
                for parameter in run.trainable():
                    parameter.mul_(1.1)


def test_a_run_that_is_not_a_number_touches_no_other() -> None:
    together, apart = runs(), runs()
    with torch.no_grad():
        together[1].layers["first"].lora_B.fill_(torch.nan)
    stacked = StackedModel(together, Draws(torch.default_generator, states()))
    torch.stack([loss_of(view) for view in stacked.views]).sum().backward()
    for i, (run, other) in enumerate(zip(together, apart, strict=True)):
        loss_of(other.model).backward()
        for name, value in gradients(run).items():
            assert torch.isfinite(value).all() == (i != 1), name
            if i != 1:
                torch.testing.assert_close(value, gradients(other)[name], rtol=1e-10, atol=1e-12)


def test_what_cannot_be_told_apart_is_refused() -> None:
    """Noise that is no dropout, a loss that the model makes of all rows, other layers, another
    base; the generators stay where they were."""
    together = runs(dropout=0.3)
    draws = Draws(torch.default_generator, states())
    stacked = StackedModel(together, draws)
    stacked.model.noise = 0.1  # type: ignore[assignment]
    untouched = torch.default_generator.get_state()
    with pytest.raises(Indivisible, match="no dropout"):
        loss_of(stacked.views[0])
    assert torch.equal(torch.default_generator.get_state(), untouched)
    assert all(map(torch.equal, draws.states, states()))
    other = runs()[1]
    with pytest.raises(Indivisible, match="frozen weights"):
        StackedModel([together[0], other], draws)
    fewer = Adapters(together[1].model, {"first": together[1].layers["first"]}, {})
    with pytest.raises(Indivisible, match="different layers"):
        StackedModel([together[0], fewer], draws)
    stacked.model.noise = 0.0  # type: ignore[assignment]
    stacked.model.forward = lambda x, **_: Output(loss=x.sum())  # type: ignore[method-assign]
    with pytest.raises(Indivisible, match="loss of all rows"):
        stacked.views[0](batch()[0])
