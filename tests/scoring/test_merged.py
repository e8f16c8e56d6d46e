"""The copy of an adapted model that vLLM reads: the weights with their updates, one at a time, and
gone whatever happens."""

from __future__ import annotations

import errno
import gc
import os
import sys
import tempfile
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loraexp.adapter.adapted import AdaptedLinear, attach
from loraexp.adapter.layer import Factors
from loraexp.machine.files import DiskFull
from loraexp.scoring import backends, merged
from loraexp.scoring.backends import Answering, language_model


class Words:
    """A tokenizer, as far as a copy needs one."""

    def save_pretrained(self, folder: Path) -> None:
        (Path(folder) / "tokenizer.json").write_text("{}")


def adapted(*, tied: bool = False, experts: bool = False) -> tuple[Any, dict[str, Tensor]]:
    """A small causal model, its head adapted as well, and its weights as they are to be merged."""
    from transformers import AutoConfig, AutoModelForCausalLM

    size: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 4, "vocab_size": 96, "tie_word_embeddings": tied}
    size |= {"num_key_value_heads": 2, "num_local_experts": 4} if experts else {}
    torch.manual_seed(0)
    name = "mixtral" if experts else "llama"
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **size))
    ends = ("q_proj", "o_proj") if tied or experts else ("q_proj", "down_proj", "lm_head")
    layers = {n: m for n, m in model.named_modules() if n.endswith(ends)}
    factors = {
        n: Factors(A=torch.randn(2, m.in_features), B=torch.randn(m.out_features, 2), start=start)
        for (n, m), start in zip(layers.items(), ["pretrained", "shifted"] * 3, strict=False)
    }
    attach(model, factors, 0.5)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, AdaptedLinear):
                layer.lora_B.add_(0.3)
    wanted = {
        f"{n}.weight": m.base.weight.detach() + m.update().detach()
        for n, m in model.named_modules()
        if isinstance(m, AdaptedLinear)
    }
    return model, wanted


@pytest.mark.parametrize("shape", [{}, {"tied": True}, {"experts": True}])
def test_the_copy_is_the_model_with_its_updates(shape: dict[str, bool], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, wanted = adapted(**shape)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    merged.write_merged(model, Words(), tmp_path)
    copy: nn.Module = AutoModelForCausalLM.from_pretrained(tmp_path)
    weights = dict(copy.named_parameters())
    assert wanted and all(torch.equal(weights[name], x) for name, x in wanted.items())
    rest = {n: x for n, x in weights.items() if n not in wanted}
    assert rest and all(torch.equal(before[n], x) for n, x in rest.items())
    ids = torch.arange(7)[None]
    with torch.no_grad():
        assert torch.allclose(copy(ids).logits, model(ids).logits, atol=1e-4)
    assert all(torch.equal(before[n], x) for n, x in model.state_dict().items())


def test_one_sum_is_there_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next is made when the one before is on the disk and gone; what is in no sum is never
    copied."""
    model, wanted = adapted()
    last: list[weakref.ref[Tensor]] = []
    real = merged.added

    def watched(layer: AdaptedLinear, weight: Tensor) -> Tensor:
        gc.disable()
        assert all(one() is None for one in last)
        made = real(layer, weight)
        last.append(weakref.ref(made))
        return made

    monkeypatch.setattr(merged, "added", watched)
    try:
        merged.write_merged(model, Words(), tmp_path)
    finally:
        gc.enable()
    assert len(last) == len(wanted) and all(one() is None for one in last)


def test_a_copy_does_not_outlive_what_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that cannot start, an answer that fails, a full disk: nothing is left behind."""
    model, _ = adapted()
    how = Answering(batch_size=2, backend="vllm")
    places: list[Path] = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(backends, "find_spec", lambda name: name)

    def served(pretrained: str, **_: Any) -> Any:
        places.append(Path(pretrained))
        assert (places[-1] / "model.safetensors").exists()
        if len(places) == 1:
            raise RuntimeError("no free memory")
        return SimpleNamespace()

    vllm: Any = SimpleNamespace(VLLM=served)
    monkeypatch.setitem(sys.modules, "lm_eval.models.vllm_causallms", vllm)
    with pytest.raises(RuntimeError, match="no free memory"), language_model(model, Words(), how):
        pass
    with pytest.raises(KeyError), language_model(model, Words(), how):
        raise KeyError
    with pytest.raises(KeyError), backends.one_copy(), language_model(model, Words(), how):
        raise KeyError

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(DiskFull, match="make room, or set TMPDIR to another disk"),
        language_model(model, Words(), how),
    ):
        pass
    assert len(places) == 3 and not list(tmp_path.iterdir())
