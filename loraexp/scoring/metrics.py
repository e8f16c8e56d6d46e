"""The metrics of classification and regression tasks, as `evaluate.Metric` classes computed by
scikit-learn and scipy.

Nothing is asked of the hub. This module imports `evaluate`, which takes more than a second: it is
imported when a run evaluates, not before. Fractions are in 0..1, correlations in −1..1, and every
value is a finite number.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sklearn_metrics

Vector = NDArray[np.generic]


def _info(metric: evaluate.Metric, dtype: str) -> evaluate.MetricInfo:
    features = datasets.Features(
        {"predictions": datasets.Value(dtype), "references": datasets.Value(dtype)}
    )
    return evaluate.MetricInfo(description=metric.__doc__ or "", citation="", features=features)


class _Labels(evaluate.Metric):
    """A metric over class indices: `predictions` and `references` (n,)."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(self, "int64")


class _Scores(evaluate.Metric):
    """A metric over real scores: `predictions` and `references` (n,)."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(self, "float64")


class Accuracy(_Labels):
    """The fraction of rows whose class is right."""

    def _compute(self, predictions: Vector, references: Vector) -> dict[str, float]:
        return {"accuracy": float(sklearn_metrics.accuracy_score(references, predictions))}


class MatthewsCorrelation(_Labels):
    """Matthews' correlation of classes; 0 where all predictions, or all references, are one
    class."""

    def _compute(self, predictions: Vector, references: Vector) -> dict[str, float]:
        if np.ptp(predictions) == 0 or np.ptp(references) == 0:  # of which scikit-learn would warn
            return {"matthews_correlation": 0.0}
        value = sklearn_metrics.matthews_corrcoef(references, predictions)
        return {"matthews_correlation": float(value)}


class F1(_Labels):
    """F1 of class 1, `2 TP / (2 TP + FP + FN)`; 0 where class 1 is neither predicted nor there."""

    def _compute(self, predictions: Vector, references: Vector) -> dict[str, float]:
        value = sklearn_metrics.f1_score(
            references, predictions, pos_label=1, average="binary", zero_division=0.0
        )
        return {"f1": float(value)}


class MacroF1(_Labels):
    """The mean of the classes' F1, over the classes that are predicted or there."""

    def _compute(self, predictions: Vector, references: Vector) -> dict[str, float]:
        value = sklearn_metrics.f1_score(
            references, predictions, average="macro", zero_division=0.0
        )
        return {"macro_f1": float(value)}


class Pearson(_Scores):
    """Pearson's correlation of scores; 0 where either side is constant."""

    def _compute(self, predictions: Vector, references: Vector) -> dict[str, float]:
        return {"pearson": _correlation(stats.pearsonr, predictions, references)}


class Spearman(_Scores):
    """Spearman's rank correlation of scores, ties at their mean rank; 0 where either side is
    constant."""

    def _compute(self, predictions: Vector, references: Vector) -> dict[str, float]:
        return {"spearmanr": _correlation(stats.spearmanr, predictions, references)}


def _correlation(
    correlate: Callable[[Vector, Vector], Any], predictions: Vector, references: Vector
) -> float:
    # A constant has no correlation (0/0). It is reported as 0, "explains nothing", as Matthews' is
    # by convention: a model that has not learnt yet is an honest result, and JSON has no NaN.
    if len(predictions) < 2 or np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return 0.0
    return float(correlate(predictions, references).statistic)


METRICS: dict[str, type[evaluate.Metric]] = {
    "accuracy": Accuracy,
    "matthews_correlation": MatthewsCorrelation,
    "f1": F1,
    "macro_f1": MacroF1,
    "pearson": Pearson,
    "spearmanr": Spearman,
}


def compute(names: Sequence[str], predictions: Vector, references: Vector) -> dict[str, float]:
    """The named metrics of `predictions` (n,) against `references` (n,)."""
    values: dict[str, float] = {}
    # evaluate insists on a folder, which keep_in_memory leaves empty
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            metric = METRICS[name](keep_in_memory=True, cache_dir=scratch)
            values |= metric.compute(predictions=predictions, references=references)
    return values
