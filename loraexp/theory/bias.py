"""The bias that LoRA-GA's offset puts on what is learnt (LoRA-One, appendix F), against the number
of outputs."""

from __future__ import annotations

import math

import torch

from loraexp.config import ConfigError
from loraexp.machine.progress import Progress
from loraexp.records.curves import Computed, Values
from loraexp.statistics import layer_generator
from loraexp.theory import shifts
from loraexp.theory.bands import band
from loraexp.theory.keywords import keywords
from loraexp.theory.starts import Offset


@keywords
def bias_of_lora_ga(
    d: int,
    outputs: dict[str, int],
    rank: int,
    true_rank: int,
    rows: int,
    offset: Offset,
    seeds: int,
    progress: Progress,
) -> Computed:
    """Appendix F: LoRA-GA learns `A0 B0 + Δ` where others learn Δ, and `‖A0 B0‖_op = √k/c²` grows
    with the outputs k.

    Δ has r* singular values 1, r ≥ r*, the scaling is 1; c is γ (paper) or √γ (released).
    `outputs`: k by name. Values by it: `bias/…`: `‖A0 B0‖_op` of the initializer's factors over
    ‖Δ‖_op; `least/…`: the least that any factors of rank r leave of Δ from that start, `Σ_{i>r}
    s_i²(A0 B0 + Δ)` over ‖Δ‖²_F, and `least without/…` the same without the bias. `slope`: of log
    bias against log k.
    """
    numbers = list(outputs.values())
    if sorted(numbers) != numbers or len(numbers) < 2:
        raise ConfigError(f"outputs={outputs}: expected two numbers or more, the smallest first")
    values: Values = {}
    columns: dict[str, list[list[float]]] = {"bias": [], "least": []}
    for done, (name, k) in enumerate(outputs.items()):
        given = shifts.tasks(seeds, d, k, [1.0] * true_rank, rows)
        bias, least, without = of_start(given, rank, offset)
        values |= {f"bias/{name}": bias, f"least/{name}": least, f"least without/{name}": without}
        columns["bias"].append(bias)
        columns["least"].append(least)
        progress(done + 1, len(outputs))
    ends = [sum(column) / len(column) for column in (columns["bias"][0], columns["bias"][-1])]
    values["slope"] = math.log(ends[1] / ends[0]) / math.log(numbers[-1] / numbers[0])
    labels = {"bias": "‖A0 B0‖ over ‖Δ‖", "least": "least share of Δ that is missed"}
    curves = [
        band(name, labels[name], numbers, torch.tensor(found)) for name, found in columns.items()
    ]
    axes = {name: {"x": "outputs k", "y": labels[name], "x_scale": "log"} for name in columns}
    return Computed(values=values, curves=curves, axes=axes)


def of_start(
    given: shifts.Tasks, rank: int, offset: Offset
) -> tuple[list[float], list[float], list[float]]:
    """By seed: the offset's size, and what rank-r factors must leave of Δ with it and without."""
    bias, least, without = [], [], []
    for i, layer in enumerate(given.layers()):
        product = offset.start(layer, layer_generator(i, layer.name), rank=rank).product()
        shift = given.left[i] @ given.right[i]
        whole = shift.square().sum()
        bias.append(float(torch.linalg.matrix_norm(product, 2)))
        least.append(float(torch.linalg.svdvals(product + shift)[rank:].square().sum() / whole))
        without.append(float(torch.linalg.svdvals(shift)[rank:].square().sum() / whole))
    return bias, least, without
