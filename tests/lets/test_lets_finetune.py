import copy
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.lets.finetune import FineTuning, LabelTraining, fine_tune
from hf_paraminit.lets.train import Batch, adamw, label_accuracy
from hf_paraminit.training.loop import TrainingConfig

CLASSES = 3
QUICK = FineTuning(epochs=10, batch_size=12, learning_rate=0.2, min_learning_rate=0.0)  # 0.2 * 12 / 512 is about 5e-3


def batch_at(index: int) -> Batch:
    """Noise of which one channel is brighter, the class."""
    generator = torch.Generator().manual_seed(index)
    labels = torch.arange(12) % CLASSES
    images = torch.randn(12, 3, 16, 16, generator=generator)
    images[torch.arange(12), labels] += 1.5
    return images, labels


def vit() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **sizes)


def hf_vit() -> nn.Module:
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=16,
            patch_size=8,
            num_labels=CLASSES,
        )
    )


@pytest.mark.parametrize("build", [vit, hf_vit])
def test_it_learns(build: type, tmp_path: Path) -> None:
    model = build()
    trained = fine_tune(model, batch_at, 4, QUICK, output=tmp_path, cpu=True)
    assert trained is model
    assert label_accuracy(model, [batch_at(index) for index in range(100, 104)]) > 80


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    recipe = FineTuning(epochs=2, batch_size=12, learning_rate=0.1)
    whole = fine_tune(vit(), batch_at, 3, recipe, output=tmp_path / "whole", cpu=True)
    fine_tune(vit(), batch_at, 3, recipe, output=tmp_path / "parts", cpu=True, stop_after=2)
    resumed = fine_tune(vit(), batch_at, 3, recipe, output=tmp_path / "parts", cpu=True)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_the_published_rate_is_for_512_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def noted(module: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
        seen.append(config)
        return adamw(module, config)

    monkeypatch.setattr("hf_paraminit.lets.finetune.adamw", noted)
    recipe = FineTuning(epochs=1, batch_size=12)
    fine_tune(vit(), batch_at, 4, recipe, output=tmp_path, cpu=True, gradient_accumulation=2)
    assert seen[0].learning_rate == pytest.approx(1e-5 * 24 / 512)
    assert (seen[0].steps, seen[0].warmup_steps, seen[0].weight_decay) == (2, 0, 0.05)
    published = FineTuning()
    assert (published.epochs, published.learning_rate, published.min_learning_rate) == (5, 1e-5, 1e-6)


@pytest.mark.parametrize("build", [vit, hf_vit])
def test_vectors_positions_and_tokens_do_not_decay(build: type) -> None:
    module = LabelTraining(build())
    config = TrainingConfig(output="unused", steps=1, weight_decay=0.05)
    free = {id(parameter) for parameter in adamw(module, config).param_groups[1]["params"]}
    tables = ("pos_embed", "cls_token", "position_embeddings")
    for name, parameter in module.named_parameters():
        assert (id(parameter) in free) == (parameter.dim() == 1 or name.rpartition(".")[2] in tables), name


def test_mixed_labels_count_as_they_are() -> None:
    model = vit().eval()
    images, labels = batch_at(0)
    shares = 0.7 * F.one_hot(labels, CLASSES) + 0.3 * F.one_hot(labels.flip(0), CLASSES)
    expected = F.cross_entropy(model(images), shares)
    assert torch.equal(LabelTraining(model, label_smoothing=0.1)((images, shares))["loss"], expected)
    smoothed = LabelTraining(model, label_smoothing=0.1)((images, labels))["loss"]
    assert torch.equal(smoothed, F.cross_entropy(model(images), labels, label_smoothing=0.1))


@pytest.mark.parametrize(
    "changes",
    [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": -1.0}, {"min_learning_rate": 1.0}, {"label_smoothing": 1.0},
     {"warmup_epochs": -1}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(TrainingConfigError, match=next(iter(changes))):
        FineTuning(**changes)  # type: ignore[arg-type]


def test_bad_settings_of_the_run_leave_the_model(tmp_path: Path) -> None:
    model = vit()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TrainingConfigError):
        fine_tune(model, batch_at, 4, QUICK, output=tmp_path / "run", cpu=True, mixed_precision="int3")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not (tmp_path / "run").exists()
