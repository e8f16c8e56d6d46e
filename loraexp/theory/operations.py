"""The extra operations of LoRA-Pro over LoRA-One, counted while they run, beside the formula in
print.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from loraexp.adapter.adapted import attach
from loraexp.adapter.layer import Factors
from loraexp.machine.progress import Progress
from loraexp.optimizers.lora_pro import equivalent_gradients, lora_pro
from loraexp.records.curves import Computed, Curve, Values

MEGA = 1e6


def printed(d_in: int, d_out: int, rank: int) -> float:
    """`10 d r² + 6 k r² + 155 r³/6` (LoRA-One, line 324)."""
    return 10 * d_in * rank**2 + 6 * d_out * rank**2 + 155 * rank**3 / 6


def pair(d_in: int, d_out: int, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A, B and their gradients, of random numbers."""
    g = torch.Generator().manual_seed(rank)
    shapes = ((rank, d_in), (d_out, rank), (rank, d_in), (d_out, rank))
    A, B, grad_A, grad_B = (torch.randn(*shape, generator=g) for shape in shapes)
    return A, B, grad_A, grad_B


def batched(_: Sequence[int], left: Sequence[int], right: Sequence[int], **unused: object) -> int:
    """Operations of a batch of products of those shapes, added to what is there."""
    count, rows, inner = left
    return 2 * count * rows * inner * right[-1]


def counter() -> FlopCounterMode:
    """torch's, which leaves out products that are added in place."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: batched})


def counted_rule(d_in: int, d_out: int, rank: int) -> int:
    """Operations of the matrix products in `equivalent_gradients`: an addition and a multiplication
    are two.
    """
    factors = pair(d_in, d_out, rank)
    with counter() as counted:
        equivalent_gradients(*factors, scaling=2.0, damping=1e-6)
    return counted.get_total_flops()


def counted_step(d_in: int, d_out: int, rank: int) -> int:
    """The same of a whole step of LoRA-Pro with AdamW, which forms the d_out x d_in equivalent
    gradient and goes back.
    """
    A, B, grad_A, grad_B = pair(d_in, d_out, rank)
    model = nn.Sequential(nn.Linear(d_in, d_out, bias=False))
    adapters = attach(model, {"0": Factors(A=A, B=B, start="shifted")}, 2.0)
    optimizer = lora_pro(adapters, lr=1e-3, weight_decay=0.0)
    layer = next(iter(adapters))
    layer.lora_A.grad, layer.lora_B.grad = grad_A, grad_B
    with counter() as counted:
        optimizer.step()
    return counted.get_total_flops()


def lora_pro_operations(
    layers: dict[str, list[int]], ranks: list[int], tokens: int, progress: Progress
) -> Computed:
    """Operations that LoRA-Pro adds to a training step of LoRA-One, per pair of matrices (LoRA-One,
    section 6.1).

    `layers`: `[d_in, d_out]` by name. Only matrix products are counted: the r x r decompositions,
    which the printed `155 r³/6` is for, are not. AdamW, which both have, has no products. Values by
    `<layer>_<rank>`, in 10⁶: `/printed`, `/rule` (the closed form of the gradients), `/step` (the
    whole of its AdamW form); `/ratio`: rule over printed; `/share`: the whole over the products of
    one forward and backward pass of the frozen layer and the pair for `tokens`.
    """
    values: Values = {}
    curves = []
    for done, (name, (d_in, d_out)) in enumerate(layers.items()):
        found: list[tuple[float, float, float]] = []
        for rank in ranks:
            formula, rule, step = (
                printed(d_in, d_out, rank),
                counted_rule(d_in, d_out, rank),
                counted_step(d_in, d_out, rank),
            )
            # forward and gradient of the input: 2 products of each; the pair's own gradients: a
            # third of its factors
            training = tokens * (4 * d_in * d_out + 6 * rank * (d_in + d_out))
            row = f"{name}_{rank}"
            values |= {
                f"{row}/printed": formula / MEGA,
                f"{row}/rule": rule / MEGA,
                f"{row}/step": step / MEGA,
            }
            values |= {f"{row}/ratio": rule / formula, f"{row}/share": step / training}
            found.append((formula / MEGA, rule / MEGA, step / MEGA))
        columns = zip(*found, strict=True)
        labels = ("printed", "counted, closed form", "counted, AdamW form")
        curves += [
            Curve(panel=name, label=label, x=ranks, y=list(y))
            for label, y in zip(labels, columns, strict=True)
        ]
        progress(done + 1, len(layers))
    axes = {
        name: {"x": "rank", "y": "operations (10⁶)", "x_scale": "log", "y_scale": "log"}
        for name in layers
    }
    return Computed(values=values, curves=curves, axes=axes)
