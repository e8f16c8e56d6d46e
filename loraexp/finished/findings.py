"""What `loraexp align` measures of a run, as it stands in `align.json`."""

from __future__ import annotations

from typing import NotRequired, TypeAlias, TypedDict

# class of layers, or layer → `A`, `A_mean`, `A_overlap`, and the same of B; None where B is zero
ByFactor: TypeAlias = dict[str, dict[str, float | None]]


class KeptStep(TypedDict):
    step: int
    classes: ByFactor
    layers: ByFactor


class Angles(TypedDict):
    """Between the factors and the one-step gradient of `rows` rows, at every kept step."""

    directions: int
    rows: int
    steps: list[KeptStep]


class Distance(TypedDict):
    step: int
    rms: float
    relative: float  # 1: as far as the pretrained weights' predictions


class Predictions(TypedDict):
    """How far the predictions are from full fine-tuning's."""

    pretrained_rms: float
    steps: list[Distance]


class Way(TypedDict):
    t: list[float]
    loss: list[float]


class Plane(TypedDict):
    x: list[float]
    y: list[float]
    loss: list[list[float]]
    points: dict[str, list[float]]  # pretrained, run, full


class Losses(TypedDict):
    """On the way from the pretrained weights to the run's, and over the plane with a full run's."""

    split: str
    rows: int
    line: Way
    plane: NotRequired[Plane]


class Alignment(TypedDict):
    run: str
    init: str
    against: str | None
    angles: NotRequired[Angles]
    predictions: NotRequired[Predictions]
    loss: Losses
