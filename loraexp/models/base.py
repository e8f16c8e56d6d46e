"""A base model, opened once: everything that a run asks of it before, while and after it is
loaded."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraexp.config import Plain
from loraexp.machine import repository
from loraexp.machine.repository import Repository
from loraexp.models import load, place, targets, vocabulary

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from loraexp.config.settings import ModelSettings


def open(settings: ModelSettings) -> Base:
    """The base model of these settings; nothing is read before it is asked for, and nothing
    twice."""
    return Base(settings)


@dataclass(frozen=True, eq=False)
class Base:
    """A base model: where it is, its architecture, tokenizer, layers and weights."""

    settings: ModelSettings

    @cached_property
    def place(self) -> Path | str:
        """A folder, or a hub id, where the weights are."""
        return place.locate(self.settings)

    @cached_property
    def repository(self) -> Repository | None:
        """The hub's repository that is loaded; None where the weights are not the hub's."""
        settings = self.settings
        if settings.path is None or isinstance(self.place, Path):
            return None
        return place.hub(self.place, settings.revision)

    @property
    def commit(self) -> str | None:
        """The commit of the hub's repository that is loaded."""
        if self.settings.config is not None or self.repository is None:
            return None
        return self.repository.commit

    @cached_property
    def folder(self) -> Path:
        """The folder with the model's small files: its architecture and its tokenizer."""
        if self.repository is None:
            return Path(self.place)
        return repository.definition(self.repository)

    @property
    def reference(self) -> str:
        """What an adapter names as the model that it belongs to."""
        return self.settings.name if self.settings.path is None else str(self.place)

    def identity(self) -> Plain:
        """Which weights these are, for the record: the hub's `commit`, or the `sha256` of what lies
        in the folder."""
        settings = self.settings
        drawn = settings.path is None or settings.config is not None
        digest = None if drawn or self.commit else place.weights_digest(Path(self.place))
        return {"source": settings.path, "commit": self.commit, "sha256": digest}

    @cached_property
    def config(self) -> PretrainedConfig:
        """The architecture as it is stored."""
        return load.load_config(self)

    def configured(self, **labels: Any) -> PretrainedConfig:
        """The architecture with the task's labels, by number and by name."""
        own = copy.deepcopy(self.config)
        if "id2label" in labels:
            labels["label2id"] = {name: i for i, name in labels["id2label"].items()}
        for key, value in labels.items():
            setattr(own, key, value)
        return own

    def bare(self, dtype: torch.dtype | None = None, **labels: object) -> nn.Module:
        """The model without its weights (on the meta device): names and shapes in a fraction of a
        second."""
        architecture = self.configured(**labels)  # of a GGUF it may be made here, with numbers
        with torch.device("meta"):
            return load.built(self, architecture, dtype)

    @cached_property
    def skeleton(self) -> nn.Module:
        """The model without weights, and without the task's labels."""
        return self.bare()

    @cached_property
    def head(self) -> list[str]:
        """The modules that a task adds to the model, by name."""
        return targets.new_modules(self.skeleton, self.settings.kind)

    def targets(self, model: nn.Module | None = None) -> dict[str, nn.Module]:
        """The linear layers that get an adapter, of the skeleton or of a loaded model."""
        own = self.head if model is None else load.head(model)
        return targets.target_layers(model or self.skeleton, self.settings.targets, own)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, which makes no token that the model does not have."""
        tokenizer = vocabulary.load_tokenizer(self)
        vocabulary.check_vocabulary(self, tokenizer)
        return tokenizer

    def load(
        self,
        *,
        dtype: torch.dtype,
        head_seed: int,
        full: bool = False,
        device: torch.device | None = None,
        **labels: object,
    ) -> nn.Module:
        """The pretrained model, its new head drawn from `head_seed`, in `dtype`, on the CPU, in
        evaluation mode; `full`: for training every weight. With a `device` it is quantised where
        `model.quantise` says so, and there."""
        return load.load_model(
            self, dtype=dtype, head_seed=head_seed, full=full, device=device, **labels
        )

    @cached_property
    def generation(self) -> GenerationConfig:
        """How the model writes where nobody says otherwise: as it is stored, with the tokenizer's
        end and padding where it names none."""
        from transformers import GenerationConfig

        stored = self.settings.config is None and self.folder / "generation_config.json"
        if stored and stored.is_file():
            own = GenerationConfig.from_pretrained(self.folder)
        else:
            own = GenerationConfig.from_model_config(self.config)
        for name in ("eos_token_id", "pad_token_id"):
            if getattr(own, name) is None:
                setattr(own, name, getattr(self.tokenizer, name))
        return own

    def saved(self, folder: Path, *, dtype: torch.dtype) -> nn.Module:
        """A whole model of this architecture that a run has saved (`init=full`), its trained head
        included, on the CPU, in evaluation mode."""
        here = replace(self.settings, path=str(folder), config=None, head="keep")
        stored = open(replace(here, revision=None, sha256=None))
        return load.pretrained(stored, stored.config, dtype).eval()
