"""Is a grown As-ViT better started from the network that it was grown from? (experimental)

    python -m benchmarks.asvit_expansion --output expansion

Trains a small As-ViT on the digits (32 x 32), makes one growth step (one block more, channels 12 to 14) and trains the
larger network from several starts; the donor that simply goes on is the reference. Accuracy on the validation block,
by optimiser steps after the growth step. Two minutes of one CPU core.

DIR gets runs.jsonl (every curve) and table.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor

import hf_paraminit  # noqa: F401 (adds init= to timm)
from benchmarks.study import Study, parser, predictor_of, prepare, with_interval, write
from hf_paraminit.asvit.expansion import hand_on
from hf_paraminit.asvit.model import AsViT
from hf_paraminit.evaluation.digits import load_digits
from hf_paraminit.evaluation.learning_curve import Recipe, learning_curve
from hf_paraminit.io.run_store import Record

IMG_SIZE, NUM_CLASSES, BATCH_SIZE = 32, 10, 64
DONOR, GROWN = "6,2,3,1|3,1,2,1|3,1,4,1|3,1,3,1|16,12", "6,2,3,1|3,1,2,1|3,1,4,2|3,1,3,1|16,14"
DONOR_STEPS, LEARNED_STEPS, LEARNING_RATE = 200, 20, 1e-3
STEPS = (0, 5, 10, 20, 40, 80)
GOES_ON, COPIED, LEARNED = "donor goes on", "handed on", f"handed on, {LEARNED_STEPS} steps of learning"
STARTS = (GOES_ON, "default", "ghn3", "front", COPIED, LEARNED)


@dataclass(frozen=True)
class Comparison:
    """All starts of the larger network, from one donor."""

    seed: int
    predictor: str
    donor_steps: int
    steps: int


def compute(cell: Comparison) -> Record:
    """Accuracy in percent by step, of each start."""
    train, validation = load_digits("train", size=IMG_SIZE), load_digits("validation", size=IMG_SIZE)
    donor = build(DONOR, cell.seed)
    first = Recipe(learning_rate=LEARNING_RATE, steps=cell.donor_steps, evaluate_at=(cell.donor_steps,))
    found: Record = {"donor": learning_curve(donor, train, validation, first, seed=cell.seed)}
    recipe = Recipe(
        learning_rate=LEARNING_RATE, steps=cell.steps, evaluate_at=[step for step in STEPS if step <= cell.steps]
    )
    order = torch.Generator().manual_seed(cell.seed)
    picks = [torch.randint(len(train[0]), (BATCH_SIZE,), generator=order) for _ in range(LEARNED_STEPS)]

    def batch_at(step: int) -> tuple[Tensor, Tensor]:
        return train[0][picks[step]], train[1][picks[step]]

    settings: dict[str, dict[str, Any]] = {
        "default": {},
        "ghn3": {"init": "ghn3"},
        "front": {"init": "front", "init_kwargs": {"donor": donor}},
        COPIED: {"init": hand_on, "init_kwargs": {"donor": donor}},
        LEARNED: {"init": hand_on, "init_kwargs": {"donor": donor, "steps": LEARNED_STEPS, "batches": batch_at}},
    }
    models = {start: build(GROWN, cell.seed, **setting) for start, setting in settings.items()}
    for start, model in {**models, GOES_ON: donor}.items():  # the donor last: it is trained in place
        found[start] = learning_curve(model, train, validation, recipe, seed=cell.seed + 100)
    return found


def build(arch: str, seed: int, **start: Any) -> AsViT:
    """A network from torch's random state."""
    torch.manual_seed(seed)
    return timm.create_model("asvit", arch=arch, img_size=IMG_SIZE, num_classes=NUM_CLASSES, **start)


def main() -> None:
    """Run the study."""
    arguments = parser("Starts of a network that was grown from a trained one.", seeds=3).parse_args()
    prepare(arguments)
    donor_steps, steps = (5, 5) if arguments.quick else (DONOR_STEPS, STEPS[-1])
    predictor = predictor_of("ghn3")
    cells = [Comparison(seed, predictor, donor_steps, steps) for seed in range(arguments.seeds)]
    records = Study(compute).records(cells, arguments.output, "expansion")
    shown = [step for step in STEPS if step <= steps]
    rows = []
    for start in STARTS:
        # Steps are text once they have been in a JSON file.
        curves = [{int(step): value for step, value in record[start].items()} for record in records]
        rows.append([start, *(with_interval([curve[step] for curve in curves]) for step in shown)])
    write(arguments.output, ["start", *(f"step {step}" for step in shown)], rows)


if __name__ == "__main__":
    main()
