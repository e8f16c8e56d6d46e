"""The backward passes of a sweep: the loss, and random probes of the model's outputs."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from loraexp.adapter.layer import CurvatureRequest
from loraexp.adapter.linalg import at_least_float32
from loraexp.statistics.calibration import layer_generator


class Pass(NamedTuple):
    """One backward pass: of the summed loss, or of probe `number` for T ("probe") or Θ
    ("theta")."""

    kind: Literal["loss", "probe", "theta"]
    number: int = 0


LOSS = Pass("loss")


def probe_passes(request: CurvatureRequest) -> tuple[Pass, ...]:
    return tuple(Pass("probe", p) for p in range(request.probes))


def theta_passes(request: CurvatureRequest) -> tuple[Pass, ...]:
    return (
        tuple(Pass("theta", p) for p in range(request.probes))
        if request.loss == "cross_entropy"
        else ()
    )


def probe_sum(outputs: Tensor, which: Pass, loss: str, seed: int, first_sample: int) -> Tensor:
    """`Σ_i z_iᵀ f(x_i)` of the outputs (n, C): its backward pass gives `Σ_c z_ic δ_i^(c)` at every
    layer.

    Outputs (n, L, C) of several label tokens have a z for each of them. A probe belongs to a
    sample's place in the calibration set, so it is the same in every sweep and for every split into
    batches and processes. CG-LoRA section 5 and appendix A: squared loss: z Rademacher, `E[z zᵀ] =
    I` (C = 1: z = 1). Cross-entropy: `z = Ψ z'` for T; for Θ `z = (I − p 1ᵀ) diag(√p) g`, g normal,
    `E[z zᵀ] = diag(p) − p pᵀ`, and `z = √(p(1 − p))` for C = 1.
    """
    values = at_least_float32(outputs.detach())
    classes = values.shape[-1]
    if which.kind == "theta":
        z = _loss_curvature_probe(values, draw(values, which, seed, first_sample, normal=True))
    elif classes == 1:
        z = torch.ones_like(values)
    elif loss == "cross_entropy":
        z = _centred(draw(values[..., 1:], which, seed, first_sample, normal=False))
    else:
        z = draw(values, which, seed, first_sample, normal=False)
    return (z.to(outputs.dtype) * outputs).sum()


def draw(like: Tensor, which: Pass, seed: int, first_sample: int, normal: bool) -> Tensor:
    """Normal or Rademacher numbers, each sample from a generator of its own; of outputs (n, L, C),
    each label token too.

    So a token's numbers do not depend on how far its batch is padded.
    """
    if like.is_meta:
        return torch.empty_like(like)  # of outputs without numbers
    rows = []
    for sample in range(first_sample, first_sample + len(like)):
        name = f"{which.kind} {which.number} {sample}"
        tokens = (
            [name] if like.dim() == 2 else [f"{name} {token}" for token in range(like.shape[1])]
        )
        drawn = [
            _numbers(like.shape[-1:], layer_generator(seed, token, "probe"), like.dtype, normal)
            for token in tokens
        ]
        rows.append(drawn[0] if like.dim() == 2 else torch.stack(drawn))
    return torch.stack(rows).to(like.device, non_blocking=True)


def _numbers(
    shape: torch.Size, generator: torch.Generator, dtype: torch.dtype, normal: bool
) -> Tensor:
    if normal:
        return torch.randn(shape, generator=generator, dtype=dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype) * 2 - 1


def _centred(z: Tensor) -> Tensor:
    """`Ψ z` of `z` (..., C−1): Ψ (C, C−1) has orthonormal columns and `Ψᵀ1 = 0`, the last columns
    of a reflection.

    The reflection `I − 2 v vᵀ/vᵀv`, `v = e_1 − 1/√C`, takes `1/√C` to the first axis.
    """
    x = torch.nn.functional.pad(z, (1, 0))
    classes = x.shape[-1]
    v = torch.full((classes,), -(classes**-0.5), dtype=x.dtype, device=x.device)
    v[0] += 1
    return x - (2 / v.dot(v)) * (x @ v).unsqueeze(-1) * v


def _loss_curvature_probe(values: Tensor, g: Tensor) -> Tensor:
    if values.shape[-1] == 1:
        p = torch.sigmoid(values)
        return (p * (1 - p)).sqrt()
    p = torch.softmax(values, -1)
    y = p.sqrt() * g
    return y - p * y.sum(-1, keepdim=True)
