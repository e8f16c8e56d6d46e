"""The collected K-FAC factors against the true Gauss–Newton matrix, where K-FAC is exact: a deep
linear network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from loraexp.adapter.layer import CurvatureRequest
from loraexp.statistics import Calibration, collect


@pytest.mark.parametrize("budget", [0, 10**9])
@pytest.mark.parametrize("name", ["0", "1", "2"])
def test_kronecker_factors_are_the_gauss_newton_matrix_of_a_deep_linear_net(
    name: str, budget: int
) -> None:
    """`f(x) = W3 W2 W1 x` with one output and squared loss: `Jᵀ J = Σ_i h hᵀ ⊗ δ δᵀ` is `S ⊗ T / n`
    exactly, since δ is the same for every sample. J is built row by row with autograd."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 4, bias=False), nn.Linear(4, 6, bias=False), nn.Linear(6, 1, bias=False)
    ).double()
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.randn(12, 1, dtype=torch.float64)
    batches = [{"x": x[i : i + 4], "labels": y[i : i + 4]} for i in range(0, 12, 4)]
    calibration = Calibration(
        batches=batches,
        loss_sum=lambda m, b: ((m(b["x"]) - b["labels"]).square().sum() / 2, len(b["x"])),
        outputs=lambda m, b: m(b["x"]),
        population=12,
    )
    request = {
        "curvature": CurvatureRequest(
            m=1, iterations=20, bases="sketched" if budget == 0 else "exact"
        )
    }
    module = model[int(name)]
    if budget:
        request = {"curvature": CurvatureRequest(m=None, bases="exact")}
    layer = next(
        iter(
            collect(
                model, {name: module}, calibration, frozenset({"curvature"}), request, budget=budget
            ).layers
        )
    )
    found = layer.curvature

    rows = []
    for sample in x:
        model.zero_grad()
        model(sample[None]).sum().backward()
        rows.append(module.weight.grad.T.reshape(-1).clone())  # h ⊗ δ
    jacobian = torch.stack(rows)
    gauss_newton = jacobian.T @ jacobian
    S = found.U_S * found.D_S @ found.U_S.T
    T = found.U_T * found.D_T @ found.U_T.T
    if budget:
        torch.testing.assert_close(
            torch.kron(S, T) / len(x),
            gauss_newton,
            rtol=1e-8,
            atol=1e-10 * float(gauss_newton.abs().max()),
        )
    else:  # one eigenvector of each: the leading one of the Gauss–Newton matrix
        values, vectors = torch.linalg.eigh(gauss_newton)
        ours = torch.kron(found.U_S[:, 0], found.U_T[:, 0])
        assert abs(float(ours @ vectors[:, -1])) > 1 - 1e-3
        assert float(found.D_S[0] * found.D_T[0]) / len(x) == pytest.approx(
            float(values[-1]), rel=1e-3
        )
