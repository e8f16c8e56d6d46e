"""Layers that compute their activations again in the backward pass give the same statistics, in
less memory, of transformers' models as training runs them."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loraexp import config, models
from loraexp.adapter.layer import CurvatureRequest, LeadingRequest
from loraexp.run import components
from loraexp.statistics import Calibration, collect
from loraexp.statistics.accumulators import Accumulator
from loraexp.statistics.cache import flat
from tests.support.text_data import overrides, write_all

BIG = 10**9
LAYERS = "++model.config.num_hidden_layers=4"
SUBJECTS = {
    "encoder": ("task=tweets", "model=tiny-bert", LAYERS),
    "causal": ("gsm8k", LAYERS, "++model.config.attention_dropout=0.2"),
    "seq2seq": ("cola_t5", "++model.config.num_layers=4", "++model.config.num_decoder_layers=4"),
}
MATRICES = {"gradient", "summed_gradient", "input_moment", "output_moment"}
REQUEST = {
    "leading_gradient": LeadingRequest(k=2, oversample=2, iterations=1),
    "curvature": CurvatureRequest(m=2, loss="cross_entropy"),
}
# every statistic in every way that it is collected
WAYS = {
    "matrices": (MATRICES, BIG),
    "leading, whole": ({"leading_gradient"}, BIG),
    "leading, sketched": ({"leading_gradient"}, 0),
    "curvature, whole": ({"curvature"}, BIG),
    "curvature, sketched": ({"curvature"}, 0),
    "inputs alone": ({"input_moment"}, BIG),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"))


class Subject:
    """A model of one kind, its target layers, and batches of its task."""

    def __init__(self, kind: str, data: Path, checkpointing: bool) -> None:
        first, *more = SUBJECTS[kind]
        words = [first] if "=" in first else overrides(data)[first]
        composed = config.compose(
            [*words, *more, f"model.gradient_checkpointing={str(checkpointing).lower()}"]
        )
        settings = config.check(composed)[0]
        base = models.open(settings.model)
        self.task: Any = components.make_task(settings, base.tokenizer)
        self.model: nn.Module = base.load(
            dtype=torch.float32, head_seed=0, **components.labels(self.task)
        )
        head = models.head(self.model)
        self.targets = models.target_layers(self.model, settings.model.targets, head)
        train = self.task.splits["train"]
        rows = [range(4), range(4, 7)]
        self.batches = [self.task.collate(train, list(part)) for part in rows]

    def statistics(
        self, needs: set[str], budget: int, mode: Any = "eval", batches: Any = None
    ) -> dict[str, Tensor]:
        """Every tensor of every statistic, by layer and name."""
        task, batches = self.task, batches or self.batches
        several = task.sample_losses if task.several_labels else None
        calibration = Calibration(
            batches, task.loss_sum, task.outputs, 7, several, weighting="samples", mode=mode
        )
        layers = collect(
            self.model,
            self.targets,
            calibration,
            frozenset(needs),
            REQUEST,
            budget=budget,
        ).layers
        return {
            f"{layer.name}/{name}": tensor
            for layer in layers
            for name, tensor in flat(layer.statistics)[0].items()
        }


subject_of = cache(Subject)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", SUBJECTS)
def test_the_same_bits_and_no_call_counted_twice(
    kind: str, way: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs, budget = WAYS[way]
    calls: list[Counter[str]] = []
    for sort in every(Accumulator):
        watch(sort, calls, monkeypatch)
    found = []
    for checkpointing in (False, True):
        calls.append(Counter())
        found.append(subject_of(kind, data, checkpointing).statistics(needs, budget))
    plain, again = found
    assert plain.keys() == again.keys() and len(plain) >= 8
    for name in plain:
        assert torch.equal(plain[name], again[name]), name
    assert calls[0] == calls[1] and calls[0].total() > 0


def every(sort: type) -> list[type]:
    return [one for child in sort.__subclasses__() for one in (child, *every(child))]


def watch(sort: type, calls: list[Counter[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the calls of `add` that are the class's own."""
    if "add" not in vars(sort):
        return
    own: Any = vars(sort)["add"]

    def add(self: Accumulator, seen: Any) -> None:
        calls[-1][sort.__name__] += 1
        own(self, seen)

    monkeypatch.setattr(sort, "add", add)


@pytest.mark.parametrize("kind", SUBJECTS)
def test_with_dropout_on_it_is_the_same_dropout(kind: str, data: Path) -> None:
    plain, again, still = (
        subject_of(kind, data, checkpointing).statistics({"gradient"}, BIG, mode)
        for checkpointing, mode in ((False, "train"), (True, "train"), (True, "eval"))
    )
    for name in plain:
        assert torch.equal(plain[name], again[name]), name
    assert any(not torch.equal(plain[name], still[name]) for name in plain)


def held(subject: Subject, needs: set[str], mode: Any) -> int:
    """The most bytes that a forward pass leaves for the backward pass, weights aside."""
    weights = {p.untyped_storage()._cdata for p in subject.model.parameters()}
    kept: dict[int, int] = {}
    most = 0

    def pack(x: Tensor) -> Tensor:
        nonlocal most
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
            most = max(most, sum(kept.values()))
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        subject.statistics(needs, BIG, mode, subject.batches[:1])
    return most


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("kind", SUBJECTS)
def test_a_pass_holds_what_a_few_layers_need(kind: str, mode: str, data: Path) -> None:
    plain, again = (held(subject_of(kind, data, on), {"gradient"}, mode) for on in (False, True))
    assert again < plain / 2, (plain, again)


def test_the_model_is_as_it_was(data: Path) -> None:
    """Its layers' forward is the class's own again, also where a batch raises."""
    subject = subject_of("causal", data, True)
    subject.statistics({"gradient"}, BIG)
    broken = {name: x for name, x in subject.batches[1].items() if name != "labels"}
    with pytest.raises(KeyError):
        subject.statistics({"gradient"}, BIG, batches=[subject.batches[0], broken])
    assert all("forward" not in vars(module) for module in subject.model.modules())
    assert not any(module.training for module in subject.model.modules())
