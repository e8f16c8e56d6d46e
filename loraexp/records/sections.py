"""What a record holds, section by section: the types that its writers and its readers share.

A record that is read may lack any section: an older version, or a run that ended early, wrote it.
"""

from __future__ import annotations

from typing import Any, TypeAlias, TypedDict

from loraexp.config import Plain

Metrics: TypeAlias = dict[str, dict[str, float]]  # split → metric → value
Line: TypeAlias = dict[str, Any]  # of metrics.jsonl: `step`, `epoch`, and what was logged by name


class Best(TypedDict):
    """The evaluation whose weights are reported."""

    step: int
    split: str
    metric: str
    value: float
    metrics: dict[str, float]


class Failure(TypedDict, total=False):
    """The error that ended a run; `rank`: of the process that it ended first."""

    type: str
    message: str
    where: str
    rank: int


class Hardware(TypedDict, total=False):
    machine: str
    cpu: str
    cores: int | None
    memory_bytes: int
    gpus: list[str]


class Environment(TypedDict, total=False):
    """Commit, versions and hardware; the run adds how many processes it had, and on what."""

    commit: str | None
    dirty: bool | None
    versions: dict[str, str]
    hardware: Hardware
    threads: int


class Evaluation(TypedDict, total=False):
    """A re-score, as `loraexp eval` adds it."""

    key: str
    when: str
    overrides: list[str]
    protocol: str | list[str] | None
    limits: Plain
    rows: dict[str, int]
    fingerprints: dict[str, str]
    environment: Environment
    notes: list[str]
    metrics: Metrics


class RunRecord(TypedDict, total=False):
    """The content of `record.json`."""

    schema: int
    status: str
    phase: str
    run_id: str
    config: Plain
    metrics: Metrics
    best: Best | None
    evaluations: list[Evaluation]
    cost: dict[str, Any]
    parameters: dict[str, int]
    data: dict[str, Any]
    environment: Environment
    started: str
    ended: str | None
    error: Failure
    wandb_error: str
    labels: Plain
    model: Plain
    hub: dict[str, str]
    sources: dict[str, Plain]
    adapter: dict[str, int]
    files: dict[str, str]
    resumed: list[Plain]
    packed: int
