import dataclasses
import json

import pytest
from summaries import failed, start, summary_of, training

from hf_paraminit.evaluation.summary import summarize

NETS = [f"net{index}" for index in range(8)]


def test_the_verdict_names_what_helps_what_harms_and_what_is_open() -> None:
    summary = summary_of(
        {
            "good": dict.fromkeys(NETS, 12.0),
            "fair": dict.fromkeys(NETS, 6.0),
            "bad": dict.fromkeys(NETS, -9.0),
            "mixed": {net: 9.0 if index % 2 else -9.0 for index, net in enumerate(NETS)},
        }
    )
    assert summary.verdict.startswith("Good helps most (+8.0 [")
    assert summary.verdict.endswith("AUC against the default); fair helps as well; bad harms; mixed is undecided.")
    assert summary.cautions == ()
    few = summary_of({"good": dict.fromkeys(NETS[:2], 12.0)})
    assert few.verdict.startswith("On these 2 models: good helps most")


def test_nothing_but_the_default_says_nothing() -> None:
    assert summary_of({"he": {}}, seeds=1).verdict.startswith("Nothing can be said")


def test_few_seeds_few_models_and_failures_are_cautioned() -> None:
    summary = summary_of({"he": {"a": 1.0}}, seeds=2, extra=[failed("a", "lsuv", "E: no")])
    assert [caution.split(";")[0].split(":")[0] for caution in summary.cautions] == [
        "Only 2 seeds per cell",
        "1 architecture",
        "1 combinations failed and are left out",
    ]
    assert summary.failures == (("a", "lsuv", 1, "E: no"),)


def test_holm_takes_away_what_does_not_survive_many_initialisations() -> None:
    """An interval just above zero that would do alone, among ten without effect."""
    noise = {f"n{index}": dict.fromkeys(NETS, 0.0) for index in range(10)}
    weak = {net: 3.0 if index else -8.0 for index, net in enumerate(NETS)}
    alone, among = summary_of({"weak": weak}), summary_of({"weak": weak, **noise})
    first, second = alone.overall["weak"], among.overall["weak"]
    assert first.estimate == second.estimate
    assert first.corrected_p_value is not None
    assert second.corrected_p_value == pytest.approx(min(1.0, 11 * first.corrected_p_value))


def test_seeds_are_paired_and_missing_ones_left_out() -> None:
    records = [training("a", "default", seed, (0, 50 + seed, 50 + seed, 50 + seed)) for seed in (0, 1, 2)]
    records += [training("a", "he", seed, (0, 53 + seed, 53 + seed, 53 + seed)) for seed in (1, 2, 3)]
    summary = summarize(records, factors={}, nets=["a"], inits=["default", "he"], families={"a": ""})
    row = summary.row("a", "he")
    assert row is not None
    assert row.difference is not None
    assert (row.difference.mean, row.difference.count) == (3.0, 2)
    assert row.seeds == (1, 2, 3)


def test_tuned_runs_are_reported_and_untuned_shown_beside() -> None:
    records = [training("a", "default", 0, (0, 50, 50, 50))]
    records += [training("a", "he", 0, (0, 50, 50, 50)), training("a", "he", 0, (0, 60, 60, 60), factor=3.0)]
    summary = summarize(records, factors={("a", "he"): 3.0}, nets=["a"], inits=["default", "he"], families={"a": ""})
    row = summary.row("a", "he")
    assert row is not None
    assert (row.auc, row.untuned_auc, row.factor) == (60, 50, 3.0)


def test_steps_to_reach_count_the_censored_and_break_even_follows() -> None:
    records = [training("a", "default", seed, (0, 10, 20, 70 + 20 * seed)) for seed in (0, 1)]
    records += [training("a", "he", seed, (0, 80, 85, 90)) for seed in (0, 1)]
    records += [start("a", "he"), start("a", "default")]
    summary = summarize(records, factors={}, nets=["a"], inits=["default", "he"], families={"a": ""})
    default, he = summary.row("a", "default"), summary.row("a", "he")
    assert default is not None
    assert he is not None
    reached = 20 + (80 - 20) / (90 - 20) * 130
    assert (default.censored, default.steps_to_target) == (1, pytest.approx((150 + reached) / 2))
    assert he.steps_to_target == 10
    assert he.break_even_seconds == pytest.approx((default.steps_to_target - 10) * 0.01 - 0.5)
    assert default.break_even_seconds is None


def test_attention_has_an_easier_target() -> None:
    records = [training("a", "default", 0, (0, 10, 20, 60))]
    summary = summarize(records, factors={}, nets=["a"], inits=["default"], families={"a": "attention"})
    assert summary.rows[0].target == 50
    assert summary.rows[0].censored == 0


def test_it_is_json() -> None:
    summary = summary_of({"he": {"a": 1.0}}, extra=[start("a", "he")])
    assert json.loads(json.dumps(summary.to_dict()))["nets"] == ["a"]
    assert dataclasses.replace(summary) == summary
