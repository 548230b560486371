"""The search for scales: what it finds, and that an interrupted one trains nothing twice."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch

from hf_paraminit.evaluation.scale_search import ScaleSearch, generated_task
from hf_paraminit.structure.roles import KERNEL, LAST, STEM


@dataclass(frozen=True, eq=False, kw_only=True)
class KnownOptimum(ScaleSearch):
    """A search whose trainings are a formula: best where the kernels have scale 4 and the stem 1/2."""

    trained: list[dict[str, float]] = field(default_factory=list)

    def _train(
        self, network: torch.nn.Module, roles: Mapping[str, str], scales: Mapping[str, float], seed: int
    ) -> float:
        self.trained.append(dict(scales))
        distance = abs(math.log2(scales.get(KERNEL, 1.0) / 4)) + abs(math.log2(scales.get(STEM, 1.0) * 2))
        return 90 - 10 * distance


def search(records: Path, kind: type[ScaleSearch] = KnownOptimum, **settings: Any) -> Any:
    networks = [timm.create_model("test_resnet", num_classes=10)]
    return kind(
        networks=networks, start=lambda network, seed: None, roles=(KERNEL, STEM, LAST, "absent"), learning_rate=1e-3,
        records=records, kind="tiny", **settings,
    )  # fmt: skip


def test_it_finds_the_best_scales(tmp_path: Path) -> None:
    assert search(tmp_path).run() == {KERNEL: 4.0, STEM: 0.5}


def test_nothing_is_trained_twice(tmp_path: Path) -> None:
    first, second = search(tmp_path), search(tmp_path)
    found = first.run()
    keys = [tuple(sorted(scales.items())) for scales in first.trained]
    assert len(keys) == 2 * len(set(keys))  # once per seed
    assert second.run() == found
    assert second.trained == []


def test_the_records_of_another_network_do_not_count(tmp_path: Path) -> None:
    search(tmp_path).run()
    other = search(tmp_path, seeds=(5,))
    other.run()
    assert other.trained


def test_a_real_training_scales_what_the_start_wrote(tmp_path: Path) -> None:
    started: list[int] = []

    def start(network: torch.nn.Module, seed: int) -> None:
        started.append(seed)

    network = timm.create_model("test_resnet", num_classes=10)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    real = ScaleSearch(
        networks=[network], start=start, roles=(), learning_rate=1e-3, records=tmp_path, kind="tiny", seeds=(0,)
    )
    assert real.run() == {}
    assert started == [0]
    assert all(map(torch.equal, network.parameters(), before))


def test_tasks_differ_and_repeat() -> None:
    (images, labels), (tested, _) = generated_task(50)
    assert images.shape[1:] == tested.shape[1:] == (3, 32, 32)
    assert set(labels.tolist()) <= set(range(10))
    assert torch.equal(generated_task(50)[0][0], images)
    assert not torch.equal(generated_task(51)[0][0], images)


def test_a_role_stays_above_its_smallest_scale(tmp_path: Path) -> None:
    assert search(tmp_path, smallest={STEM: 0.6}).run() == {KERNEL: 4.0}
