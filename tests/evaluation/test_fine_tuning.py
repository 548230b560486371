import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_evaluation as tiny
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.evaluation import fine_tuning
from hf_paraminit.evaluation.class_scores import ClassScores
from hf_paraminit.evaluation.fine_tuning import (
    PROTOCOLS,
    Curve,
    EpochBatches,
    FineTuning,
    FineTuningExperiment,
    Start,
    _optimizer,
    _schedule,
    adapted,
    fine_tune,
    first_of_each_class,
    names_without_classifier,
    resized_parts,
)
from hf_paraminit.evaluation.learning_curve import accuracy
from hf_paraminit.evaluation.network_cells import Images, NetworkCell, compute_cells
from hf_paraminit.evaluation.symmetry import SymmetryBroken
from hf_paraminit.evaluation.tasks import load_task

SHORT = FineTuning(epochs=3, batch_size=20, learning_rate=0.05, weight_decay=1e-4)


def run(
    folder: Path, protocol: FineTuning = SHORT, *, side: int = tiny.SIDE
) -> tuple[torch.nn.Module, dict[int, float]]:
    torch.manual_seed(0)
    network, task = tiny.TinyNet(), tiny.tiny_task()
    train, test = ((F.interpolate(images, side), labels) for images, labels in (task.train, task.test))
    return network, fine_tune(network, train, test, protocol, folder=folder, cpu=True)


def test_accuracy_is_taken_after_each_epoch_and_weights_are_kept(tmp_path: Path) -> None:
    network, curve = run(tmp_path)
    assert list(curve) == [0, 1, 2, 3]
    torch.manual_seed(0)
    start = tiny.TinyNet().state_dict()
    stored = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in network.state_dict().items())
    assert not torch.equal(stored["conv1.weight"], start["conv1.weight"])
    assert curve[0] == pytest.approx(accuracy(ClassScores(_restored(start)), tiny.tiny_task().test))
    assert curve[3] == pytest.approx(accuracy(ClassScores(network), tiny.tiny_task().test))
    assert not (tmp_path / "checkpoints").exists()
    assert (tmp_path / "metrics.jsonl").exists()


def _restored(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    network = tiny.TinyNet()
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize("side", [tiny.SIDE, 80])  # one of each way of augmenting
def test_an_interrupted_run_goes_on_to_the_same_end(side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fine_tuning, "CHECKPOINT_STEPS", 4)
    whole, expected = run(tmp_path / "whole", side=side)  # three epochs of four steps
    after_step: Callable[..., None] = Curve.after_step
    steps = []

    def stop(self: Curve, module: torch.nn.Module, step: int) -> None:
        after_step(self, module, step)
        steps.append(step)
        if len(steps) == 7:
            raise InterruptedError

    monkeypatch.setattr(Curve, "after_step", stop)
    with pytest.raises(InterruptedError):
        run(tmp_path / "cut", side=side)
    resumed, curve = run(tmp_path / "cut", side=side)
    assert steps == [1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8, 9, 10, 11, 12]
    assert curve == expected
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_published_protocols() -> None:
    few, full = PROTOCOLS["few-shot"], PROTOCOLS["full"]
    assert (few.epochs, few.learning_rate, few.weight_decay, few.batch_size, few.shots) == (50, 0.025, 1e-3, 96, 100)
    assert not few.predicts_classifier
    assert (full.epochs, full.learning_rate, full.weight_decay, full.batch_size) == (90, 0.025, 1e-4, 128)
    assert (full.label_smoothing, full.gradient_clip, full.schedule) == (0.1, 5.0, "steps")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("cosine", [1.0, 0.75, 0.25]), ("steps", [1.0, 0.1, 0.01])],
)
def test_rates_change_between_epochs(schedule: Any, expected: list[float]) -> None:
    protocol = adapted(SHORT, schedule=schedule, learning_rate=1.0)
    optimizer = _optimizer(tiny.TinyNet(), protocol)
    rates = _schedule(optimizer, protocol, steps_per_epoch=2)
    found = []
    for _ in range(6):
        found.append(rates.get_last_lr()[0])
        optimizer.step()
        rates.step()
    assert found == pytest.approx([rate for rate in expected for _ in range(2)])


def test_each_epoch_sees_each_image_once_in_another_order() -> None:
    images = torch.arange(12.0).view(12, 1, 1, 1)
    batches = EpochBatches((images, torch.arange(12)), 5, is_augmented=False)
    assert batches.per_epoch == 2
    epochs = [[batches(2 * epoch + place)[1].tolist() for place in range(2)] for epoch in range(2)]
    assert epochs[0] != epochs[1]
    for epoch in epochs:
        seen = [label for batch in epoch for label in batch]
        assert len(set(seen)) == 10
    assert torch.equal(batches(1)[0].flatten(), batches(1)[1].float())
    assert EpochBatches(batches.data, 5, seed=1, is_augmented=False)(0)[1].tolist() != epochs[0][0]


def ramps(count: int, height: int, width: int) -> torch.Tensor:
    """Images whose channels are the number of the row and of the column."""
    rows, columns = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.stack([rows, columns]).expand(count, -1, -1, -1)


def test_parts_of_large_images_have_the_published_areas_and_aspects() -> None:
    """Resizing is linear, so the slope of a ramp tells how many rows and columns became the whole."""
    height, width = 96, 120
    torch.manual_seed(0)
    parts = resized_parts(ramps(400, height, width))
    assert parts.shape == (400, 2, height, width)
    tall = (parts[:, 0, height // 2 + 1] - parts[:, 0, height // 2])[:, 0] * height
    signed = (parts[:, 1, :, width // 2 + 1] - parts[:, 1, :, width // 2])[:, 0] * width
    wide = signed.abs()
    for side in (tall, wide):  # whole pixels
        torch.testing.assert_close(side, side.round(), rtol=0, atol=1e-2)
    area, aspect = tall * wide / (height * width), wide / tall
    # A side is rounded by up to half a pixel, of at least 26: 2 % of it.
    assert 0.08 / 1.04 < float(area.min()) < 0.12
    assert 0.9 < float(area.max()) < 1.04
    assert 3 / 4 / 1.04 < float(aspect.min()) < 0.8
    assert 1.25 < float(aspect.max()) < 4 / 3 * 1.04
    assert 140 < int((signed < 0).sum()) < 260  # mirrored
    for channel, length in ((0, height), (1, width)):
        assert parts[:, channel].min() >= 0
        assert parts[:, channel].max() <= length - 1 + 1e-4


@pytest.mark.parametrize(("side", "is_resized"), [(64, False), (65, True)])
def test_images_above_64_pixels_are_augmented_as_imagenet_is(side: int, is_resized: bool) -> None:
    data = (ramps(6, side, side), torch.arange(6))
    batches = EpochBatches(data, 6, seed=3)
    state = torch.get_rng_state()
    images, labels = batches(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert images.shape == (6, 2, side, side)
    assert torch.equal(batches(2)[0], images)
    assert not torch.equal(batches(3)[0], images)
    assert not torch.equal(EpochBatches(data, 6, seed=4)(2)[0], images)
    assert torch.equal(images, images.round()) != is_resized  # windows keep the pixels as they are
    plain, plain_labels = EpochBatches(data, 6, seed=3, is_augmented=False)(2)
    assert torch.equal(plain, data[0])
    assert torch.equal(plain_labels, labels)


def test_large_images_are_evaluated_in_the_middle_of_their_resized_whole(tmp_path: Path) -> None:
    """As ImageNet is: the shorter side becomes 256 pixels, the middle 224 of which are taken."""
    for label, name in enumerate(("dark", "light")):
        (tmp_path / name).mkdir()
        for index in range(5):
            image = Image.new("RGB", (512, 256), (0, 0, 0))
            image.paste((100 + 50 * label,) * 3, (144 + 1, 16 + 1, 144 + 223, 16 + 223))  # all but a frame of one pixel
            image.save(tmp_path / name / f"{index}.png")
    task = load_task(str(tmp_path), size=224, batch_size=1)
    images = task.test[0]
    assert images.shape[1:] == (3, 224, 224)
    frame, inside = images.amin((1, 2, 3)), images[:, :, 112, 112]
    assert torch.equal(images[:, 0, 1:-1, 1:-1], inside[:, :1, None].expand(-1, 222, 222))
    for edge in (images[:, 0, 0], images[:, 0, -1], images[:, 0, :, 0], images[:, 0, :, -1]):
        assert torch.equal(edge, frame[:, None].expand(-1, 224))


def test_shots_are_the_first_of_each_class_in_order() -> None:
    labels = torch.tensor([2, 0, 2, 1, 0, 1, 2, 0])
    images, chosen = first_of_each_class((torch.arange(8.0), labels), 2)
    assert images.tolist() == [0, 1, 2, 3, 4, 5]
    assert chosen.tolist() == [2, 0, 2, 1, 0, 1]
    with pytest.raises(TrainingConfigError, match=r"3 training images of each class: class 1 has 2"):
        first_of_each_class((torch.arange(8.0), labels), 3)


def test_the_classifier_keeps_its_start_unless_it_is_predicted() -> None:
    names = names_without_classifier(tiny.TinyNet())
    assert names == ["conv1.weight", "norm.weight", "norm.bias", "conv2.weight", "conv2.bias"]


def test_networks_are_trained_from_each_start(tmp_path: Path) -> None:
    task = tiny.tiny_task()
    broken = SymmetryBroken(of="ghn3", noise=1e-3, max_size=4)
    starts = {
        "default": Start(label="default"),
        "he": Start(label="he", init="he"),
        "broken": Start(label="broken", init=broken),
    }
    experiment = FineTuningExperiment(
        images=Images(data=task),
        starts=starts,
        protocol=adapted(SHORT, epochs=1, shots=6, batch_size=12),
        folder=tmp_path,
        cpu=True,
    )
    cells = [NetworkCell(network=tiny.tiny_networks(1)[0], init=init) for init in starts]
    records = compute_cells(experiment, cells, output=tmp_path, processes=1, title="test", together=True)
    assert [record["status"] for record in records] == ["done"] * 3, [record.get("error") for record in records]
    assert [record["images"] for record in records] == [24] * 3
    assert [record["coverage"] > 0 for record in records] == [False, True, True]
    assert all(list(record["curve"]) == ["0", "1"] for record in records)
    assert all((tmp_path / record["weights"]).is_file() for record in records)
    assert len({experiment.key(cell) for cell in cells}) == 3


@pytest.mark.parametrize(
    "changes", [{"epochs": 0}, {"shots": 0}, {"learning_rate": -1.0}, {"optimizer": "lamb"}, {"schedule": "none"}]
)
def test_wrong_protocols_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(TrainingConfigError, match="Cannot fine-tune"):
        FineTuning(**changes)


TWO_PROCESSES = """
import os, sys
from pathlib import Path
import torch.distributed as dist
from accelerate import PartialState
import tiny_evaluation as tiny
from hf_paraminit.evaluation.fine_tuning import FineTuning, FineTuningExperiment, Start
from hf_paraminit.evaluation.learning_curve import accuracy
from hf_paraminit.evaluation.network_cells import Images, NetworkCell, compute_cells

PartialState(cpu=True)
folder = Path(sys.argv[1])
experiment = FineTuningExperiment(
    images=Images(data=tiny.tiny_task()),
    starts={"default": Start(label="default")},
    protocol=FineTuning(epochs=2, batch_size=10),
    folder=folder,
    cpu=True,
)
cells = [NetworkCell(network=network, init="default") for network in tiny.tiny_networks(2)]
compute_cells(experiment, cells, output=folder, processes=None, title="test", together=True)
dist.barrier()
os._exit(0)
"""


@pytest.mark.slow
def test_two_processes_train_each_network_together(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(script), str(tmp_path / "out")], env={**environment, "PATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert [record["status"] for record in records] == ["done", "done"], records
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "out" / "runs" / records[0]["key"] / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps[-1] == 2 * (80 // 10 // 2)
