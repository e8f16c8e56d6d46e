"""The adapted linear layer, and the set of them in a model.

`y = W0 x + η B R A x − η B0 A0 x`: the last term, the offset, is there only when training starts at
the pretrained weight although `B0 A0` is not zero. It is kept as a frozen low-rank pair and never
edited into the weight: exact in bf16, possible on a quantised base, and saved as `[A; A0]`, `[B,
−B0]`, an ordinary LoRA of twice the rank that loads on the original checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from loraexp.adapter.layer import Factors
from loraexp.adapter.low_rank import LowRank, LowRankProduct, add_product

Scaling = Literal["lora", "rslora"]


def scaling_factor(rule: Scaling, alpha: float, rank: int) -> float:
    """η: `α/r` for LoRA (Hu et al. 2022), `α/√r` for rsLoRA (Kalajdzievski 2023)."""
    if rule == "lora":
        return alpha / rank
    if rule == "rslora":
        return float(alpha / rank**0.5)
    raise ValueError(f"adapter.scaling={rule!r}: expected lora or rslora")


class AdaptedLinear(nn.Module):
    """A frozen linear layer with a trained low-rank update beside it.

    The products run in the dtype of the input (or of autocast), so a bf16 base costs bf16 time, and
    the float32 factors still move by less than a bf16 step.
    """

    def __init__(
        self, base: nn.Module, factors: Factors, scaling: float, name: str, dropout: float = 0.0
    ) -> None:
        super().__init__()
        d_out, d_in = base.out_features, base.in_features
        if factors.A.shape[1] != d_in or factors.B.shape[0] != d_out:
            raise ValueError(
                f"layer {name}: factors A {tuple(factors.A.shape)}, B {tuple(factors.B.shape)} do"
                f" not fit a weight of shape ({d_out}, {d_in}): expected A (r, {d_in}) and B"
                f" ({d_out}, r)"
            )
        self.base = base.requires_grad_(False)
        self.factors = LowRank(factors, next(base.parameters()).device)
        self.scaling = scaling
        self.dropout = dropout
        self.name = name

    @property
    def lora_A(self) -> nn.Parameter:
        return self.factors.lora_A

    @property
    def lora_B(self) -> nn.Parameter:
        return self.factors.lora_B

    @property
    def lora_R(self) -> nn.Parameter | None:
        return self.factors.lora_R

    @property
    def offset_A(self) -> Tensor | None:
        return self.factors.offset_A

    @property
    def offset_B(self) -> Tensor | None:
        return self.factors.offset_B

    @property
    def weight(self) -> Tensor:
        """The frozen weight: models look at its dtype (T5 does before its last projection)."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def rank(self) -> int:
        return self.lora_A.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """`x` (..., d_in) → (..., d_out)."""
        y: Tensor = self.base(x).contiguous()
        # one mask for factors and offset: at step 0 they cancel with it as without
        if self.dropout and self.training:
            x = functional.dropout(x, self.dropout)
        x, factors = x.to(y.dtype), self.factors
        pair = factors.pair(y.dtype)
        if not torch.is_grad_enabled():
            add_product(y, x.reshape(-1, x.shape[-1]), pair, self.scaling)
            return y
        if pair.A is factors.lora_A:
            # nothing was cast or joined: autograd's own products cost the host least
            rows = y.flatten(0, -2)
            low = x.flatten(0, -2) @ pair.A.mT
            return torch.addmm(rows, low, pair.B.mT, alpha=self.scaling).view(y.shape)
        given = factors.lora_A, factors.lora_B, factors.lora_R
        added: Tensor = LowRankProduct.apply(y, x, *given, pair, self.scaling)  # type: ignore[no-untyped-call]
        return added

    def plain_pair(self) -> tuple[Tensor, Tensor]:
        """The whole update as one ordinary LoRA pair on the original weight: `[A; A0]` and `[B R,
        −B0]`, float32."""
        A, B = self.lora_A.detach(), self.lora_B.detach()
        if self.lora_R is not None:
            B = B @ self.lora_R.detach()
        if self.offset_A is not None and self.offset_B is not None:
            A, B = torch.cat([A, self.offset_A]), torch.cat([B, -self.offset_B], dim=1)
        return A, B

    def update(self) -> Tensor:
        """`η (B R A − B0 A0)` (d_out, d_in), dense."""
        A, B = self.plain_pair()
        return self.scaling * (B @ A)

    def extra_repr(self) -> str:
        return (
            f"rank={self.rank}, scaling={self.scaling:.4g}, R={self.lora_R is not None},"
            f" offset={self.offset_A is not None}"
        )


def whole(x: Tensor) -> Tensor:
    """All of a tensor that processes share in pieces (FSDP); every process must ask."""
    shared: Any = x
    return shared.full_tensor() if shared_out(x) else x


def shared_out(x: Tensor) -> bool:
    """Whether processes hold it in pieces; asked without importing what only they need, which takes
    half a second."""
    return type(x).__name__ == "DTensor"


def in_pieces(tensors: Iterable[Tensor]) -> bool:
    """Whether any is held in pieces: of a model's weights, that processes need each other for a
    forward pass."""
    return any(map(shared_out, tensors))


def local(x: Tensor) -> Tensor:
    """This process's piece of such a tensor, the same memory; all of one that is not in pieces."""
    shared: Any = x
    return shared.to_local() if shared_out(x) else x


def kept_here(x: Tensor) -> bool:
    """Whether this process keeps the whole of a tensor in a checkpoint: of one in pieces, the first
    does."""
    shared: Any = x
    return not shared_out(x) or shared.device_mesh.get_rank() == 0


class Adapters:
    """What trains in a model: the adapted layers as (A, B, R) groups, and every other trained
    weight (the new head).

    Optimizers are handed this object, so A and B come as pairs and nobody searches parameter names.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, AdaptedLinear],
        others: Mapping[str, nn.Parameter],
    ) -> None:
        self.model = model
        self.layers = dict(layers)  # name in the original model → adapted layer
        # name in the original model → parameter: the head, or every weight (init=full)
        self.others = dict(others)

    def __iter__(self) -> Iterator[AdaptedLinear]:
        return iter(self.layers.values())

    def __len__(self) -> int:
        return len(self.layers)

    def named_trainable(self) -> dict[str, nn.Parameter]:
        """Every parameter that trains, adapters first, in a fixed order."""
        named = {
            f"{name}.{factor}": parameter
            for name, layer in self.layers.items()
            for factor, parameter in layer.factors.named_parameters()
            if parameter.requires_grad
        }
        return named | self.others

    def trainable(self) -> list[nn.Parameter]:
        return list(self.named_trainable().values())

    def state(self) -> dict[str, Tensor]:
        """A copy of what trains, on the CPU: what a checkpoint and "the best so far" hold.

        Every process must ask; of what they hold in pieces, the first has the whole and the others
        nothing.
        """
        state = {}
        for name, parameter in self.named_trainable().items():
            value = whole(parameter.detach())
            if kept_here(parameter):
                state[name] = value.cpu().clone()
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave, on every process."""
        named = self.named_trainable()
        here = {name for name, parameter in named.items() if kept_here(parameter)}
        if not here <= state.keys() <= named.keys():
            missing, extra = sorted(here - state.keys()), sorted(state.keys() - named.keys())
            raise ValueError(
                f"the checkpoint does not fit this run: missing {missing[:3]}, not expected"
                f" {extra[:3]}"
            )
        with torch.no_grad():
            for name, parameter in named.items():
                if not shared_out(parameter):
                    parameter.copy_(state[name])
                    continue
                from torch.distributed.tensor import distribute_tensor

                own: Any = parameter
                value = state.get(name, torch.empty(parameter.shape, dtype=parameter.dtype))
                pieces = distribute_tensor(
                    value.to(parameter.device), own.device_mesh, own.placements
                )
                parameter.copy_(pieces)

    def modules(self) -> list[nn.Module]:
        """The modules that hold nothing but what was added: the factors of every layer, and the new
        head."""
        heads = {name.rpartition(".")[0] for name in self.others} if self.layers else set()
        return [layer.factors for layer in self] + [
            self.model.get_submodule(name) for name in sorted(heads)
        ]

    def count(self) -> dict[str, int]:
        """Numbers of parameters: `trainable`, `total`, `adapter`."""
        adapter = {id(p): p.numel() for layer in self for p in layer.factors.parameters()}
        trainable = sum(p.numel() for p in self.trainable())
        total = sum(p.numel() for p in self.model.parameters())
        return {"trainable": trainable, "total": total, "adapter": sum(adapter.values())}


def attach(
    model: nn.Module,
    factors: Mapping[str, Factors],
    scaling: float,
    head: Iterable[str] = (),
    *,
    dropout: float = 0.0,
) -> Adapters:
    """Freeze `model`, put an adapted layer in the place of each named linear layer, and let `head`
    modules train.

    `head` are names of modules that the task added to the model: they have no pretrained weight,
    train in full and are saved with the adapter. Trained weights are float32 whatever the base is.
    """
    model.requires_grad_(False)
    layers: dict[str, AdaptedLinear] = {}
    for name, made in factors.items():
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        layers[name] = AdaptedLinear(getattr(owner, child), made, scaling, name, dropout)
        setattr(owner, child, layers[name])
    others: dict[str, nn.Parameter] = {}
    for module in head:
        others |= dict(
            in_float32(model.get_submodule(module))
            .requires_grad_(True)
            .named_parameters(prefix=module)
        )
    return Adapters(model, layers, others)


def in_float32(module: nn.Module) -> nn.Module:
    """A module with weights of float32 or better, which reads what a body of lower precision gives
    it."""
    if any(p.dtype.itemsize < torch.float32.itemsize for p in module.parameters()):
        module.float().register_forward_pre_hook(_raised)
    return module


def _raised(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments
    )


def train_everything(model: nn.Module) -> Adapters:
    """`init=full`: no adapter, every weight trains."""
    model.requires_grad_(True)
    return Adapters(model, {}, dict(model.named_parameters()))
