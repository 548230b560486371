"""The head start of a learngene: nets made from it after one epoch against the same nets from nothing after ten.

Every start is trained at the rate that serves it best at its own length: the one of the protocol's three that gives the
highest accuracy on validation images, over seeds that are not reported. Published (LeTs, abstract): one epoch beats 100
epochs from scratch on the learngene's own data, ImageNet.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_paraminit.cli.compare import interval
from hf_paraminit.cli.table import table
from hf_paraminit.evaluation.comparison import TUNING_FACTORS, TUNING_SEEDS, best_factors
from hf_paraminit.evaluation.experiment import Cell, Experiment, Initialization, Record
from hf_paraminit.evaluation.learning_curve import Recipe
from hf_paraminit.evaluation.nets import Net
from hf_paraminit.evaluation.runner import Runner
from hf_paraminit.evaluation.statistics import Estimate, overall_estimate, paired_estimate
from hf_paraminit.evaluation.tasks import Block, Task
from hf_paraminit.io.run_store import RunStore, locked
from hf_paraminit.training.processes import is_main_process, process_index

EPOCHS, SCRATCH_EPOCHS = 1, 10
ALL_NETS = "all"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One start of one net after some epochs.

    Attributes:
        net: Its name, or `ALL_NETS` for the mean over them.
        start: Label of the start.
        epochs: Passes over the training images.
        factor: Learning rate over the base rate; None for a mean over nets.
        accuracies: In percent, by seed.
        lead: The learngene's accuracy after one epoch minus this one, paired by seed; over nets with the interval of
            the hierarchical bootstrap. None for the learngene itself, or where it has no runs of these seeds.
    """

    net: str
    start: str
    epochs: int
    factor: float | None
    accuracies: Mapping[int, float]
    lead: Estimate | None

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.accuracies.values())

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds; 0 with one."""
        return statistics.stdev(self.accuracies.values()) if len(self.accuracies) > 1 else 0.0

    def to_dict(self) -> Record:
        """JSON values."""
        return {**dataclasses.asdict(self), "mean": self.mean, "deviation": self.deviation}


@dataclass(frozen=True, kw_only=True)
class HeadStart:
    """What was measured.

    Attributes:
        rows: Net by net, the means over nets last; in each those from nothing after ten epochs first.
        failures: One line per cell that failed.
    """

    rows: Sequence[Row]
    failures: Sequence[str] = ()

    def to_dict(self) -> Record:
        """JSON values."""
        return {"rows": [row.to_dict() for row in self.rows], "failures": list(self.failures)}

    def text(self, learngene: str) -> str:
        """The table for a terminal, and what failed."""
        header = ["net", "start", "epochs", "rate x", "accuracy (sd)", f"{learngene} after 1 epoch minus this [95 %]"]
        lines = [
            [
                row.net,
                row.start,
                str(row.epochs),
                "-" if row.factor is None else f"{row.factor:.2f}",
                f"{row.mean:.1f} ({row.deviation:.1f})",
                interval(row.lead),
            ]
            for row in self.rows
        ]
        return "\n".join([table(header, lines), *(f"Failed: {failure}" for failure in self.failures)])


@dataclass(frozen=True, kw_only=True)
class HeadStartExperiment:
    """What is measured, and how.

    Attributes:
        task: The images.
        nets: Des-Nets by name.
        starts: By label.
        learngene: Label of the start that the others are compared with.
        scratch: Labels of the starts that get ten epochs as well.
        seeds: How many are reported, from 0.
        batch_size: Images per step.
        block: What is reported on.
        is_tuned: Whether rates are tuned; otherwise all have the base rate.
    """

    task: Task
    nets: Mapping[str, Net]
    starts: Mapping[str, Initialization]
    learngene: str
    scratch: Sequence[str]
    seeds: int
    batch_size: int
    block: Block = "test"
    is_tuned: bool = True

    def run(self, folder: Path, *, processes: int | None = None) -> HeadStart:
        """Compute what is not in the folder yet; each cell is kept there as soon as it is finished.

        Args:
            folder: Place of `runs.jsonl`.
            processes: Worker processes; None for one per core. Ignored under a launcher.

        Raises:
            OutputError: The folder cannot be written, or another run is writing to it.
        """
        found: dict[int, list[Record]] = {}
        with locked(folder if is_main_process() else None):
            store = RunStore(folder, rank=process_index())
            for epochs, labels in ((SCRATCH_EPOCHS, self.scratch), (EPOCHS, list(self.starts))):
                steps = epochs * math.ceil(len(self.task.train[0]) / self.batch_size)
                recipe = Recipe(learning_rate=0.0, steps=steps, batch_size=self.batch_size, evaluate_at=(steps,))
                experiment = Experiment(task=self.task, nets=self.nets, inits=self.starts, recipe=recipe)
                runner = Runner(experiment, store, processes=processes)
                found[epochs] = self._train(runner, labels, title=f"{epochs} epochs" if epochs > 1 else "1 epoch")
        failed = [record for records in found.values() for record in records if record["status"] != "done"]
        return HeadStart(
            rows=self._rows(found), failures=[f"{cell['init']} of {cell['net']}: {cell['error']}" for cell in failed]
        )

    def _train(self, runner: Runner, labels: Sequence[str], title: str) -> list[Record]:
        """The records of the reported seeds, at tuned rates. Their AUC is the accuracy at the end, their only point."""
        places = [(net, label) for net in self.nets for label in labels]
        tuning = [
            Cell(kind="training", net=net, init=label, seed=seed, factor=factor, block="validation")
            for net, label in places
            for factor in TUNING_FACTORS
            for seed in TUNING_SEEDS
        ]
        factors = best_factors(runner.compute(tuning, f"tuning, {title}")) if self.is_tuned else {}
        reported = [
            Cell(
                kind="training",
                net=net,
                init=label,
                seed=seed,
                factor=factors.get((net, label), 1.0),
                block=self.block,
            )
            for net, label in places
            for seed in range(self.seeds)
        ]
        return runner.compute(reported, title)

    def _rows(self, found: Mapping[int, Sequence[Record]]) -> list[Row]:
        rows = []
        for net in self.nets:
            reference = _accuracies(found[EPOCHS], net, self.learngene)
            for epochs, label in self._trained():
                own = _accuracies(found[epochs], net, label)
                factor = next((r["factor"] for r in found[epochs] if (r["net"], r["init"]) == (net, label)), None)
                lead = None if (label, epochs) == (self.learngene, EPOCHS) else _lead(reference, own)
                if own:
                    rows.append(Row(net=net, start=label, epochs=epochs, factor=factor, accuracies=own, lead=lead))
        return [*rows, *self._means(rows)]

    def _means(self, rows: Sequence[Row]) -> list[Row]:
        """Rows over all nets, of the starts that have every net and seed."""
        means = []
        reference = {row.net: row for row in rows if (row.start, row.epochs) == (self.learngene, EPOCHS)}
        for epochs, label in self._trained():
            own = {row.net: row for row in rows if (row.start, row.epochs) == (label, epochs)}
            if sum(len(row.accuracies) for row in own.values()) < len(self.nets) * self.seeds:
                continue
            differences = {
                net: [reference[net].accuracies[seed] - value for seed, value in row.accuracies.items()]
                for net, row in own.items()
                if row.lead and len(reference[net].accuracies) == self.seeds
            }
            means.append(
                Row(
                    net=ALL_NETS,
                    start=label,
                    epochs=epochs,
                    factor=None,
                    accuracies={
                        seed: statistics.fmean(row.accuracies[seed] for row in own.values())
                        for seed in range(self.seeds)
                    },
                    lead=overall_estimate(differences).estimate if len(differences) == len(self.nets) else None,
                )
            )
        return means

    def _trained(self) -> list[tuple[int, str]]:
        """What was trained for how many epochs, in the order of the rows."""
        return [(SCRATCH_EPOCHS, label) for label in self.scratch] + [(EPOCHS, label) for label in self.starts]


def _accuracies(records: Sequence[Record], net: str, label: str) -> dict[int, float]:
    """By seed."""
    return {
        record["seed"]: record["auc"]
        for record in records
        if record["status"] == "done" and (record["net"], record["init"]) == (net, label)
    }


def _lead(reference: Mapping[int, float], own: Mapping[int, float]) -> Estimate | None:
    seeds = sorted(reference.keys() & own.keys())
    return paired_estimate([reference[seed] for seed in seeds], [own[seed] for seed in seeds]) if seeds else None
