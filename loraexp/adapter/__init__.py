"""Layers and their statistics, factors, and the model with adapters on its linear layers."""

from loraexp.adapter.adapted import AdaptedLinear, Adapters, attach
from loraexp.adapter.formats import load_raw, merge, save_peft, save_raw
from loraexp.adapter.layer import Factors, Layer

__all__ = [
    "AdaptedLinear",
    "Adapters",
    "Factors",
    "Layer",
    "attach",
    "load_raw",
    "merge",
    "save_peft",
    "save_raw",
]
