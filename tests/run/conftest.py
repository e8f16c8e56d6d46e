"""What tests of a run without numbers share."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every time that keys and values are kept."""
    from transformers import cache_utils

    found: list[int] = []
    original = cache_utils.Cache.update

    def noted(*given: Any, **how: Any) -> Any:
        found.append(1)
        return original(*given, **how)

    monkeypatch.setattr(cache_utils.Cache, "update", noted)
    return found
