"""Batch-norm running statistics of a model whose weights were predicted rather than trained."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_paraminit.errors import PredictionError

SMALLEST_STD = 1e-2  # of a convolution's output; below, hardly anything arrives there
IMAGE_KEYS = ("pixel_values", "images", "image")


def recalibrate_batchnorm(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    num_batches: int | None = None,
    device: str | torch.device | None = None,
) -> int:
    """Re-estimate the running mean and variance of every batch-norm layer from data, in place.

    The statistics are reset and become the plain average over batches. Only batch-norm layers that the forward pass
    reaches run in training mode; all other modules stay in evaluation mode, so dropout and the like are off. Modes,
    momentum, gradients and torch's random state are as before afterwards; after any failure the statistics are, too.

    Args:
        model: a model on one device.
        loader: yields image batches (B, C, H, W), or tuples that start with one, or dicts with one under
            `pixel_values`, `images` or `image`.
        num_batches: how many batches to use; None means all.
        device: where the batches are moved; the model's device when None.

    Returns:
        The number of layers with new statistics.

    Raises:
        PredictionError: no batches, a batch without images, a model on meta, or statistics that are not finite.
    """
    if num_batches is not None and num_batches < 1:
        raise PredictionError(f"num_batches must be at least 1, found {num_batches}.")
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    }
    if not layers:
        return 0
    reference = next(tensor for tensor in chain(model.parameters(), model.buffers()) if tensor.is_floating_point())
    if reference.is_meta:
        raise PredictionError(
            "Batch-norm statistics cannot be computed on the meta device; materialise the model first."
        )

    with _estimating(model, list(layers.values())):
        batches = 0
        for batch in islice(loader, num_batches):
            images = _images_of(batch)
            model(images.to(device or reference.device, reference.dtype if images.is_floating_point() else None))
            batches += 1
        if batches == 0:
            raise PredictionError("The loader gave no batches, so batch-norm statistics cannot be estimated.")
        not_finite = [name for name, layer in layers.items() if not _is_finite(layer)]
        if not_finite:
            raise PredictionError(
                f"Batch-norm statistics became NaN or infinite in {len(not_finite)} of {len(layers)} layers, first in "
                f"{not_finite[0]}; check the images. The former statistics are back."
            )
        return sum(_is_reached(layer) for layer in layers.values())


@torch.no_grad()
def normalize_inputs(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Rescale, in place, the convolutions that batch norms read so that their outputs have unit variance.

    Running statistics start from that variance, so they fit before the first step. In training mode a batch norm's
    result does not depend on the scale of its input: one forward pass measures all layers. It runs on a copy.

    Args:
        model: A model with or without batch norms.
        images: (N, C, H, W) batch to measure on.

    Returns:
        The factor of each rescaled weight, by parameter name.
    """
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return {}
    factors = {}
    for name, std in _output_stds(model, images).items():
        factors[name] = 1 / std if std > SMALLEST_STD else 1.0
        model.get_parameter(name).mul_(factors[name])
    return factors


def _output_stds(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Standard deviation of each convolution that has no bias or feeds a batch norm directly, over its channels."""
    replica = copy.deepcopy(model).train()
    outputs: dict[str, Tensor] = {}
    read: set[int] = set()
    for name, module in replica.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, output, name=f"{name}.weight": outputs.update({name: output}))
        elif isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(lambda _, inputs: read.add(id(inputs[0])))
    with torch.random.fork_rng(devices=[]):
        replica(images)
    has_bias = {name: replica.get_submodule(name.rpartition(".")[0]).bias is not None for name in outputs}
    return {
        name: output.var((0, 2, 3)).mean().sqrt().item()
        for name, output in outputs.items()
        if not has_bias[name] or id(output) in read
    }


@contextmanager
def _estimating(model: nn.Module, layers: list[_BatchNorm]) -> Iterator[None]:
    """Reset the statistics and average over the batches seen in the block; put the rest back, on failure everything."""
    former = [[buffer.clone() for buffer in layer.buffers(recurse=False)] for layer in layers]
    modes = {module: module.training for module in model.modules()}
    momenta = [layer.momentum for layer in layers]
    cuda = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    try:
        with torch.random.fork_rng(devices=cuda), torch.no_grad():
            model.eval()
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # torch's switch for a plain average
                layer.training = True
            yield
            unreached = [(layer, stats) for layer, stats in zip(layers, former, strict=True) if not _is_reached(layer)]
            _restore(unreached)
    except BaseException:
        with torch.no_grad():
            _restore(zip(layers, former, strict=True))
        raise
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes.items():
            module.training = mode


def _restore(statistics: Iterable[tuple[_BatchNorm, list[Tensor]]]) -> None:
    for layer, former in statistics:
        for buffer, content in zip(layer.buffers(recurse=False), former, strict=True):
            buffer.copy_(content)


def _is_reached(layer: _BatchNorm) -> bool:
    return layer.num_batches_tracked is not None and bool(layer.num_batches_tracked > 0)


def _is_finite(layer: _BatchNorm) -> bool:
    return all(bool(buffer.isfinite().all()) for buffer in layer.buffers(recurse=False))


def _images_of(batch: Any) -> Tensor:
    found = batch
    if isinstance(batch, Mapping):
        found = next((batch[key] for key in IMAGE_KEYS if key in batch), None)
    elif isinstance(batch, (tuple, list)):
        found = batch[0] if batch else None
    if not isinstance(found, Tensor):
        raise PredictionError(
            f"A batch must be an image tensor, a tuple that starts with one, or a dict with one under "
            f"{', '.join(IMAGE_KEYS)}; found {type(batch).__name__}."
        )
    return found
