"""What an accelerator solves without reading a value, against the ways of a CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from loraexp.optimizers import grams, sylvester
from loraexp.optimizers.grams import inverse
from loraexp.optimizers.lora_pro import equivalent_gradients
from loraexp.optimizers.p_lora import precondition
from tests.support.pretend import DEVICE, pretend_device


@pytest.fixture
def device() -> Iterator[None]:
    with pretend_device() as mode:
        yield
        # what a test itself gives and takes
        assert {what for what, _ in mode.waits} <= {"a copy to the device", "a copy to the host"}


def home(x: Tensor) -> Tensor:
    return x.detach().cpu()


def factors(r: int, condition: float, scale: float, seed: int = 0) -> list[Tensor]:
    """A, B and gradients of five layers; BᵀB has the condition number, and B the scale."""
    generator = torch.Generator().manual_seed(seed)
    A, B, grad_A, grad_B = (
        torch.randn(shape, generator=generator)
        for shape in ((5, r, 48), (5, 40, r), (5, r, 48), (5, 40, r))
    )
    B = torch.linalg.qr(B)[0] * torch.logspace(0, -0.5 * torch.tensor(condition).log10(), r)
    return [A, scale * B, grad_A, grad_B]


@pytest.mark.parametrize("r", [1, 4, 16])
@pytest.mark.parametrize(("condition", "scale"), [(10.0, 1.0), (1e3, 1e-3), (1e6, 1.0)])
def test_the_iteration_is_nearer_to_the_exact_solution_than_spectra_are(
    r: int, condition: float, scale: float, device: None
) -> None:
    given = factors(r, condition, scale)
    exact = equivalent_gradients(*(x.double() for x in given), 2.0, 1e-6)
    spectral = equivalent_gradients(*given, 2.0, 1e-6)
    iterated = equivalent_gradients(*(x.to(DEVICE) for x in given), 2.0, 1e-6)
    for there, here, true in zip(iterated, spectral, exact, strict=True):
        error, other = (
            float((home(x).double() - true).norm() / true.norm()) for x in (there, here)
        )
        assert error <= max(1.5 * other, 1e-5)


def test_a_first_step_from_zero_is_that_of_the_cpu(device: None) -> None:
    A, B, grad_A, grad_B = factors(4, 10.0, 1.0)
    B[:2] = 0
    for first in ("plain", "limit"):
        there = equivalent_gradients(
            *(x.to(DEVICE) for x in (A, B, grad_A, grad_B)), 2.0, 1e-6, first
        )
        here = equivalent_gradients(A, B, grad_A, grad_B, 2.0, 1e-6, first)
        for one, other in zip(there, here, strict=True):
            torch.testing.assert_close(home(one), other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("broken", ["A is singular", "B is not finite"])
def test_a_layer_whose_system_has_no_solution_is_not_a_number_and_the_others_are(
    broken: str, device: None
) -> None:
    given = factors(4, 10.0, 1.0)
    if broken == "A is singular":
        given[0][3, 1] = given[0][3, 0]
    else:
        given[1][3, 0, 0] = float("nan")
    there = equivalent_gradients(*(x.to(DEVICE) for x in given), 2.0, 0.0)
    finite = torch.stack([home(x).isfinite().flatten(1).all(1) for x in there]).all(0)
    assert finite.tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("damping", [0.0, 1e-6, 1e-2])
def test_an_inverse_is_that_of_the_cpu(damping: float, device: None) -> None:
    given = factors(8, 100.0, 1.0)
    there = precondition(*(x.to(DEVICE) for x in given), damping)
    for one, other in zip(there, precondition(*given, damping), strict=True):
        torch.testing.assert_close(home(one), other, rtol=1e-3, atol=1e-4)


def test_directions_that_are_not_there_stay_zero_without_damping(device: None) -> None:
    """A gram of rank 2 in 5 beside a sound one and one of zeros: the pseudo-inverse, to rounding of
    what its own gradient is."""
    generator = torch.Generator().manual_seed(3)
    low = torch.randn(5, 2, generator=generator)
    sound = torch.randn(5, 9, generator=generator)
    gram = torch.stack([low @ low.T, sound @ sound.T, torch.zeros(5, 5)])
    there = home(inverse(gram.to(DEVICE), 0.0))
    true = torch.linalg.pinv(gram.double(), hermitian=True, rtol=1e-5)
    # what is inverted comes from the range, as every gradient of a factor does
    there, true = there.double() @ gram.double(), true @ gram.double()
    torch.testing.assert_close(there, true, rtol=1e-3, atol=1e-3)
    assert not there[2].any()


@pytest.mark.parametrize("r", [1, 3, 8, 64])
def test_the_largest_eigenvalue_is_known_by_squaring(r: int) -> None:
    x = torch.randn(6, r, 2 * r, generator=torch.Generator().manual_seed(r))
    x[5] = 0
    gram = x @ x.mT
    true = torch.linalg.eigvalsh(gram)[:, -1]
    torch.testing.assert_close(sylvester.largest(gram), true, rtol=5e-3, atol=0)


def test_a_matrix_that_rounding_made_indefinite_has_a_damped_inverse() -> None:
    gram = torch.diag(torch.tensor([1e4, 1.0, -1e-4]))[None]
    rough = grams.regularised(gram, 1e-6, 3 * torch.finfo(torch.float32).eps)
    assert rough.isfinite().all() and float(rough[0, 1, 1]) == pytest.approx(1.0, rel=5e-3)
