"""Which initialisation is best for an architecture and its data: the protocol from end to end."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from hf_paraminit.errors import TracingError, TrainingConfigError
from hf_paraminit.evaluation.controls import CONTROLS
from hf_paraminit.evaluation.experiment import PROTOCOL_STEPS, Cell, Experiment, Initialization, Record, versions
from hf_paraminit.evaluation.features import pixel_accuracy
from hf_paraminit.evaluation.fingerprint import Fingerprint, fingerprint, seen_in_training
from hf_paraminit.evaluation.hosts import build_network, require_known, require_runs
from hf_paraminit.evaluation.learning_curve import Recipe
from hf_paraminit.evaluation.nets import Net, find_net
from hf_paraminit.evaluation.page import write_page
from hf_paraminit.evaluation.plain_vgg import PlainVGG
from hf_paraminit.evaluation.runner import Runner
from hf_paraminit.evaluation.summary import DEFAULT, Summary, summarize
from hf_paraminit.evaluation.tasks import Block, Task, load_task
from hf_paraminit.initializers.base import Initializer
from hf_paraminit.initializers.composition import Composition
from hf_paraminit.initializers.control import Control
from hf_paraminit.initializers.graph_hypernetwork import GraphHypernetworkInitializer
from hf_paraminit.initializers.initialize import initialize
from hf_paraminit.initializers.predictor import PredictorInitializer
from hf_paraminit.initializers.registry import create
from hf_paraminit.io.atomic import atomic_write
from hf_paraminit.io.run_store import RunStore, locked
from hf_paraminit.training.processes import is_launched, is_main_process, process_index

Models = Sequence[str | Net] | Mapping[str, str | Callable[..., nn.Module]]
Inits = Sequence[str] | Mapping[str, Any]

TUNING_FACTORS = (1 / 3, 1.0, 3.0)
TUNING_SEEDS = (100, 101)  # never reported
DEVELOPMENT_SEED = 200  # first of the seeds for looking at results while something is being built
RECALIBRATED = "+recalibrated"
CONTROLLED = re.compile(r"(?P<kind>permuted|matched)\((?P<of>.+)\)")
OWN_STARTS = (DEFAULT, "strong-default", "redrawn")  # starts that come from the host
MAX_START_SEEDS = 2  # seeds for which the state before the first step is measured; it varies little


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A finished comparison.

    Attributes:
        summary: What was found.
        records: One per cell, tuning included, as written to `runs.jsonl`.
        settings: What was compared and how; JSON values.
        pixels: Accuracy of simple classifiers on raw pixels, in percent.
        seen: Networks that count as part of a predictor's training set.
    """

    summary: Summary
    records: Sequence[Record]
    settings: Mapping[str, Any]
    pixels: Mapping[str, float] = field(default_factory=dict)
    seen: Sequence[str] = ()

    @property
    def verdict(self) -> str:
        """What the statistics say, in one sentence."""
        return self.summary.verdict

    def to_dict(self) -> Record:
        """Everything but the single cells, as JSON values."""
        return {
            "verdict": self.verdict,
            "cautions": list(self.summary.cautions),
            "settings": dict(self.settings),
            "pixels": dict(self.pixels),
            "seen_in_training": list(self.seen),
            "summary": self.summary.to_dict(),
            "versions": versions(),
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Write `summary.json`, `summary.csv`, `cells.csv` and `index.html`; each replaces its predecessor as a whole.

        Raises:
            OutputError: The folder cannot be written.
        """
        folder = Path(folder)
        files = [folder / name for name in ("summary.json", "summary.csv", "cells.csv", "index.html")]
        with atomic_write(files[0]) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1, default=repr) + "\n", encoding="utf-8")
        _write_csv(files[1], [_flat_row(row) for row in self.summary.rows])
        _write_csv(files[2], [_flat_cell(record) for record in self.records])
        write_page(self.to_dict(), self.summary, files[3])
        return files


def compare_inits(
    models: Models,
    inits: Inits,
    *,
    data: str | Task = "digits",
    seeds: int | Sequence[int] = 8,
    output: str | Path | None = None,
    steps: int = 150,
    batch_size: int = 64,
    img_size: int = 32,
    tune: bool = True,
    block: Block = "test",
    processes: int | None = None,
    init_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    trained_on: Sequence[Fingerprint] = (),
    command: str | None = None,
) -> Comparison:
    """Train small, paired runs from several initialisations and say which start is better.

    All runs of a seed see the same images in the same order; the learning rate is tuned for each model and
    initialisation by validation AUC on two seeds that are not reported. The default is always among those compared.
    With an output folder, finished cells are kept: a run that was interrupted, or is repeated with more seeds, models
    or initialisations, computes what is missing only.

    Args:
        models: Names that `timm.create_model` takes, benchmark networks ("R", "C", "V", "M", ...), `Net` records, or a
            mapping from names to names or functions that build a module from `num_classes` and `in_chans`.
        inits: What `init=` takes, by name; or a mapping from labels to values of `init=`. "default" is the model's own,
            "strong-default" its strongest trivial variant (of benchmark networks that have one), "redrawn" the default
            from other draws (no effect is expected) and "ten-times" the default with weights ten times too large (harm
            is expected). "permuted(NAME)" and "matched(NAME)" are controls that keep the scale of another's values and
            take their structure away. A name that ends in "+recalibrated" starts with batch-norm statistics estimated
            from training images.
        data: See `load_task`.
        seeds: How many (0, 1, ...), or which.
        output: Folder for records and the page; None keeps everything in memory.
        steps: Optimiser steps of each run.
        batch_size: Images per step.
        img_size: Side that images are brought to, in pixels.
        tune: Tune the learning rate; otherwise all runs use the network's base rate.
        block: What results are reported on; "validation" while something is being developed.
        processes: Worker processes; None for one per core. Ignored under a launcher, which brings its own.
        init_kwargs: Settings of initializers, by label.
        trained_on: Fingerprints of the networks that a compared predictor was trained on.
        command: How to repeat the comparison from a shell, for the page.

    Raises:
        TrainingConfigError: Data or settings that nothing can be learned from.
        UnknownInitializerError: No such initializer; nothing has been computed then.
        OutputError: The folder cannot be written, or another run is writing to it.
        MissingDependencyError: scikit-learn or SciPy is not installed.
    """
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    _check_settings(numbers, steps)
    if is_launched() and output is None:
        raise TrainingConfigError("Several processes share their results through files: name an output folder.")
    task = load_task(data, size=img_size, batch_size=batch_size)
    nets = _named_nets(models)
    chosen = _named_inits(inits, init_kwargs or {})
    prints = _fingerprints(nets, task)
    experiment = Experiment(
        task=task,
        nets=nets,
        inits=chosen,
        recipe=Recipe(
            learning_rate=1e-3,
            steps=steps,
            batch_size=batch_size,
            evaluate_at=tuple(sorted({step for step in PROTOCOL_STEPS if step < steps} | {steps})),
        ),
        graph_hashes={name: found.digest if found else None for name, found in prints.items()},
    )
    folder = None if output is None else Path(output)
    with locked(folder if is_main_process() else None):
        records, factors = _compute(experiment, folder, numbers, block, tune=tune, processes=processes)
        comparison = Comparison(
            summary=summarize(
                [record for record in records if record["seed"] in numbers and record["block"] == block],
                factors=factors,
                nets=list(nets),
                inits=list(chosen),
                families={name: net.family for name, net in nets.items()},
            ),
            records=records,
            settings={
                "models": {name: _net_settings(net) for name, net in nets.items()},
                "inits": {label: one.description for label, one in chosen.items()},
                "data": task.name,
                "data_digest": task.digest,
                "images": {part: len(getattr(task, part)[0]) for part in ("train", "validation", "test")},
                "image_shape": list(task.image_shape),
                "classes": task.num_classes,
                "seeds": list(numbers),
                "tuning_seeds": list(TUNING_SEEDS) if tune else [],
                "factors": list(TUNING_FACTORS) if tune else [1.0],
                "block": block,
                "recipe": dataclasses.asdict(dataclasses.replace(experiment.recipe, learning_rate=0.0)),
                "command": command,
            },
            pixels=pixel_accuracy(task.train, task.block(block)),
            seen=[name for name, found in prints.items() if found and seen_in_training(found, trained_on)],
        )
        if folder is not None and is_main_process():
            comparison.save(folder)
    return comparison


def _compute(
    experiment: Experiment,
    folder: Path | None,
    seeds: tuple[int, ...],
    block: Block,
    *,
    tune: bool,
    processes: int | None,
) -> tuple[list[Record], dict[tuple[str, str], float]]:
    """All cells in three waves: tuning, the reported curves, and the state before the first step."""
    store = RunStore(folder, rank=process_index())
    runner = Runner(experiment, store, processes=processes)
    pairs = [
        (name, label)
        for name, net in experiment.nets.items()
        for label, init in experiment.inits.items()
        if net.has_strong_variant or not init.is_strong
    ]
    tuning: list[Record] = []
    if tune:
        tuning = runner.compute(
            [
                Cell(kind="training", net=net, init=init, seed=seed, factor=factor, block="validation")
                for net, init in pairs
                for factor in TUNING_FACTORS
                for seed in TUNING_SEEDS
            ],
            "tuning",
        )
    factors = best_factors(tuning)
    reported = runner.compute(
        [
            Cell(kind="training", net=net, init=init, seed=seed, factor=factor, block=block)
            for net, init in pairs
            for factor in sorted({1.0, factors.get((net, init), 1.0)})
            for seed in seeds
        ],
        "curves",
    )
    starts = runner.compute(
        [
            Cell(kind="start", net=net, init=init, seed=seed, block=block)
            for net, init in pairs
            for seed in seeds[:MAX_START_SEEDS]
        ],
        "start",
    )
    return [*tuning, *reported, *starts], factors


def best_factors(tuning: Sequence[Record]) -> dict[tuple[str, str], float]:
    """Learning-rate factor with the best mean validation AUC, by (network, initialisation); 1 wins ties."""
    aucs: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in tuning:
        if record["status"] == "done":
            aucs[record["net"], record["init"]][record["factor"]].append(record["auc"])
    return {
        place: max(found, key=lambda factor: (statistics.fmean(found[factor]), factor == 1.0))
        for place, found in aucs.items()
    }


def _check_settings(seeds: tuple[int, ...], steps: int) -> None:
    if not seeds or len(set(seeds)) != len(seeds) or any(seed < 0 for seed in seeds):
        raise TrainingConfigError(f"A comparison needs different seeds of at least 0, found {list(seeds)}.")
    if set(seeds) & set(TUNING_SEEDS):
        raise TrainingConfigError(
            f"Seeds {list(TUNING_SEEDS)} tune the learning rate and cannot be reported, found {list(seeds)}."
        )
    if steps < 1:
        raise TrainingConfigError(f"A comparison needs at least 1 step, found {steps}.")


def _named_nets(models: Models) -> dict[str, Net]:
    if isinstance(models, str):
        models = [models]
    if isinstance(models, Mapping):
        nets = [Net(name=name, architecture=model) for name, model in models.items()]
    else:
        nets = [find_net(model) for model in models]
    if not nets:
        raise TrainingConfigError("A comparison needs at least one model.")
    for net in nets:
        require_known(net)
    return {net.name: net for net in nets}


def _named_inits(inits: Inits, init_kwargs: Mapping[str, Mapping[str, Any]]) -> dict[str, Initialization]:
    """The default first; every other one is created once, so that a wrong name is refused before any training."""
    if isinstance(inits, str):
        inits = [inits]
    values = dict(inits) if isinstance(inits, Mapping) else {name: name for name in inits}
    values = {DEFAULT: DEFAULT, **{label: value for label, value in values.items() if label != DEFAULT}}
    unknown = sorted(set(init_kwargs) - set(values))
    if unknown:
        raise TrainingConfigError(f"init_kwargs names {', '.join(unknown)}, which is not compared.")
    found = {}
    for label, value in values.items():
        settings = init_kwargs.get(label, {})
        one = _initialization(label, value, settings)
        if one.init is not None:
            initializer = create(one.init, **{"seed": 0, **one.settings})
            digests = tuple(map(_digest_of_predictor, _predictors_in(initializer)))
            one = dataclasses.replace(one, predictors=digests)
        found[label] = one
    return found


def _predictors_in(initializer: Initializer) -> Iterator[Initializer]:
    """The initializer itself if it runs a trained network, else those inside a control or a composition."""
    if isinstance(initializer, (GraphHypernetworkInitializer, PredictorInitializer)):
        yield initializer
    elif isinstance(initializer, Control):
        yield from _predictors_in(initializer.original)
    elif isinstance(initializer, Composition):
        for rule in initializer.rules:
            yield from _predictors_in(rule.initializer)


def _digest_of_predictor(predictor: Initializer) -> str:
    """What its report on a small network says about the file; one that cannot run fails here, before any training."""
    probe = PlainVGG((8, 0, 8))
    probe.expected_input_sz = (3, 32, 32)  # type: ignore[assignment]
    report = initialize(probe, predictor, distributed="off")
    return f"{report.sha256} {report.revision}"


def _initialization(label: str, value: Any, settings: Mapping[str, Any]) -> Initialization:
    """Take the names apart that only a comparison knows; everything else is what `init=` takes."""
    name = value if isinstance(value, str) else ""
    base = name.removesuffix(RECALIBRATED)
    if base != name:
        value = base
    if controlled := CONTROLLED.fullmatch(base):
        value, settings = f"control:{controlled['kind']}", {"of": controlled["of"], **settings}
    return Initialization(
        label=label,
        init=None if base in OWN_STARTS else CONTROLS.get(base, value),
        settings=settings,
        is_strong=base == "strong-default",
        is_redrawn=base == "redrawn",
        is_recalibrated=base != name,
    )


def _fingerprints(nets: Mapping[str, Net], task: Task) -> dict[str, Fingerprint | None]:
    """What cannot be built or run is found out here, before any training; what cannot be traced has no fingerprint."""
    channels, side, _ = task.image_shape
    found: dict[str, Fingerprint | None] = {}
    for name, net in nets.items():
        model = build_network(net, num_classes=task.num_classes, in_chans=channels, img_size=side)
        require_runs(model, net, task.train[0][:2], task.num_classes)
        try:
            found[name] = fingerprint(model)
        except TracingError:
            found[name] = None
    return found


def _net_settings(net: Net) -> Record:
    architecture = net.architecture if isinstance(net.architecture, str) else net.architecture.__qualname__
    return {
        "architecture": architecture,
        "settings": dict(net.settings),
        "learning_rate": net.learning_rate,
        "family": net.family,
        "title": net.title,
    }


def _flat_row(row: Any) -> Record:
    difference = row.difference
    return {
        "net": row.net,
        "init": row.init,
        "seeds": len(row.seeds),
        "learning_rate_factor": round(row.factor, 4),
        **{f"accuracy_{step}": round(value, 3) for step, value in row.curve.items()},
        "auc": round(row.auc, 3),
        "auc_deviation": round(row.auc_deviation, 3),
        "difference": "" if difference is None else round(difference.mean, 3),
        "difference_low": "" if difference is None or difference.low is None else round(difference.low, 3),
        "difference_high": "" if difference is None or difference.high is None else round(difference.high, 3),
        "untuned_auc": "" if row.untuned_auc is None else round(row.untuned_auc, 3),
        "target": row.target,
        "steps_to_target": round(row.steps_to_target, 1),
        "censored": row.censored,
        "init_seconds": round(row.init_seconds, 4),
        "init_peak_mb": "" if row.init_peak_mb is None else row.init_peak_mb,
        "training_cpu_seconds": round(row.training_cpu_seconds, 2),
        "break_even_seconds": "" if row.break_even_seconds is None else round(row.break_even_seconds, 2),
    }


def _flat_cell(record: Record) -> Record:
    names = ("kind", "net", "init", "seed", "factor", "learning_rate", "block", "status", "graph_hash")
    curve = {f"accuracy_{step}": value for step, value in record.get("curve", {}).items()}
    return {name: record[name] for name in names} | {
        "auc": record.get("auc", ""),
        **curve,
        "error": record.get("error", ""),
    }


def _write_csv(path: Path, rows: Sequence[Record]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
