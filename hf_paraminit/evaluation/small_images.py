"""Networks made for 224 pixels on images of 32: the first layers must not shrink what is small already.

The changes are those that GHN-2 was evaluated with on CIFAR-10 (arXiv 2110.13100, appendix; GHN-3 added ConvNeXt), for
torchvision's networks, and the same for timm's of the same families. They change the computational graph, so they come
before any prediction.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.graphs.primitives import is_instance_of

logger = logging.getLogger("hf_paraminit")

SMALL_SIDE = 32
STEM_KERNEL = 3  # side that a large first kernel is cut down to
MOBILE_BLOCKS = 4  # inverted residuals after the stem that keep the resolution
VGG_LAYERS = 10  # of the features, among which poolings are removed


def adapt_to_small_images(model: nn.Module, *, size: int = SMALL_SIDE) -> nn.Module:
    """Change the first layers of a network, in place, so that small images keep enough resolution.

    Residual and dense networks: the first kernel is cut to its 3 x 3 centre, its stride becomes 1, the first pooling
    goes. MobileNets: stride 1 in the stem and the four blocks after it. VGG: no pooling among the first ten layers.
    AlexNet, MNASNet, ShuffleNet, GoogLeNet, ConvNeXt: stride 1 in the first convolution, and no first pooling where
    there is one. Other networks keep their layers, with a warning: some take the size when they are built
    (`timm.create_model(..., img_size=32)`), others do well without.

    Args:
        model: A network of torchvision or timm; weights that stay keep their values, on meta too.
        size: Side of the images in pixels, which `hf_paraminit.trace` then uses.

    Returns:
        The same network.

    Raises:
        TrainingConfigError: A size that is no positive number, or a network without a convolution on images.
    """
    if not isinstance(size, int) or size < 1:
        raise TrainingConfigError(f"Cannot adapt a network to images of {size!r} pixels: expected a positive number.")
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise TrainingConfigError(
            f"Cannot adapt {type(model).__name__} to images of {size} pixels: it has no two-dimensional convolution."
        )
    adapt = next((change for kinds, change in _CHANGES if any(is_instance_of(model, *kind) for kind in kinds)), None)
    if adapt is None:
        logger.warning(
            "%s keeps its layers: how it should change for images of %d pixels is not known.",
            type(model).__name__,
            size,
        )
    else:
        adapt(model)
    model.expected_input_sz = (first.in_channels, size, size)  # type: ignore[assignment]
    return model


def is_adaptable(model: nn.Module) -> bool:
    """Whether `adapt_to_small_images` knows what to change in this network."""
    return any(is_instance_of(model, *kind) for kinds, _ in _CHANGES for kind in kinds)


def _residual(model: nn.Module) -> None:
    """The first convolution is one kernel, or (deep stems) three small ones, the first with the stride."""
    _shrink(_first_convolution(model.conv1))
    model.maxpool = nn.Identity()


def _dense(model: nn.Module) -> None:
    _shrink(_first_convolution(model.features))
    _remove(model.features, "pool0")


def _mobile(model: nn.Module) -> None:
    features = getattr(model, "features", None)
    if isinstance(features, nn.Sequential):  # torchvision: the stem is the first of the features
        _keep_resolution(features[: 1 + MOBILE_BLOCKS])
        return
    blocks = [block for stage in _children(model.blocks) for block in _children(stage)]
    _keep_resolution([_module(model.conv_stem), *blocks[:MOBILE_BLOCKS]])


def _vgg(model: nn.Module) -> None:
    for name, layer in list(_module(model.features).named_children())[:VGG_LAYERS]:
        if isinstance(layer, nn.MaxPool2d):
            _remove(model.features, name)


def _alexnet(model: nn.Module) -> None:
    _first_convolution(model.features).stride = (1, 1)
    _remove(model.features, "2")


def _mnasnet(model: nn.Module) -> None:
    _first_convolution(model.layers).stride = (1, 1)


def _shufflenet(model: nn.Module) -> None:
    _first_convolution(model.conv1).stride = (1, 1)
    model.maxpool = nn.Identity()


def _googlenet(model: nn.Module) -> None:
    _first_convolution(model.conv1).stride = (1, 1)
    model.maxpool1 = nn.Identity()


def _convnext(model: nn.Module) -> None:
    _first_convolution(model).stride = (1, 1)


Kind = tuple[str, str]
_CHANGES: tuple[tuple[tuple[Kind, ...], Callable[[nn.Module], None]], ...] = (
    ((("torchvision", "ResNet"), ("timm", "ResNet")), _residual),
    ((("torchvision", "DenseNet"), ("timm", "DenseNet")), _dense),
    (
        (
            ("torchvision", "MobileNetV2"),
            ("torchvision", "MobileNetV3"),
            ("timm", "MobileNetV3"),
            ("timm", "EfficientNet"),  # timm's class of MobileNet-V2 too
        ),
        _mobile,
    ),
    ((("torchvision", "VGG"), ("timm", "VGG")), _vgg),
    ((("torchvision", "AlexNet"),), _alexnet),
    ((("torchvision", "MNASNet"),), _mnasnet),
    ((("torchvision", "ShuffleNetV2"),), _shufflenet),
    ((("torchvision", "GoogLeNet"),), _googlenet),
    ((("torchvision", "ConvNeXt"), ("timm", "ConvNeXt")), _convnext),
)


def _shrink(convolution: nn.Conv2d) -> None:
    """Cut a kernel to its centre and let it keep the resolution."""
    height, width = (min(side, STEM_KERNEL) for side in convolution.weight.shape[2:])
    top, left = ((side - kept) // 2 for side, kept in zip(convolution.weight.shape[2:], (height, width), strict=True))
    former = convolution.weight
    centre = former.detach()[:, :, top : top + height, left : left + width].clone(memory_format=torch.contiguous_format)
    convolution.weight = nn.Parameter(centre, requires_grad=former.requires_grad)
    convolution.kernel_size = (height, width)
    convolution.padding = (height // 2, width // 2)
    convolution.stride = (1, 1)


def _keep_resolution(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)


def _first_convolution(module: object) -> nn.Conv2d:
    return next(layer for layer in _module(module).modules() if isinstance(layer, nn.Conv2d))


def _remove(parent: object, name: str) -> None:
    setattr(_module(parent), name, nn.Identity())


def _children(module: object) -> Iterator[nn.Module]:
    return _module(module).children()


def _module(value: object) -> nn.Module:
    assert isinstance(value, nn.Module)
    return value
