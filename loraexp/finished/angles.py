"""Diagnostics of a finished run: its factors against the one-step gradient, its predictions against
full fine-tuning's, and the loss between the pretrained weights and its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from loraexp import models
from loraexp.adapter.adapted import Adapters
from loraexp.adapter.formats import load_raw
from loraexp.adapter.layer import Factors, LeadingRequest, needs
from loraexp.adapter.linalg import SVD
from loraexp.config import ConfigError
from loraexp.config.settings import Settings
from loraexp.finished.findings import ByFactor, Distance, Losses, Plane, Predictions, Way
from loraexp.finished.opened import RAW, FinishedRun, usable
from loraexp.machine.device import autocast
from loraexp.run.batches import count_labels
from loraexp.run.initialise import statistics_of
from loraexp.scoring.passes import each

ITERATIONS = 8  # subspace iterations for the gradient's leading singular vectors


# --------------------------------------------------------------------------------------------------
# angles


def sines(X: Tensor, Y: Tensor) -> Tensor:
    """Sines of the principal angles between the column spaces of X, Y (d, k), both orthonormal; the
    largest first.

    The singular values of `(I − Y Yᵀ) X`; the first is `‖Y_⊥ᵀ X‖_op`, the principal angle of
    LoRA-One's figures 1 and 2.
    """
    sines: Tensor = torch.linalg.svdvals(X - Y @ (Y.mT @ X))
    return sines.clamp(0, 1)


def overlap(angles: Tensor) -> float:
    """‖P_X P_Y‖²_F / k of two subspaces from the k sines of their principal angles: the mean
    squared cosine."""
    return float((1 - angles.square()).mean())


def leading_subspace(factor: Tensor, k: int) -> Tensor | None:
    """The leading k left singular vectors (d, k) of a factor (d, r); None where it has fewer
    directions than that (B = 0)."""
    U: Tensor
    U, S, _ = torch.linalg.svd(factor.double(), full_matrices=False)
    if k > len(S) or not S[k - 1] > S[0] * max(factor.shape) * torch.finfo(torch.float32).eps:
        return None
    return U[:, :k]


def one_step_gradient(subject: FinishedRun, model: nn.Module, rows: int, k: int) -> dict[str, SVD]:
    """The leading k singular triplets, layer by layer, of the gradient of the mean loss over `rows`
    training rows at W0."""

    @needs(
        "leading_gradient",
        request=lambda rank, **_: {"leading_gradient": LeadingRequest(k, max(k, 8), ITERATIONS)},
    )
    def gradient() -> Factors:
        raise NotImplementedError  # it is asked for its statistic alone

    own = dataclasses.replace(
        subject.settings.calibration, samples=rows, rows="shuffled", mode="eval"
    )
    settings = dataclasses.replace(subject.settings, calibration=own)
    collected = statistics_of(
        model,
        subject.targets(model),
        partial(gradient),
        subject.task,
        settings,
        subject.runtime,
    )
    return {
        layer.name: SVD(*(x.cpu() for x in layer.statistics["leading_gradient"]))
        for layer in collected.layers
    }


def kept_factors(subject: FinishedRun) -> Iterator[tuple[int, Path]]:
    """(step, file) of the factors at the start, of those kept on the way, and of the saved
    adapter."""
    if (subject.folder / "init" / RAW).exists():
        yield 0, subject.folder / "init" / RAW
    kept = {int(path.stem): path for path in (subject.folder / "factors").glob("*.safetensors")}
    yield from sorted(({subject.last_step: subject.folder / "adapter" / RAW} | kept).items())


def angles(subject: FinishedRun, gradient: Mapping[str, SVD], path: Path, k: int) -> ByFactor:
    """Layer → `A`, `B`: sine of the largest principal angle between the leading k directions of a
    factor and of the gradient; `A_mean`, `B_mean`: the mean over the k angles; `A_overlap`,
    `B_overlap`: ‖P_A P_G‖²_F / k, the mean squared cosine, 0 of orthogonal subspaces, 1 of equal
    ones, k/d of random ones. A meets the gradient's inputs, B its outputs; None where B is zero."""
    found: ByFactor = {}
    with usable(path), safe_open(path, framework="pt") as file:
        for name, seen in gradient.items():
            pairs = {
                "A": (file.get_tensor(f"{name}.lora_A").mT, seen.Vh.mT),
                "B": (file.get_tensor(f"{name}.lora_B"), seen.U),
            }
            found[name] = {}
            for factor, (values, directions) in pairs.items():
                basis = leading_subspace(values, k)
                measured = None if basis is None else sines(basis, directions[:, :k].double())
                found[name][factor] = None if measured is None else float(measured[0])
                found[name][f"{factor}_mean"] = None if measured is None else float(measured.mean())
                found[name][f"{factor}_overlap"] = None if measured is None else overlap(measured)
    return found


def layer_class(name: str) -> str:
    """What layers of one kind share: the last part of their name (`query`, `wi`)."""
    return name.rpartition(".")[2]


def by_class(
    layers: Mapping[str, Mapping[str, float | None]],
) -> ByFactor:
    """Means over the layers of each class, and over all of them under `mean`."""
    classes: dict[str, list[Mapping[str, float | None]]] = {}
    for name, values in layers.items():
        classes.setdefault(layer_class(name), []).append(values)
    classes["mean"] = list(layers.values())
    return {
        name: {key: mean([v[key] for v in values]) for key in values[0]}
        for name, values in classes.items()
    }


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# --------------------------------------------------------------------------------------------------
# predictions


def prediction_distances(subject: FinishedRun, full: FinishedRun, rows: int) -> Predictions:
    """`‖f_full − f‖` over held-out inputs, the quantity that CG-LoRA keeps small: at the pretrained
    weights and at every kept step.

    `rms` is per logit; `relative` is in units of ‖f_full − f_0‖: 1 is as far away as the pretrained
    model, 0 the same predictions. f_0 has the run's own new head.
    """
    _, batches = subject.batches(rows)
    reference = full.whole()
    model = subject.base()
    head = head_of(model, subject.settings)
    states = list(kept_factors(subject))
    adapters = load_raw(model, states[-1][1])
    slider = Slider(adapters, head)

    def squares(batch: dict[str, Tensor]) -> tuple[int, list[float]]:
        """The logits of a batch, and ‖f_full − f‖² over them: of the pretrained weights, and of
        every kept step."""
        wanted = outputs(full, reference, batch)

        def square_now() -> float:
            return square(outputs(subject, model, batch) - wanted)

        slider.move(0.0)
        found = [square_now()]
        slider.move(1.0)
        for _, path in states:
            put(adapters, path)
            found.append(square_now())
        return count_labels(batch) * wanted.shape[-1], found

    parts = each(model, batches, squares)
    count = sum(logits for logits, _ in parts)
    start, *totals = (sum(column) for column in zip(*(found for _, found in parts), strict=True))
    steps = []
    for (step, _), total in zip(states, totals, strict=True):
        rms, relative = (total / count) ** 0.5, (total / start) ** 0.5
        steps.append(Distance(step=step, rms=rms, relative=relative))
    pretrained_rms = (start / count) ** 0.5
    return Predictions(pretrained_rms=pretrained_rms, steps=steps)


def outputs(subject: FinishedRun, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with autocast(subject.device, subject.settings.precision):
        outputs: Tensor = subject.task.outputs(model, batch)
    return outputs.double()


def put(adapters: Adapters, path: Path) -> None:
    """Set the factors, offsets and head to those of a file of the same run."""
    with torch.no_grad(), usable(path), safe_open(path, framework="pt") as file:
        for name, layer in adapters.layers.items():
            for part in ("lora_A", "lora_B", "lora_R", "offset_A", "offset_B"):
                value = getattr(layer, part)
                if value is not None:
                    value.copy_(file.get_tensor(f"{name}.{part}"))
        for name, parameter in adapters.others.items():
            parameter.copy_(file.get_tensor(f"{name}.weight"))


def head_of(model: nn.Module, settings: Settings) -> dict[str, Tensor]:
    """A copy of the new head's parameters, as the task drew them."""
    return {
        name: p.detach().clone()
        for h in models.head(model)
        for name, p in model.get_submodule(h).named_parameters(prefix=h)
    }


# --------------------------------------------------------------------------------------------------
# the loss between


class Slider:
    """A model at `W0 + a (W_run − W0) + b (W_full − W0)`, both parts optional; the new head moves
    with them."""

    def __init__(
        self, adapters: Adapters, head: Mapping[str, Tensor], full: nn.Module | None = None
    ) -> None:
        self.model = adapters.model
        self.scalings = {name: layer.scaling for name, layer in adapters.layers.items()}
        self.layers = adapters.layers
        own = dict(self.model.named_parameters())
        self.places = {
            name.replace(".base.", "."): own[name] for name in own if ".factors." not in name
        }
        self.origin: dict[str, Tensor] = dict(head)
        self.run = {name: p.detach() - head[name] for name, p in adapters.others.items()}
        self.full: dict[str, Tensor] = {}
        for name, parameter in full.named_parameters() if full is not None else ():
            self.origin.setdefault(name, self.places[name].detach().clone())
            self.full[name] = parameter.detach().to(self.origin[name].dtype) - self.origin[name]

    @torch.no_grad()
    def move(self, a: float, b: float = 0.0) -> None:
        for name, layer in self.layers.items():
            layer.scaling = a * self.scalings[name]
        for name, start in self.origin.items():
            value = start
            if name in self.run:
                value = value + a * self.run[name]
            if name in self.full:
                value = value + b * self.full[name]
            self.places[name].copy_(value)

    def products(self) -> tuple[float, float, float]:
        """`‖Δ_run‖²`, `⟨Δ_run, Δ_full⟩`, `‖Δ_full‖²` over all weights."""
        self.move(1.0)
        run = dict(self.run) | {
            f"{name}.weight": layer.update() for name, layer in self.layers.items()
        }
        inner = [
            float((x.double() * self.full[name]).sum())
            for name, x in run.items()
            if name in self.full
        ]
        return sum(map(square, run.values())), sum(inner), sum(map(square, self.full.values()))


def square(x: Tensor) -> float:
    return float(x.double().square().sum())


def mean_loss(
    subject: FinishedRun, model: nn.Module, batches: Sequence[dict[str, Tensor]]
) -> float:
    def loss(batch: dict[str, Tensor]) -> tuple[float, int]:
        total, labels = subject.task.loss_sum(model, batch)
        return float(total), labels

    with autocast(subject.device, subject.settings.precision):
        parts = each(model, batches, loss)
    return sum(total for total, _ in parts) / sum(labels for _, labels in parts)


def slices(
    subject: FinishedRun, full: FinishedRun | None, rows: int, line: int, plane: int
) -> Losses:
    """The loss on held-out rows along `W0 → W_run` (t = 0 to 1, and as far again half), and over
    the plane with W_full.

    The plane has orthonormal coordinates in the space of all weights: x along `W_run − W0`, y along
    what of `W_full − W0` is orthogonal to it; the three points are in it, and their losses exact.
    """
    split, batches = subject.batches(rows)
    model = subject.base()
    head = head_of(model, subject.settings)
    if subject.has_factors:
        slider = Slider(
            load_raw(model, subject.folder / "adapter" / RAW), head, full.whole() if full else None
        )
    else:
        slider = Slider(Adapters(model, {}, {}), {}, subject.whole())

    def loss(a: float, b: float) -> float:
        slider.move(a, b)
        return mean_loss(subject, model, batches)

    t = [float(x) for x in np.linspace(-0.5, 1.5, line)]
    way = Way(t=t, loss=[loss(x, 0.0) if subject.has_factors else loss(0.0, x) for x in t])
    found = Losses(split=split, rows=sum(len(batch["labels"]) for batch in batches), line=way)
    if full is not None and subject.has_factors:
        found["plane"] = over_plane(slider.products(), loss, plane)
    return found


def over_plane(
    products: tuple[float, float, float], loss: Callable[[float, float], float], points: int
) -> Plane:
    """The loss on a grid around W0 = (0, 0), W_run = (x, 0) and W_full."""
    run, inner, full = products
    along, aside = run**0.5, max(full - inner**2 / run, 0.0) ** 0.5
    if not along or not aside:
        raise ConfigError(
            "--against: the run and the full run moved along one line (or not at all); there is no"
            " plane between them"
        )
    shared = inner / along  # W_full's own x
    x = np.linspace(min(0, shared) - 0.3 * along, max(along, shared) + 0.3 * along, points)
    y = np.linspace(-0.3 * aside, 1.3 * aside, points)
    z = [[loss(u / along - v / aside * shared / along, v / aside) for u in x] for v in y]
    marked = {"pretrained": [0.0, 0.0], "run": [along, 0.0], "full": [shared, aside]}
    return {"x": x.tolist(), "y": y.tolist(), "loss": z, "points": marked}
