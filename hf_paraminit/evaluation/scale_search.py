"""Which scales a kind of network starts best from: a search, role by role, by short trainings on generated tasks."""

from __future__ import annotations

import copy
import functools
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from hf_paraminit.evaluation.batchnorm import normalize_inputs
from hf_paraminit.evaluation.learning_curve import LabelledImages, Recipe, learning_curve, mean_accuracy
from hf_paraminit.io.run_store import RunStore
from hf_paraminit.structure.model import ModelStructure
from hf_paraminit.structure.roles import tensor_roles
from hf_paraminit.training.synthetic import SyntheticImages, SyntheticSpec, normalize
from hf_paraminit.training.synthetic.mixture import Split

Scales = Mapping[str, float]  # by role; a role that is not there has scale 1
Start = Callable[[nn.Module, int], object]  # writes initial values of scale 1 into a network, by a seed

STEPS = (10, 20, 40, 80, 150)  # as networks are compared everywhere
NUM_TRAIN, NUM_TEST = 1000, 400
NUM_CALIBRATION = 128  # images that the inputs of batch norms are normalised on
FIRST_TASK = 50  # seed of the first task; digits are never shown
FACTOR = 2.0
SMALLEST_GAIN = 0.3  # of AUC; less is noise


@dataclass(frozen=True, eq=False, kw_only=True)
class ScaleSearch:
    """A search for one kind of network.

    Whatever the scales, convolutions in front of batch norms are rescaled before each training so that these see
    inputs of unit variance: the running statistics then fit from the first step, and need no search.

    Attributes:
        networks: Small networks for 10 classes of 32-pixel images; they are copied, never changed.
        start: What scale 1 means.
        roles: Roles to try, in this order.
        learning_rate: Of AdamW, as this kind of network is trained with from its default initialization.
        records: Folder that keeps every training, one JSON line each; a run that was interrupted reads it first.
        smallest: Roles that are not scaled below a value.
        seeds: Tasks and starts per network.
        kind: What records and the progress bar call this kind.
    """

    networks: Sequence[nn.Module]
    start: Start
    roles: Sequence[str]
    learning_rate: float
    records: Path
    kind: str
    smallest: Mapping[str, float] = field(default_factory=dict)
    seeds: Sequence[int] = (0, 1)

    def run(self) -> dict[str, float]:
        """Return the best scales found, by role; roles that are not there keep scale 1.

        Each role's scale is halved as long as that helps, else doubled as long as that helps, all others as they are.
        """
        store = RunStore(self.records)
        roles = [_roles_of(network) for network in self.networks]
        present = {role for named in roles for role in named.values()}
        scales: dict[str, float] = {}
        with tqdm(desc=self.kind, unit="candidate") as bar:

            def score(candidate: Scales) -> float:
                area = self._score(candidate, roles, store)
                bar.update()
                bar.set_postfix(auc=f"{area:.1f}")
                return area

            best = score(scales)
            for role in (role for role in self.roles if role in present):
                for factor in (1 / FACTOR, FACTOR):
                    before = best
                    scales, best = _moved(scales, best, role, factor, score, self.smallest.get(role, 0.0))
                    if best > before:
                        break
        return scales

    def _score(self, scales: Scales, roles: Sequence[Mapping[str, str]], store: RunStore) -> float:
        """Mean AUC over networks and seeds, in percent."""
        areas = []
        for position, (network, named) in enumerate(zip(self.networks, roles, strict=True)):
            for seed in self.seeds:
                key = json.dumps([self.kind, position, seed, dict(sorted(scales.items()))])
                if not store.is_done(key):
                    store.add({"key": key, "status": "done", "auc": self._train(network, named, scales, seed)})
                areas.append(store.records[key]["auc"])
        return statistics.mean(areas)

    def _train(self, network: nn.Module, roles: Mapping[str, str], scales: Scales, seed: int) -> float:
        candidate = copy.deepcopy(network)
        self.start(candidate, seed)
        with torch.no_grad():
            for name, role in roles.items():
                candidate.get_parameter(name).mul_(scales.get(role, 1.0))
        task = generated_task(FIRST_TASK + seed)
        normalize_inputs(candidate, task[0][0][:NUM_CALIBRATION])
        recipe = Recipe(learning_rate=self.learning_rate, evaluate_at=STEPS)
        return mean_accuracy(learning_curve(candidate, *task, recipe, seed=seed))


def _roles_of(network: nn.Module) -> dict[str, str]:
    return tensor_roles(ModelStructure(network))


def _moved(
    scales: dict[str, float], best: float, role: str, factor: float, score: Callable[[Scales], float], smallest: float
) -> tuple[dict[str, float], float]:
    """Multiply one role's scale by a factor as often as it helps, down to a smallest scale."""
    while (scale := scales.get(role, 1.0) * factor) >= smallest:
        candidate = {**scales, role: scale}
        area = score(candidate)
        if area < best + SMALLEST_GAIN:
            break
        scales, best = candidate, area
    return scales, best


@functools.lru_cache(maxsize=2)
def generated_task(seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Ten generated classes, grey for every second seed: images to learn from, and others of the same classes."""
    images = SyntheticImages(SyntheticSpec(seed=seed, preset="tiny", grayscale=seed % 2 == 0))
    return _labelled(images, "train", NUM_TRAIN), _labelled(images, "validation", NUM_TEST)


def _labelled(images: SyntheticImages, split: Split, number: int) -> LabelledImages:
    pixels, labels = images.batch(split, 0, number)
    return normalize(pixels).expand(-1, 3, -1, -1).contiguous(), labels
