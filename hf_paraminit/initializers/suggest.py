"""The "did you mean" part of an error message."""

import difflib
from collections.abc import Iterable


def nearest_names(word: str, choices: Iterable[str], limit: int = 3) -> list[str]:
    """The choices that look most like `word`, best first; case does not count. Empty when none is close."""
    by_lower = {choice.lower(): choice for choice in choices}
    return [by_lower[match] for match in difflib.get_close_matches(word.lower(), by_lower, n=limit, cutoff=0.5)]


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A sentence to append to a message, with a leading space, or nothing when no choice is close."""
    matches = nearest_names(word, choices)
    return f" Did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""
