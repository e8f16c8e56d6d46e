"""The backward passes of a sweep: the loss, and random probes of the model's outputs."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

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


LOOKED_AT = 2**23  # numbers of outputs that are looked at in float32 at once


def probe_sum(outputs: Tensor, which: Pass, loss: str, seed: int, first_sample: int) -> Tensor:
    """`Σ_i z_iᵀ f(x_i)` of the outputs (n, C), for its backward pass, which gives `Σ_c z_ic
    δ_i^(c)` at every layer; its value, which nobody reads, is zero.

    Outputs (n, L, C) of several label tokens have a z for each of them. A probe belongs to a
    sample's place in the calibration set, so it is the same in every sweep and for every split into
    batches and processes. CG-LoRA section 5 and appendix A: squared loss: z Rademacher, `E[z zᵀ] =
    I` (C = 1: z = 1). Cross-entropy: `z = Ψ z'` for T; for Θ `z = (I − p 1ᵀ) diag(√p) g`, g normal,
    `E[z zᵀ] = diag(p) − p pᵀ`, and `z = √(p(1 − p))` for C = 1.
    """
    made: Tensor = Probed.apply(outputs, which, loss, seed, first_sample)  # type: ignore[no-untyped-call]
    return made


class Probed(torch.autograd.Function):
    """Draws z where it is wanted, in the backward pass, in the outputs' own dtype and some tokens
    at a time: until then there is nothing beside the outputs, and never a float32 copy of all."""

    @staticmethod
    def forward(
        ctx: Any, outputs: Tensor, which: Pass, loss: str, seed: int, first_sample: int
    ) -> Tensor:
        if which.kind == "theta":  # the only one that looks at values
            ctx.save_for_backward(outputs)
        else:
            ctx.like = outputs.shape, outputs.dtype, outputs.device
        ctx.given = which, loss, seed
        ctx.first_sample = first_sample
        return outputs.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        outputs: Tensor
        if ctx.saved_tensors:
            (outputs,) = ctx.saved_tensors
        else:
            shape, dtype, device = ctx.like
            outputs = torch.empty((), dtype=dtype, device=device).expand(shape)
        z = torch.empty(outputs.shape, dtype=outputs.dtype, device=outputs.device)
        which, loss, seed = ctx.given
        if z.dim() == 2:
            z.copy_(_probe(outputs, which, loss, seed, ctx.first_sample))
            return z.mul_(gradients[0]), None, None, None, None
        step = max(1, LOOKED_AT // z.shape[-1])
        for sample in range(len(z)):
            for start in range(0, z.shape[1], step):
                part = slice(sample, sample + 1), slice(start, start + step)
                z[part] = _probe(outputs[part], which, loss, seed, ctx.first_sample + sample, start)
        return z.mul_(gradients[0]), None, None, None, None


def _probe(
    outputs: Tensor, which: Pass, loss: str, seed: int, first_sample: int, first_token: int = 0
) -> Tensor:
    """z of some outputs, in float32 or better."""
    place = which, seed, first_sample, first_token
    if which.kind == "theta":
        values = at_least_float32(outputs)
        return _loss_curvature_probe(values, draw(values, *place, normal=True))
    like = torch.empty((), dtype=at_least_float32(outputs[:0]).dtype, device=outputs.device)
    if outputs.shape[-1] == 1:
        return torch.ones_like(like).expand(outputs.shape)
    if loss == "cross_entropy":
        return _centred(draw(like.expand(outputs[..., 1:].shape), *place, normal=False))
    return draw(like.expand(outputs.shape), *place, normal=False)


def draw(
    like: Tensor,
    which: Pass,
    seed: int,
    first_sample: int,
    first_token: int = 0,
    *,
    normal: bool,
) -> Tensor:
    """Normal or Rademacher numbers, each sample from a generator of its own; of outputs (n, L, C),
    each label token too, the first of them its sample's `first_token`-th.

    So a token's numbers do not depend on how far its batch is padded.
    """
    if like.is_meta:
        return torch.empty(like.shape, dtype=like.dtype, device=like.device)  # without numbers
    rows = []
    for sample in range(first_sample, first_sample + len(like)):
        name = f"{which.kind} {which.number} {sample}"
        tokens = (
            [name]
            if like.dim() == 2
            else [f"{name} {first_token + token}" for token in range(like.shape[1])]
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
