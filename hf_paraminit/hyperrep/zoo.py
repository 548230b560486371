"""Model zoos: populations of trained networks of one architecture, with one record for each model and epoch.

A zoo is a folder: `zoo_config.json` (what was trained, on what, how), `layout.json` (the tensors), `models.jsonl` (one
row for each checkpoint) and `data/` with safetensors files. Small networks lie stacked, row r of every tensor being
one checkpoint; large ones have a file for each checkpoint. A model belongs to one split with all its epochs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_paraminit.errors import CheckpointError, PredictorNotFoundError
from hf_paraminit.hyperrep.align import Permutations, PermutationSpec, weight_matching
from hf_paraminit.hyperrep.tensors import TensorSpec

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
FaultPolicy = Literal["refuse", "skip"]

CONFIG_FILE, LAYOUT_FILE, MODELS_FILE = "zoo_config.json", "layout.json", "models.jsonl"
INDEX_FILE = "zoo.safetensors.index.json"
ZOO_TYPE = "model-zoo"
FORMAT_VERSION = 1
_MAX_NAMED = 10


@dataclass(frozen=True, kw_only=True)
class ZooRow:
    """One checkpoint: a model at an epoch.

    Attributes:
        model_id: Name of the model.
        epoch: Passes over the training data that it has seen.
        split: Part of the zoo that the model belongs to.
        seed: Of its initial weights and the order of its data; None if unknown.
        config: How it was trained.
        train_accuracy: Share of the training images that are classified correctly, 0..1; None if unknown or NaN.
        validation_accuracy: Likewise.
        test_accuracy: Likewise.
        train_loss: Cross-entropy in nats; None if unknown or not finite.
        validation_loss: Likewise.
        test_loss: Likewise.
        is_finite: Whether all weights are finite.
        shard: File with its weights, relative to the zoo.
        row: Its row in the stacked tensors of the file; None if the file holds this checkpoint alone.
    """

    model_id: str
    epoch: int
    split: Split
    seed: int | None
    config: Mapping[str, Any]
    train_accuracy: float | None = None
    validation_accuracy: float | None = None
    test_accuracy: float | None = None
    train_loss: float | None = None
    validation_loss: float | None = None
    test_loss: float | None = None
    is_finite: bool = True
    shard: str
    row: int | None = None

    @property
    def generalization_gap(self) -> float | None:
        """Training accuracy minus test accuracy."""
        if self.train_accuracy is None or self.test_accuracy is None:
            return None
        return self.train_accuracy - self.test_accuracy

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "generalization_gap": self.generalization_gap}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; raises TypeError, ValueError or KeyError for other values."""
        row = cls(**{item.name: values[item.name] for item in fields(cls) if item.name in values})
        if row.split not in SPLITS or not isinstance(row.epoch, int) or not isinstance(row.shard, str):
            raise ValueError(f"split {row.split!r}, epoch {row.epoch!r}, shard {row.shard!r}")
        return row


class Zoo:
    """The checkpoints of a zoo, or some of them; nothing is read before it is asked for.

    Attributes:
        folder: Where it lies.
        card: Content of `zoo_config.json`.
        tensors: Description of the entries of each state dict.
        rows: Records of the checkpoints.
        faults: What was left out when the zoo was opened or cleaned, and why.
    """

    def __init__(
        self,
        folder: Path,
        card: Mapping[str, Any],
        tensors: Sequence[TensorSpec],
        rows: Sequence[ZooRow],
        faults: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.card = card
        self.tensors = tuple(tensors)
        self.rows = list(rows)
        self.faults = list(faults)

    @classmethod
    def open(cls, folder: str | Path, *, faults: FaultPolicy = "refuse") -> Self:
        """Open a zoo and check it: every file is there, readable, and holds the tensors of the layout.

        Args:
            folder: Of the zoo.
            faults: "refuse" raises if models or epochs are missing, files are damaged, or tensors differ; "skip"
                leaves such models out and lists them in `faults`.

        Raises:
            PredictorNotFoundError: There is no such folder.
            CheckpointError: It is no zoo, or faulty.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise PredictorNotFoundError(f"There is no model zoo {folder}; check the path.")
        card, layout = (read_json(folder / name) for name in (CONFIG_FILE, LAYOUT_FILE))
        if card.get("paraminit_type") != ZOO_TYPE or card.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(
                f"{folder / CONFIG_FILE} says paraminit_type {card.get('paraminit_type')!r}, format_version "
                f"{card.get('format_version')!r}; expected {ZOO_TYPE!r}, {FORMAT_VERSION}."
            )
        tensors = tuple(TensorSpec.from_dict(values) for values in layout.get("tensors", ()))
        rows = _read_rows(folder / MODELS_FILE)
        found = [*_file_faults(folder, tensors, rows), *_missing_epochs(rows, card.get("epochs", ()))]
        missing = card.get("num_models", 0) - len({row.model_id for row in rows})
        unfinished = [f"{missing} of {card['num_models']} models are missing (an interrupted build?)"] * (missing > 0)
        messages = [*unfinished, *(message for _, message in found)]
        if messages and faults == "refuse":
            raise CheckpointError(
                f"The model zoo {folder} is faulty: {listed(messages)}. Build or import it again (what is finished is "
                'kept), or leave such models out with faults="skip".'
            )
        faulty = {model_id for model_ids, _ in found for model_id in model_ids}
        return cls(folder, card, tensors, [row for row in rows if row.model_id not in faulty], messages)

    # ------------------------------------------------------------------ what there is

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def model_ids(self) -> list[str]:
        """Models in order of appearance."""
        return list(dict.fromkeys(row.model_id for row in self.rows))

    @property
    def permutations(self) -> PermutationSpec | None:
        """Groups of hidden units that may be permuted, if any are known."""
        stored = self.card.get("permutations")
        return None if stored is None else PermutationSpec.from_dict(stored)

    def values(self, name: str) -> Tensor:
        """A property of every row.

        Args:
            name: Attribute of `ZooRow`, or a key of its `config`.

        Returns:
            (rows,) float64, NaN where it is unknown.

        Raises:
            CheckpointError: No row has it, or it is not a number.
        """
        found = [getattr(row, name, row.config.get(name)) for row in self.rows]
        is_number = all(value is None or isinstance(value, int | float) for value in found)
        if not is_number or all(value is None for value in found):
            raise CheckpointError(f"The rows of {self.folder} have no numbers {name!r}; known are {self._known()}.")
        return torch.tensor([math.nan if value is None else float(value) for value in found], dtype=torch.float64)

    def _known(self) -> str:
        config = {key for row in self.rows[:1] for key in row.config}
        return ", ".join([*(item.name for item in fields(ZooRow)), "generalization_gap", *sorted(config)])

    # ------------------------------------------------------------------ choosing rows

    def select(
        self,
        *,
        split: Split | None = None,
        epochs: Iterable[int] | None = None,
        last: bool = False,
        min_accuracy: float | None = None,
        max_accuracy: float | None = None,
        top: float | None = None,
        by: str | None = None,
        where: Callable[[ZooRow], bool] | None = None,
    ) -> Zoo:
        """The rows that meet all conditions.

        Args:
            split: Models of this split.
            epochs: These epochs.
            last: The last epoch of each model among those left.
            min_accuracy: At least this accuracy, 0..1.
            max_accuracy: At most this accuracy.
            top: Of the rows that all other conditions leave, those whose accuracy is at least its (1 - top) quantile;
                0.3 is the "30" of the papers.
            by: Which accuracy; None for `validation_accuracy`, or `test_accuracy` where it is unknown.
            where: Any other condition.
        """
        wanted = None if epochs is None else set(epochs)
        rows = [
            row
            for row in self.rows
            if (split is None or row.split == split)
            and (wanted is None or row.epoch in wanted)
            and (where is None or where(row))
        ]
        if last:
            newest = {row.model_id: row.epoch for row in sorted(rows, key=lambda row: row.epoch)}
            rows = [row for row in rows if row.epoch == newest[row.model_id]]
        if min_accuracy is not None or max_accuracy is not None or top is not None:
            rows = self._by_accuracy(rows, min_accuracy, max_accuracy, top, by)
        return Zoo(self.folder, self.card, self.tensors, rows, self.faults)

    def _by_accuracy(
        self, rows: list[ZooRow], low: float | None, high: float | None, top: float | None, by: str | None
    ) -> list[ZooRow]:
        by = by or ("validation_accuracy" if any(row.validation_accuracy is not None for row in rows) else None)
        known = [(value, row) for row in rows if (value := getattr(row, by or "test_accuracy")) is not None]
        kept = [
            (value, row)
            for value, row in known
            if (low is None or value >= low) and (high is None or value <= high)
        ]  # fmt: skip
        if top is not None and kept:
            threshold = torch.tensor([value for value, _ in kept], dtype=torch.float64).quantile(1 - top)
            kept = [(value, row) for value, row in kept if value >= float(threshold)]
        return [row for _, row in kept]

    def clean(self, *, max_abs: float | None = None) -> Zoo:
        """Leave out checkpoints with NaN or infinite weights, and outliers.

        Args:
            max_abs: Leave out checkpoints with a weight of larger magnitude, too.

        Returns:
            The others; `faults` names what was left out.
        """
        kept, faults = [], list(self.faults)
        for row, state_dict in self:
            weights = [tensor for tensor in state_dict.values() if tensor.is_floating_point() and tensor.numel()]
            largest = max((float(tensor.abs().max()) for tensor in weights), key=lambda x: math.inf if x != x else x)
            if not math.isfinite(largest):
                faults.append(f"{row.model_id} at epoch {row.epoch} has NaN or infinite weights")
            elif max_abs is not None and largest > max_abs:
                faults.append(f"{row.model_id} at epoch {row.epoch} has a weight of magnitude {largest:.3g}")
            else:
                kept.append(row)
        return Zoo(self.folder, self.card, self.tensors, kept, faults)

    # ------------------------------------------------------------------ reading weights

    def __iter__(self) -> Iterator[tuple[ZooRow, dict[str, Tensor]]]:
        """Rows with their state dicts, in the order of `rows`."""
        for shard, rows in groupby(self.rows, key=lambda row: row.shard):
            with self._file(shard) as file:
                for row in rows:
                    yield row, {spec.name: _read(file, spec.name, row.row) for spec in self.tensors}

    def state_dict(self, index: int) -> dict[str, Tensor]:
        """Weights of one row; nothing else of the file is read."""
        row = self.rows[index]
        with self._file(row.shard) as file:
            return {spec.name: _read(file, spec.name, row.row) for spec in self.tensors}

    def stacked(self) -> dict[str, Tensor]:
        """Weights of all rows: each tensor (rows, *shape), in the order of `rows`."""
        if not self.rows:
            raise CheckpointError(f"No checkpoint of {self.folder} is left; loosen the filters.")
        parts: dict[str, list[Tensor]] = {spec.name: [] for spec in self.tensors}
        for shard, group in groupby(self.rows, key=lambda row: row.shard):
            numbers = [row.row for row in group]
            with self._file(shard) as file:
                for name, found in parts.items():
                    tensor = file.get_tensor(name)
                    found.append(tensor[None] if numbers[0] is None else tensor[torch.tensor(numbers)])
        return {name: torch.cat(found) for name, found in parts.items()}

    def _file(self, shard: str) -> Any:
        try:
            return safe_open(self.folder / shard, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"Cannot read {self.folder / shard} of the zoo: {error}. Build it again.") from error

    # ------------------------------------------------------------------ alignment

    def align(self, *, seed: int = 0) -> dict[str, Permutations]:
        """Permutations that make each model resemble the first one, found on its last epoch, for all its epochs.

        Args:
            seed: Of the matching.

        Returns:
            By model; apply them with `zoo.permutations.apply`.

        Raises:
            CheckpointError: No permutations are known for this architecture.
        """
        spec = self.permutations
        if spec is None:
            raise CheckpointError(f"Cannot align the zoo {self.folder}: no permutations are known for its networks.")
        reference: dict[str, Tensor] | None = None
        found: dict[str, Permutations] = {}
        for row, state_dict in self.select(last=True):
            reference = reference or state_dict
            found[row.model_id] = weight_matching(reference, state_dict, spec, seed=seed)
        return found


def write_rows(path: Path, rows: Iterable[ZooRow]) -> None:
    """Write `models.jsonl` to a path that is somebody else's to put in place."""
    path.write_text("".join(json.dumps(row.to_dict(), allow_nan=False) + "\n" for row in rows))


def listed(messages: Sequence[str]) -> str:
    """The first messages, and how many more there are."""
    more = f"; and {len(messages) - _MAX_NAMED} more" if len(messages) > _MAX_NAMED else ""
    return "; ".join(messages[:_MAX_NAMED]) + more


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a zoo.

    Raises:
        CheckpointError: The file is missing, damaged or no object.
    """
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} is no model zoo: it has no {path.name}. Build one with `paraminit zoo build`, or turn a "
            "published one into this format with `paraminit zoo import`."
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}. Fetch or build the zoo again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object. Fetch or build the zoo again.")
    return values


def _read_rows(path: Path) -> list[ZooRow]:
    if not path.is_file():
        raise CheckpointError(
            f"The model zoo {path.parent} has no {path.name}: its build was interrupted before a model was finished. "
            "Run the same `paraminit zoo build` again."
        )
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            rows.append(ZooRow.from_dict(json.loads(line)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"Line {number} of {path} is no record of a checkpoint: {error!r:.200}.") from error
    return rows


def _read(file: Any, name: str, row: int | None) -> Tensor:
    if row is None:
        return file.get_tensor(name)
    return file.get_slice(name)[row : row + 1][0]


def _file_faults(folder: Path, tensors: Sequence[TensorSpec], rows: Sequence[ZooRow]) -> Iterator[tuple[set[str], str]]:
    """Models that files are faulty for, with what is wrong, file by file."""
    for shard, group in groupby(sorted(rows, key=lambda row: row.shard), key=lambda row: row.shard):
        members = list(group)
        models = {row.model_id for row in members}
        names = f"models {', '.join(sorted(models)[:3])}{' and more' if len(models) > 3 else ''}"
        stacked = [row.row for row in members if row.row is not None]
        try:
            with safe_open(folder / shard, framework="numpy") as file:
                found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            yield models, f"{shard} ({names}) is missing or truncated ({error})"
            continue
        lines = list(_differences(tensors, found, max(stacked) + 1 if stacked else None))
        if lines:
            yield models, f"{shard} ({names}): {'; '.join(lines[:3])}"


def _differences(
    tensors: Sequence[TensorSpec], found: Mapping[str, tuple[int, ...]], num_rows: int | None
) -> Iterator[str]:
    for spec in tensors:
        shape = found.get(spec.name)
        if shape is None:
            yield f"{spec.name} is missing"
        elif (shape if num_rows is None else shape[1:]) != spec.shape:
            yield f"{spec.name} is {shape if num_rows is None else shape[1:]}, the layout says {spec.shape}"
        elif num_rows is not None and shape[0] < num_rows:
            yield f"{spec.name} has {shape[0]} rows, expected {num_rows}"
    if more := [name for name in found if name not in {spec.name for spec in tensors}]:
        yield f"{', '.join(more[:3])} not in the layout"


def _missing_epochs(rows: Sequence[ZooRow], epochs: Iterable[int]) -> Iterator[tuple[set[str], str]]:
    expected = set(epochs)
    present: dict[str, set[int]] = {}
    for row in rows:
        present.setdefault(row.model_id, set()).add(row.epoch)
    for model_id, found in present.items():
        if missing := sorted(expected - found):
            yield {model_id}, f"{model_id} lacks epoch {', '.join(map(str, missing[:5]))}"
