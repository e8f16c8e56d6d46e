"""The loop that evaluates. Work that is fewer batches than processes: every process takes part in
what joins it, else those without a batch would wait for ever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from loraexp.scoring import generate, likelihood, passes
from tests.support.written import byte_tokenizer, made

PROMPTS = ["How many?", "Why is that so?", "Who?"]


@dataclass
class Process:
    """One of several that do the same one after the other: what those before it sent is there."""

    rank: int
    world: int
    sent: list[Any]
    calls: list[int] = field(default_factory=list)

    def gather(self, thing: Any) -> list[Any]:
        self.calls.append(self.rank)
        self.sent.append(thing)
        return list(self.sent)


def answers(processes: Any) -> Any:
    how = {"max_new_tokens": 4, "batch_size": 8, "processes": processes}
    return generate.generate(made("llama"), byte_tokenizer(), PROMPTS, **how)


def scores(processes: Any) -> Any:
    how: dict[str, Any] = {"batch_size": 8, "processes": processes}
    choices = ["yes", "never"]
    return likelihood.score_choices(
        made("llama"), byte_tokenizer(), PROMPTS, choices, **how
    ).tolist()


@pytest.mark.parametrize("work", [answers, scores])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_without_a_batch_take_part_too(work: Callable[[Any], Any], world: int) -> None:
    whole, sent = work(None), list[Any]()
    for rank in range(world):
        process = Process(rank, world, sent)
        assert work(process) == whole
        assert process.calls == [rank]
    assert [len(part) for part in sent] == [len(PROMPTS)] + [0] * (world - 1)


@pytest.mark.parametrize("count", [1, 4, 5])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_batch_is_done_and_in_step_each_process_makes_as_many_passes(
    count: int, world: int
) -> None:
    ranks = [Process(rank, world, []) for rank in range(world)]
    once = [passes.part_of(process, count) for process in ranks]
    assert sorted(sum(once, [])) == list(range(count))
    together = [passes.part_of(process, count, in_step=True) for process in ranks]
    assert {len(mine) for mine in together} == {-(-count // world)}
    assert set(sum(together, [])) == set(range(count))


def test_a_model_is_left_as_it_was_and_hears_of_its_share() -> None:
    model = torch.nn.Linear(2, 1).train()
    batches = [torch.ones(3, 2), torch.zeros(2, 2)]
    told: list[tuple[int, int]] = []

    def work(batch: torch.Tensor) -> tuple[bool, int]:
        return model.training or torch.is_grad_enabled(), len(model(batch))

    found = passes.each(
        model,
        batches,
        work,
        processes=Process(0, 2, [{1: (False, 2)}]),
        told=lambda number, _, of: told.append((number, of)),
    )
    assert found == [(False, 3), (False, 2)] and told == [(0, 3)] and model.training
    with pytest.raises(ZeroDivisionError):
        passes.each(model, batches, lambda batch: 1 / 0)
    assert model.training and torch.is_grad_enabled()


def test_a_model_is_evaluated_over_batches_in_one_place() -> None:
    """Elsewhere a forward pass without gradients is one pass, of a model that is asked once."""
    files = Path(passes.__file__).parents[1].rglob("*.py")
    places = {file.name for file in files if "torch.inference_mode" in file.read_text()}
    assert places == {"passes.py", "verify.py"}
