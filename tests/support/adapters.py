"""A tiny model with adapters that are not at zero."""

from __future__ import annotations

from pathlib import Path

import torch

from loraexp import config, models
from loraexp.adapter.adapted import Adapters, attach
from loraexp.adapter.layer import Factors
from loraexp.run import components, experiment


def adapted(
    *overrides: str, dtype: torch.dtype = torch.float64
) -> tuple[torch.nn.Module, experiment.Any, Adapters]:
    """A tiny model in float64 with adapters that are not at zero, and its task; no dropout."""
    cell = ["experiment=smoke", *overrides]
    settings, plain = config.check(config.compose(cell))
    tokenizer = models.open(settings.model).tokenizer
    task = components.make(settings.task)(tokenizer=tokenizer, cache_root=Path(settings.cache_root))
    model = models.open(settings.model).load(dtype=dtype, head_seed=0, **components.labels(task))
    head = models.head(model)
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator, dtype=dtype)

    targets = models.target_layers(model, ["query", "value"], head)
    made = {name: Factors(A=draw(4, 32), B=draw(32, 4), start="shifted") for name in targets}
    adapters = attach(model, made, 2.0, head)
    return model.to(dtype).eval(), task, adapters
