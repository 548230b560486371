"""How the trainings of learngenes run: their data and objective, the steps, and the predictor that is written."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelerate import PartialState

from hf_paraminit.cli.train.learngene_options import (
    RECORDED,
    Data,
    Presets,
    distillation_of,
    fill_in_length,
    identity_of,
    open_data,
    settings_of,
    teacher_of,
)
from hf_paraminit.io.atomic import atomic_folder
from hf_paraminit.lets.train import Batch, DistilledTraining, train_learngene


def prepare(arguments: argparse.Namespace, presets: Presets) -> Data:
    """Give options that were not named their values, and open the images."""
    presets.fill_in(arguments)
    data = open_data(arguments)
    fill_in_length(arguments, data, presets)
    return data


def objective_settings(arguments: argparse.Namespace, data: Data) -> dict[str, Any]:
    """What all objectives take beside what is trained."""
    return {
        "distillation": distillation_of(arguments),
        "teacher": teacher_of(arguments, data.num_classes),
        "drop_path_rate": arguments.drop_path,
    }


def train_and_save(
    objective: DistilledTraining,
    data: Data,
    arguments: argparse.Namespace,
    *,
    architecture: Mapping[str, Any],
    recorded: str,
    accuracy: Callable[[Any, Sequence[Batch]], float],
) -> None:
    """Train a learngene, write OUTPUT/predictor in 16 bit, and say so.

    Args:
        objective: What is minimised.
        data: Images.
        arguments: What was parsed, complete.
        architecture: Of the learngene, as JSON values.
        recorded: Option of this training that its model card states too, and that a resumed run must not change.
        accuracy: Of the auxiliary net in percent, from the trained learngene and held-out batches.
    """
    settings, recipe = settings_of(arguments)
    identity = identity_of(arguments, architecture, recorded)
    learngene = train_learngene(objective, data.batch_at, settings, recipe, identity=identity).cpu()
    if not PartialState().is_main_process:
        return
    learngene.metadata = {
        "training": {name: getattr(arguments, name) for name in (*RECORDED, recorded)},
        "metrics": {"aux_accuracy": round(accuracy(learngene, data.validation), 2)} if data.validation else {},
    }
    folder = arguments.output / "predictor"
    with atomic_folder(folder) as staging:
        learngene.half().save_pretrained(staging)
    for name, value in learngene.metadata["metrics"].items():
        print(f"{name} on validation images: {value} %")
    print(f'Written to {folder}. Use with init="local-dir:{folder}".')
