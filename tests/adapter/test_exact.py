"""A decomposition that does not converge on its device is LAPACK's in float64, and it is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loraexp.adapter.linalg import exact
from tests.support.runs import run


def stubborn(decompose: Callable[..., Any]) -> Callable[..., Any]:
    """It, which converges in float64 alone."""

    def tried(matrix: torch.Tensor, **how: Any) -> Any:
        if matrix.dtype != torch.float64:
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return decompose(matrix, **how)

    tried.__name__ = decompose.__name__
    return tried


def test_the_fall_back_is_the_decomposition_and_is_said() -> None:
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="5 × 7 matrix did not converge on cpu .*float64"):
        found = exact(stubborn(torch.linalg.svd), x, full_matrices=False)
    assert {part.dtype for part in found} == {torch.float32}
    torch.testing.assert_close((found.U * found.S) @ found.Vh, x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.S, torch.linalg.svdvals(x), rtol=1e-5, atol=1e-6)
    square = x @ x.mT
    with pytest.warns(UserWarning, match="did not converge"):
        values, vectors = exact(stubborn(torch.linalg.eigh), square)
    torch.testing.assert_close((vectors * values) @ vectors.mT, square, rtol=1e-5, atol=1e-5)


def test_what_is_not_finite_is_no_matter_of_convergence() -> None:
    x = torch.full((3, 3), float("nan"))
    with pytest.raises(torch.linalg.LinAlgError):
        exact(torch.linalg.svd, x)


def test_a_run_goes_on_and_its_ledger_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run("init=pissa", "train.max_steps=0", out=tmp_path / "plain").folder
    monkeypatch.setattr(torch.linalg, "svd", stubborn(torch.linalg.svd))
    other = run("init=pissa", "train.max_steps=0", out=tmp_path / "other").folder
    warnings = json.loads((other / "init" / "ledger.json").read_text())["warnings"]
    assert any("32 × 32 matrix did not converge on cpu" in line for line in warnings)
    one, two = (load_file(folder / "init" / "factors.safetensors") for folder in (plain, other))
    for name in (key.removesuffix(".lora_A") for key in one if key.endswith(".lora_A")):
        product, same = (x[f"{name}.lora_B"] @ x[f"{name}.lora_A"] for x in (one, two))
        torch.testing.assert_close(same, product, rtol=1e-4, atol=1e-6)
