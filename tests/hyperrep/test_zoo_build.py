"""Building a zoo: plans, resuming after any interruption, and what is refused before anything is trained."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_zoo import build_tiny_zoo, noisy_prototypes, tiny_cnn, tiny_plan
from torch import nn

from hf_paraminit.errors import OutputError, TrainingConfigError
from hf_paraminit.hyperrep import zoo_build
from hf_paraminit.hyperrep.zoo import Zoo
from hf_paraminit.hyperrep.zoo_build import ZooPlan, build_zoo, deal_splits

BUILD = """
import sys
from pathlib import Path
from tiny_zoo import build_tiny_zoo
build_tiny_zoo(Path(sys.argv[1]), 24, epochs=12)
"""
LAUNCHED = """
import os, sys
from pathlib import Path
from tiny_zoo import build_tiny_zoo
build_tiny_zoo(Path(sys.argv[1]), 12)
import torch.distributed as dist
dist.barrier()
os._exit(0)
"""


class Branching(nn.Module):
    """Looks at values, so its members are trained one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores = self.layer(images.flatten(1))
        return scores if scores.detach().sum().item() > 0 else 2 * scores


def same_weights(first: Zoo, second: Zoo) -> bool:
    pairs = zip(first, second, strict=True)
    return all(
        row.to_dict() == other.to_dict() and all(torch.equal(weights[name], found[name]) for name in weights)
        for (row, weights), (other, found) in pairs
    )


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}


def test_a_grid_is_every_combination_for_every_seed() -> None:
    options = {"learning_rate": [1e-3, 1e-2], "activation": ["tanh", "relu"]}
    plan = ZooPlan.grid(range(3, 6), options, epochs=4, optimizer="sgd")
    assert len(plan.members) == 12
    assert {member.seed for member in plan.members} == {3, 4, 5}
    assert {member.optimizer for member in plan.members} == {"sgd"}
    assert plan.members[0].model_kwargs == {"activation": "tanh"}
    assert list(plan.save_epochs) == [1, 2, 3, 4]
    stacks = plan.stacks(4)
    assert sorted(number for stack in stacks for number in stack) == list(range(12))
    assert [len(stack) for stack in stacks] == [4, 2, 4, 2]
    kinds = [{plan.members[number].model_kwargs["activation"] for number in stack} for stack in stacks]
    assert all(len(kind) == 1 for kind in kinds)


def test_splits_are_dealt_by_model() -> None:
    names = [f"m{number}" for number in range(200)]
    splits = deal_splits(names)
    counts = [sum(split == name for split in splits.values()) for name in ("train", "validation", "test")]
    assert counts == [140, 30, 30]
    assert splits == deal_splits(names)
    assert {splits[name] for name in names[:10]} != {"train"}


def test_an_interrupted_build_goes_on(tiny_zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = zoo_build._run
    trained: list[list[str]] = []

    def interrupted(job: zoo_build._Job) -> list:
        if trained:
            raise KeyboardInterrupt
        trained.append(job.model_ids)
        return run(job)

    monkeypatch.setattr(zoo_build, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_tiny_zoo(tmp_path / "zoo", 8)
    partial = Zoo.open(tmp_path / "zoo", faults="skip")
    assert partial.model_ids == trained[0]
    assert partial.faults == ["4 of 8 models are missing (an interrupted build?)"]
    written = (tmp_path / "zoo" / partial.rows[0].shard).stat().st_mtime_ns

    def counted(job: zoo_build._Job) -> list:
        trained.append(job.model_ids)
        return run(job)

    monkeypatch.setattr(zoo_build, "_run", counted)
    finished = build_tiny_zoo(tmp_path / "zoo", 8)
    assert len(trained) == 2  # the second stack only
    assert (tmp_path / "zoo" / partial.rows[0].shard).stat().st_mtime_ns == written
    assert same_weights(finished, tiny_zoo)
    build_tiny_zoo(tmp_path / "zoo", 8)
    assert len(trained) == 2
    finished_file = tmp_path / "zoo" / finished.rows[-1].shard
    finished_file.write_bytes(finished_file.read_bytes()[:-10])  # a damaged file counts as not finished
    assert same_weights(build_tiny_zoo(tmp_path / "zoo", 8), tiny_zoo)
    assert len(trained) == 3


def test_members_one_after_another_have_a_file_for_each_checkpoint(tmp_path: Path) -> None:
    zoo = build_zoo(
        tmp_path / "zoo", Branching, noisy_prototypes(), tiny_plan(2, save_epochs=[0, 3]), architecture="branching"
    )
    assert "vmap" in zoo.card["not_stacked_because"]
    files = sorted(path.relative_to(zoo.folder).as_posix() for path in zoo.folder.glob("data/*/*"))
    assert files == [f"data/model-0000{m}/epoch-000{e}.safetensors" for m in (0, 1) for e in (0, 3)]
    assert load_file(zoo.folder / files[0])["layer.weight"].shape == (10, 64)
    assert zoo.stacked()["layer.weight"].shape == (4, 10, 64)
    assert torch.equal(zoo.state_dict(3)["layer.weight"], load_file(zoo.folder / files[3])["layer.weight"])
    before = zoo.values("test_accuracy")
    again = build_zoo(
        tmp_path / "zoo", Branching, noisy_prototypes(), tiny_plan(2, save_epochs=[0, 3]), architecture="branching"
    )
    assert torch.equal(again.values("test_accuracy"), before)


def test_members_that_lose_together_are_trained_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo_build, "stacking_gain", lambda *_: 0.5)
    zoo = build_tiny_zoo(tmp_path / "zoo", 2, epochs=1, always_stacked=False)
    assert zoo.card["not_stacked_because"] == "members together take a step only 0.50 times as fast"
    monkeypatch.setattr(zoo_build, "stacking_gain", lambda *_: 2.0)  # the first decision holds
    assert build_tiny_zoo(tmp_path / "zoo", 2, epochs=1, always_stacked=False).card == zoo.card


def test_diverged_members_are_kept_and_marked(tmp_path: Path) -> None:
    options = {"learning_rate": [1e-2, 1e38]}
    plan = ZooPlan.grid([0], options, epochs=1, optimizer="sgd", activation="relu", always_stacked=True)
    zoo = build_zoo(tmp_path / "zoo", tiny_cnn, noisy_prototypes(), plan, architecture="cnn-tiny")
    assert [row.is_finite for row in zoo.rows] == [True, False]
    assert zoo.rows[1].test_accuracy is None
    assert zoo.rows[1].generalization_gap is None
    assert [row.model_id for row in zoo.clean().rows] == ["model-00000"]
    assert zoo.select(min_accuracy=0.0).model_ids == ["model-00000"]


def test_another_plan_needs_another_folder(tiny_zoo: Zoo, tmp_path: Path) -> None:
    before = (tiny_zoo.folder / "zoo_config.json").read_bytes()
    with pytest.raises(TrainingConfigError, match=r"holds a zoo with other members\. Repeat the command"):
        build_tiny_zoo(tiny_zoo.folder, 7)
    with pytest.raises(TrainingConfigError, match="holds a zoo with other data, epochs, members"):
        build_zoo(
            tiny_zoo.folder, tiny_cnn, noisy_prototypes(num_train=128), tiny_plan(8, epochs=2), architecture="cnn-tiny"
        )
    assert (tiny_zoo.folder / "zoo_config.json").read_bytes() == before


def test_one_build_at_a_time(tmp_path: Path) -> None:
    with zoo_build._locked(tmp_path), pytest.raises(OutputError, match="Another run is writing"):
        build_tiny_zoo(tmp_path, 1)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="Choose a folder"):
        build_tiny_zoo(tmp_path / "file" / "zoo", 1)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ZooPlan.grid([], epochs=1), "it has no members"),
        (lambda: ZooPlan.grid([1, 1], epochs=1), "some members are equal in all settings"),
        (lambda: ZooPlan.grid([0], {"learning_rate": 3}), "learning_rate of its grid need a list"),
        (lambda: ZooPlan.grid([0], {"epochs": [1, 2]}), "different numbers of epochs"),
        (lambda: ZooPlan.grid([0], epochs=2, save_epochs=[3]), r"save_epochs must ascend within 0\.\.2, got \[3\]"),
        (lambda: ZooPlan.grid([0], epochs=2, stack_size=0), "stack_size must be at least 1"),
        (lambda: ZooPlan.grid([0], optimizer="lion"), "optimizer must be one of"),
    ],
)
def test_impossible_plans(make: Callable[[], ZooPlan], message: str) -> None:
    with pytest.raises(TrainingConfigError, match=message):
        make()


def test_networks_and_data_that_do_not_fit(tmp_path: Path) -> None:
    data = noisy_prototypes()
    cases: list[tuple[Callable[..., nn.Module], object, ZooPlan, str]] = [
        (tiny_cnn, noisy_prototypes(channels=3), tiny_plan(1), r"does not take images \(3, 8, 8\)"),
        (lambda: tiny_cnn(num_classes=4), data, tiny_plan(1), r"output is \(2, 4\), expected scores \(2, 10\)"),
        (tiny_cnn, noisy_prototypes(num_train=32), tiny_plan(1), "32 images, fewer than a batch of 64"),
        (
            tiny_cnn,
            data,
            ZooPlan.grid([0], {"num_classes": [10, 12]}, epochs=1),
            r"one architecture: \{'num_classes': 12\} gives module_list\.8\.weight \(12, 16\), others \(10, 16\)",
        ),
    ]
    for constructor, images, plan, message in cases:
        with pytest.raises(TrainingConfigError, match=message):
            build_zoo(tmp_path / "zoo", constructor, images, plan, architecture="x")  # type: ignore[arg-type]
        assert not (tmp_path / "zoo" / "zoo_config.json").exists()


@pytest.mark.slow
def test_a_killed_build_goes_on(tmp_path: Path) -> None:
    """`kill -9` after the first stack: nothing of it is lost, nothing is computed twice."""
    folder = tmp_path / "zoo"
    process = subprocess.Popen([sys.executable, "-c", BUILD, str(folder)], env=environment())
    first = folder / "data" / "zoo-00001-of-00006.safetensors"
    while not first.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = first.stat().st_mtime_ns
    assert not (folder / "data" / "zoo-00006-of-00006.safetensors").exists()
    zoo = build_tiny_zoo(folder, 24, epochs=12)
    assert first.stat().st_mtime_ns == written
    assert len(zoo) == 24 * 12
    assert same_weights(zoo, build_tiny_zoo(tmp_path / "other", 24, epochs=12))
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.slow
def test_worker_processes_build_the_same_zoo(tiny_zoo: Zoo, tmp_path: Path) -> None:
    zoo = build_zoo(tmp_path / "zoo", tiny_cnn, noisy_prototypes(), tiny_plan(8), architecture="cnn-tiny", processes=2)
    assert same_weights(zoo, tiny_zoo)


@pytest.mark.slow
def test_a_launcher_shares_the_stacks(tmp_path: Path) -> None:
    script = tmp_path / "build.py"
    script.write_text(LAUNCHED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    subprocess.run([*command, str(tmp_path / "zoo")], env=environment(), check=True, timeout=300)
    launched = Zoo.open(tmp_path / "zoo")
    assert len(launched) == 36
    assert json.loads((tmp_path / "zoo" / "zoo_config.json").read_text())["num_models"] == 12
    assert same_weights(launched, build_tiny_zoo(tmp_path / "alone", 12))
