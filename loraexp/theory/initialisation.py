"""What an initialisation holds at its peak against what the training after it holds: LoRA-SB's
claim of section 2.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from loraexp.adapter.adapted import Adapters, attach
from loraexp.adapter.layer import Factors
from loraexp.machine.device import to_device
from loraexp.machine.measure import Stopwatch
from loraexp.machine.processes import Processes
from loraexp.run.batches import count_labels
from loraexp.run.experiment import make
from loraexp.run.initialise import initialize
from loraexp.run.train import accumulate_gradient
from loraexp.sweep.computed import Computed, Progress
from loraexp.theory.meter import Alive, Bench, prepare

Held = dict[str, Factors]


def initialised(bench: Bench) -> Held:
    """The factors, made as a run makes them."""
    how: dict[str, Any] = {
        "settings": bench.settings,
        "device": bench.device,
        "processes": Processes(str(bench.device)),
    }
    return initialize(
        bench.model,
        bench.targets,
        bench.task,
        make(bench.settings.init),
        scaling=bench.scaling,
        **how,
    ).factors


def one_step(bench: Bench, adapters: Adapters) -> None:
    """A training step on the longest rows of the training set, a micro-batch of the
    initialisation's size.
    """
    examples = bench.task.splits["train"]
    rows = examples.lengths.argsort(kind="stable")[-bench.settings.train.batch_size :]
    batch = to_device(bench.task.collate(examples, rows), bench.device)
    optimizer = make(bench.settings.optimizer)(adapters, lr=bench.settings.lr, weight_decay=0.0)
    accumulate_gradient(
        bench.model,
        bench.task,
        [batch],
        labels=count_labels(batch),
        precision=bench.settings.precision,
        processes=Processes(str(bench.device)),
        clock=Stopwatch(),
    )
    optimizer.step()


def detach(model: nn.Module, adapters: Adapters) -> None:
    """Put the plain layers back."""
    for name, layer in adapters.layers.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.base)
    model.requires_grad_(True)


def initialisation_memory(
    *,
    model: str,
    task: str,
    overrides: list[str],
    budgets: dict[str, int],
    data_dir: str | None = None,
    device: str = "auto",
    progress: Progress,
) -> Computed:
    """Peak bytes of tensors alive in initialising by LoRA-SB and in a training step of it, the
    weights included.

    LoRA-SB, section 2: layerwise gradients, discarded at once, keep initialising within the memory
    of the training that follows. Both see batches of `train.batch_size` rows, the step the longest
    of them. `budgets`: `init.memory_budget` by name; 0 holds the gradient of one layer at a time,
    as the paper does. Values: `training/peak`, `<name>/peak` (bytes) and `<name>/ratio` to
    training.
    """
    data = [f"task.data_dir={data_dir}"] if data_dir else []
    common = [
        f"model={model}",
        f"task={task}",
        f"device={device}",
        *data,
        "method=lora_sb",
        "init.cache=false",
        *overrides,
    ]
    bench = prepare(common)
    weights = sum(p.numel() * p.element_size() for p in bench.model.parameters())
    values: dict[str, float | list[float]] = {}
    factors: Held = {}
    for done, (name, budget) in enumerate(budgets.items(), 1):
        own = prepare([*common, f"init.memory_budget={budget}"], bench)
        with Alive() as alive:
            factors = initialised(own)
        values[f"{name}/peak"] = float(weights + alive.most)
        progress(done, len(budgets) + 1)
    adapters = attach(bench.model, factors, bench.scaling, [])
    bench.model.train()
    with Alive() as alive:
        one_step(bench, adapters)
    detach(bench.model, adapters)
    training = float(weights + alive.most + sum(p.nbytes for p in adapters.trainable()))
    values["training/peak"] = training
    values |= {f"{name}/ratio": values[f"{name}/peak"] / training for name in budgets}  # type: ignore[operator]
    progress(len(budgets) + 1, len(budgets) + 1)
    return Computed(values=values, data=bench.task.describe())
