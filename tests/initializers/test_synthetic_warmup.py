from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import hf_paraminit
from hf_paraminit.errors import InitializerConfigError, PredictionError
from hf_paraminit.training.synthetic.mixture import SyntheticImages, SyntheticSpec, normalize

FAST: dict[str, Any] = {"steps": 4, "batch_size": 8, "preset": "tiny"}


class SmallNet(nn.Sequential):
    def __init__(self, channels: int = 3, num_classes: int = 7) -> None:
        super().__init__(
            nn.Conv2d(channels, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes),
        )  # fmt: skip


def separability(model: nn.Module) -> float:
    """Accuracy of nearest class means on features of fresh synthetic images."""
    images = SyntheticImages(SyntheticSpec(preset="tiny"))
    (train, train_labels), (test, test_labels) = (images.batch("validation", index, 400) for index in (0, 1))
    with torch.no_grad():
        features, queries = (nn.Sequential(*list(model)[:-1])(normalize(batch)) for batch in (train, test))
    means = torch.stack([features[train_labels == label].mean(0) for label in range(10)])
    return (torch.cdist(queries, means).argmin(1) == test_labels).float().mean().item()


def test_training_makes_features_that_tell_synthetic_classes_apart() -> None:
    torch.manual_seed(0)
    model = SmallNet()
    before = separability(model)
    hf_paraminit.initialize(
        model, "synthetic-warmup", input_size=32, steps=150, preset="tiny", learning_rate=5e-3, start="default"
    )
    assert separability(model) > before + 0.1


def test_the_classifier_and_the_running_statistics_keep_their_own_start() -> None:
    model = SmallNet()
    head = model[-1].weight.clone()
    report = hf_paraminit.initialize(model, "synthetic-warmup", input_size=32, **FAST)
    assert torch.equal(model[-1].weight, head)
    assert model[1].num_batches_tracked == 0
    assert "other classes" in report.kept["7.weight"]
    assert any("cross-entropy" in note for note in report.notes)


def test_it_starts_from_the_strongest_formula_of_the_family() -> None:
    notes = hf_paraminit.initialize(timm.create_model("test_vit"), "synthetic-warmup", **FAST).notes
    assert "started from mimetic" in notes
    notes = hf_paraminit.initialize(timm.create_model("test_resnet"), "synthetic-warmup", **FAST).notes
    assert any("zero-residual" in note for note in notes)


def test_same_seed_same_weights() -> None:
    torch.manual_seed(0)
    first = SmallNet()
    second = SmallNet()
    second.load_state_dict(first.state_dict())
    for model in (first, second):
        hf_paraminit.initialize(model, "synthetic-warmup", input_size=32, seed=5, **FAST)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    "build", [lambda: SmallNet(channels=1), lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU())]
)
def test_grey_images_and_networks_without_classifier(build: Any) -> None:
    report = hf_paraminit.initialize(build(), "synthetic-warmup", input_size=24, **FAST)
    assert report.predicted


def test_the_caller_may_have_gradients_off() -> None:
    with torch.no_grad():
        assert hf_paraminit.initialize(SmallNet(), "synthetic-warmup", input_size=32, **FAST).predicted


def test_divergence_and_unknown_channels_are_refused_and_nothing_changes() -> None:
    class Exploding(SmallNet):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * torch.inf

    for model, message in ((Exploding(), "diverged"), (SmallNet(channels=5), "channels")):
        before = [parameter.clone() for parameter in model.parameters()]
        with pytest.raises(PredictionError, match=message):
            hf_paraminit.initialize(model, "synthetic-warmup", input_size=32, **FAST)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("settings", [{"steps": 0}, {"learning_rate": 2.0}, {"batch_size": 1}])
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InitializerConfigError, match="synthetic-warmup"):
        hf_paraminit.initialize(SmallNet(), "synthetic-warmup", **settings)
