"""The experiments of the papers on GHN-2 and GHN-3: each checks its input, computes cells, and writes the results."""

import argparse
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from hf_paraminit.cli.evaluate.ghn_figures import (
    write_accuracy_figures,
    write_curve_figure,
    write_diversity_figure,
    write_published_figures,
    write_tau_figure,
)
from hf_paraminit.cli.evaluate.networks import find_networks
from hf_paraminit.cli.table import table
from hf_paraminit.errors import InitializerConfigError, ParamInitError
from hf_paraminit.evaluation.detection import DetectionExperiment, DetectionProtocol, load_pedestrians
from hf_paraminit.evaluation.diversity import DiversityExperiment
from hf_paraminit.evaluation.experiment import Record
from hf_paraminit.evaluation.fine_tuning import PROTOCOLS, FineTuningExperiment, Start, adapted, first_of_each_class
from hf_paraminit.evaluation.learning_curve import Recipe
from hf_paraminit.evaluation.measured_properties import MeasuringExperiment
from hf_paraminit.evaluation.network_cells import (
    Images,
    Network,
    NetworkCell,
    NetworkExperiment,
    Predictor,
    compute_cells,
    find_predictor,
)
from hf_paraminit.evaluation.properties import (
    PROPERTIES,
    EmbeddingExperiment,
    Fit,
    fit_property,
    read_properties,
    search_networks,
)
from hf_paraminit.evaluation.published_results import published_summary, read_published
from hf_paraminit.evaluation.split_table import SplitRow, flat_rows, json_row, split_rows, write_rows, write_summary
from hf_paraminit.evaluation.symmetry import SymmetryBroken
from hf_paraminit.evaluation.tasks import Task
from hf_paraminit.evaluation.zero_shot import ZeroShot, ZeroShotExperiment, require_same_classes
from hf_paraminit.initializers.registry import create
from hf_paraminit.training.processes import is_launched, is_main_process

MEASURES = {"head": ("top1", "top5"), "cut-head": ("top1", "top5"), "features": ("nearest_mean", "linear")}
DETECTOR_CLASSES = 1000  # of the network before its classifier is taken off
MEASURED_AT = (10, 20, 40, 80, 150)
DEFAULT = "default"  # the network's own start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What an experiment found: rows for the terminal, and a JSON document."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    document: Mapping[str, Any]
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        return "\n".join([*([table(self.header, self.rows)] if self.rows else []), *self.notes])


# --- accuracy without training ---------------------------------------------------------------------------------------


def accuracy(arguments: argparse.Namespace) -> Result | None:
    """Accuracy of predicted weights without training."""
    settings = ZeroShot(
        readout=arguments.readout,
        statistics=arguments.batchnorm,
        batch_size=arguments.batch_size or 64,
        pixel_noise=arguments.pixel_noise,
    )
    predictors = _predictors(arguments, with_default=True)
    images, task = _images(arguments)
    for predictor in predictors.values():
        require_same_classes(predictor, task, settings)
    networks = _networks(arguments, task.num_classes)
    experiment = ZeroShotExperiment(
        images=images,
        predictors=predictors,
        settings=settings,
        device=_device(arguments),
        data_digest=task.digest,
    )
    records = _compute(arguments, experiment, _cells(networks, predictors, arguments.seeds), "accuracy")
    if not is_main_process():
        return None
    measures = MEASURES[settings.readout]
    rows = split_rows(records, measures, field="accuracy")
    fields = ("accuracy", "parameters", "parameter_norm", "coverage", "diversity", "seconds")
    write_rows(arguments.output / "networks.csv", flat_rows(records, fields))
    write_rows(arguments.output / "splits.csv", [json_row(row) for row in rows])
    facts = {**dataclasses.asdict(settings), "data": task.name, "digest": task.digest, "block": images.block}
    write_summary(arguments.output / "summary.json", rows, facts)
    write_accuracy_figures(records, measures, arguments.output)
    return _split_result(rows, records)


def _split_result(rows: Sequence[SplitRow], records: Sequence[Record]) -> Result:
    header = ["init", "networks", "count", "measure", "mean", "se", "sd", "best"]
    return Result(
        header=header,
        rows=[
            [
                row.init,
                row.group,
                str(row.count),
                row.measure,
                f"{row.mean:.2f}",
                f"{row.standard_error:.2f}",
                f"{row.deviation:.2f}",
                f"{row.best:.2f} ({row.best_network})",
            ]
            for row in rows
        ],
        document={"rows": [json_row(row) for row in rows], "failures": _failures(records)},
        notes=_failure_notes(records),
    )


# --- diversity -------------------------------------------------------------------------------------------------------


def diversity(arguments: argparse.Namespace) -> Result | None:
    """How different predicted tensors of one shape are, over all networks of a group."""
    predictors = _predictors(arguments)
    members: dict[str, list[Network]] = {}
    for network in _networks(arguments, num_classes=1000):
        members.setdefault(network.group, []).append(network)
    groups = [Network(group=group, name="all", build=found[0].build) for group, found in members.items()]
    experiment = DiversityExperiment(predictors=predictors, members=members)
    records = _compute(arguments, experiment, _cells(groups, predictors, 1), "diversity")
    if not is_main_process():
        return None
    write_rows(arguments.output / "diversity_cells.csv", flat_rows(records, ("diversity",)))
    write_diversity_figure(records, arguments.output)
    done = [record for record in records if record["status"] == "done"]
    names = ("all", "kernels", "up_to_sign", "pairs")
    return Result(
        header=["init", "networks", *names],
        rows=[
            [record["init"], record["group"], *(f"{record['diversity'].get(name, math.nan):.4g}" for name in names)]
            for record in done
        ],
        document={"rows": [{"init": r["init"], "group": r["group"], **r["diversity"]} for r in done]},
        notes=_failure_notes(records),
    )


# --- properties of networks, and the search by them ------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> Result | None:
    """Measure the four properties of networks by short trainings, for `properties` and `nas`."""
    images, task = _images(arguments)
    networks = _networks(arguments, task.num_classes)
    steps = arguments.steps
    recipe = Recipe(
        learning_rate=arguments.learning_rate or 1e-3,
        steps=steps,
        batch_size=arguments.batch_size or 64,
        evaluate_at=tuple(sorted({step for step in MEASURED_AT if step < steps} | {steps})),
    )
    experiment = MeasuringExperiment(images=images, recipe=recipe, data_digest=task.digest)
    cells = [NetworkCell(network=network) for network in networks]
    records = _compute(arguments, experiment, cells, "measuring")
    if not is_main_process():
        return None
    write_rows(arguments.output / "properties.csv", flat_rows(records, (*PROPERTIES, "parameters")))
    rows = split_rows(records, PROPERTIES)
    return _split_result(rows, records)


def properties(arguments: argparse.Namespace) -> Result | None:
    """Predict properties from graph embeddings: learn on the first group of networks, test on the second."""
    learned = _learn_properties(arguments, num_groups=2)
    if learned is None:
        return None
    fits = {init: list(found.values()) for init, (found, _, _) in learned.items()}
    write_summary(
        arguments.output / "properties.json",
        [],
        {"fits": {init: [fit.to_dict() for fit in found] for init, found in fits.items()}},
    )
    write_tau_figure(fits, arguments.output)
    return Result(
        header=["init", "property", "tau", "sd", "learned from", "tested on"],
        rows=[
            [init, fit.name, f"{fit.mean:.3f}", f"{fit.deviation:.3f}", str(fit.train_count), str(fit.test_count)]
            for init, found in fits.items()
            for fit in found
        ],
        document={init: [fit.to_dict() for fit in found] for init, found in fits.items()},
    )


def nas(arguments: argparse.Namespace) -> Result | None:
    """Search the third group of networks for the best by a predicted property."""
    learned = _learn_properties(arguments, num_groups=3)
    if learned is None:
        return None
    rows: list[Record] = []
    for init, (fits, known, candidates) in learned.items():
        if arguments.objective not in fits:
            raise ParamInitError(f"{arguments.properties} has no values of {arguments.objective}.")
        vectors = np.array([vector for _, vector in candidates])
        found = search_networks(
            arguments.objective, known[arguments.objective], vectors, fits[arguments.objective].settings
        )
        rows += [
            {"init": init, "rank": rank, "network": candidates[index][0], "predicted": value}
            for rank, (index, value) in enumerate(found, start=1)
        ]
    write_rows(arguments.output / "nas.csv", rows)
    return Result(
        header=["init", "rank", "network", arguments.objective],
        rows=[[row["init"], str(row["rank"]), row["network"], f"{row['predicted']:.3f}"] for row in rows],
        document={"objective": arguments.objective, "rows": rows},
    )


Known = tuple[np.ndarray, np.ndarray]
Candidates = list[tuple[str, list[float]]]


def _learn_properties(
    arguments: argparse.Namespace, *, num_groups: int
) -> dict[str, tuple[dict[str, Fit], dict[str, Known], Candidates]] | None:
    """By predictor: what was fitted, all networks whose properties are known, and the rest of the groups."""
    if arguments.properties is None:
        raise ParamInitError(
            "Known properties are needed to learn from: name their file with --properties. `--experiment measure` "
            "makes one."
        )
    known = read_properties(arguments.properties)
    predictors = _predictors(arguments)
    networks = _networks(arguments, num_classes=10)
    groups = list(dict.fromkeys(network.group for network in networks))
    if len(groups) != num_groups:
        raise ParamInitError(
            f"{arguments.experiment} needs {num_groups} groups of networks, found {len(groups)} ({', '.join(groups)}): "
            "the first is learned from, the second tested on, the third searched, as --networks val test search."
        )
    experiment = EmbeddingExperiment(predictors=predictors)
    records = _compute(arguments, experiment, _cells(networks, predictors, 1), "embedding")
    if not is_main_process():
        return None
    learned = {}
    for init in predictors:
        own = [record for record in records if record["init"] == init and record["status"] == "done"]
        blocks = [_known_block(own, group, known) for group in groups[:2]]
        names = [name for name in PROPERTIES if all(name in block for block in blocks)]
        if not names:
            raise ParamInitError(
                f"{arguments.properties} knows no property of the networks of both {groups[0]} and {groups[1]}."
            )
        fits = {name: fit_property(name, blocks[0][name], blocks[1][name]) for name in names}
        both = {name: _joined(blocks[0][name], blocks[1][name]) for name in names}
        rest = [(f"{r['group']}/{r['network']}", r["embedding"]) for r in own if r["group"] in groups[2:]]
        learned[init] = (fits, both, rest)
    return learned


def _known_block(
    records: Sequence[Record], group: str, known: Mapping[tuple[str, str], Mapping[str, float]]
) -> dict[str, Known]:
    """Embeddings and values of the networks of a group, by property."""
    found: dict[str, Known] = {}
    for name in PROPERTIES:
        pairs = [
            (record["embedding"], values[name])
            for record in records
            if record["group"] == group and name in (values := known.get((group, record["network"]), {}))
        ]
        if pairs:
            found[name] = (np.array([vector for vector, _ in pairs]), np.array([value for _, value in pairs]))
    return found


def _joined(first: Known, second: Known) -> Known:
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])


# --- training from predicted weights ---------------------------------------------------------------------------------


def finetune(arguments: argparse.Namespace) -> Result | None:
    """Train from predicted weights, fully or on a few images of each class."""
    protocol = adapted(
        PROTOCOLS[arguments.protocol],
        **{
            name: getattr(arguments, name)
            for name in ("epochs", "learning_rate", "weight_decay", "batch_size", "shots", "optimizer")
        },
    )
    images, task = _images(arguments)
    if protocol.shots is not None:
        first_of_each_class(task.train, protocol.shots)
    starts = _starts(arguments, needs_classes=task if protocol.predicts_classifier else None)
    networks = _networks(arguments, task.num_classes)
    experiment = FineTuningExperiment(
        images=images,
        starts=starts,
        protocol=protocol,
        folder=arguments.output,
        data_digest=task.digest,
        cpu=arguments.cpu,
    )
    records = _compute(arguments, experiment, _cells(networks, starts, arguments.seeds), "fine-tuning", together=True)
    if not is_main_process():
        return None
    write_rows(arguments.output / "finetune.csv", flat_rows(records, ("final", "images", "coverage", "weights")))
    curves = [
        {
            "init": record["init"],
            "network": record["network"],
            "seed": record["seed"],
            "epoch": epoch,
            "accuracy": value,
        }
        for record in records
        if record["status"] == "done"
        for epoch, value in record["curve"].items()
    ]
    write_rows(arguments.output / "curves.csv", curves)
    rows = split_rows(records, ("final",))
    write_summary(arguments.output / "summary.json", rows, {**dataclasses.asdict(protocol), "data": task.name})
    write_curve_figure(records, arguments.output)
    return _split_result(rows, records)


def detection(arguments: argparse.Namespace) -> Result | None:
    """Train a pedestrian detector on a network with predicted weights."""
    protocol = DetectionProtocol()
    changes = {name: getattr(arguments, name) for name in ("epochs", "learning_rate", "weight_decay", "batch_size")}
    changes["sides"] = (arguments.img_size, round(arguments.img_size * 5 / 3)) if arguments.img_size else None
    changes["num_test"] = arguments.num_test
    protocol = dataclasses.replace(protocol, **{name: value for name, value in changes.items() if value is not None})
    root = Path(arguments.data)
    load_pedestrians(root).split(protocol.num_test, seed=0)
    starts = _starts(arguments, needs_classes=None)
    # Backbones are those for large images, whatever side the detector scales its images to.
    networks = find_networks(
        arguments.networks,
        num_classes=DETECTOR_CLASSES,
        img_size=224,
        place=arguments.deepnets,
        pretrained=arguments.pretrained,
    )
    experiment = DetectionExperiment(
        root=root, starts=starts, protocol=protocol, folder=arguments.output, cpu=arguments.cpu
    )
    records = _compute(arguments, experiment, _cells(networks, starts, arguments.seeds), "detection", together=True)
    if not is_main_process():
        return None
    write_rows(arguments.output / "detection.csv", flat_rows(records, ("ap", "ap50", "coverage")))
    return _split_result(split_rows(records, ("ap50", "ap")), records)


def published(arguments: argparse.Namespace) -> Result | None:
    """Tables and figures of the published results of GHN-3."""
    if arguments.published is None:
        raise ParamInitError("Name the file of the published results with --published.")
    results = read_published(arguments.published)
    if not is_main_process():
        return None
    write_published_figures(results, arguments.output)
    summary = published_summary(results)
    return Result(
        header=["column", "mean", "best", "network"],
        rows=[
            [column, f"{row['mean']:.2f}", f"{row['best']:.2f}", str(row["best_network"])]
            for column, row in summary.items()
        ],
        document=summary,
    )


EXPERIMENTS: dict[str, Callable[[argparse.Namespace], Result | None]] = {
    "accuracy": accuracy,
    "diversity": diversity,
    "measure": measure,
    "properties": properties,
    "nas": nas,
    "finetune": finetune,
    "detection": detection,
    "published": published,
}


# --- what they share -------------------------------------------------------------------------------------------------


def _images(arguments: argparse.Namespace) -> tuple[Images, Task]:
    limits = {"max_train": None, "max_test": None} if arguments.all_images else {}
    images = Images(
        data=arguments.data,
        size=arguments.img_size or 32,
        block="validation" if arguments.validation else "test",
        **limits,
    )
    return images, images.task


def _networks(arguments: argparse.Namespace, num_classes: int) -> list[Network]:
    return find_networks(
        arguments.networks,
        num_classes=num_classes,
        img_size=arguments.img_size or 32,
        place=arguments.deepnets,
        pretrained=arguments.pretrained,
    )


def _value_of(name: str) -> Any:
    """A file of published code is a GHN-3 or GHN-2, whichever it says; everything else is what `init=` takes."""
    return (
        {"init": "ghn3", "source": str(Path(name).expanduser().resolve())}
        if Path(name).expanduser().is_file()
        else name
    )


def _predictors(arguments: argparse.Namespace, *, with_default: bool = False) -> dict[str, Predictor]:
    """Hypernetworks by name; "default", where it may be compared with, is the network's own start."""
    return {
        name: Predictor(label=name, init=None)
        if name == DEFAULT and with_default
        else find_predictor(name, _value_of(name))
        for name in arguments.inits
    }


def _starts(arguments: argparse.Namespace, *, needs_classes: Task | None) -> dict[str, Start]:
    """Any initializer can be fine-tuned from; a predictor's weights are changed as the options say."""
    starts = {}
    for name in arguments.inits:
        value, digest, max_size = _value_of(name), "", 64
        if name == DEFAULT:
            starts[name] = Start(label=name)
            continue
        try:
            predictor = find_predictor(name, value)
        except InitializerConfigError:
            create(value)  # refuses what is no initializer at all
        else:
            digest, max_size = predictor.digest, predictor.max_size
            if needs_classes is not None and not arguments.any_classes:
                require_same_classes(predictor, needs_classes, ZeroShot())
        if arguments.noise or arguments.orthogonalize:
            value = partial(
                SymmetryBroken,
                of=value,
                noise=arguments.noise or 0.0,
                is_orthogonal=arguments.orthogonalize,
                first_layer=arguments.first_layer,
                max_size=max_size,
            )()
        starts[name] = Start(label=name, init=value, digest=digest)
    return starts


def _cells(networks: Sequence[Network], inits: Mapping[str, Any], seeds: int) -> list[NetworkCell]:
    return [
        NetworkCell(network=network, init=init, seed=seed)
        for network in networks
        for init in inits
        for seed in range(seeds)
    ]


def _compute(
    arguments: argparse.Namespace,
    experiment: NetworkExperiment,
    cells: Sequence[NetworkCell],
    title: str,
    *,
    together: bool = False,
) -> list[Record]:
    records = compute_cells(
        experiment, cells, output=arguments.output, processes=arguments.processes, title=title, together=together
    )
    if is_main_process() and not any(record["status"] == "done" for record in records):
        raise ParamInitError(
            f"All {len(records)} cells failed, the first ({records[0]['group']}/{records[0]['network']}) with: "
            f"{records[0]['error']}"
        )
    return records


def _device(arguments: argparse.Namespace) -> str:
    """The accelerator of this process if there is one."""
    if arguments.cpu or not torch.cuda.is_available():
        return "cpu"
    return str(PartialState().device) if is_launched() else "cuda"


def _failures(records: Sequence[Record]) -> list[Record]:
    names = ("init", "group", "network", "seed", "error")
    return [{name: record[name] for name in names} for record in records if record["status"] == "failed"]


def _failure_notes(records: Sequence[Record]) -> list[str]:
    failed = _failures(records)
    shown = [f"Failed: {row['init']} on {row['group']}/{row['network']}: {row['error']}" for row in failed[:3]]
    more = [f"... and {len(failed) - 3} more; see the CSV file."] if len(failed) > 3 else []
    return shown + more
