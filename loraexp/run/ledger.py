"""The ledger of an initialisation: what each layer's factors hold of what the initializer saw, and
what they start from."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from loraexp.adapter.layer import Factors, Layer

if TYPE_CHECKING:
    from loraexp.config.settings import Settings

# share of an update's energy that bf16 weights may lose before it is worth a warning
BF16_LOSS = 0.1


ROWS = 1024  # of a weight that are looked at together in float32
SHOWN = 8  # singular values of a layer's line


def describe(layer: Layer, made: Factors, scaling: float, settings: Settings) -> dict[str, Any]:
    """A layer's line in the ledger: size of `η B0 A0` against `W0`, its spectrum, the energy that
    rank r holds. All of it is read from the device at once.

    Raises FloatingPointError where a factor is not finite.
    """
    basis_A, triangle_A = torch.linalg.qr(made.A.float().mT)
    basis_B, triangle_B = torch.linalg.qr(made.B.float())
    middle = triangle_B if made.R is None else triangle_B @ made.R.float()
    # a factor that is not finite is found below, after this
    small = (scaling * middle @ triangle_A.mT).nan_to_num()
    factors = {"A": made.A, "B": made.B} | ({} if made.R is None else {"R": made.R})
    held, bf16 = energy(layer, made, basis_A, basis_B), settings.precision == "bf16"
    wanted: dict[str, Tensor] = {name: x.isfinite().all().float() for name, x in factors.items()}
    wanted |= {"W": norm(layer.W), "update": small.norm()}
    wanted |= {} if held is None else {"share": held[1]}
    wanted |= {"bf16": bf16_loss(layer, made, scaling)} if bf16 else {}
    values = torch.cat([torch.stack(list(wanted.values())), small.flatten()]).cpu()
    read = dict(zip(wanted, values[: len(wanted)].tolist(), strict=True))
    spectrum: list[float] = torch.linalg.svdvals(values[len(wanted) :].view_as(small)).tolist()
    refuse_not_finite(layer, [name for name in factors if not read[name]], settings)
    moved = spectrum[0] > 0
    line: dict[str, Any] = {
        "shape": [layer.d_out, layer.d_in],
        "rank": made.A.shape[0],
        "start": made.start,
        "trains": sorted(made.train),
        "relative_norm": read["update"] / read["W"] if read["W"] else None,
        "singular_values": spectrum[:SHOWN],
        "energy": {"of": held[0], "share": read["share"]} if held and moved else None,
    }
    if bf16 and moved:
        line["bf16_merge_loss"] = read["bf16"]
        warn_of_loss(layer, read["bf16"])
    if "curvature" in layer.statistics and layer.curvature.notes:
        line["notes"] = list(layer.curvature.notes)
    return line


def refuse_not_finite(layer: Layer, names: list[str], settings: Settings) -> None:
    if names:
        raise FloatingPointError(
            f"init={settings.init['name']}: {names[0]} of layer {layer.name} is not finite: use"
            " more init.samples, or damping"
        )


def energy(
    layer: Layer, made: Factors, basis_A: Tensor, basis_B: Tensor
) -> tuple[str, Tensor] | None:
    """How much of what the initializer saw rank r can hold: of what, and the share.

    Gradient: `‖Π_B G Π_A‖² / ‖G‖²` with the projectors on the columns of B and the rows of A, or
    from its leading triplets `Σ_{i≤r} s_i² / ‖G‖²`. Curvature: the share of `tr S · tr T` in the
    first r eigenvalues. Without any of these, the weight. None where the whole was never held.
    """
    seen, rank = layer.statistics, made.A.shape[0]
    if "leading_gradient" in seen:
        if "gradient_norm" not in seen:
            return None
        held = seen["leading_gradient"].S[:rank].square().sum()
        return "gradient", held / seen["gradient_norm"].square().clamp_min(1e-45)
    if "curvature" in seen:
        found = layer.curvature
        if not found.damping_S or not found.damping_T:
            return None
        share_S = found.D_S[:rank].sum() / (found.damping_S * layer.d_in)
        share_T = found.D_T[:rank].sum() / (found.damping_T * layer.d_out)
        return "curvature", share_S * share_T
    name = next((k for k in ("gradient", "summed_gradient") if k in seen), "weight")
    whole = (layer.W if name == "weight" else seen[name]).float()
    inside = (basis_B.mT @ whole @ basis_A).square().sum()
    return name, inside / whole.square().sum().clamp_min(1e-45)


def bf16_loss(layer: Layer, made: Factors, scaling: float) -> Tensor:
    """Share of the energy of `η B0 A0` that is lost when it is added to the weight in bf16; some
    rows at a time, without the whole update in float32."""
    A = made.A if made.R is None else made.R @ made.A
    lost = whole = torch.zeros((), device=layer.W.device)
    for W, B in zip(layer.W.split(ROWS), made.B.split(ROWS), strict=True):
        update = scaling * (B @ A).float()
        exact = W.float() + update
        lost = lost + (exact.bfloat16().float() - exact).square().sum()
        whole = whole + update.square().sum()
    return lost / whole


def norm(W: Tensor) -> Tensor:
    """The Frobenius norm in float32, of a narrower matrix without a copy of it."""
    size: Tensor = torch.linalg.vector_norm(W, dtype=torch.float32)
    return size


def warn_of_loss(layer: Layer, lost: float) -> None:
    if lost > BF16_LOSS:
        warnings.warn(
            f"layer {layer.name}: merged into bf16 weights the initial update would lose {lost:.0%}"
            " of its energy; keep the adapter apart (as the run does), or export with a float32"
            " base",
            stacklevel=3,
        )
