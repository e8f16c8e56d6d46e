"""Metrics against values worked out by hand, and what they say where nothing can be said."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from evaluate import Metric

from loraexp.scoring import metrics
from loraexp.tasks.classification import METRICS

# TP 3, FN 1, FP 2, TN 4
REFERENCES = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
PREDICTIONS = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", 7 / 10),
        ("matthews_correlation", (3 * 4 - 2 * 1) / math.sqrt(5 * 4 * 6 * 5)),
        ("f1", 2 * 3 / (2 * 3 + 2 + 1)),
        ("macro_f1", (6 / 9 + 8 / 11) / 2),
    ],
)
def test_label_metrics_by_hand(name: str, expected: float) -> None:
    assert metrics.compute([name], PREDICTIONS, REFERENCES) == {
        name: pytest.approx(expected, abs=1e-12)
    }


def test_macro_f1_of_three_classes_by_hand() -> None:
    references, predictions = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])
    expected = (2 / 4 + 4 / 5 + 0) / 3
    assert metrics.compute(["macro_f1"], predictions, references)["macro_f1"] == pytest.approx(
        expected
    )


def test_correlations_by_hand() -> None:
    predictions, references = (
        np.array([0.0, 1.0, 2.0, 7.0], dtype=np.float32),
        np.array([1.0, 0.0, 2.0, 3.0]),
    )
    values = metrics.compute(["pearson", "spearmanr"], predictions, references)
    x, y = predictions - 2.5, references - 1.5
    assert values["pearson"] == pytest.approx(
        float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))
    )
    assert values["spearmanr"] == pytest.approx(1 - 6 * 2 / (4 * 15))  # ranks differ by 1 twice


def test_spearman_gives_ties_their_mean_rank() -> None:
    values = metrics.compute(["spearmanr"], np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]))
    # ranks (1.5, 1.5, 3) against (1, 2, 3)
    assert values["spearmanr"] == pytest.approx(math.sqrt(3) / 2)


@pytest.mark.parametrize("name", ["matthews_correlation", "pearson", "spearmanr"])
@pytest.mark.parametrize("constant", ["predictions", "references"])
def test_a_constant_correlates_with_nothing(name: str, constant: str) -> None:
    flat, varied = np.ones(4, dtype=np.int64), np.array([0, 1, 1, 0])
    pair = (flat, varied) if constant == "predictions" else (varied, flat)
    value = metrics.compute([name], *pair)
    assert json.loads(json.dumps(value, allow_nan=False)) == {name: 0.0}


def test_f1_without_positives_is_zero_and_all_wrong_is_minus_one() -> None:
    zeros = np.zeros(3, dtype=np.int64)
    assert metrics.compute(["f1"], zeros, zeros) == {"f1": 0.0}
    assert (
        metrics.compute(["matthews_correlation"], 1 - REFERENCES, REFERENCES)[
            "matthews_correlation"
        ]
        == -1.0
    )


def test_the_names_a_task_may_ask_for_are_the_metrics_there_are() -> None:
    assert set(metrics.METRICS) == {name for names in METRICS.values() for name in names}
    assert all(issubclass(metric, Metric) for metric in metrics.METRICS.values())


def test_global_random_states_are_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]  # noqa: NPY002
    metrics.compute(["accuracy"], PREDICTIONS, REFERENCES)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]  # noqa: NPY002


def test_a_task_module_does_not_import_evaluate() -> None:
    heavy = (
        "[m for m in ('evaluate', 'sklearn', 'pandas', 'datasets', 'transformers') if m in"
        " sys.modules]"
    )
    code = (
        "import sys, loraexp.tasks.glue, loraexp.tasks.labelled_csv, loraexp.machine.hub;"
        f" print({heavy})"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "[]"
    )
