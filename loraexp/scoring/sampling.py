"""How an answer's tokens are chosen, on the device and without asking it: greedily, or drawn at
numbers that belong to the answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loraexp.adapter.linalg import at_least_float32

UNIT = 2**52  # probabilities are counted in its inverse
BROKEN = -1  # in the place of a token that was chosen from logits that are not numbers


@dataclass(frozen=True)
class Sampling:
    """How answers are found: greedily, by beams, or drawn `samples` times at a temperature after
    top-k and top-p.

    Raises: ValueError for settings that exclude each other.
    """

    max_new_tokens: int
    stop: Sequence[str] = ()
    beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "beams", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        temperature, top_p, top_k = self.temperature, self.top_p, self.top_k
        if temperature < 0 or not 0 < top_p <= 1 or top_k < 0:
            raise ValueError(
                f"temperature={temperature} top_p={top_p} top_k={top_k}: expected T at least 0,"
                " top_p in (0, 1], top_k at least 0"
            )
        if self.beams > 1 and temperature > 0:
            raise ValueError(
                f"beams={self.beams} with temperature={temperature}: expected beam search"
                " (temperature 0) or sampling (beams 1)"
            )
        if self.samples > 1 and temperature == 0:
            raise ValueError(
                f"samples={self.samples} at temperature 0 would all be the same answer: expected"
                " samples=1, or a temperature"
            )
        if any(not text for text in self.stop):
            raise ValueError("stop: an empty string ends every answer at once; expected text")

    def seeds(self, prompts: Sequence[str]) -> list[int]:
        """One seed for each answer, of its prompt's text, so that a limit or another order draws
        the same; repeats differ."""
        seen: dict[str, int] = {}
        seeds = []
        for prompt in prompts:
            for _ in range(self.samples):
                nth = seen[prompt] = seen.get(prompt, -1) + 1
                digest = hashlib.sha256(f"{self.seed}\0{nth}\0{prompt}".encode()).digest()
                seeds.append(int.from_bytes(digest[:7], "big"))
        return seeds

    def numbers(self, seed: int) -> Tensor:
        """The numbers in [0, 1) that the tokens of one answer are drawn at (max_new_tokens,)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(self.max_new_tokens, generator=generator, dtype=torch.float64)

    def choose(self, logits: Tensor, numbers: Tensor | None) -> Tensor:
        """The next token of each row (n,): that of the greatest logit, or the one drawn at its
        row's number; `BROKEN` where a logit is NaN, of which an arg max would still find a
        token."""
        chosen = logits.argmax(-1) if numbers is None else self.draw(logits, numbers)
        return chosen.masked_fill_(logits.isnan().any(-1), BROKEN)

    def draw(self, logits: Tensor, numbers: Tensor) -> Tensor:
        """The first token (n,) whose cumulated probability exceeds its row's number u ~ U(0, 1)
        (n,), which is on the logits' `home`.

        The probabilities are those of the logits divided by the temperature, of the `top_k`
        greatest, and of the fewest that together reach `top_p`. They are added as whole numbers,
        which gives the same sum in any order: sums of floats along a row have no deterministic
        kernel on CUDA.
        """
        scores = at_least_float32(logits).to(home(logits.device)) / self.temperature
        if self.top_k:
            least = scores.topk(min(self.top_k, scores.shape[-1])).values[:, -1:]
            scores = scores.masked_fill(scores < least, float("-inf"))
        weights = (scores.double().softmax(-1) * UNIT).long()
        if self.top_p < 1:
            rising, order = weights.sort(stable=True)
            summed = rising.cumsum(-1)
            needless = summed <= (1 - self.top_p) * summed[:, -1:].double()
            needless[:, -1] = False
            weights = weights.scatter(-1, order, rising.masked_fill(needless, 0))
        summed = weights.cumsum(-1)
        at = (numbers.unsqueeze(-1) * summed[:, -1:]).long()
        drawn = torch.searchsorted(summed, at, right=True).squeeze(-1)
        return drawn.clamp_(0, logits.shape[-1] - 1).to(logits.device)


def home(device: torch.device) -> torch.device:
    """Where the draws of a device are made: there, unless it has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def check_number(token: int) -> None:
    """Raises: FloatingPointError for what was chosen from logits that are not numbers."""
    if token == BROKEN:
        raise FloatingPointError(
            "the model's logits are not finite, so it generates nothing: it diverged, lower lr or"
            " use precision=fp32"
        )
