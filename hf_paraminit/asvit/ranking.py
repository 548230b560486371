"""Comparing candidates by the sum of their ranks, and breaking ties as published or as meant (As-ViT's code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from hf_paraminit.asvit.errors import ScoreError
from hf_paraminit.asvit.reward import SIGNS

TieBreak = Literal["upstream", "fixed"]
TIE_BREAKS = ("upstream", "fixed")


def rank_sums(scores: Mapping[str, Sequence[float]]) -> list[int]:
    """Sum over the scores of each candidate's rank, 0 for the best; equal values share a rank and none is left out.

    Args:
        scores: Score -> value of each candidate.
    """
    totals = [0] * len(next(iter(scores.values())))
    for name, values in scores.items():
        order = {value: rank for rank, value in enumerate(sorted(set(values), reverse=SIGNS[name] > 0))}
        totals = [total + order[value] for total, value in zip(totals, values, strict=True)]
    return totals


def best_candidate(scores: Mapping[str, Sequence[float]], *, tie_break: TieBreak = "upstream") -> int:
    """Index of the candidate with the smallest rank sum.

    Ties are broken by the score that varies most over all candidates, (max - min) / max.

    Args:
        scores: Score -> value of each candidate.
        tie_break: "upstream" looks at the first two tied candidates only and takes the smaller value even where larger
            is better, as published; "fixed" takes the better value among all tied candidates.

    Raises:
        ScoreError: Unknown tie break.
    """
    if tie_break not in TIE_BREAKS:
        raise ScoreError(f"tie_break must be one of {', '.join(map(repr, TIE_BREAKS))}, found {tie_break!r}.")
    sums = rank_sums(scores)
    tied = [index for index, total in enumerate(sums) if total == min(sums)]
    if len(tied) == 1:
        return tied[0]
    name = max(scores, key=lambda name: _relative_range(scores[name]))
    if tie_break == "upstream":
        return min(tied[:2], key=lambda index: scores[name][index])
    return max(tied, key=lambda index: SIGNS[name] * scores[name][index])


def _relative_range(values: Sequence[float]) -> float:
    largest = max(values)
    return (largest - min(values)) / largest if largest else 0.0
