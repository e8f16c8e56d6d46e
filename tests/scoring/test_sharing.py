"""Work that is fewer batches than processes: every process takes part in what joins it, else those
without a batch would wait for ever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from loraexp.scoring import generate, likelihood
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
