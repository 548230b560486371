"""Growing a seed topology: one more block and a wider network per step, chosen by scores alone (As-ViT, 3.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_paraminit.asvit.architecture import NUM_STAGES, SEED, Architecture, Quadruple
from hf_paraminit.asvit.candidates import CandidateScorer, Scorer, ScoreSettings, claim_folder
from hf_paraminit.asvit.errors import ArchitectureError, ScoreError
from hf_paraminit.asvit.ranking import TIE_BREAKS, TieBreak, best_candidate
from hf_paraminit.io.run_store import Record, RunStore, locked
from hf_paraminit.training.processes import is_main_process

GROWTH_SEED = 27
RATIOS = (0.05, 0.10, 0.15, 0.20)
NO_CANDIDATE = "no candidate within the limits"


@dataclass(frozen=True, kw_only=True)
class GrowthConfig:
    """A growth run; the defaults are the published ones, except for `tie_break`.

    Args:
        arch: Seed topology; its own depths and width do not matter.
        scores: How candidates are scored.
        width: Where the scored width starts.
        scale: Width of the real network over the scored one.
        ratios: By which shares the width may grow in a step; whole numbers are channels.
        new_blocks: How many stages get one block more in a step.
        stop_params: Growth ends when the network has as many parameters.
        max_params: Candidates with more are dropped.
        max_macs: Candidates with more multiply-accumulates are dropped; None for no limit.
        tie_break: "fixed", or "upstream" as published; see `best_candidate`.

    Raises:
        ArchitectureError: `arch` cannot be read, or has too many heads for the width.
        ScoreError: Settings that cannot work.
    """

    arch: str = SEED
    scores: ScoreSettings = field(default_factory=lambda: ScoreSettings(seed=GROWTH_SEED))
    width: int = 8
    scale: int = 4
    ratios: tuple[float, ...] = RATIOS
    new_blocks: tuple[int, ...] = (1,)
    stop_params: float = 80e6
    max_params: float = 110e6
    max_macs: float | None = None
    tie_break: TieBreak = "fixed"

    def __post_init__(self) -> None:
        Architecture.parse(self.arch).scaled(width=self.width)
        faults = []
        if self.scale < 1:
            faults.append(f"scale must be at least 1, found {self.scale}")
        if not self.ratios or min(self.ratios) < 0:
            faults.append(f"ratios must be numbers of at least 0, found {self.ratios}")
        if not self.new_blocks or not set(self.new_blocks) <= set(range(1, NUM_STAGES + 1)):
            faults.append(f"new_blocks must be numbers of stages, 1 to {NUM_STAGES}, found {self.new_blocks}")
        limits = (self.stop_params, self.max_params, self.max_macs or 1)
        if not all(limit > 0 for limit in limits):
            faults.append(f"limits must be positive, found {limits}")
        if self.tie_break not in TIE_BREAKS:
            faults.append(f"tie_break must be one of {', '.join(TIE_BREAKS)}, found {self.tie_break!r}")
        if faults:
            raise ScoreError(f"Cannot grow: {'; '.join(faults)}.")

    def candidates(self, depths: Sequence[int], width: int) -> list[tuple[Quadruple, int]]:
        """What a network may grow into, limits aside; see `growth_candidates`."""
        return growth_candidates(depths, width, self.ratios, self.new_blocks)

    def real(self, depths: Sequence[int], width: int) -> Architecture:
        """The network that a scored width stands for."""
        return Architecture.parse(self.arch).scaled(depths=depths, width=self.scale * width)

    def scored(self, depths: Sequence[int], width: int) -> Architecture:
        """The small network that is scored in its place."""
        return Architecture.parse(self.arch).scaled(depths=depths, width=width)


@dataclass(frozen=True)
class GrowthResult:
    """A series of networks, each grown from the one before.

    Attributes:
        path: The networks, smallest first.
        steps: One record per step, with every candidate.
        stopped: Why growth ended.
    """

    path: list[Architecture]
    steps: list[Record]
    stopped: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without the candidates."""
        series = [{name: value for name, value in step.items() if name != "candidates"} for step in self.steps]
        return {"path": [arch.canonical for arch in self.path], "steps": series, "stopped": self.stopped}


def grow(
    config: GrowthConfig,
    *,
    images: Tensor | None = None,
    output: Path | None = None,
    device: str | torch.device = "cpu",
) -> GrowthResult:
    """Grow a seed topology. Under a launcher candidates are spread over the processes.

    Candidates are scored once and kept; an interrupted run goes on where it stopped.

    Args:
        config: The run.
        images: (N, 3, side, side) for "ntk"; generated ones if None.
        output: Folder for candidates/runs.jsonl, steps/runs.jsonl and settings.json.
        device: Where to score.

    Raises:
        ArchitectureError: The image size does not suit the topology, or no first candidate is within the limits.
        ScoreError: The folder holds another run, or every candidate of a step failed.
        OutputError: The folder cannot be written, or another run is using it.
    """
    Architecture.parse(config.arch).check_img_size(config.scores.img_size)
    if not _within_limits(config, config.candidates((1,) * NUM_STAGES, config.width)):
        raise ArchitectureError(f"Growth cannot start: {_nothing_fits(config)}")
    with locked(output if is_main_process() else None):
        folders = {name: output and output / name for name in ("candidates", "steps")}
        scorer = CandidateScorer(config.scores, images=images, folder=folders["candidates"], device=device)
        if output is not None:
            claim_folder(output, asdict(config), scorer.images)
        log = RunStore(folders["steps"] if is_main_process() else None)
        steps: list[Record] = []
        bar = tqdm(desc="grow", unit="step", disable=not is_main_process())
        with bar:
            for record in growth_steps(config, scorer):
                steps.append(record)
                if not log.is_done(record["key"]):
                    log.add(record)
                bar.update()
                bar.set_postfix(params=f"{(record.get('params') or 0) / 1e6:.1f}M")
    return growth_result(config, steps)


def growth_steps(config: GrowthConfig, score: Scorer) -> Iterator[Record]:
    """The steps of a growth run; the last one has no choice where no candidate was within the limits.

    Args:
        config: The run.
        score: Scores candidates, given at the scored width.

    Raises:
        ScoreError: Every candidate of a step failed.
    """
    depths, width = (1,) * NUM_STAGES, config.width
    params = 0
    step = 0
    while params < config.stop_params:
        candidates = config.candidates(depths, width)
        allowed = _within_limits(config, candidates)
        record: Record = {"key": str(step), "status": "done", "step": step, "num_candidates": len(candidates)}
        if not allowed:
            yield {**record, "architecture": None, "candidates": []}
            return
        scored = score([config.scored(*candidate) for candidate in allowed])
        usable = [index for index, candidate in enumerate(scored) if candidate.failure is None]
        if not usable:
            raise ScoreError(f"All {len(scored)} candidates of growth step {step} failed: {scored[0].failure}.")
        columns = {name: [scored[index].values[name] for index in usable] for name in config.scores.rewards}
        chosen = usable[best_candidate(columns, tie_break=config.tie_break)]
        depths, width = allowed[chosen]
        real = config.real(depths, width)
        params = real.num_params()
        yield {
            **record,
            "architecture": real.canonical,
            "depths": depths,
            "width": width,
            "params": params,
            "macs": real.macs(config.scores.img_size),
            "scores": scored[chosen].values,
            "candidates": [
                {"depths": candidate[0], "width": candidate[1], "scores": found.values, "failure": found.failure}
                for candidate, found in zip(allowed, scored, strict=True)
            ],
        }
        step += 1


def growth_candidates(
    depths: Sequence[int], width: int, ratios: Sequence[float] = RATIOS, new_blocks: Sequence[int] = (1,)
) -> list[tuple[Quadruple, int]]:
    """Depths with one block more in some stages, times each width; depths vary slowest.

    Args:
        depths: Of the network to grow.
        width: Its scored width.
        ratios: Growth of the width: shares, rounded half to even, or whole numbers of channels; equal neighbours are
            dropped.
        new_blocks: How many stages get a block; every choice of so many stages is a candidate.
    """
    widened = [width + ratio if isinstance(ratio, int) else round(width * (1 + ratio)) for ratio in ratios]
    widths = [value for i, value in enumerate(widened) if i == 0 or value != widened[i - 1]]
    chosen = [stages for count in new_blocks for stages in combinations(range(NUM_STAGES), count)]
    deeper = [tuple(depth + (i in stages) for i, depth in enumerate(depths)) for stages in chosen]
    return [(candidate, value) for candidate in deeper for value in widths]  # type: ignore[misc]


def growth_result(config: GrowthConfig, steps: list[Record]) -> GrowthResult:
    """The series that the steps describe."""
    path = [Architecture.parse(step["architecture"]) for step in steps if step["architecture"] is not None]
    is_stuck = steps[-1]["architecture"] is None
    stopped = NO_CANDIDATE if is_stuck else f"{config.stop_params / 1e6:g} M parameters reached"
    return GrowthResult(path, steps, stopped)


def _within_limits(config: GrowthConfig, candidates: Sequence[tuple[Quadruple, int]]) -> list[tuple[Quadruple, int]]:
    return [candidate for candidate in candidates if _fits(config, config.real(*candidate))]


def _fits(config: GrowthConfig, real: Architecture) -> bool:
    macs_fit = config.max_macs is None or real.macs(config.scores.img_size) <= config.max_macs
    return real.num_params() <= config.max_params and macs_fit


def _nothing_fits(config: GrowthConfig) -> str:
    candidates = [config.real(*c) for c in config.candidates((1,) * NUM_STAGES, config.width)]
    smallest = min(arch.num_params() for arch in candidates)
    cheapest = min(arch.macs(config.scores.img_size) for arch in candidates)
    found = f"the smallest has {smallest / 1e6:.3g} M parameters and the cheapest {cheapest / 1e9:.3g} GMACs"
    limits = f"{config.max_params / 1e6:g} M parameters"
    if config.max_macs is not None:
        limits += f" and {config.max_macs / 1e9:g} GMACs"
    return f"no first candidate is within {limits}; {found}. Raise the limits or start from a smaller width."
