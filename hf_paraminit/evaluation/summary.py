"""From records of cells to what a person reads: curves, differences with intervals, costs, verdicts."""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_paraminit.evaluation.learning_curve import steps_to_reach
from hf_paraminit.evaluation.statistics import Estimate, Overall, holm, overall_estimate, paired_estimate

Record = dict[str, Any]

DEFAULT = "default"
TARGETS = {"attention": 50.0}  # accuracy for "steps to reach", by family
TARGET = 80.0
MIN_SEEDS, MIN_ARCHITECTURES = 6, 8  # below them, no claim beyond the compared models


@dataclass(frozen=True, kw_only=True)
class Row:
    """One initialisation of one network.

    Attributes:
        net: Name of the network.
        init: Label of the initialisation.
        seeds: Seeds with a result.
        factor: Tuned learning rate over the base rate.
        curves: Accuracy in percent by seed and step.
        curve: Its mean by step.
        deviation: Its standard deviation over seeds by step; zeros with one seed.
        auc: Mean AUC.
        auc_deviation: Its standard deviation over seeds.
        difference: AUC minus the default's, paired by seed; None for the default itself.
        step_differences: The same by step.
        untuned_auc: Mean AUC at the base rate; None if it was not computed.
        target: Accuracy that `steps_to_target` refers to.
        steps_to_target: Mean steps to reach it; runs that do not reach it count with the last step.
        censored: How many do not reach it.
        init_seconds: Mean time to compute the initial values.
        init_peak_mb: Largest memory that took, above what was in use; None where the system cannot tell.
        training_cpu_seconds: Mean processor time of one training.
        break_even_seconds: Training time saved until the target, minus `init_seconds`; None for the default or where
            it cannot be known.
        failed: Runs that failed, with their errors.
        start: Means over seeds of what was measured before the first step.
    """

    net: str
    init: str
    seeds: tuple[int, ...]
    factor: float
    curves: Mapping[int, Mapping[int, float]]
    curve: Mapping[int, float]
    deviation: Mapping[int, float]
    auc: float
    auc_deviation: float
    difference: Estimate | None
    step_differences: Mapping[int, Estimate]
    untuned_auc: float | None
    target: float
    steps_to_target: float
    censored: int
    init_seconds: float
    init_peak_mb: float | None
    training_cpu_seconds: float
    break_even_seconds: float | None = None
    failed: tuple[str, ...] = ()
    start: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All that tables, curves and verdicts are made of.

    Attributes:
        rows: One per network and initialisation with at least one result.
        overall: Difference to the default over networks, by initialisation, with Holm's correction over them.
        failures: One line per initialisation and network that failed: (net, init, number of cells, error).
        nets: Networks in order.
        inits: Initialisations in order.
        cpu_seconds: Processor time of all trainings.
    """

    rows: tuple[Row, ...]
    overall: Mapping[str, Overall]
    failures: tuple[tuple[str, str, int, str], ...]
    nets: tuple[str, ...]
    inits: tuple[str, ...]
    cpu_seconds: float

    def row(self, net: str, init: str) -> Row | None:
        """The row, if that initialisation worked on that network."""
        return next((row for row in self.rows if (row.net, row.init) == (net, init)), None)

    def to_dict(self) -> Record:
        """JSON values."""
        return dataclasses.asdict(self)

    @property
    def verdict(self) -> str:
        """What the statistics say, in one sentence, and of what it is said."""
        if not self.overall:
            return "Nothing can be said: no initialisation but the default has results."
        groups = {
            word: [init for init, overall in self.overall.items() if overall.corrected_verdict == word]
            for word in ("helps", "harms", "undecided")
        }
        parts = []
        if groups["helps"]:
            best = max(groups["helps"], key=lambda init: self.overall[init].estimate.mean)
            parts.append(f"{best} helps most ({_in_words(self.overall[best].estimate)} AUC against the default)")
            others = [init for init in groups["helps"] if init != best]
            if others:
                parts.append(f"{_listed(others)} {'helps' if len(others) == 1 else 'help'} as well")
        else:
            parts.append("no initialisation was shown to be better than the default")
        if groups["harms"]:
            parts.append(f"{_listed(groups['harms'])} {'harms' if len(groups['harms']) == 1 else 'harm'}")
        if groups["undecided"]:
            parts.append(f"{_listed(groups['undecided'])} {'is' if len(groups['undecided']) == 1 else 'are'} undecided")
        sentence = "; ".join(parts)
        if len(self.nets) < MIN_ARCHITECTURES:
            return f"On {'this model' if len(self.nets) == 1 else f'these {len(self.nets)} models'}: {sentence}."
        return f"{sentence[0].upper()}{sentence[1:]}."

    @property
    def cautions(self) -> tuple[str, ...]:
        """What forbids a wider claim."""
        notes = []
        seeds = min((len(row.seeds) for row in self.rows), default=0)
        if seeds < MIN_SEEDS:
            notes.append(f"Only {seeds} seed{'s' * (seeds != 1)} per cell; {MIN_SEEDS} are the least for an interval.")
        if len(self.nets) < MIN_ARCHITECTURES:
            notes.append(
                f"{len(self.nets)} architecture{'s' * (len(self.nets) != 1)}: the verdict is about these, not about "
                f"others (a general claim needs {MIN_ARCHITECTURES})."
            )
        if self.failures:
            notes.append(f"{len(self.failures)} combinations failed and are left out; see the list.")
        return tuple(notes)


def summarize(
    records: Iterable[Record],
    *,
    factors: Mapping[tuple[str, str], float],
    nets: Sequence[str],
    inits: Sequence[str],
    families: Mapping[str, str],
    baseline: str = DEFAULT,
) -> Summary:
    """Combine the records of the reported seeds.

    Args:
        records: Of cells, tuning excluded.
        factors: Tuned learning-rate factor by (network, initialisation).
        nets: Names of the networks.
        inits: Labels of the initialisations.
        families: Family by network.
        baseline: What others are compared with.
    """
    everything = list(records)
    trained: dict[tuple[str, str], dict[float, dict[int, Record]]] = defaultdict(lambda: defaultdict(dict))
    starts: dict[tuple[str, str], list[Record]] = defaultdict(list)
    errors: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in everything:
        place = record["net"], record["init"]
        if record["status"] != "done":
            errors[place].append(record["error"])
        elif record["kind"] == "training":
            trained[place][record["factor"]][record["seed"]] = record
        else:
            starts[place].append(record)
    rows = []
    for net in nets:
        reference = trained[net, baseline][factors.get((net, baseline), 1.0)]
        for init in inits:
            runs = trained[net, init][factors.get((net, init), 1.0)]
            if runs:
                row = _row(net, init, runs, reference if init != baseline else None, TARGETS.get(families[net], TARGET))
                untuned = trained[net, init][1.0]
                rows.append(
                    dataclasses.replace(
                        row,
                        factor=factors.get((net, init), 1.0),
                        untuned_auc=statistics.fmean(run["auc"] for run in untuned.values()) if untuned else None,
                        failed=tuple(errors[net, init]),
                        start=_mean_start(starts[net, init]),
                    )
                )
    rows = [_with_break_even(row, rows, baseline) for row in rows]
    return Summary(
        rows=tuple(rows),
        overall=_overall(trained, factors, nets, [init for init in inits if init != baseline], baseline),
        failures=tuple((net, init, len(found), found[0]) for (net, init), found in errors.items() if found),
        nets=tuple(nets),
        inits=tuple(inits),
        cpu_seconds=sum(r.get("cost", {}).get("training_cpu_seconds") or 0.0 for r in everything),
    )


def paired_aucs(summary_runs: Mapping[int, Record], reference: Mapping[int, Record]) -> tuple[list[float], list[float]]:
    """AUCs of the seeds that both have, in the same order."""
    seeds = sorted(summary_runs.keys() & reference.keys())
    return [summary_runs[seed]["auc"] for seed in seeds], [reference[seed]["auc"] for seed in seeds]


def _row(net: str, init: str, runs: Mapping[int, Record], reference: Mapping[int, Record] | None, target: float) -> Row:
    curves = {seed: {int(step): value for step, value in run["curve"].items()} for seed, run in runs.items()}
    steps = sorted(next(iter(curves.values())))
    aucs = [run["auc"] for run in runs.values()]
    reached = [steps_to_reach(curve, target) for curve in curves.values()]
    difference, by_step = _differences(runs, reference, steps) if reference else (None, {})
    peaks = [run["cost"]["init_peak_mb"] for run in runs.values()]
    return Row(
        net=net,
        init=init,
        seeds=tuple(sorted(runs)),
        factor=1.0,
        curves=curves,
        curve={step: statistics.fmean(curve[step] for curve in curves.values()) for step in steps},
        deviation={step: _deviation([curve[step] for curve in curves.values()]) for step in steps},
        auc=statistics.fmean(aucs),
        auc_deviation=_deviation(aucs),
        difference=difference,
        step_differences=by_step,
        untuned_auc=None,
        target=target,
        steps_to_target=statistics.fmean(float(steps[-1]) if value is None else value for value in reached),
        censored=sum(value is None for value in reached),
        init_seconds=statistics.fmean(run["cost"]["init_seconds"] for run in runs.values()),
        init_peak_mb=None if None in peaks else max(peaks),
        training_cpu_seconds=statistics.fmean(run["cost"]["training_cpu_seconds"] for run in runs.values()),
    )


def _differences(
    runs: Mapping[int, Record], reference: Mapping[int, Record], steps: Sequence[int]
) -> tuple[Estimate | None, dict[int, Estimate]]:
    seeds = sorted(runs.keys() & reference.keys())
    if not seeds:
        return None, {}
    by_step = {
        step: paired_estimate(
            [runs[seed]["curve"][str(step)] for seed in seeds], [reference[seed]["curve"][str(step)] for seed in seeds]
        )
        for step in steps
    }
    return paired_estimate(*paired_aucs(runs, reference)), by_step


def _with_break_even(row: Row, rows: Sequence[Row], baseline: str) -> Row:
    """Training time saved until the target is reached, minus the time the initial values took."""
    reference = next((other for other in rows if (other.net, other.init) == (row.net, baseline)), None)
    step_seconds = row.start.get("step_seconds")
    if row.init == baseline or reference is None or step_seconds is None:
        return row
    saved = (reference.steps_to_target - row.steps_to_target) * step_seconds
    return dataclasses.replace(row, break_even_seconds=saved - row.init_seconds)


def _overall(
    trained: Mapping[tuple[str, str], Mapping[float, Mapping[int, Record]]],
    factors: Mapping[tuple[str, str], float],
    nets: Sequence[str],
    inits: Sequence[str],
    baseline: str,
) -> dict[str, Overall]:
    found: dict[str, Overall] = {}
    for init in inits:
        differences = {}
        for net in nets:
            runs, reference = (trained[net, label][factors.get((net, label), 1.0)] for label in (init, baseline))
            own, other = paired_aucs(runs, reference)
            if own:
                differences[net] = [value - base for value, base in zip(own, other, strict=True)]
        if differences:
            found[init] = overall_estimate(differences)
    tested = [init for init, overall in found.items() if overall.corrected_p_value is not None]
    corrected = holm([found[init].corrected_p_value or 0.0 for init in tested])
    for init, p_value in zip(tested, corrected, strict=True):
        found[init] = dataclasses.replace(found[init], corrected_p_value=p_value)
    return found


def _mean_start(records: Sequence[Record]) -> Record:
    """Numbers averaged over seeds; the per-layer table is that of the first seed."""
    if not records:
        return {}
    flows = [{k: v for k, v in record["flow"].items() if k != "layers"} for record in records]
    return {
        "parameters": records[0]["parameters"],
        "step_seconds": min(record["step_seconds"] for record in records),
        "zero_shot": _mean_values([record["zero_shot"] for record in records]),
        "flow": _mean_values(flows),
        "distribution": _mean_values([record["distribution"] for record in records]),
        "layers": records[0]["flow"]["layers"],
        "report": records[0]["report"],
        "seeds": len(records),
    }


def _mean_values(records: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name in records[0]:
        values = [record[name] for record in records if record.get(name) is not None]
        means[name] = statistics.fmean(values) if values else None  # type: ignore[arg-type]
    return means


def _in_words(estimate: Estimate) -> str:
    return f"{estimate.mean:+.1f} [{estimate.low:+.1f}, {estimate.high:+.1f}]"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
