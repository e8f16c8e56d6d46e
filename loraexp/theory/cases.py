"""What Figure 4 of LoRA-One is run on: Δ under and over an adapter's rank, three rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from loraexp.config import ConfigError
from loraexp.theory import linear, shifts


@dataclass(frozen=True, kw_only=True)
class Case:
    """The linear task with a Δ of rank r*, learnt at rank r, and the best risk at that rank."""

    name: str
    rank: int
    true_rank: int
    given: shifts.Tasks
    infimum: float

    @property
    def title(self) -> str:
        return f"r = {self.rank}, r* = {self.true_rank}"


@dataclass(frozen=True, kw_only=True)
class Cases:
    """[r, r*] by name: Δ has the first r* singular values of `spectrum`."""

    d: int
    rows: int
    cases: dict[str, list[int]]
    spectrum: list[float]
    seeds: int

    def __iter__(self) -> Iterator[Case]:
        """Raises: ConfigError where r and r* are not two, or the spectrum is too short."""
        for name, ranks in self.cases.items():
            most = len(self.spectrum)
            if len(ranks) != 2 or not 1 <= ranks[1] <= most:
                raise ConfigError(
                    f"cases.{name}={ranks}: expected [r, r*] with an r* of 1 to {most}, the length"
                    " of spectrum"
                )
            rank, true_rank = ranks
            shift = self.spectrum[:true_rank]
            yield Case(
                name=name,
                rank=rank,
                true_rank=true_rank,
                given=shifts.tasks(self.seeds, self.d, self.d, shift, self.rows),
                infimum=linear.least_risk(shift, rank),
            )


@dataclass(frozen=True)
class Rule:
    """A rule of `linear.RULES` with its rate and number of steps, by the name its values have."""

    name: str
    rule: str
    lr: float
    steps: int
    title: str
    options: dict[str, float]

    def over(self, arms: Mapping[str, linear.Start]) -> list[tuple[Rule, dict[str, linear.Start]]]:
        """The methods with the rule that each takes: LoRA-SB, which trains R alone, plain gradient
        descent beside any."""
        frozen = {name: start for name, start in arms.items() if name.startswith("lora_sb")}
        others = {name: start for name, start in arms.items() if name not in frozen}
        return [(self, others), (replace(self, rule="gd", options={}), frozen)]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Plain gradient descent at 0.5 diverges on singular values of 40 (the curvature is 80), and it
    is not said which other rule was run; here three: `gd` at η, `prec_gd` at η (equation Prec-GD,
    for which Theorem C.21 allows rates up to 0.5), and `small`: gradient descent at `stable_lr`.
    `damping`: λ of the preconditioned rule; 0 in the text, 1e-3 in the authors' notebook.
    """

    lr: float
    stable_lr: float
    steps: int
    plain_steps: int
    damping: float = 0.0

    def rules(self) -> list[Rule]:
        return [
            Rule("gd", "gd", self.lr, self.steps, "GD", {}),
            Rule(
                "prec_gd",
                "prec_gd",
                self.lr,
                self.steps,
                "preconditioned GD",
                {"damping": self.damping},
            ),
            Rule("small", "gd", self.stable_lr, self.plain_steps, "GD", {}),
        ]
