"""The ledger of an initialisation: what each layer's factors hold of what the initializer saw, and
what they start from."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from loraexp.adapter.layer import Factors, Layer

# share of an update's energy that bf16 weights may lose before it is worth a warning
BF16_LOSS = 0.1


def describe(layer: Layer, made: Factors, scaling: float, precision: str) -> dict[str, Any]:
    """A layer's line in the ledger: size of `η B0 A0` against `W0`, its spectrum, the energy that
    rank r holds."""
    _, triangle_A = torch.linalg.qr(made.A.float().mT)
    _, triangle_B = torch.linalg.qr(made.B.float())
    middle = triangle_B if made.R is None else triangle_B @ made.R.float()
    spectrum = scaling * torch.linalg.svdvals(middle @ triangle_A.mT)
    weight_norm = float(torch.linalg.matrix_norm(layer.W.float()))
    line: dict[str, Any] = {
        "shape": [layer.d_out, layer.d_in],
        "rank": made.A.shape[0],
        "start": made.start,
        "trains": sorted(made.train),
        "relative_norm": float(spectrum.norm()) / weight_norm if weight_norm else None,
        "singular_values": [float(s) for s in spectrum[:8]],
        "energy": energy(layer, made) if float(spectrum[0]) > 0 else None,
    }
    if precision == "bf16" and float(spectrum[0]) > 0:
        line["bf16_merge_loss"] = bf16_loss(layer, made, scaling)
    if "curvature" in layer.statistics and layer.curvature.notes:
        line["notes"] = list(layer.curvature.notes)
    return line


def energy(layer: Layer, made: Factors) -> dict[str, Any] | None:
    """How much of what the initializer saw rank r can hold.

    Gradient: `‖Π_B G Π_A‖² / ‖G‖²` with the projectors on the columns of B and the rows of A, or
    from its leading triplets `Σ_{i≤r} s_i² / ‖G‖²`. Curvature: the share of `tr S · tr T` in the
    first r eigenvalues. Without any of these, the weight. None where the whole was never held.
    """
    seen = layer.statistics
    if "leading_gradient" in seen:
        if "gradient_norm" not in seen:
            return None
        held = layer.statistics["leading_gradient"].S[: made.A.shape[0]].square().sum()
        return {
            "of": "gradient",
            "share": float(held / seen["gradient_norm"].square().clamp_min(1e-45)),
        }
    if "curvature" in seen:
        found, rank = layer.curvature, made.A.shape[0]
        if not found.damping_S or not found.damping_T:
            return None
        share_S = float(found.D_S[:rank].sum()) / (found.damping_S * layer.d_in)
        share_T = float(found.D_T[:rank].sum()) / (found.damping_T * layer.d_out)
        return {"of": "curvature", "share": share_S * share_T}
    name = next((k for k in ("gradient", "summed_gradient") if k in seen), "weight")
    whole = (layer.W if name == "weight" else seen[name]).float()
    basis_A, basis_B = torch.linalg.qr(made.A.float().mT).Q, torch.linalg.qr(made.B.float()).Q
    inside = (basis_B.mT @ whole @ basis_A).square().sum()
    return {"of": name, "share": float(inside / whole.square().sum().clamp_min(1e-45))}


def bf16_loss(layer: Layer, made: Factors, scaling: float) -> float:
    """Share of the energy of `η B0 A0` that is lost when it is added to the weight in bf16; warns
    above 10 %."""
    update = scaling * made.product().float()
    exact = layer.W.float() + update
    lost = float((exact.bfloat16().float() - exact).square().sum() / update.square().sum())
    if lost > BF16_LOSS:
        warnings.warn(
            f"layer {layer.name}: merged into bf16 weights the initial update would lose {lost:.0%}"
            " of its energy; keep the adapter apart (as the run does), or export with a float32"
            " base",
            stacklevel=2,
        )
    return lost
