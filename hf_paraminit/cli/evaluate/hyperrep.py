"""Compare networks sampled by a hyper-representation with random starts and with copied networks of its zoo.

PREDICTOR is what `paraminit train hyperrep` wrote, ZOO the zoo it was trained on. Every population is scored before
training, after each epoch of fine-tuning, and as an ensemble; DATA other than the zoo's measures transfer. Two
populations are chosen among --candidates draws by their accuracy on validation images (SUB; BOOT in several rounds).
The table says where copying a network of the zoo is better than sampling one.

With --output, DIR also keeps every fine-tuned network and every scored draw as a line of runs.jsonl: the same command
goes on where an interrupted one stopped, and computes only what another predictor, zoo or setting changes.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from hf_paraminit.cli.arguments import Subparsers, add_json_switch, positive, seed, verb_parser
from hf_paraminit.cli.table import table
from hf_paraminit.cli.zoo_networks import ZooNetwork
from hf_paraminit.errors import InitializerConfigError
from hf_paraminit.evaluation.kept_results import KeptResults, tensors_digest
from hf_paraminit.evaluation.learning_curve import Recipe
from hf_paraminit.evaluation.population import Population, evaluate_population, validation_score
from hf_paraminit.evaluation.tasks import Task, load_task
from hf_paraminit.hyperrep.model import HyperRepresentation
from hf_paraminit.hyperrep.populations import (
    COPIED,
    SAMPLINGS,
    SELECTIONS,
    State,
    populations,
    property_scores,
    selected_populations,
)
from hf_paraminit.hyperrep.properties import PROPERTIES
from hf_paraminit.hyperrep.train import PreparedZoo, prepare_zoo
from hf_paraminit.hyperrep.zoo import Zoo
from hf_paraminit.io.atomic import atomic_write
from hf_paraminit.io.run_store import RunStore, locked

EXAMPLES = """
paraminit evaluate hyperrep runs/hyperrep/predictor zoo
paraminit evaluate hyperrep runs/hyperrep/predictor zoo --networks 24 --epochs 5 --output tables
paraminit evaluate hyperrep runs/hyperrep/predictor zoo --data digits --img-size 16
"""

RESULT_FILE = "populations.json"
DEFAULT_RATE = 1e-3  # for zoos whose rows do not say


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "hyperrep", __doc__, examples=EXAMPLES)
    parser.add_argument("predictor", metavar="PREDICTOR", help="folder, or hf-hub:org/repo")
    parser.add_argument("zoo", type=Path, metavar="ZOO", help="folder of the zoo it was trained on")
    parser.add_argument("--data", default="synthetic", metavar="DATA", help="as for zoo build (default: synthetic)")
    parser.add_argument("--img-size", type=positive, metavar="N", help="side of the images (default: the zoo's)")
    parser.add_argument("--networks", type=positive, default=8, metavar="N", help="per population (default: 8)")
    parser.add_argument(
        "--candidates",
        type=positive,
        default=50,
        metavar="N",
        help="draws of which SUB and BOOT keep the best (default: 50)",
    )
    parser.add_argument("--epochs", type=positive, default=2, metavar="N", help="of fine-tuning (default: 2)")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="images per step (default: 64)")
    parser.add_argument("--learning-rate", type=float, metavar="X", help="of fine-tuning (default: the zoo's)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of draws and orders (default: 0)")
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"also write {RESULT_FILE} there; a run can resume")
    add_json_switch(parser)


def run(arguments: argparse.Namespace) -> None:
    if arguments.candidates < arguments.networks:
        raise InitializerConfigError(
            f"Cannot keep the best {arguments.networks} of {arguments.candidates} draws: --candidates must be at least "
            "--networks."
        )
    zoo = Zoo.open(arguments.zoo, faults="skip")
    representation = HyperRepresentation.from_pretrained(arguments.predictor)
    prepared = prepare_zoo(zoo, token_dim=representation.layout.token_dim, norms=representation.config.norms)
    task = load_task(arguments.data, size=arguments.img_size or zoo.card.get("image_shape", (3, 32, 32))[1])
    network = ZooNetwork.of_card(zoo.card)
    per_epoch = max(1, len(task.train[0]) // arguments.batch_size)
    recipe = _recipe(arguments, per_epoch, _zoo_rate(zoo))
    with locked(arguments.output):
        store = RunStore(arguments.output)
        kept = KeptResults(store, network=network.to_dict(), data=task.digest)
        results = _evaluated(representation, prepared, network, task, recipe, arguments, kept)
        record = {
            "populations": [result.to_dict() for result in results],
            "steps_per_epoch": per_epoch,
            "reconstruction": representation.metadata.get("reconstruction", {}),
            "properties": _properties(representation, prepared, KeptResults(store)),
        }
        if arguments.output is not None:
            with atomic_write(arguments.output / RESULT_FILE) as path:
                path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2) if arguments.json else as_text(results, per_epoch, record))


def _recipe(arguments: argparse.Namespace, per_epoch: int, zoo_rate: float) -> Recipe:
    """Fine-tuning as the zoo was trained, with the accuracy after each epoch."""
    return Recipe(
        learning_rate=arguments.learning_rate or zoo_rate,
        steps=arguments.epochs * per_epoch,
        batch_size=arguments.batch_size,
        warmup_steps=1,
        weight_decay=0.0,
        gradient_clip=math.inf,
        evaluate_at=[epoch * per_epoch for epoch in range(1, arguments.epochs + 1)],
    )


def _evaluated(
    representation: HyperRepresentation,
    prepared: PreparedZoo,
    network: ZooNetwork,
    task: Task,
    recipe: Recipe,
    arguments: argparse.Namespace,
    kept: KeptResults,
) -> list[Population]:
    """All populations; networks and candidates that are kept are not computed again."""
    build = partial(network, num_classes=task.num_classes, in_chans=task.image_shape[0])
    found = {
        **populations(representation, prepared, arguments.networks, seed=arguments.seed),
        **_selected(representation, build, task, arguments, kept),
    }
    return [
        evaluate_population(label, build, states, task, recipe, seed=arguments.seed, kept=kept)
        for label, states in tqdm(found.items(), desc="populations", unit="population")
    ]


def _selected(
    representation: HyperRepresentation,
    build: Callable[[], nn.Module],
    task: Task,
    arguments: argparse.Namespace,
    kept: KeptResults,
) -> dict[str, Sequence[State]]:
    """The populations that are chosen on validation images."""
    accuracy = validation_score(build, task, batch_size=arguments.batch_size, seed=arguments.seed, kept=kept)
    total = arguments.candidates * sum(rounds for _, rounds in SELECTIONS.values())
    with tqdm(total=total, desc="candidates", unit="network") as bar:

        def score(state: State) -> float:
            bar.update()
            return accuracy(state)

        return selected_populations(
            representation, arguments.networks, score, candidates=arguments.candidates, seed=arguments.seed
        )


def _properties(representation: HyperRepresentation, prepared: PreparedZoo, kept: KeptResults) -> dict[str, Any]:
    """What codes tell of networks; it takes the codes of the whole zoo, and nothing of the data or the recipe."""
    zoo = {
        split: tensors_digest({**states, **{name: prepared.zoo[split].values(name) for name in PROPERTIES}})
        for split, states in prepared.states.items()
        if states
    }
    record = kept.result(
        {"kind": "properties"},
        lambda: {"scores": property_scores(representation, prepared)},
        predictor=[representation.config.to_dict(), tensors_digest(representation.state_dict())],
        zoo=zoo,
    )
    scores: dict[str, Any] = record["scores"]
    return scores


def as_text(results: list[Population], per_epoch: int, record: dict[str, Any]) -> str:
    """Tables of accuracies in percent, and of what codes tell."""
    steps = sorted(results[0].curves[0])
    columns = ["population", *(f"epoch {step // per_epoch}" for step in steps), "ensemble", "disagreement"]
    rows = [
        [
            result.label,
            *(f"{result.mean(step):.1f} ± {result.deviation(step):.1f}" for step in steps),
            f"{result.ensemble[0]:.1f} / {result.ensemble[steps[-1]]:.1f}",
            f"{result.disagreement[0]:.1f} / {result.disagreement[steps[-1]]:.1f}",
        ]
        for result in results
    ]
    probes = [[name, *map(str, scores.values())] for name, scores in record["properties"].items()]
    return "\n".join(
        [
            f"Accuracy in percent (mean ± deviation over {len(results[0].curves)} networks; ensembles before / after):",
            table(columns, rows),
            *_verdicts(results, steps, per_epoch),
            "",
            "R2 of linear probes on the zoo's test networks:",
            table(["property", "codes", "weight statistics"], probes),
        ]
    )


def _verdicts(results: list[Population], steps: list[int], per_epoch: int) -> list[str]:
    """Where a copied network of the zoo beats every sampled population."""
    copied = next(result for result in results if result.label == COPIED)
    sampled = [result for result in results if result.label in (*SAMPLINGS, *SELECTIONS)]
    lines = []
    for step in steps:
        best = max(sampled, key=lambda result: result.mean(step))
        gap = copied.mean(step) - best.mean(step)
        word = "better" if gap > 0 else "no better"
        lines.append(
            f'Epoch {step // per_epoch}: a copied anchor is {word} than the best samples, "{best.label}" '
            f"({gap:+.1f} points)."
        )
    return lines


def _zoo_rate(zoo: Zoo) -> float:
    rates = [row.config["learning_rate"] for row in zoo.rows if "learning_rate" in row.config]
    return statistics.median(rates) if rates else DEFAULT_RATE
