"""What an initialisation holds at its peak against what the training after it holds: LoRA-SB's
claim of section 2.
"""

from __future__ import annotations

from torch import nn

from loraexp.adapter.adapted import Adapters, attach
from loraexp.adapter.layer import Factors
from loraexp.machine.alive import MadeWithin
from loraexp.machine.device import to_device
from loraexp.machine.measure import Stopwatch
from loraexp.machine.progress import Progress
from loraexp.records.curves import Computed, Values
from loraexp.run.batches import count_labels
from loraexp.run.components import make
from loraexp.run.train import accumulate_gradient
from loraexp.theory.keywords import keywords
from loraexp.theory.meter import Bench, Subject


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
        runtime=bench.runtime,
        clock=Stopwatch(),
    )
    optimizer.step()


def detach(model: nn.Module, adapters: Adapters) -> None:
    """Put the plain layers back."""
    for name, layer in adapters.layers.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.base)
    model.requires_grad_(True)


@keywords
def initialisation_memory(
    *, subject: Subject, budgets: dict[str, int], progress: Progress
) -> Computed:
    """Peak bytes of tensors alive in initialising by LoRA-SB and in a training step of it, the
    weights included.

    LoRA-SB, section 2: layerwise gradients, discarded at once, keep initialising within the memory
    of the training that follows. Both see batches of `train.batch_size` rows, the step the longest
    of them. `budgets`: `init.memory_budget` by name; 0 holds the gradient of one layer at a time,
    as the paper does. Values: `training/peak`, `<name>/peak` (bytes) and `<name>/ratio` to
    training.
    """
    bench = subject.bench("method=lora_sb")
    weights = bench.weights
    values: Values = {}
    factors: dict[str, Factors] = {}
    for done, (name, budget) in enumerate(budgets.items(), 1):
        own = subject.bench("method=lora_sb", f"init.memory_budget={budget}", like=bench)
        with MadeWithin() as alive:
            factors = own.initialise().factors
        values[f"{name}/peak"] = float(weights + alive.recent)
        progress(done, len(budgets) + 1)
    adapters = attach(bench.model, factors, bench.scaling, [])
    bench.model.train()
    with MadeWithin() as alive:
        one_step(bench, adapters)
    detach(bench.model, adapters)
    training = float(weights + alive.recent + sum(p.nbytes for p in adapters.trainable()))
    values["training/peak"] = training
    values |= {f"{name}/ratio": values[f"{name}/peak"] / training for name in budgets}  # type: ignore[operator]
    progress(len(budgets) + 1, len(budgets) + 1)
    return Computed(values=values, data=bench.task.describe())
