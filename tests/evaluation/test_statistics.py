import numpy as np
import pytest
from scipy import stats

from hf_paraminit.evaluation.statistics import Estimate, holm, overall_estimate, paired_estimate


def test_the_paired_interval_is_scipys() -> None:
    first, second = [70.1, 75.2, 74.8, 71.0, 73.3], [68.0, 74.9, 70.2, 71.5, 69.9]
    expected = stats.ttest_rel(first, second)
    low, high = expected.confidence_interval(0.95)
    found = paired_estimate(first, second)
    assert (found.low, found.high, found.p_value) == pytest.approx((low, high, expected.pvalue))
    assert found.mean == pytest.approx(np.mean(first) - np.mean(second))


def test_one_pair_gives_no_interval() -> None:
    assert paired_estimate([3.0], [1.0]) == Estimate(mean=2.0, low=None, high=None, count=1)
    assert not paired_estimate([3.0], [1.0]).excludes_zero


def test_no_difference_at_all_is_no_effect() -> None:
    found = overall_estimate({"a": [0.0] * 8, "b": [0.0] * 8})
    assert (found.estimate.low, found.estimate.high, found.estimate.p_value) == (0.0, 0.0, 1.0)
    assert (found.verdict, found.improved, found.sign_p_value) == ("undecided", 0, 1.0)


def test_a_constant_difference_counts() -> None:
    assert paired_estimate([2.0, 3.0], [1.0, 2.0]).p_value == 0.0


def test_helps_needs_most_architectures_not_only_the_mean() -> None:
    rng = np.random.default_rng(0)
    everywhere = overall_estimate({str(net): (5 + rng.normal(size=8)).tolist() for net in range(8)})
    assert everywhere.verdict == "helps"
    assert everywhere.is_never_worse
    assert everywhere.sign_p_value == pytest.approx(2 / 2**8)
    harmful = overall_estimate({str(net): (-5 + rng.normal(size=8)).tolist() for net in range(8)})
    assert (harmful.verdict, harmful.improved, harmful.is_never_worse) == ("harms", 0, False)
    means = [60.0, 60.0, 60.0, 60.0, -1.0, -1.0, -1.0]  # 4 of 7 gain
    lopsided = overall_estimate({str(net): [mean, mean + 0.1] for net, mean in enumerate(means)})
    assert lopsided.estimate.excludes_zero
    assert lopsided.verdict == "undecided"


def test_one_architecture_uses_the_t_interval_over_seeds() -> None:
    values = [1.0, 2.0, 4.0, 3.0]
    assert overall_estimate({"a": values}).estimate == paired_estimate(values, [0.0] * 4)


def test_the_bootstrap_interval_is_wider_than_seeds_alone_would_make_it() -> None:
    """Architectures are the unit: few of them that disagree leave the mean open, however many seeds there are."""
    differences = {"a": [10.0] * 50, "b": [-8.0] * 50, "c": [9.0] * 50}
    found = overall_estimate(differences).estimate
    assert found.low is not None
    assert found.low < 0 < found.mean


def test_the_bootstrap_is_the_same_on_every_call() -> None:
    differences = {"a": [1.0, 2.0, 0.5], "b": [0.1, -0.4, 2.0]}
    assert overall_estimate(differences) == overall_estimate(differences)


def test_holm_matches_a_worked_example() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1, then never smaller than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_an_initializer_without_effect_is_within_its_interval_in_95_of_100() -> None:
    rng = np.random.default_rng(1)
    inside = sum(
        not paired_estimate(rng.normal(60, 3, 8).tolist(), rng.normal(60, 3, 8).tolist()).excludes_zero
        for _ in range(1000)
    )
    assert 925 <= inside <= 975  # 950 expected; four standard deviations are 28
