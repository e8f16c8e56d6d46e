"""One pure function per file: `(layer, *, rank, scaling, generator, **hyper_parameters) ->
Factors`."""

from loraexp.adapter.layer import (
    Curvature,
    CurvatureRequest,
    Factors,
    Layer,
    LeadingRequest,
    MissingStatistic,
    needs,
)

__all__ = [
    "Curvature",
    "CurvatureRequest",
    "Factors",
    "Layer",
    "LeadingRequest",
    "MissingStatistic",
    "needs",
]
