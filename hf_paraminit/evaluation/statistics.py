"""Intervals and tests of paired comparisons. Architectures are the unit of generalisation; seeds are not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_paraminit.errors import MissingDependencyError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Legend: A architectures, S seeds of one architecture, B bootstrap draws.

CONFIDENCE = 0.95
BOOTSTRAP_DRAWS = 10_000
BOOTSTRAP_SEED = 0
IMPROVED_SHARE = 0.7  # of the architectures, for "helps"
TOLERATED_LOSS = 1.0  # AUC points on a single architecture, for "never worse"

Verdict = Literal["helps", "harms", "undecided"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean difference.

    Attributes:
        mean: Of the paired differences.
        low: Lower end of the 95 % interval; None where one pair gives no interval.
        high: Upper end.
        count: Pairs.
        p_value: Two-sided, of no difference; None where there is no interval.
    """

    mean: float
    low: float | None
    high: float | None
    count: int
    p_value: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Overall:
    """A difference over architectures.

    Attributes:
        estimate: Mean of the architectures' means; hierarchical bootstrap with two architectures or more.
        architectures: A.
        improved: How many have a positive mean.
        sign_p_value: Of the exact two-sided sign test over architectures (those without a difference are left out).
        corrected_p_value: `estimate.p_value` after Holm's correction; equal to it before.
        verdict: "helps" if the interval lies above zero and at least 70 % of the architectures have a positive mean,
            "harms" if it lies below and at least 70 % have a negative one.
        is_never_worse: The lower bound is above -1 point on every architecture.
    """

    estimate: Estimate
    architectures: int
    improved: int
    sign_p_value: float
    corrected_p_value: float | None
    verdict: Verdict
    is_never_worse: bool

    @property
    def corrected_verdict(self) -> Verdict:
        """The verdict, unless it does not survive the correction for several initialisations."""
        p_value = self.corrected_p_value
        return "undecided" if p_value is None or p_value > 1 - CONFIDENCE else self.verdict


def paired_estimate(values: Sequence[float], reference: Sequence[float]) -> Estimate:
    """Mean difference of runs with equal seeds, and its t interval.

    Args:
        values: (S,) of one initialisation.
        reference: (S,) of the other, same order of seeds.
    """
    differences = np.asarray(values, dtype=float) - np.asarray(reference, dtype=float)
    count, mean = len(differences), float(differences.mean())
    if count < 2:
        return Estimate(mean=mean, low=None, high=None, count=count)
    student = _scipy_stats().t(count - 1)
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    half_width = float(student.ppf((1 + CONFIDENCE) / 2)) * error
    if error == 0:
        p_value = 1.0 if mean == 0 else 0.0
    else:
        p_value = float(2 * student.sf(abs(mean) / error))
    return Estimate(mean=mean, low=mean - half_width, high=mean + half_width, count=count, p_value=p_value)


def overall_estimate(differences: Mapping[str, Sequence[float]]) -> Overall:
    """Combine architectures.

    Args:
        differences: Paired differences (S,) by architecture.
    """
    per_net = {net: paired_estimate(values, [0.0] * len(values)) for net, values in differences.items()}
    estimate = next(iter(per_net.values())) if len(per_net) == 1 else _bootstrap(list(differences.values()))
    means = [net.mean for net in per_net.values()]
    improved, worsened = sum(mean > 0 for mean in means), sum(mean < 0 for mean in means)
    return Overall(
        estimate=estimate,
        architectures=len(means),
        improved=improved,
        sign_p_value=_sign_test(improved, worsened),
        corrected_p_value=estimate.p_value,
        verdict=_verdict(estimate, improved / len(means), worsened / len(means)),
        is_never_worse=all(net.low is not None and net.low > -TOLERATED_LOSS for net in per_net.values()),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979), in the given order."""
    order = np.argsort(p_values)
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _bootstrap(differences: Sequence[Sequence[float]]) -> Estimate:
    """Percentile interval of the mean over architectures; resamples architectures, then seeds within each."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    # (A, B): the mean over resampled seeds, drawn anew for each place an architecture may take in a resample
    chosen = rng.integers(len(differences), size=(len(differences), BOOTSTRAP_DRAWS))
    means = np.empty(chosen.shape)
    for index, values in enumerate(map(np.asarray, differences)):
        is_here = chosen == index
        picks = rng.integers(len(values), size=(int(is_here.sum()), len(values)))
        means[is_here] = values[picks].mean(1)
    draws: NDArray[np.float64] = means.mean(0)
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return Estimate(
        mean=float(np.mean([np.mean(values) for values in differences])),
        low=float(low),
        high=float(high),
        count=len(differences),
        p_value=min(1.0, 2 * (tail + 1) / (BOOTSTRAP_DRAWS + 1)),
    )


def _sign_test(positive: int, negative: int) -> float:
    if positive + negative == 0:
        return 1.0
    return float(_scipy_stats().binomtest(positive, positive + negative).pvalue)


def _verdict(estimate: Estimate, improved: float, worsened: float) -> Verdict:
    if not estimate.excludes_zero:
        return "undecided"
    if estimate.mean > 0 and improved >= IMPROVED_SHARE:
        return "helps"
    return "harms" if estimate.mean < 0 and worsened >= IMPROVED_SHARE else "undecided"


def _scipy_stats() -> Any:
    try:
        import scipy.stats
    except ImportError as error:
        raise MissingDependencyError(
            'Intervals need SciPy, which is not installed: pip install "hf_paraminit[data]".'
        ) from error
    return scipy.stats
