"""The typed settings of a run: plain dataclasses that the modules share, with no Hydra and no torch
in them.

A field's annotation is its type, its metadata the bounds; `config.check` builds these from the
composed configuration and refuses everything that does not fit, before a model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

# resolved keys and their values, as YAML holds them
Plain: TypeAlias = dict[str, Any]


def number(
    above: float | None = None, least: float | None = None, most: float | None = None
) -> Any:
    """A field for a number that must be > above, ≥ least, ≤ most."""
    return field(metadata={"above": above, "least": least, "most": most})


UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
CHECKPOINT_SECONDS = 300.0


def checkpoint_seconds(every: int | str) -> float | None:
    """Seconds between checkpoints for `30s`, `10min`, `1h`, or for 0 the usual; None where they are
    counted in steps.

    Raises: ValueError for what is no duration.
    """
    if isinstance(every, int):
        return None if every else CHECKPOINT_SECONDS
    unit = every.lstrip("0123456789. ")
    try:
        seconds = float(every[: len(every) - len(unit)]) * UNITS[unit]
    except (ValueError, KeyError):
        seconds = 0.0
    if not seconds > 0:
        raise ValueError(
            f"train.checkpoint_every={every}: expected a number of steps, or a duration such as"
            " 30s, 10min, 1h"
        )
    return seconds


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    name: str
    path: str | None  # hub id, folder, or package:<distribution>/<path>; null: built from `config`
    # architecture of a model with random weights, drawn with `weights_seed`
    config: Plain | None
    # where the tokenizer is, when not at `path`; or trained:<tokens>, made on the spot
    tokenizer: str | None
    pad_token: str | None  # the token that pads, for a tokenizer that names none
    revision: str | None
    sha256: str | None  # of model.safetensors, or of the .gguf file; verified where given
    kind: Literal["encoder", "seq2seq", "causal"]
    targets: list[str]  # names, or ends of names, of the linear layers that get an adapter
    # of the frozen weights; null: float32, or bfloat16 with precision=bf16
    dtype: Literal["float32", "bfloat16", "float16"] | None
    # of the frozen weights, with bitsandbytes, on a CUDA device or a CPU
    quantise: Literal["8bit", "4bit"] | None
    attention: str | None  # attn_implementation of transformers; null: its choice
    gradient_checkpointing: bool
    # load .bin weights when there is no safetensors file: runs code from the file
    allow_pickle: bool
    weights_seed: int
    # of a checkpoint that has one for as many classes: drawn from the seed, or its own
    head: Literal["new", "keep"] = "new"


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings:
    """How the statistics of a data-driven initializer are gathered."""

    samples: int = number(above=0)
    # what the paper draws together; how many rows run together follows from memory: `micro_batch`
    batch_size: int = number(above=0)
    # the first rows of the training file, or rows drawn with the run's seed
    rows: Literal["head", "shuffled"]
    mode: Literal["eval", "train"]  # dropout off or on
    # bytes for the statistics' own state; auto: a share of what the device has free beside a batch
    memory_budget: int | Literal["auto"] = number(least=0)
    cache: bool
    show: bool = False  # print what each layer's factors hold; init/ledger.json has it in any case
    # what the loss is a mean over; null: the initializer's own
    weighting: Literal["samples", "tokens"] | None = None

    def budget(self, free: int | None = None) -> int:
        """`memory_budget` in bytes, where `free` are free on the device beside the weights and the
        passes of a batch."""
        return self.memory_budget if self.memory_budget != "auto" else default_budget(free)


def default_budget(free: int | None) -> int:
    """Bytes for statistics where so many are free beside the passes of a batch. A quarter stays:
    for what a layer is decomposed in, and the allocator's gaps. 2 GB where others take of it too (a
    host)."""
    return 2_000_000_000 if free is None else max(0, 3 * free // 4)


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    scaling: Literal["lora", "rslora"]
    # of what the low-rank branch reads, in training
    dropout: float = field(default=0.0, metadata={"least": 0, "most": 0.99})


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    epochs: float = number(least=0)
    max_steps: int | None = number(least=0)  # overrides epochs; 0: initialise, evaluate, save, stop
    # examples of one micro-batch group; × gradient_accumulation = of one step
    batch_size: int = number(above=0)
    eval_batch_size: int = number(above=0)
    gradient_accumulation: int = number(above=0)
    # length-sorted parts a batch is cut into, at most; the gradient is the batch's; auto: the
    # fastest passes
    micro_batches: int | Literal["auto"] = number(above=0)
    length_buckets: bool  # examples of similar length share a batch
    # rows go through the layers one after another, without padding
    unpadded: bool = False
    scheduler: Literal["linear", "cosine", "constant"]
    warmup_ratio: float = number(least=0, most=1)
    weight_decay: float = number(least=0)
    max_grad_norm: float | None = number(above=0)
    eval_every: int = number(least=0)  # steps; 0: once an epoch
    # the reported splits are evaluated at every evaluation too, into metrics.jsonl
    report_during: bool
    # steps; the factors go to factors/<step>.safetensors; 0: never
    keep_factors_every: int = number(least=0)
    # steps, or a duration (10min); 0: 5min; and before every evaluation
    checkpoint_every: int | str = number(least=0)
    keep_checkpoint: bool
    log_every: int = number(above=0)
    # evaluations without a better one before stopping early; null: never
    patience: int | None = number(above=0)
    select: Literal["best", "last"]  # whose weights are reported and saved
    # processes of one run, each with a card of its own; a sweep starts them
    gpus_per_run: int = field(default=1, metadata={"above": 0})
    # none: every process holds all weights | full: each a piece of every one (FSDP)
    shard: Literal["none", "full"] = "none"
    # only algorithms that give the same bits every time, slower on a GPU
    deterministic: bool = False

    @property
    def equal_parts(self) -> int:
        """The parts whose size bounds the memory of a pass: 1 with `auto`, which cuts for time."""
        return 1 if self.micro_batches == "auto" else self.micro_batches


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    # runs of `loraexp sweep` that share their passes, where they read the same rows in one order
    pack: int | Literal["auto"] = field(default=1, metadata={"above": 0})


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    backend: Literal["hf", "vllm"]  # what generates: this process's model, or vLLM on a merged copy
    unsafe_code: bool  # run what the model wrote without a sandbox


@dataclass(frozen=True, kw_only=True)
class WandbSettings:
    mode: Literal["offline", "online", "disabled"]
    project: str
    entity: str | None
    group: str | None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run, checked."""

    model: ModelSettings
    task: Plain  # `_target_` and the keywords of the task
    init: Plain  # `_target_` and the hyper-parameters of the initializer
    optimizer: Plain  # `_target_` and the hyper-parameters of the rule
    calibration: CalibrationSettings
    adapter: AdapterSettings
    train: TrainSettings
    evaluate: EvaluateSettings
    wandb: WandbSettings
    lr: float = number(above=0)
    seed: int = number(least=0, most=2**63 - 1)  # what torch's generators take
    rank: int = number(above=0)
    alpha: float = number(above=0)
    output_root: str
    cache_root: str
    device: str
    precision: Literal["fp32", "bf16"]
    force: bool
    sweep: SweepSettings = field(default_factory=SweepSettings)
    # `facts` of the task's and the model's yaml, which planning reads
    facts: Plain = field(default_factory=dict)

    @property
    def micro_batch(self) -> int:
        """The most rows of a forward pass of training, where they are shared out evenly, and of one
        of initialising: statistics are the same for every split, and need no more memory."""
        return -(-self.train.batch_size // self.train.equal_parts)
