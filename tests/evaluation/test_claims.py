import pytest
from summaries import start, summary_of

from hf_paraminit.evaluation.claims import Claim, check_claims, contrast
from hf_paraminit.evaluation.learning_curve import mean_accuracy
from hf_paraminit.evaluation.summary import Summary


def claim(summary: Summary, beginning: str) -> Claim:
    (found,) = [one for one in check_claims(summary) if one.claim.startswith(beginning)]
    return found


def test_what_was_not_compared_is_not_measured() -> None:
    claims = check_claims(summary_of({"he": {"a": 1.0}}))
    assert len(claims) > 10
    assert {one.answer for one in claims} == {"not measured"}


@pytest.mark.parametrize(("gain", "answer"), [(40.0, "yes"), (5.0, "no"), (15.0, "undecided")])
def test_mimetic_has_to_gain_more_than_ten(gain: float, answer: str) -> None:
    nets = {"V": gain, "W": gain - (10 if answer == "undecided" else 0)}
    found = claim(summary_of({"mimetic": nets}), "Mimetic attention")
    assert found.answer == answer, found
    assert found.interval is not None


def test_a_learned_initializer_has_to_beat_both_controls() -> None:
    nets = ("R", "M", "E", "G")
    gains = {"ghn3": 20.0, "permuted(ghn3)": 10.0, "matched(ghn3)": 10.0}
    summary = summary_of({init: dict.fromkeys(nets, gain) for init, gain in gains.items()})
    assert claim(summary, "ghn3 beats its").answer == "yes"
    summary = summary_of(
        {**{i: dict.fromkeys(nets, g) for i, g in gains.items()}, "matched(ghn3)": dict.fromkeys(nets, 25.0)}
    )
    assert claim(summary, "ghn3 beats its").answer == "no"
    summary = summary_of({"ghn3": dict.fromkeys(nets, 20.0), "permuted(ghn3)": dict.fromkeys(nets, 1.0)})
    assert claim(summary, "ghn3 beats its").answer == "not measured"


def test_the_best_formula_is_another_one_on_each_network() -> None:
    nets = ("R", "M", "E", "G")
    formulas = {"he": {"R": 9.0, "M": 1.0, "E": 9.0, "G": -5.0}, "lsuv": {"R": 1.0, "M": 9.0, "E": 1.0, "G": -5.0}}
    strong = summary_of({**formulas, "ghn3": dict.fromkeys(nets, 15.0), "permuted(ghn3)": dict.fromkeys(nets, 30.0)})
    found = claim(strong, "ghn3 beats the best")
    assert found.answer == "yes"
    assert found.seen == "+5.5 AUC; best are R he, M lsuv, E he, G default"
    weak = summary_of({**formulas, "ghn3": dict.fromkeys(nets, -9.0), "ten-times": dict.fromkeys(nets, -30.0)})
    assert claim(weak, "ghn3 beats the best").answer == "no"
    assert claim(summary_of({"ghn3": dict.fromkeys(nets, 5.0)}), "ghn3 beats the best").answer == "not measured"


def test_an_early_gain_shrinks() -> None:
    found = claim(summary_of({"ghn3": {"R": 20.0, "M": 18.0}}), "Predicted weights")
    assert found.answer == "yes"
    assert "+0.0 at step 150" in found.seen
    assert claim(summary_of({"ghn3": {"R": -20.0, "M": -18.0}}), "Predicted weights").answer == "no"


def test_families_that_differ() -> None:
    assert claim(summary_of({"ghn3": {"R": 20.0, "V": -20.0}}), "The gain of ghn3").answer == "yes"
    assert claim(summary_of({"ghn3": {"R": 20.0, "V": 20.0}}), "The gain of ghn3").answer == "undecided"


def test_starts_are_read() -> None:
    summary = summary_of({"ghn3": {"R": 20.0}}, extra=[start("R", "ghn3")])
    assert claim(summary, "Without training").answer == "yes"
    assert claim(summary, "ghn3 leaves no duplicate").answer == "yes"
    tiled = start("R", "ghn3", distribution={"duplicate_share": 0.2})
    assert claim(summary_of({"ghn3": {"R": 20.0}}, extra=[tiled]), "ghn3 leaves no duplicate").answer == "no"


def test_the_controls_are_claims_as_well() -> None:
    summary = summary_of({"redrawn": {"R": 0.0, "V": 0.0}, "ten-times": {"R": -30.0, "V": -20.0}})
    assert claim(summary, "Drawing the default anew").answer == "yes"
    assert claim(summary, "Weights ten times too large").answer == "yes"
    assert claim(summary_of({"redrawn": {"R": 9.0, "V": 9.0}}), "Drawing the default anew").answer == "no"


def test_a_contrast_is_paired_by_seed_and_network() -> None:
    summary = summary_of({"a": {"R": 6.0, "V": 3.0}, "b": {"R": 3.0}})
    found = contrast(summary, "a", "b", ["R", "V"], mean_accuracy)
    assert found is not None
    assert found.architectures == 1
    assert found.estimate.mean == pytest.approx(2.0)
    assert contrast(summary, "a", "c", ["R"], mean_accuracy) is None
