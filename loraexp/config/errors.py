"""What a user did wrong, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """The configuration or the arguments are wrong: one line, exit status 2."""


def behind(error: BaseException | None) -> ConfigError | None:
    """The one that a library has wrapped in an error of its own, if there is one."""
    while error is not None and not isinstance(error, ConfigError):
        error = error.__cause__ or error.__context__
    return error


def nearest(word: str, choices: Iterable[str], listed: str = "") -> str:
    """The nearest valid names first; all of them where nothing is near and they are few; else where
    `loraexp list` has them."""
    choices = list(dict.fromkeys(choices))
    if same := [choice for choice in choices if choice.lower() == word.lower()]:
        return f"nearest: {', '.join(same)}"
    close = difflib.get_close_matches(word, choices, n=3, cutoff=0.6)
    alike = [difflib.SequenceMatcher(None, choice, word).ratio() for choice in close]
    close = [choice for choice, ratio in zip(close, alike, strict=True) if ratio > alike[0] - 0.08]
    if close:
        return f"nearest: {', '.join(close)}"
    return (
        f"choices: {', '.join(choices)}"
        if len(choices) <= 30
        else f"{len(choices)} choices, see loraexp list {listed}".rstrip()
    )
