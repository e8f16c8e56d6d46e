"""The plan's memory against every byte that is alive while the code of a run initialises, trains
and evaluates at the widths of real models, without numbers: within 15 %."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loraexp import config, models
from loraexp.adapter.adapted import local, train_everything
from loraexp.run import sharding
from loraexp.run.components import make
from loraexp.sweep import estimate, peaks, sizes
from loraexp.sweep.shapes import Memory
from tests.support.skeletons import Subject

NEAR = 0.15
TASKS = {"roberta-base": "cola", "t5-base": "cola_t5"}
FEW = {"cg_lora": 8}  # rows, as many as its leading eigenvectors need
CASES = [
    # blocks, rows, tokens: more blocks than two periods of the two depths that are counted
    ("llama-2-7b", 5, 1, 512, ("lora", "lora_one", "cg_lora", "lora_da", "corda", "lora_sb")),
    ("llama-2-7b", 5, 1, 512, ("full",)),
    ("gemma-2-9b", 10, 1, 128, ("corda", "full")),
    ("roberta-base", 12, 32, 128, ("lora_da", "lora_sb", "full")),
    ("t5-base", 12, 8, 128, ("lora", "full")),
]


def subject(model: str, init: str, layers: int, rows: int, length: int, *words: str) -> Subject:
    count = max(rows, FEW.get(init, 1))
    given = (f"model={model}", f"init={init}", f"task={TASKS.get(model, 'metamath')}")
    sized = (f"train.batch_size={rows}", f"train.eval_batch_size={rows}")
    drawn = () if init in ("lora", "full") else (f"init.samples={FEW.get(init, rows)}",)
    answer = peaks.ANSWER if model == "t5-base" else 0
    return Subject(
        *given, *sized, *drawn, *words, lengths=(length,) * count, answer=answer, layers=layers
    )


def planned(one: Subject, length: int) -> Memory:
    return estimate.counted(sizes.shape_of(one.settings, length=length))[0]


@pytest.mark.parametrize(
    ("model", "layers", "rows", "length", "init"),
    [(*case[:4], init) for case in CASES for init in case[4]],
)
def test_the_plan_is_what_a_run_needs(
    model: str, layers: int, rows: int, length: int, init: str
) -> None:
    """On a card that training just fits on."""
    one = subject(model, init, layers, rows, length)
    memory = planned(one, length)
    one.card = memory.train
    initialising = one.initialised().peak
    if init != "full":  # which has nothing to initialise
        assert memory.init == pytest.approx(initialising, rel=NEAR)
    assert memory.train == pytest.approx(one.trained().peak, rel=NEAR)
    evaluating = memory.weights + memory.adapter + memory.optimizer + memory.evaluation
    assert evaluating == pytest.approx(one.evaluated().peak, rel=NEAR)


@pytest.mark.parametrize("init", ["lora_one", "corda", "cg_lora"])
def test_so_it_is_where_layers_are_computed_again(init: str) -> None:
    one = subject("llama-2-7b", init, 5, 1, 2048, "model.gradient_checkpointing=true")
    memory = planned(one, 2048)
    one.card = memory.train
    assert memory.init == pytest.approx(one.initialised().peak, rel=NEAR)
    assert memory.train == pytest.approx(one.trained().peak, rel=NEAR)


# --------------------------------------------------------------------------------------------------
# weights in pieces

PIECES = ("train.shard=full", "train.batch_size=8")


def llama(*words: str) -> Any:
    composed = config.compose(["model=llama-2-7b", "task=metamath", "precision=bf16", *words])
    return sizes.offline(config.check(composed)[0])


def test_weights_in_pieces_are_divided_and_what_computes_is_not() -> None:
    """LLaMA-2-7B over 8 processes, by hand: what is in no block (embeddings, output layer, a norm)
    and two blocks stand whole beside the pieces."""
    outside = 2 * 32000 * 4096 + 4096
    block = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    total = outside + 32 * block
    words = ("train.gpus_per_run=8", "device=cuda", *PIECES)
    shape = sizes.shape_of(llama("init=lora", *words), length=128)
    memory, numbers = estimate.counted(shape)
    assert memory.weights == 2 * total / 8 and memory.gathered == 2 * (outside + 2 * block)
    assert memory.adapter == memory.gradients == 4 * numbers["adapter"]  # whole on every process
    alone = sizes.shape_of(llama("init=lora", *words[1:-2], "train.batch_size=1"), length=128)
    one = estimate.counted(alone)[0]
    assert memory.activations == one.activations  # of a row each
    full = estimate.counted(sizes.shape_of(llama("init=full", *words), length=128))[0]
    assert full.weights == full.gradients == 4 * total / 8
    assert 0 <= full.optimizer - 8 * total / 8 < 10_000  # and counters of steps
    assert full.gathered == 4 * (outside + 2 * block)
    assert full.train < 80 * 2**30 < 16 * total  # two cards would not hold what eight do


def test_pieces_are_those_of_a_run() -> None:
    """What the first of three processes holds of a model and of its optimizer, to a byte."""
    from torch import distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    words = ["model=tiny-llama", "task=gsm8k", "init=full", "train.gpus_per_run=3", *PIECES]
    settings = sizes.offline(config.check(config.compose(words))[0])
    memory = estimate.counted(sizes.shape_of(settings, length=32))[0]
    base = models.open(settings.model)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=3)
    try:
        model = sharding.spread(
            lambda: base.load(dtype=torch.float32, head_seed=0, full=True),
            lambda model: [],
            torch.device("cpu"),
        )
        adapters = train_everything(model)
        rule = make(settings.optimizer)(adapters, lr=1e-3, weight_decay=0.0)
        held = {id(p): local(p).nbytes for p in model.parameters()}
    finally:
        dist.destroy_process_group()
    assert sum(held.values()) == memory.weights == memory.gradients
    assert rule.state_bytes() == memory.optimizer
