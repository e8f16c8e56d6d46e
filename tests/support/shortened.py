"""Answers of a few tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loraexp.scoring import protocols


def shortened(
    monkeypatch: pytest.MonkeyPatch, benchmark: str, name: str, tokens: int
) -> protocols.Protocol:
    """A protocol with so many new tokens, under its own name, where lm-eval's task finds it."""
    protocol = protocols.find(benchmark, name)
    assert protocol.decoding is not None
    fewer = replace(protocol, decoding=replace(protocol.decoding, max_new_tokens=tokens))
    monkeypatch.setitem(protocols.PROTOCOLS, (benchmark, name), fewer)
    return fewer
