"""Accuracy against multiply-accumulates spent, with and without progressive tokenisation.

    python -m benchmarks.asvit_tokenization --output tokenization

An As-ViT and a plain vision transformer learn the digits (32 x 32) three times from each seed: at their own tokens, by
the published schedule, and at their own tokens for as many epochs as the schedule's cost would pay. AdamW with a cosine
schedule; accuracy on the validation block, at the model's own tokens. Three minutes of one CPU core.

DIR gets runs.jsonl (accuracy and cost after every epoch), table.md and curves.png.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hf_paraminit  # noqa: F401 (registers the models)
from benchmarks.study import Study, parser, prepare, with_interval, write
from hf_paraminit.asvit.tokenization import TokenizationSchedule, own_stride
from hf_paraminit.evaluation.digits import load_digits
from hf_paraminit.evaluation.learning_curve import accuracy
from hf_paraminit.io.atomic import atomic_write
from hf_paraminit.io.run_store import Record
from hf_paraminit.plots.lines import draw_lines

IMG_SIZE, NUM_CLASSES = 32, 10
EPOCHS, BATCH_SIZE = 10, 50
LEARNING_RATE, WEIGHT_DECAY, WARMUP_EPOCHS, GRADIENT_CLIP = 1e-3, 0.05, 1, 1.0
FULL, PROGRESSIVE, SHORT = "own tokens", "progressive", "own tokens, equal cost"
MODELS = {
    "As-ViT": ("asvit", {"arch": "8,2,3|4,1,2|4,1,4|4,1,6|16,12", "pos_embed": True}),
    "ViT": ("vit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 3}),
}


@dataclass(frozen=True)
class Training:
    """One training of one model."""

    model: str
    way: str
    seed: int
    epochs: int


def compute(cell: Training) -> Record:
    """Train a model; accuracy in percent and GMACs of forward passes spent, after each epoch."""
    torch.manual_seed(cell.seed)
    model = build(cell.model)
    schedule = TokenizationSchedule.published(model, cell.epochs)
    counts, epochs = schedule.macs(model), cell.epochs
    if cell.way == SHORT:
        epochs = max(1, round(cell.epochs * schedule.relative_cost(model)))
    if cell.way != PROGRESSIVE:
        schedule = TokenizationSchedule(epochs, ((0.0, own_stride(model)),))
    train, validation = load_digits("train", size=IMG_SIZE), load_digits("validation", size=IMG_SIZE)
    num_steps = epochs * (len(train[0]) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, num_steps, num_steps // epochs))
    order = torch.Generator().manual_seed(cell.seed)
    curve, spent = [], 0.0
    for epoch in range(epochs):
        schedule.step(model, epoch)
        _train_epoch(model, train, optimizer, rate, order)
        schedule.finish(model)
        spent += counts[schedule.stride_at(epoch)] * len(train[0]) / 1e9
        curve.append([spent, accuracy(model, validation)])
    return {"curve": curve, "spent": spent, "accuracy": curve[-1][1], "trained_epochs": epochs}


def build(name: str) -> nn.Module:
    """A model from torch's random state."""
    architecture, settings = MODELS[name]
    return timm.create_model(architecture, img_size=IMG_SIZE, num_classes=NUM_CLASSES, **settings)


def main() -> None:
    """Run the study."""
    arguments = parser("Accuracy against cost, with and without progressive tokenisation.", seeds=3).parse_args()
    prepare(arguments)
    epochs = 3 if arguments.quick else EPOCHS
    for name in MODELS:
        model = build(name)
        print(f"{name}: {TokenizationSchedule.published(model, epochs).describe(model)}")
    cells = [
        Training(model, way, seed, epochs)
        for seed in range(arguments.seeds)
        for model in MODELS
        for way in (FULL, PROGRESSIVE, SHORT)
    ]
    records = Study(compute).records(cells, arguments.output, "tokenisation")
    rows = [row for model in MODELS for row in _rows(model, records)]
    header = ["model", "way", "epochs", "GMACs spent", "share", "accuracy, %", "minus own tokens"]
    write(arguments.output, header, rows)
    _draw(arguments.output / "curves.png", records)


def _rate(step: int, num_steps: int, steps_per_epoch: int) -> float:
    warmup = WARMUP_EPOCHS * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def _train_epoch(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    rate: torch.optim.lr_scheduler.LRScheduler,
    order: torch.Generator,
) -> None:
    images, labels = data
    model.train()
    for batch in torch.randperm(len(images), generator=order).split(BATCH_SIZE):
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        optimizer.step()
        rate.step()


def _rows(model: str, records: Sequence[Record]) -> list[list[str]]:
    ways = {way: [r for r in records if (r["model"], r["way"]) == (model, way)] for way in (FULL, PROGRESSIVE, SHORT)}
    full = [record["accuracy"] for record in ways[FULL]]
    rows = []
    for way, found in ways.items():
        accuracies, spent = [record["accuracy"] for record in found], found[0]["spent"]
        differences = [value - own for value, own in zip(accuracies, full, strict=True)]
        rows.append(
            [
                model,
                way,
                str(found[0]["trained_epochs"]),
                f"{spent:.1f}",
                f"{spent / ways[FULL][0]['spent']:.0%}",
                with_interval(accuracies),
                "" if way == FULL else with_interval(differences, sign=True),
            ]
        )
    return rows


def _draw(path: Path, records: Sequence[Record]) -> None:
    """Mean accuracy over seeds against the cost so far."""
    series = {}
    for model, way in dict.fromkeys((record["model"], record["way"]) for record in records):
        curves = [record["curve"] for record in records if (record["model"], record["way"]) == (model, way)]
        points = {}
        for epoch in zip(*curves, strict=True):
            values = [value for _, value in epoch]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            points[epoch[0][0]] = (statistics.fmean(values), spread)
        series[f"{model}, {way}"] = points
    figure = draw_lines(
        series, horizontal="GMACs of forward passes spent", measure="accuracy, %", title="Progressive tokenisation"
    )
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


if __name__ == "__main__":
    main()
