"""The same on a CUDA device: skipped where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loraexp import cli
from tests.support.runs import run

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("init", ["lora", "pissa", "lora_one", "lora_da", "cg_lora"])
def test_initial_factors_are_those_of_the_cpu(init: str, tmp_path: Path) -> None:
    """Test matrices are drawn on the CPU, so products agree up to rounding on every device."""
    products = []
    for device in ("cpu", "cuda"):
        outcome = run(
            f"init={init}",
            f"device={device}",
            "init.mode=eval",
            "init.cache=false",
            "train.max_steps=0",
            out=tmp_path / device,
        )
        parts = load_file(outcome.folder / "init" / "factors.safetensors")
        names = sorted(key.rpartition(".")[0] for key in parts if key.endswith("lora_A"))
        products.append([parts[f"{n}.lora_B"] @ parts[f"{n}.lora_A"] for n in names])
    for cpu, cuda in zip(*products, strict=True):
        torch.testing.assert_close(cuda, cpu, rtol=1e-3, atol=2e-3 * float(cpu.abs().max()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "lora_plus", "p_lora", "lora_pro"])
def test_a_run_trains_records_and_verifies(optimizer: str, precision: str, tmp_path: Path) -> None:
    outcome = run(f"optimizer={optimizer}", f"precision={precision}", "device=cuda", out=tmp_path)
    record = json.loads((outcome.folder / "record.json").read_text())
    assert record["cost"]["train_peak_bytes"] > 0 and record["environment"]["hardware"]["gpus"]
    assert cli.main(["verify", str(outcome.folder)]) == 0
