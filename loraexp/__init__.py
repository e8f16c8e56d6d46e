"""loraexp: honest, resumable, fully recorded experiments with low-rank adaptation."""

__version__ = "0.1.0"
