import logging

import pytest
import timm
import torch
from torch import nn

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.evaluation.small_images import adapt_to_small_images, is_adaptable
from hf_paraminit.graphs.trace import trace

torchvision = pytest.importorskip("torchvision")

IMAGES = torch.zeros(2, 3, 32, 32, device="meta")


def torchvision_model(name: str) -> nn.Module:
    settings = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        return torchvision.models.get_model(name, num_classes=10, **settings).eval()


def last_map(model: nn.Module, layer: str) -> tuple[int, ...]:
    """Side of what a layer puts out for 32-pixel images."""
    sides = []
    handle = model.get_submodule(layer).register_forward_hook(lambda *call: sides.append(tuple(call[2].shape[2:])))
    assert model(IMAGES).shape == (2, 10)
    handle.remove()
    return sides[0]


@pytest.mark.parametrize(
    ("name", "layer", "side"),
    [
        ("resnet18", "layer4", 4),
        ("densenet121", "features", 4),
        ("mobilenet_v2", "features", 8),
        ("mobilenet_v3_small", "features", 16),
        ("vgg11_bn", "features", 4),
        ("alexnet", "features", 5),
        ("mnasnet0_5", "layers", 2),
        ("shufflenet_v2_x0_5", "conv5", 4),
        ("googlenet", "inception5b", 4),
        ("convnext_tiny", "features", 3),
    ],
)
def test_networks_of_torchvision_keep_resolution(name: str, layer: str, side: int) -> None:
    model = adapt_to_small_images(torchvision_model(name))
    assert last_map(model, layer) == (side, side)
    assert model.expected_input_sz == (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet18", 4),
        ("resnet50d", 4),
        ("densenet121", 4),
        ("mobilenetv2_100", 8),
        ("vgg11_bn", 4),
        ("convnext_tiny", 3),
    ],
)
def test_networks_of_timm_keep_as_much(name: str, side: int) -> None:
    with torch.device("meta"):
        model = adapt_to_small_images(timm.create_model(name, num_classes=10).eval())
    assert model.forward_features(IMAGES).shape[2:] == (side, side)


def test_the_first_kernel_is_the_centre_of_the_former() -> None:
    model = torchvision.models.resnet18(num_classes=10)
    former = model.conv1.weight.detach().clone()
    model.conv1.weight.requires_grad_(False)
    assert adapt_to_small_images(model) is model
    assert torch.equal(model.conv1.weight, former[:, :, 2:5, 2:5])
    assert not model.conv1.weight.requires_grad
    assert (model.conv1.kernel_size, model.conv1.stride, model.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    assert isinstance(model.maxpool, nn.Identity)


def test_the_graph_shows_the_change() -> None:
    model = torchvision_model("resnet18")
    before, after = trace(model), trace(adapt_to_small_images(model))
    assert "max_pool" in before.primitives
    assert "max_pool" not in after.primitives
    assert after.input_size == (3, 32, 32)


def test_unknown_networks_keep_their_layers_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 7, stride=2), nn.MaxPool2d(2), nn.Flatten())
    with caplog.at_level(logging.WARNING, "hf_paraminit"):
        adapt_to_small_images(model, size=28)
    assert "Sequential keeps its layers" in caplog.text
    assert not is_adaptable(model)
    assert model[0].stride == (2, 2)
    assert model.expected_input_sz == (1, 28, 28)


@pytest.mark.parametrize(
    ("model", "size"), [(nn.Linear(3, 2), 32), (nn.Conv2d(3, 4, 3), 0), (nn.Conv2d(3, 4, 3), 32.0)]
)
def test_what_cannot_be_adapted_is_refused(model: nn.Module, size: int) -> None:
    with pytest.raises(TrainingConfigError, match="Cannot adapt"):
        adapt_to_small_images(model, size=size)
