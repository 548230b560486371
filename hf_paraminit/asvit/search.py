"""Topology search without training: REINFORCE on changes of length distortion and NTK condition (As-ViT, 3.3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_paraminit.asvit.architecture import DEFAULT_WIDTH, Architecture
from hf_paraminit.asvit.candidates import CandidateScore, CandidateScorer, Scorer, ScoreSettings, claim_folder
from hf_paraminit.asvit.errors import ArchitectureError, ScoreError
from hf_paraminit.asvit.policy import BASELINE_MOMENTUM, LEARNING_RATE, SEED, Policy
from hf_paraminit.asvit.ranking import best_candidate
from hf_paraminit.asvit.reward import BUFFER_SIZE, CONSTRAINT, ChangeReward
from hf_paraminit.asvit.space import SearchSpace
from hf_paraminit.io.run_store import Record, RunStore, locked
from hf_paraminit.training.processes import is_main_process

STEPS = 500
SPLITS = (4, 5, 6)  # where the space has the splits of stages 1 to 3
CONSTRAINTS = ("params", "macs")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """A search; the defaults are the published ones.

    Args:
        scores: How candidates are scored.
        steps: Sampled topologies.
        width: Of the first stage of every candidate.
        seed: Of the policy.
        learning_rate: Of Adam.
        baseline_momentum: Of the moving average of rewards, in [0, 1).
        buffer_size: Recent values whose range scales a change.
        relative_eps: None for the published 1e-6 added to that range, else a share of the largest value in it.
        constraint: "params" or "macs", whose change is subtracted from the reward.
        constraint_weight: Its weight, at least 0.

    Raises:
        ScoreError: Settings that cannot work.
    """

    scores: ScoreSettings = field(default_factory=ScoreSettings)
    steps: int = STEPS
    width: int = DEFAULT_WIDTH
    seed: int = SEED
    learning_rate: float = LEARNING_RATE
    baseline_momentum: float = BASELINE_MOMENTUM
    buffer_size: int = BUFFER_SIZE
    relative_eps: float | None = None
    constraint: str = "params"
    constraint_weight: float = 0.0

    def __post_init__(self) -> None:
        faults = []
        if self.steps < 1 or self.width < 1 or self.buffer_size < 1:
            faults.append(f"steps, width and buffer_size must be at least 1, found {self.steps}, {self.width} and ")
            faults[-1] += f"{self.buffer_size}"
        if not self.learning_rate > 0:
            faults.append(f"learning_rate must be positive, found {self.learning_rate}")
        if not 0 <= self.baseline_momentum < 1:
            faults.append(f"baseline_momentum must be in [0, 1), found {self.baseline_momentum}")
        if self.constraint not in CONSTRAINTS or not self.constraint_weight >= 0:
            faults.append(f"the constraint must be one of {', '.join(CONSTRAINTS)} with a weight of at least 0")
        if self.relative_eps is not None and not self.relative_eps > 0:
            faults.append(f"relative_eps must be positive, found {self.relative_eps}")
        if faults:
            raise ScoreError(f"Cannot search: {'; '.join(faults)}.")


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        architecture: The most likely choices of the policy at the end.
        best_sampled: The sampled topology with the smallest sum of ranks; None when every candidate failed.
        steps: One record per step.
        num_failed: Steps whose candidate had no score.
    """

    architecture: Architecture
    best_sampled: Architecture | None
    steps: list[Record]
    num_failed: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without the steps."""
        last = self.steps[-1]
        return {
            "architecture": self.architecture.canonical,
            "best_sampled": self.best_sampled and self.best_sampled.canonical,
            "num_params": self.architecture.num_params(),
            "steps": len(self.steps),
            "failed": self.num_failed,
            "entropy": last["entropy"],
        }


def search(
    config: SearchConfig,
    *,
    space: SearchSpace | None = None,
    images: Tensor | None = None,
    output: Path | None = None,
    device: str | torch.device = "cpu",
) -> SearchResult:
    """Search a seed topology. Under a launcher the repeats of each candidate are spread over the processes.

    Candidates are scored once and kept. An interrupted search goes on by repeating the policy's steps, which cost
    nothing beside the scores, on the kept scores; the result is the same as without the interruption.

    Args:
        config: The search.
        space: What to choose from; the published space if None.
        images: (N, 3, side, side) for "ntk"; generated ones if None.
        output: Folder for candidates/runs.jsonl, steps/runs.jsonl and settings.json.
        device: Where to score.

    Raises:
        ArchitectureError: The image size or width suits no topology.
        ScoreError: The folder holds another search.
        OutputError: The folder cannot be written, or another run is using it.
    """
    space = space or SearchSpace()
    _check_space(space, config)
    held = output if is_main_process() else None
    with locked(held):
        folders = {name: output and output / name for name in ("candidates", "steps")}
        scorer = CandidateScorer(config.scores, images=images, folder=folders["candidates"], device=device)
        if output is not None:
            kept = {name: value for name, value in asdict(config).items() if name != "steps"}
            claim_folder(output, {**kept, "space": space.choices}, scorer.images)
        log = RunStore(folders["steps"] if is_main_process() else None)
        steps = []
        bar = tqdm(total=config.steps, desc="search", unit="step", disable=not is_main_process())
        with bar:
            for record in search_steps(config, space, scorer):
                steps.append(record)
                if not log.is_done(record["key"]):
                    log.add(record)
                bar.update()
                bar.set_postfix(entropy=f"{record['entropy']:.2f}", best=record["derived"])
    return _result(config, steps)


def search_steps(config: SearchConfig, space: SearchSpace, score: Scorer) -> Iterator[Record]:
    """The steps of a search, one after the other.

    Args:
        config: The search.
        space: What to choose from.
        score: Scores candidates.
    """
    policy = Policy(
        space, seed=config.seed, learning_rate=config.learning_rate, baseline_momentum=config.baseline_momentum
    )
    rewards = ChangeReward(
        config.scores.rewards,
        buffer_size=config.buffer_size,
        constraint_weight=config.constraint_weight,
        relative_eps=config.relative_eps,
    )
    for step in range(config.steps):
        actions = policy.sample()
        arch = space.decode(actions, width=config.width)
        (scored,) = score([arch])
        size = {"params": arch.num_params(), "macs": arch.macs(config.scores.img_size)}
        reward = rewards.update(scored.values, constraint=size[config.constraint], is_failed=scored.failure is not None)
        update = policy.update(actions, reward)
        changes = {name: values[-1] for name, values in rewards.changes.items() if name != CONSTRAINT}
        yield {
            "key": str(step),
            "status": "done",
            "step": step,
            "architecture": arch.canonical,
            **size,
            **_described(scored),
            "change": changes,
            "reward": reward,
            **asdict(update),
            "derived": space.decode(policy.best(), width=config.width).topology,
        }


def _described(scored: CandidateScore) -> dict[str, Any]:
    return {"scores": scored.values, "failure": scored.failure}


def _result(config: SearchConfig, steps: list[Record]) -> SearchResult:
    succeeded = [step for step in steps if step["failure"] is None]
    best = None
    if succeeded:
        columns = {name: [step["scores"][name] for step in succeeded] for name in config.scores.rewards}
        best = Architecture.parse(succeeded[best_candidate(columns, tie_break="fixed")]["architecture"])
    derived = Architecture.parse(steps[-1]["derived"]).scaled(width=config.width)
    return SearchResult(derived, best, steps, len(steps) - len(succeeded))


def _check_space(space: SearchSpace, config: SearchConfig) -> None:
    """Refuse an image size or a width that some choice cannot have, before the first score.

    Windows depend on splits alone and heads on the width alone, so the extreme choices decide.
    """
    largest = [max(range(len(values)), key=values.__getitem__) for values in space.choices]
    try:
        space.decode(largest, width=config.width).check_img_size(config.scores.img_size)
        for place in SPLITS:
            for choice in range(len(space.choices[place])):
                one = [*largest[:place], choice, *largest[place + 1 :]]
                space.decode(one, width=config.width).check_img_size(config.scores.img_size)
    except ArchitectureError as error:
        raise ArchitectureError(f"This space cannot be searched at this size. {error}") from error
