"""Scores of As-ViT candidates over the processes of a launcher; what was scored once is not scored again."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from hf_paraminit.asvit.architecture import Architecture
from hf_paraminit.asvit.complexity import NUM_POINTS, REPEATS, circle_geometry, circle_points, draw_frame
from hf_paraminit.asvit.errors import ScoreError
from hf_paraminit.asvit.model import DEFAULT_INIT_STD, AsViT
from hf_paraminit.asvit.ntk import condition_number, kernel, kernel_eigenvalues
from hf_paraminit.asvit.probe import NATIVE, redraw, remove_norms, seeded
from hf_paraminit.asvit.reward import check_types
from hf_paraminit.errors import ParamInitError
from hf_paraminit.io.atomic import atomic_write
from hf_paraminit.io.run_store import Record, RunStore
from hf_paraminit.training.processes import is_launched, is_main_process, launched_state
from hf_paraminit.training.synthetic import SyntheticImages, SyntheticSpec, normalize

NTK_IMAGES = 16
SETTINGS = "settings.json"


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """How candidates are scored. Two candidates see the same circles, images and random numbers.

    Args:
        rewards: Scores, of "ntk" and "exp" (length distortion); "exp" alone needs no images.
        repeats: Draws of weights and circle; the score is their mean.
        img_size: Side of the images, in pixels.
        seed: Of the first draw.
        num_points: Points of the circle.
        radius: Of the circle.
        init_std: Standard deviation of the drawn weights of linear layers.
        reinit: "native" for such draws, or the name of an initializer to score under its weights.

    Raises:
        ScoreError: Settings that cannot work.
    """

    rewards: tuple[str, ...] = ("ntk", "exp")
    repeats: int = REPEATS
    img_size: int = 224
    seed: int = 0
    num_points: int = NUM_POINTS
    radius: float = 1.0
    init_std: float = DEFAULT_INIT_STD
    reinit: str = NATIVE

    def __post_init__(self) -> None:
        check_types(self.rewards)
        if self.repeats < 1 or self.num_points < 2:
            raise ScoreError(
                f"A score needs at least 1 repeat and 2 points, found repeats {self.repeats}, points {self.num_points}."
            )
        if not (self.radius > 0 and self.init_std > 0 and math.isfinite(self.radius + self.init_std)):
            raise ScoreError(f"radius and init_std must be positive, found {self.radius} and {self.init_std}.")


@dataclass(frozen=True)
class CandidateScore:
    """Scores of one candidate.

    Attributes:
        architecture: What was scored.
        values: Score -> mean over repeats; empty for a failed candidate.
        failure: Why there is no score, else None.
    """

    architecture: Architecture
    values: dict[str, float] = field(default_factory=dict)
    failure: str | None = None


Scorer = Callable[[Sequence[Architecture]], list[CandidateScore]]


class CandidateScorer:
    """Scores candidates, each repeat of each once. Under a launcher all processes must make the same calls.

    Args:
        settings: How to score.
        images: (N, 3, side, side) for "ntk"; generated ones if None.
        folder: Where results are kept, so that an interrupted run goes on; None keeps them in memory.
        device: Where to compute.

    Raises:
        ScoreError: Images that do not fit the settings.
        OutputError: The folder cannot be written.
    """

    def __init__(
        self,
        settings: ScoreSettings,
        *,
        images: Tensor | None = None,
        folder: Path | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.settings = settings
        self.device = torch.device(device)
        self.images = _images_for(settings, images)
        self._store = RunStore(folder if is_main_process() else None)
        shared = [self._store.records]
        if is_launched():
            launched_state()
            broadcast_object_list(shared)
        self._records = dict(shared[0])

    def __call__(self, architectures: Sequence[Architecture]) -> list[CandidateScore]:
        """Scores of all candidates, in their order; one that cannot be scored is recorded as failed."""
        cells = {
            _key(arch, repeat): (arch, repeat) for arch in architectures for repeat in range(self.settings.repeats)
        }
        pending = [cell for key, cell in cells.items() if key not in self._records]
        for record in self._computed(pending):
            self._records[record["key"]] = record
        return [self._score(arch) for arch in architectures]

    def _computed(self, cells: list[tuple[Architecture, int]]) -> list[Record]:
        if not is_launched():
            return [self._keep(self._cell(*cell)) for cell in cells]
        with launched_state().split_between_processes(cells) as mine:
            records = gather_object([self._cell(*cell) for cell in mine])
        return [self._keep(record) for record in records]

    def _keep(self, record: Record) -> Record:
        if is_main_process():
            self._store.add(record)
        return record

    def _cell(self, arch: Architecture, repeat: int) -> Record:
        record: Record = {"key": _key(arch, repeat), "status": "done", "failure": None}
        try:
            values = score_once(self.settings, arch, repeat, images=self.images, device=self.device)
        except (ParamInitError, RuntimeError) as error:  # RuntimeError: torch's, for instance out of memory
            return {**record, "failure": f"{type(error).__name__}: {error}"}
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            return {**record, "failure": f"{', '.join(broken)} is not a finite number"}
        return {**record, **values}

    def _score(self, arch: Architecture) -> CandidateScore:
        records = [self._records[_key(arch, repeat)] for repeat in range(self.settings.repeats)]
        for record in records:
            if record["failure"] is not None:
                return CandidateScore(arch, failure=record["failure"])
        means = {name: sum(record[name] for record in records) / len(records) for name in self.settings.rewards}
        return CandidateScore(arch, means)


def score_once(
    settings: ScoreSettings,
    arch: Architecture,
    repeat: int,
    *,
    images: Tensor | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """Scores of one candidate with the weights and the circle of one repeat.

    Args:
        settings: How to score.
        arch: The candidate.
        repeat: Number of the draw.
        images: (N, 3, side, side) for "ntk".
        device: Where to compute.

    Raises:
        ArchitectureError: The image size does not divide into the candidate's grids and windows.
    """
    arch.check_img_size(settings.img_size)
    seed = settings.seed + repeat
    with seeded(seed):
        model = AsViT(arch, settings.img_size, num_classes=0, init_std=settings.init_std, drop_path_rate=0.0)
    if settings.reinit != NATIVE:
        redraw(model, settings.reinit, seed)
    model = model.eval().requires_grad_(False).to(device)
    values = {}
    if "ntk" in settings.rewards:
        assert images is not None
        values["ntk"] = condition_number(kernel_eigenvalues(kernel(model, images.to(device))))
    if "exp" in settings.rewards:
        remove_norms(model)
        frame = draw_frame((3, settings.img_size, settings.img_size), seed).float().to(device) * settings.radius
        theta = circle_points(settings.num_points, torch.float32, device)
        values["exp"] = circle_geometry(model.forward_pooled, frame, theta).speeds.sum().item()
    return values


def claim_folder(folder: Path, settings: dict[str, Any], images: Tensor | None) -> None:
    """Note the settings in a folder, or compare them with those of the run that it holds.

    Raises:
        ScoreError: The folder holds a run with other settings.
    """
    if not is_main_process():
        return
    if images is not None:
        settings = {**settings, "images": hashlib.sha256(images.float().cpu().numpy().tobytes()).hexdigest()}
    settings = json.loads(json.dumps(settings))
    file = folder / SETTINGS
    if not file.exists():
        with atomic_write(file) as path:
            path.write_text(json.dumps(settings, indent=1) + "\n")
        return
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ScoreError(f"{file} cannot be read: {error}. Choose another output folder.") from error
    differing = sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key))
    if differing:
        details = ", ".join(f"{key} {found.get(key)!r} there, {settings.get(key)!r} here" for key in differing)
        raise ScoreError(f"{folder} holds a run with other settings ({details}). Choose another output folder.")


def _images_for(settings: ScoreSettings, images: Tensor | None) -> Tensor | None:
    if "ntk" not in settings.rewards:
        return None
    side = settings.img_size
    if images is None:
        pixels, _ = SyntheticImages(SyntheticSpec(size=side)).batch("train", 0, NTK_IMAGES)
        return normalize(pixels)
    if tuple(images.shape[1:]) != (3, side, side) or len(images) < 2:
        raise ScoreError(
            f"Scoring ntk at {side} pixels needs (N, 3, {side}, {side}) images, found {tuple(images.shape)}."
        )
    return images.float()


def _key(arch: Architecture, repeat: int) -> str:
    return f"{arch.canonical}#{repeat}"
