"""Words to calls: the only place that parses arguments and prints."""

from loraexp.cli.main import entry, main

__all__ = ["entry", "main"]
