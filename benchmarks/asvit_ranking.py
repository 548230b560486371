"""Do scores without training rank small As-ViT networks as a short training does?

    python -m benchmarks.asvit_ranking --output ranking

Samples two sets of networks: topologies of one size, among which a search chooses, and sizes of random topologies,
among which growth chooses. Each is scored under drawn weights and under predicted ones, and trained for 40 steps on the
digits; accuracy is that on the validation block, its mean over steps as in the evaluation protocol. Kendall's tau with
95 % bootstrap intervals over networks. Ten minutes of one CPU core; `--sets 1` for the first set alone.

DIR gets runs.jsonl (every score and training), networks.csv, table.md and differences.md.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from scipy.stats import kendalltau

import hf_paraminit  # noqa: F401 (registers the models)
from benchmarks.study import Study, parser, predictor_of, prepare, write, write_csv
from hf_paraminit.asvit.architecture import Architecture
from hf_paraminit.asvit.candidates import NTK_IMAGES, ScoreSettings, score_once
from hf_paraminit.asvit.probe import NATIVE
from hf_paraminit.asvit.space import SearchSpace
from hf_paraminit.evaluation.digits import load_digits
from hf_paraminit.evaluation.learning_curve import Recipe, learning_curve, mean_accuracy
from hf_paraminit.io.run_store import Record

IMG_SIZE, NUM_CLASSES = 32, 10
NETWORKS = 32  # of each set
WIDTHS, DEPTHS = (8, 10, 12), (1, 2)
RECIPE = Recipe(learning_rate=1e-3, steps=40, evaluate_at=(5, 10, 20, 40))
REPEATS = 3
BOOTSTRAP_DRAWS, BOOTSTRAP_SEED = 2000, 0
PREDICTORS = ("ghn3", "ghn3:builtin-values")  # the default, and its predecessor
# Score -> whether more is better, as search and growth take it.
SCORES = {
    "parameters": True,
    "MACs": True,
    "length distortion": True,
    "NTK condition": False,
    **{f"length distortion, {init}": True for init in PREDICTORS},
    **{f"NTK condition, {init}": False for init in PREDICTORS},
}
NTK_BATCH = torch.arange(NTK_IMAGES) * (1000 // NTK_IMAGES)  # unlabelled, spread over the training block


@dataclass(frozen=True)
class Scoring:
    """The scores of one network under one kind of weights."""

    arch: str
    reinit: str
    predictor: str | None
    repeats: int


@dataclass(frozen=True)
class Training:
    """One short training from the model's own start."""

    arch: str
    seed: int
    steps: int


def topologies(count: int) -> list[str]:
    """Random topologies of one width and depth."""
    return _sampled(count, seed=0, sizes=[(8, (1, 1, 1, 1))])


def sizes(count: int) -> list[str]:
    """Random topologies of random widths and depths."""
    return _sampled(count, seed=1, sizes=list(itertools.product(WIDTHS, itertools.product(DEPTHS, repeat=4))))


SETS = {"topologies of one size": topologies, "topologies of several sizes": sizes}


def compute(cell: Scoring | Training) -> Record:
    """Score or train one network."""
    return _scored(cell) if isinstance(cell, Scoring) else _trained(cell)


def taus(scores: Mapping[str, Sequence[float]], accuracies: Sequence[float]) -> dict[str, tuple[float, np.ndarray]]:
    """Kendall's tau-b of each score with the accuracy, and over bootstrap samples of the networks, the same for all."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    samples = rng.integers(len(accuracies), size=(BOOTSTRAP_DRAWS, len(accuracies)))
    target = np.asarray(accuracies)
    found = {}
    for name, values in scores.items():
        column = np.asarray(values) * (1 if SCORES.get(name, True) else -1)
        drawn = np.array([_tau(column[sample], target[sample]) for sample in samples])
        found[name] = (_tau(column, target), drawn)
    return found


def main() -> None:
    """Run the study."""
    arguments = parser("Kendall's tau of scores and short trainings.", seeds=2)
    arguments.add_argument("--sets", type=int, choices=(1, 2), default=len(SETS), help="1: topologies alone")
    chosen = arguments.parse_args()
    prepare(chosen)
    count, steps, repeats = (4, 5, 1) if chosen.quick else (NETWORKS, RECIPE.steps, REPEATS)
    predictors = {NATIVE: None, **{init: predictor_of(init) for init in PREDICTORS}}
    lines, rows, differences = [], [], []
    for title, sample in itertools.islice(SETS.items(), chosen.sets):
        networks = sample(count)
        cells = [Scoring(arch, *weights, repeats) for arch in networks for weights in predictors.items()]
        cells += [Training(arch, seed, steps) for seed in range(chosen.seeds) for arch in networks]
        records = Study(compute).records(cells, chosen.output, title)
        members = [_line(title, arch, records) for arch in networks]
        found, between = _compared(title, members, chosen.seeds)
        lines, rows, differences = lines + members, rows + found, differences + between
    write_csv(chosen.output, lines, title="networks")
    write(chosen.output, ["set", "score", "tau with accuracy", "95 % interval"], rows)
    write(chosen.output, ["set", "comparison", "tau", "95 % interval"], differences, title="differences")


def _compared(title: str, members: list[Record], num_seeds: int) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of both tables for one set of networks."""
    accuracies = [line["accuracy"] for line in members]
    columns = {name: [line[name] for line in members] for name in SCORES}
    found = taus(columns, accuracies)
    rows = [[title, name, *_shown(*found[name])] for name in SCORES]
    differences = []
    for kind in ("length distortion", "NTK condition"):
        baseline = found["parameters"]
        drawn, oriented = found[kind], [value if SCORES[kind] else -value for value in columns[kind]]
        for init in PREDICTORS:
            name = f"{kind}, {init}"
            differences.append([title, f"{name}, minus drawn", *_difference(found[name], drawn)])
            differences.append([title, f"{name}, with drawn", *_shown(*taus({name: columns[name]}, oriented)[name])])
        differences.append([title, f"{kind} minus parameters", *_difference(drawn, baseline)])
    for first, second in itertools.combinations(range(num_seeds), 2):
        pair = [[line[f"accuracy of seed {seed}"] for line in members] for seed in (first, second)]
        repeated = taus({"accuracy": pair[0]}, pair[1])["accuracy"]
        differences.append([title, f"accuracy: seed {first} with seed {second}", *_shown(*repeated)])
    return rows, differences


def _sampled(count: int, *, seed: int, sizes: list[tuple[int, tuple[int, ...]]]) -> list[str]:
    """Different networks that the image size suits."""
    space, draw = SearchSpace(), random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        width, depths = draw.choice(sizes)
        arch = space.decode([draw.randrange(len(values)) for values in space.choices], width=width)
        arch = arch.scaled(depths=depths)
        arch.check_img_size(IMG_SIZE)
        found[str(arch)] = None
    return list(found)


def _scored(cell: Scoring) -> Record:
    settings = ScoreSettings(img_size=IMG_SIZE, repeats=cell.repeats, reinit=cell.reinit)
    images = load_digits("train", size=IMG_SIZE)[0][NTK_BATCH]
    arch = Architecture.parse(cell.arch)
    found = [score_once(settings, arch, repeat, images=images) for repeat in range(cell.repeats)]
    return {"kind": "scores", **{name: float(np.mean([one[name] for one in found])) for name in found[0]}}


def _trained(cell: Training) -> Record:
    torch.manual_seed(cell.seed)
    model = timm.create_model("asvit", arch=cell.arch, img_size=IMG_SIZE, num_classes=NUM_CLASSES)
    evaluate_at = [step for step in RECIPE.evaluate_at if step <= cell.steps]
    recipe = Recipe(learning_rate=RECIPE.learning_rate, steps=cell.steps, evaluate_at=evaluate_at)
    data = (load_digits(block, size=IMG_SIZE) for block in ("train", "validation"))
    curve = learning_curve(model, *data, recipe, seed=cell.seed)
    return {"kind": "accuracy", "curve": curve, "accuracy": mean_accuracy(curve)}


def _line(title: str, arch: str, records: Sequence[Record]) -> Record:
    """All that is known of one network."""
    mine = [record for record in records if record["arch"] == arch]
    scores = {record["reinit"]: record for record in mine if "reinit" in record}
    trainings: list[dict[str, Any]] = sorted((r for r in mine if "curve" in r), key=lambda record: record["seed"])
    described = Architecture.parse(arch)
    return {
        "set": title,
        "arch": arch,
        "accuracy": float(np.mean([record["accuracy"] for record in trainings])),
        **{f"accuracy of seed {record['seed']}": record["accuracy"] for record in trainings},
        "parameters": described.num_params(NUM_CLASSES),
        "MACs": described.macs(IMG_SIZE, NUM_CLASSES),
        "length distortion": scores[NATIVE]["exp"],
        "NTK condition": scores[NATIVE]["ntk"],
        **{f"length distortion, {init}": scores[init]["exp"] for init in PREDICTORS},
        **{f"NTK condition, {init}": scores[init]["ntk"] for init in PREDICTORS},
    }


def _tau(first: np.ndarray, second: np.ndarray) -> float:
    """Kendall's tau-b; NaN where one side is constant."""
    return float(kendalltau(first, second).statistic)


def _difference(first: tuple[float, np.ndarray], second: tuple[float, np.ndarray]) -> tuple[str, str]:
    return _shown(first[0] - second[0], first[1] - second[1])


def _shown(value: float, draws: np.ndarray) -> tuple[str, str]:
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return f"{value:+.2f}", f"{low:+.2f} to {high:+.2f}"


if __name__ == "__main__":
    main()
