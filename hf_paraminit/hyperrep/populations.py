"""The populations that sampled networks are compared with, and what codes tell of networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hf_paraminit.hyperrep.autoencoder import embedding
from hf_paraminit.hyperrep.model import HyperRepresentation
from hf_paraminit.hyperrep.properties import PROPERTIES, probe_scores, weight_statistics
from hf_paraminit.hyperrep.sample import Coupling, Sampling, bootstrap
from hf_paraminit.hyperrep.train import PreparedZoo, best_networks

State = dict[str, Tensor]

RANDOM, COPIED, RECONSTRUCTED = "random init", "copied anchors", "reconstructed anchors"
# Rows of the table after the baselines. "anchor" is what works; the other two are the papers' wording.
SAMPLINGS: Mapping[str, Sampling] = {
    "sampled, one anchor each": Sampling(coupling="anchor"),
    "sampled, an anchor per token": Sampling(coupling="token"),
    "sampled, an anchor per dimension": Sampling(coupling="dim"),
    "sampled between neighbours": Sampling(method="neighbourhood"),
    "sampled, N(mean, std) of all codes": Sampling(method="gaussian"),
    "sampled, uniform codes": Sampling(method="uniform"),
}
# Populations that were chosen on data: what follows one anchor, and rounds of choosing.
BOOTSTRAP_ROUNDS = 4
SELECTIONS: Mapping[str, tuple[Coupling, int]] = {
    "sampled and subsampled (SUB)": ("anchor", 1),
    "sampled and bootstrapped (BOOT)": ("anchor", BOOTSTRAP_ROUNDS),
    "the same, an anchor per token": ("token", BOOTSTRAP_ROUNDS),
}


@torch.no_grad()
def populations(
    representation: HyperRepresentation, prepared: PreparedZoo, num: int, *, seed: int = 0
) -> dict[str, Sequence[State | None]]:
    """Networks of each kind by the label of their row; None stands for a network's own random start.

    Copied anchors, the baseline that the papers leave out, are the zoo's own best networks; with fewer of them than
    `num` each is used again.

    Args:
        representation: What samples.
        prepared: Its zoo.
        num: Networks per population.
        seed: Of the draws.
    """
    anchors, _ = best_networks(prepared, min(num, representation.config.num_anchors))
    repeated = [anchors[row % len(anchors)] for row in range(num)]
    stacked = {name: torch.stack([state[name] for state in repeated]) for name in anchors[0]}
    found: dict[str, Sequence[State | None]] = {
        RANDOM: [None] * num,
        COPIED: repeated,
        RECONSTRUCTED: unstacked(representation.decode(representation.encode(stacked))),
    }
    for label, sampling in SAMPLINGS.items():
        found[label] = unstacked(representation.sample(num, seed=seed, sampling=sampling).weights)
    return found


@torch.no_grad()
def selected_populations(
    representation: HyperRepresentation,
    num: int,
    score: Callable[[State], float],
    *,
    candidates: int,
    seed: int = 0,
) -> dict[str, Sequence[State]]:
    """The best of many draws by the label of their row (SANE, section 3.3): chosen once, or over several rounds.

    Args:
        representation: What samples.
        num: Networks per population.
        score: Of a network, higher is better; on other data than the results are reported on.
        candidates: Draws per round.
        seed: Of the draws.

    Raises:
        InitializerConfigError: Fewer candidates than networks.
    """
    found: dict[str, Sequence[State]] = {}
    for label, (coupling, rounds) in SELECTIONS.items():
        sampling = Sampling(coupling=coupling)
        codes = bootstrap(
            representation.chosen_anchors(sampling),
            num,
            sampling,
            torch.Generator().manual_seed(seed),
            candidates=candidates,
            rounds=rounds,
            score=lambda code: score(unstacked(representation.decode(code[None]))[0]),
        )
        found[label] = unstacked(representation.decode(codes))
    return found


def unstacked(weights: Mapping[str, Tensor]) -> list[State]:
    """State dicts of stacked tensors (N, *shape)."""
    count = len(next(iter(weights.values())))
    return [{name: tensor[row] for name, tensor in weights.items()} for row in range(count)]


@torch.no_grad()
def property_scores(representation: HyperRepresentation, prepared: PreparedZoo) -> dict[str, dict[str, float]]:
    """R2 of linear probes for accuracy, epoch and generalisation gap on the zoo's test networks.

    Returns:
        By property: "codes" from the mean token code, "weight statistics" from what needs no training.
    """
    splits = {name: states for name, states in prepared.states.items() if states}
    codes = {name: embedding(representation.encode(states)) for name, states in splits.items()}
    statistics = {name: weight_statistics(prepared.layout, states) for name, states in splits.items()}
    targets = {name: {split: prepared.zoo[split].values(name) for split in splits} for name in PROPERTIES}
    scores = {"codes": probe_scores(codes, targets), "weight statistics": probe_scores(statistics, targets)}
    return {name: {kind: round(values[name], 4) for kind, values in scores.items()} for name in PROPERTIES}
