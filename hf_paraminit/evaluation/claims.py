"""What the papers say, and what of it is seen at this scale: one line per claim, computed from a summary."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hf_paraminit.evaluation.learning_curve import mean_accuracy
from hf_paraminit.evaluation.nets import ALL_NETS
from hf_paraminit.evaluation.statistics import Estimate, Overall, overall_estimate
from hf_paraminit.evaluation.summary import DEFAULT, Row, Summary

Answer = Literal["yes", "no", "undecided", "not measured"]
Metric = Callable[[Mapping[int, float]], float]

BATCH_NORM_NETS = tuple(name for name, net in ALL_NETS.items() if net.family.endswith("batch norm"))
RESIDUAL_NETS = ("R",)
VIT_NETS = ("V", "W")
NO_NORM_NETS = ("N",)
LEARNED = "ghn3"
CONTROLS = ("redrawn", "ten-times")
EARLY, LATE = 20, 150  # steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One claim against what was measured.

    Attributes:
        claim: What is claimed, and where.
        seen: What we see, in numbers.
        interval: 95 % interval of the number that decides; None where there is none.
        answer: Whether it is so here.
    """

    claim: str
    seen: str
    interval: tuple[float, float] | None
    answer: Answer


def check_claims(summary: Summary) -> list[Claim]:
    """Check every claim that concerns what was compared; those without their rows are "not measured"."""
    return [
        _early_gain(summary),
        _depends_on_family(summary),
        _statistics_matter(summary),
        _no_duplicates(summary),
        _beats_its_controls(summary),
        _beats_the_best_formula(summary),
        _larger(summary, "Mimetic attention helps small ViTs by more than 10 AUC", "mimetic", DEFAULT, VIT_NETS, 10.0),
        _larger(summary, "and by its structure", "mimetic", "permuted(mimetic)", VIT_NETS),
        _larger(summary, "Impulse beats mimetic on small data", "impulse", "mimetic", VIT_NETS),
        _larger(summary, "LSUV trains a network without norms faster", "lsuv", DEFAULT, NO_NORM_NETS),
        _larger(summary, "LSUV harms where branches start at zero", DEFAULT, "lsuv", RESIDUAL_NETS),
        _larger(summary, "Not starting branches at zero helps ResNets", "strong-default", DEFAULT, RESIDUAL_NETS),
        _larger(
            summary,
            "Generated images pre-train: 30 points more at step 20",
            "synthetic-warmup",
            DEFAULT,
            RESIDUAL_NETS,
            30.0,
            step=20,
        ),
        _larger(summary, "Weight selection from a wider donor helps", "weight-selection", DEFAULT, summary.nets),
        _control_without_effect(summary),
        _larger(summary, "Weights ten times too large harm (control)", DEFAULT, "ten-times", summary.nets),
    ]


def contrast(summary: Summary, init: str, other: str, nets: Iterable[str], metric: Metric) -> Overall | None:
    """Difference of two initialisations over networks, paired by seed; None where they have none in common."""
    differences = {}
    for net in nets:
        first, second = summary.row(net, init), summary.row(net, other)
        if first is not None and second is not None and (values := _paired(first, second, metric)):
            differences[net] = values
    return overall_estimate(differences) if differences else None


def _paired(first: Row, second: Row, metric: Metric) -> list[float]:
    """Differences of two rows, for each seed that both have."""
    seeds = sorted(first.curves.keys() & second.curves.keys())
    return [metric(first.curves[seed]) - metric(second.curves[seed]) for seed in seeds]


def _larger(
    summary: Summary,
    claim: str,
    init: str,
    other: str,
    nets: Sequence[str],
    least: float = 0.0,
    *,
    step: int | None = None,
) -> Claim:
    """Whether one initialisation is ahead of another by more than `least` points of AUC, or of accuracy at a step."""
    metric: Metric = mean_accuracy if step is None else _accuracy_at(step)
    found = contrast(summary, init, other, nets, metric)
    what = "AUC" if step is None else f"accuracy at step {step}"
    text = f"{claim}: {init} against {other}"
    if found is None or math.isnan(found.estimate.mean):
        return _unmeasured(text)
    return _claim(text, f"{found.estimate.mean:+.1f} {what} on {found.architectures} nets", found.estimate, least)


def _accuracy_at(step: int) -> Metric:
    return lambda curve: curve.get(step, math.nan)


def _early_gain(summary: Summary) -> Claim:
    text = f"Predicted weights ({LEARNED}) speed up the first steps of nets with batch norm, and the gain shrinks"
    found = contrast(summary, LEARNED, DEFAULT, BATCH_NORM_NETS, mean_accuracy)
    early = contrast(summary, LEARNED, DEFAULT, BATCH_NORM_NETS, _accuracy_at(EARLY))
    late = contrast(summary, LEARNED, DEFAULT, BATCH_NORM_NETS, _accuracy_at(LATE))
    if found is None or early is None or late is None or math.isnan(early.estimate.mean + late.estimate.mean):
        return _unmeasured(text)
    gains = early.estimate.mean, late.estimate.mean
    seen = f"{found.estimate.mean:+.1f} AUC; {gains[0]:+.1f} at step {EARLY}, {gains[1]:+.1f} at step {LATE}"
    claim = _claim(text, seen, found.estimate)
    return claim if gains[0] > gains[1] else dataclasses.replace(claim, answer="no")


def _depends_on_family(summary: Summary) -> Claim:
    text = f"The gain of {LEARNED} depends on the family: some gain, some lose"
    rows = [row for row in summary.rows if row.init == LEARNED and row.difference is not None]
    if len(rows) < 2:
        return _unmeasured(text)
    gains = [row.net for row in rows if row.difference and row.difference.low is not None and row.difference.low > 0]
    losses = [row.net for row in rows if row.difference and row.difference.high is not None and row.difference.high < 0]
    seen = f"gains on {', '.join(gains) or 'none'}; losses on {', '.join(losses) or 'none'}; {len(rows)} nets"
    return Claim(claim=text, seen=seen, interval=None, answer="yes" if gains and losses else "undecided")


def _statistics_matter(summary: Summary) -> Claim:
    text = f"Without training, batch-norm statistics decide ({LEARNED}: accuracy at step 0, as is and re-estimated)"
    pairs = [
        (row.net, shot["plain"], shot["recalibrated"])
        for net in BATCH_NORM_NETS
        if (row := summary.row(net, LEARNED)) and (shot := row.start.get("zero_shot"))
    ]
    if not pairs:
        return _unmeasured(text)
    seen = ", ".join(f"{net} {plain:.1f} and {again:.1f}" for net, plain, again in pairs)
    differ = sum(abs(plain - again) > 1 for _, plain, again in pairs)
    return Claim(claim=text, seen=seen, interval=None, answer="yes" if differ > len(pairs) / 2 else "no")


def _no_duplicates(summary: Summary) -> Claim:
    text = f"{LEARNED} leaves no duplicate filters (|cos| > 0.99)"
    shares = {
        row.net: row.start["distribution"]["duplicate_share"]
        for row in summary.rows
        if row.init == LEARNED and row.start
    }
    if not shares:
        return _unmeasured(text)
    worst = max(shares, key=shares.__getitem__)
    seen = f"largest share of pairs {shares[worst]:.2%} ({worst}), {len(shares)} nets"
    return Claim(claim=text, seen=seen, interval=None, answer="yes" if shares[worst] == 0 else "no")


def _beats_its_controls(summary: Summary) -> Claim:
    """The learned method earns the word only if it beats its own values without their structure."""
    text = f"{LEARNED} beats its permuted and its matched control (learned structure, not scale)"
    controls = [init for init in (f"permuted({LEARNED})", f"matched({LEARNED})") if init in summary.inits]
    found = [contrast(summary, LEARNED, init, summary.nets, mean_accuracy) for init in controls]
    measured = [overall for overall in found if overall is not None]
    if len(measured) < 2:
        return _unmeasured(text)
    worst = min(measured, key=lambda overall: overall.estimate.mean)
    seen = ", ".join(
        f"{overall.estimate.mean:+.1f} AUC against {init}" for overall, init in zip(measured, controls, strict=True)
    )
    return _claim(text, seen, worst.estimate)


def _beats_the_best_formula(summary: Summary) -> Claim:
    """On each network against whichever other row is best there: chosen afterwards, so a hard comparison."""
    text = f"{LEARNED} beats the best formula of each network"
    others = [init for init in summary.inits if LEARNED not in init and init not in (DEFAULT, *CONTROLS)]
    differences, best = {}, []
    for net in summary.nets:
        learned = summary.row(net, LEARNED)
        rows = [row for init in (DEFAULT, *others) if (row := summary.row(net, init)) is not None and row.curves]
        if not others or learned is None or not rows:
            continue
        strongest = max(rows, key=lambda row: statistics.mean(map(mean_accuracy, row.curves.values())))
        if values := _paired(learned, strongest, mean_accuracy):
            differences[net] = values
            best.append(f"{net} {strongest.init}")
    if not differences:
        return _unmeasured(text)
    found = overall_estimate(differences)
    return _claim(text, f"{found.estimate.mean:+.1f} AUC; best are {', '.join(best)}", found.estimate)


def _control_without_effect(summary: Summary) -> Claim:
    text = "Drawing the default anew has no effect (control)"
    found = contrast(summary, "redrawn", DEFAULT, summary.nets, mean_accuracy)
    if found is None or found.estimate.low is None:
        return _unmeasured(text)
    interval = _interval(found.estimate)
    answer: Answer = "no" if found.estimate.excludes_zero else "yes"
    return Claim(claim=text, seen=f"{found.estimate.mean:+.1f} AUC", interval=interval, answer=answer)


def _claim(text: str, seen: str, estimate: Estimate, least: float = 0.0) -> Claim:
    """Yes if the whole interval lies above `least`, no if it lies below, else undecided."""
    interval = _interval(estimate)
    if interval is None:
        return Claim(claim=text, seen=seen, interval=None, answer="undecided")
    answer: Answer = "yes" if interval[0] > least else "no" if interval[1] < least else "undecided"
    return Claim(claim=text, seen=seen, interval=interval, answer=answer)


def _interval(estimate: Estimate) -> tuple[float, float] | None:
    return None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)


def _unmeasured(text: str) -> Claim:
    return Claim(claim=text, seen="-", interval=None, answer="not measured")
