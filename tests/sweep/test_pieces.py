"""What a plan says stands beside the pieces of a model that processes share (`train.shard=full`),
against the bytes that are alive in a step of real ones: PyTorch's `fully_shard` under torchrun."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from loraexp.sweep import estimate, sizes
from tests.support import pieces
from tests.support.forks import torchrun

NEAR = 0.15
LLAMA = "model=tiny-llama task=gsm8k model.config.intermediate_size=1024"
LLAMA += (
    " model.config.hidden_size=256 model.config.num_hidden_layers=6 model.config.vocab_size=4096"
)
ENCODER = "model=tiny-bert task=cola model.config.intermediate_size=1024"
ENCODER += " model.config.hidden_size=256 model.config.num_hidden_layers=6"
RUNS = {
    "LLaMA full": f"{LLAMA} init=full precision=fp32",
    "LLaMA full bf16": f"{LLAMA} init=full precision=bf16",
    "LLaMA adapters": f"{LLAMA} init=lora rank=4 precision=fp32",
    "encoder full": f"{ENCODER} init=full precision=fp32",
}
WORLDS = {2: tuple(RUNS), 4: ("LLaMA full", "LLaMA adapters")}


def words(name: str, world: int) -> list[str]:
    """A row a process."""
    sized = [f"train.gpus_per_run={world}", f"train.batch_size={world}"]
    how = ["train.micro_batches=1", "train.eval_batch_size=1", "train.shard=full", "device=cpu"]
    return [*RUNS[name].split(), *sized, *how]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, int]]:
    folder = tmp_path_factory.mktemp("pieces")

    @cache
    def of(world: int) -> dict[str, int]:
        listed, found, log = (folder / f"{kind}{world}" for kind in ("words", "bytes", "log"))
        listed.write_text(json.dumps([words(name, world) for name in WORLDS[world]]))
        given: tuple[Path, ...] = (listed, found)
        status, said = torchrun(pieces.main, *map(str, given), world=world, log=log)
        assert status == 0, said[-5000:]
        return dict(zip(WORLDS[world], json.loads(found.read_text()), strict=True))

    return of


@pytest.mark.parametrize(
    ("world", "name"), [(world, name) for world, names in WORLDS.items() for name in names]
)
def test_what_stands_beside_the_pieces_is_what_is_alive_in_a_step(
    measured: Callable[[int], dict[str, int]], world: int, name: str
) -> None:
    settings = sizes.offline(pieces.settings_of(words(name, world)))
    memory, _ = estimate.counted(sizes.shape_of(settings, length=pieces.LENGTH))
    beside = memory.gathered + memory.gradients + memory.activations
    assert beside == pytest.approx(measured(world)[name], rel=NEAR)
    assert memory.gathered > memory.weights / 4
