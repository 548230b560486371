"""Zoos in the layout of the published ones, read and written.

Each trial is a folder with `params.json` (how the model was trained), `result.json` (one JSON line for each epoch) and
`checkpoint_<epoch>/checkpoints` (a state dict saved by torch, read here without unpickling it).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_paraminit.errors import CheckpointError, OutputError, ParamInitError, PredictorNotFoundError
from hf_paraminit.hyperrep.align import permutation_spec
from hf_paraminit.hyperrep.tensors import TensorSpec, describe_module, describe_state_dict
from hf_paraminit.hyperrep.zoo import CONFIG_FILE, FaultPolicy, Split, Zoo, ZooRow, listed
from hf_paraminit.hyperrep.zoo_build import STACK_SIZE, deal_splits, write_card, write_index, write_layout
from hf_paraminit.hyperrep.zoo_card import write_readme
from hf_paraminit.io.atomic import atomic_folder
from hf_paraminit.io.safe_load import read_checkpoint
from hf_paraminit.io.safetensors_file import is_finite, write_tensors

PARAMS_FILE, RESULT_FILE, WEIGHTS_FILE = "params.json", "result.json", "checkpoints"
# Beyond this, a checkpoint gets a file of its own: a stack of ResNets would not fit into memory.
MAX_STACKED_VALUES = 200_000
_CHECKPOINT = re.compile(r"checkpoint_(\d+)")
_SEED = re.compile(r"seed=(\d+)")
# Our name of a property -> the published one.
_METRICS = {
    "train_accuracy": "train_acc",
    "validation_accuracy": "validation_acc",
    "test_accuracy": "test_acc",
    "train_loss": "train_loss",
    "validation_loss": "validation_loss",
    "test_loss": "test_loss",
}


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """A model of a published zoo.

    Attributes:
        name: Of its folder.
        params: How it was trained.
        records: Line of `result.json` by epoch.
        checkpoints: File with the weights by epoch.
    """

    name: str
    params: Mapping[str, Any]
    records: Mapping[int, Mapping[str, Any]]
    checkpoints: Mapping[int, Path]

    @property
    def seed(self) -> int | None:
        found = _SEED.search(self.name)
        seed = self.params.get("seed", None if found is None else int(found[1]))
        return seed if isinstance(seed, int) else None


def import_zoo(
    source: str | Path,
    folder: str | Path,
    *,
    architecture: str,
    model: nn.Module | None = None,
    images: Tensor | None = None,
    faults: FaultPolicy = "refuse",
    card: Mapping[str, Any] | None = None,
) -> Zoo:
    """Turn a published zoo into one of ours; nothing in its files is executed.

    Args:
        source: Folder with one sub-folder for each trial.
        folder: Folder to write, without a zoo in it.
        architecture: What the zoo's card calls the network.
        model: A network of the zoo. With one, the kinds of its tensors are known, not guessed from their names.
        images: (B, C, H, W) input of the network; with it, the hidden units that may be permuted are found.
        faults: "refuse" raises if a trial is damaged, lacks epochs that others have, or has other tensors; "skip"
            leaves such trials out and lists them in `Zoo.faults`.
        card: Further entries of `zoo_config.json`.

    Raises:
        PredictorNotFoundError: There is no such folder, or no trial in it.
        CheckpointError: The zoo is faulty; all trials are named.
        OutputError: The folder holds a zoo already, or cannot be written.
    """
    source, folder = Path(source), Path(folder)
    if (folder / CONFIG_FILE).exists():
        raise OutputError(f"{folder} holds a zoo already; choose another folder.")
    trials, messages = _read_trials(source)
    expected = None if model is None else describe_module(model)
    with atomic_folder(folder) as staging:
        writer = _Writer(staging, expected, deal_splits([trial.name for trial in trials]))
        for trial in tqdm(trials, desc="models", unit="model"):
            try:
                writer.add(trial)
            except ParamInitError as error:
                messages.append(f"{trial.name}: {error}")
        writer.flush()
        if (messages and faults == "refuse") or not writer.rows:
            raise CheckpointError(
                f"Cannot import the zoo {source}: {listed(messages)}. Fetch these trials again, or leave them out with "
                'faults="skip".'
            )
        spec = None if model is None or images is None else permutation_spec(model, images)
        record = {
            **(card or {}),
            "architecture": architecture,
            "data": "unknown",
            "imported_from": source.name,
            "faults": messages,
            "permutations": None if spec is None else spec.to_dict(),
        }
        epochs = sorted({row.epoch for row in writer.rows})
        write_layout(staging, writer.tensors)
        write_index(staging, writer.rows, writer.tensors)
        write_card(staging, record, num_models=len({row.model_id for row in writer.rows}), epochs=epochs)
        write_readme(Zoo.open(staging))
    zoo = Zoo.open(folder)
    return Zoo(zoo.folder, zoo.card, zoo.tensors, zoo.rows, messages)


def export_zoo(zoo: Zoo, folder: str | Path) -> None:
    """Write checkpoints in the layout of the published zoos, as their own software reads it.

    Args:
        zoo: What to write, all or selected rows.
        folder: Folder to write; one sub-folder for each model.

    Raises:
        OutputError: The folder cannot be written; nothing partial is left behind.
    """
    with atomic_folder(folder) as staging:
        rows: dict[str, list[ZooRow]] = {}
        for row, state_dict in tqdm(zoo, desc="checkpoints", unit="checkpoint", total=len(zoo)):
            path = staging / row.model_id / f"checkpoint_{row.epoch:06d}" / WEIGHTS_FILE
            path.parent.mkdir(parents=True)
            torch.save(state_dict, path)
            rows.setdefault(row.model_id, []).append(row)
        for model_id, members in rows.items():
            params = {"model::type": zoo.card.get("architecture"), **members[0].config, "seed": members[0].seed}
            (staging / model_id / PARAMS_FILE).write_text(json.dumps(params, indent=1) + "\n")
            (staging / model_id / RESULT_FILE).write_text("".join(_result_lines(members, params)))


def _result_lines(rows: Sequence[ZooRow], params: Mapping[str, Any]) -> Iterator[str]:
    """One line for each epoch from the first: readers find an epoch by its line number."""
    by_epoch = {row.epoch: row for row in rows}
    for epoch in range(min(1, *by_epoch), max(by_epoch) + 1):
        row = by_epoch.get(epoch)
        measured = {} if row is None else {theirs: getattr(row, ours) for ours, theirs in _METRICS.items()}
        yield json.dumps({"training_iteration": epoch, **measured, "config": dict(params)}) + "\n"


class _Writer:
    """Collects trials in stacked files, or writes each checkpoint of a large network by itself."""

    def __init__(self, folder: Path, tensors: tuple[TensorSpec, ...] | None, splits: Mapping[str, Split]) -> None:
        self.folder = folder
        self.splits = splits
        self.rows: list[ZooRow] = []
        self._tensors = tensors
        self._waiting: list[tuple[ZooRow, dict[str, Tensor]]] = []
        self._num_models = self._num_shards = 0

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """What every checkpoint must hold."""
        return self._tensors or ()

    def add(self, trial: _Trial) -> None:
        """Read a trial and keep its checkpoints.

        Raises:
            ParamInitError: A checkpoint is damaged, unsafe or of another architecture; nothing of the trial is kept.
        """
        found = []
        for epoch, path in sorted(trial.checkpoints.items()):
            state_dict = read_checkpoint(path).state_dict
            self._tensors = self._tensors or describe_state_dict(state_dict)
            _check_tensors(path, self._tensors, state_dict)
            found.append((self._row(trial, epoch, state_dict), state_dict))
        if sum(spec.numel for spec in self.tensors) > MAX_STACKED_VALUES:
            for row, state_dict in found:
                shard = f"data/{row.model_id}/epoch-{row.epoch:04d}.safetensors"
                write_tensors(self.folder / shard, {name: tensor.clone() for name, tensor in state_dict.items()})
                self.rows.append(replace(row, shard=shard))
            return
        self._waiting += found
        self._num_models += 1
        if self._num_models % STACK_SIZE == 0:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        if not self._waiting:
            return
        self._num_shards += 1
        shard = f"data/zoo-{self._num_shards:05d}.safetensors"
        names = [spec.name for spec in self.tensors]
        write_tensors(
            self.folder / shard,
            {name: torch.stack([state_dict[name] for _, state_dict in self._waiting]) for name in names},
        )
        self.rows += [replace(row, shard=shard, row=number) for number, (row, _) in enumerate(self._waiting)]
        self._waiting.clear()

    def _row(self, trial: _Trial, epoch: int, state_dict: Mapping[str, Tensor]) -> ZooRow:
        record = trial.records.get(epoch, {})
        measured: dict[str, Any] = {ours: _number(record.get(theirs)) for ours, theirs in _METRICS.items()}
        return ZooRow(
            model_id=trial.name,
            epoch=epoch,
            split=self.splits[trial.name],
            seed=trial.seed,
            config=dict(trial.params),
            is_finite=all(is_finite(tensor) for tensor in state_dict.values() if tensor.is_floating_point()),
            shard="",
            **measured,
        )


def _read_trials(source: Path) -> tuple[list[_Trial], list[str]]:
    """Trials in order of their names, and what is wrong with others."""
    if not source.is_dir():
        raise PredictorNotFoundError(f"There is no folder {source} with a zoo; check the path.")
    trials: list[_Trial] = []
    messages: list[str] = []
    for path in sorted(path for path in source.iterdir() if path.is_dir()):
        checkpoints = {
            int(match[1]): found / WEIGHTS_FILE
            for found in sorted(path.iterdir())
            if (match := _CHECKPOINT.fullmatch(found.name)) and (found / WEIGHTS_FILE).exists()
        }
        if not checkpoints:
            continue
        try:
            trials.append(_read_trial(path, checkpoints))
        except CheckpointError as error:
            messages.append(f"{path.name}: {error}")
    if not trials:
        raise PredictorNotFoundError(
            f"{source} has no trials: expected folders with checkpoint_<epoch>/{WEIGHTS_FILE}. "
            f"{listed(messages) or 'Name the folder that contains the trials'}."
        )
    epochs = {epoch for trial in trials for epoch in trial.checkpoints}
    for trial in trials:
        if missing := sorted(epochs - set(trial.checkpoints)):
            messages.append(f"{trial.name} lacks epoch {', '.join(map(str, missing[:5]))}")
    return [trial for trial in trials if epochs == set(trial.checkpoints)], messages


def _read_trial(path: Path, checkpoints: Mapping[int, Path]) -> _Trial:
    try:
        params = json.loads((path / PARAMS_FILE).read_text())
        lines = [json.loads(line) for line in (path / RESULT_FILE).read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{PARAMS_FILE} or {RESULT_FILE} cannot be read ({error})") from error
    if not isinstance(params, dict) or not all(isinstance(line, dict) for line in lines):
        raise CheckpointError(f"{PARAMS_FILE} or {RESULT_FILE} holds no JSON objects")
    return _Trial(name=path.name, params=params, records=_by_epoch(lines, sorted(checkpoints)), checkpoints=checkpoints)


def _by_epoch(lines: Sequence[Mapping[str, Any]], epochs: Sequence[int]) -> dict[int, Mapping[str, Any]]:
    """Lines by epoch. The first is of epoch 1, or of epoch 0 if that was logged; the lines' own count decides."""
    for first in (1, 0):
        known = [epoch for epoch in epochs if 0 <= epoch - first < len(lines)]
        if known and lines[known[0] - first].get("training_iteration", known[0]) == known[0]:
            return {number + first: line for number, line in enumerate(lines)}
    raise CheckpointError(
        f"{RESULT_FILE} has {len(lines)} lines, none of which is of epoch {', '.join(map(str, epochs[:3]))}"
    )


def _check_tensors(path: Path, tensors: Sequence[TensorSpec], state_dict: Mapping[str, Tensor]) -> None:
    expected = {spec.name: (spec.shape, spec.torch_dtype) for spec in tensors}
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state_dict.items()}
    lines = [
        f"{name} is {found.get(name, 'missing')}, expected {expected.get(name, 'nothing')}"
        for name in {**expected, **found}
        if expected.get(name) != found.get(name)
    ]
    if lines:
        raise CheckpointError(f"{path.parent.name} is of another architecture: {listed(lines)}")


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
