"""Condition number of the neural tangent kernel on a few unlabelled images (TE-NAS; As-ViT, ICLR 2022)."""

# Axes: N images, P parameters of one tensor.

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from hf_paraminit.asvit.complexity import Features
from hf_paraminit.asvit.errors import ScoreError
from hf_paraminit.asvit.probe import (
    Norm,
    Reinit,
    check_features,
    check_settings,
    count_macs,
    count_parameters,
    explicit_attention,
    features_of,
    scored_copy,
)

CHUNK_SIZE = 8  # images whose gradients are computed together
COLUMNS = 2**20  # parameters that are widened to float64 at a time
KERNEL_PART = "weight"  # parameters whose names contain it enter the kernel, as published


@dataclass(frozen=True)
class NTKCondition:
    """Condition number of the neural tangent kernel, with two free baselines beside it.

    Attributes:
        condition: Largest over smallest eigenvalue, mean over repeats; smaller is said to train better. Infinite for a
            singular kernel, NaN where gradients are not finite.
        condition_std: Standard deviation over repeats; 0 for one.
        num_params: Parameters of the model.
        macs: Multiply-accumulates for one image.
        repeats: Draws of the weights; the images are the same for all.
        values: Condition number of each repeat.
    """

    condition: float
    condition_std: float
    num_params: int
    macs: int
    repeats: int
    values: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def ntk_condition(
    model: nn.Module,
    images: Tensor,
    *,
    norm: Norm = "keep",
    reinit: Reinit = "none",
    repeats: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    chunk_size: int = CHUNK_SIZE,
    features: Features | None = None,
) -> NTKCondition:
    """Condition number of the kernel of sum(features), on one batch; the model and torch's random state stay.

    Gradients are taken with respect to parameters whose name contains "weight", as published; the Gram matrix and its
    eigenvalues are float64 always.

    Args:
        model: As for `complexity`.
        images: (N, ...) at least two images as the model takes them, on its device; labels are not needed.
        norm: As for `complexity`; the published score keeps norms.
        reinit: As for `complexity`.
        repeats: Draws of the weights; more than one only makes sense with `reinit`.
        seed: Of the first draw.
        dtype: Precision of the gradients.
        chunk_size: Images whose gradients are computed together; more is faster and needs more memory.
        features: As for `complexity`.

    Raises:
        ScoreError: The model has no pooled features, or settings that cannot work.
        ParamInitError: What the initializer in `reinit` cannot do.
    """
    check_settings(norm, repeats)
    if images.dim() < 2 or len(images) < 2:
        raise ScoreError(f"The kernel needs at least two images, (N, channels, ...), found {tuple(images.shape)}.")
    if chunk_size < 1:
        raise ScoreError(f"chunk_size must be at least 1, found {chunk_size}.")
    images = images.to(dtype)
    values = []
    for repeat in range(repeats):
        replica = scored_copy(model, norm=norm, reinit=reinit, seed=seed + repeat, dtype=dtype)
        if repeat == 0:
            function = features_of(replica) if features is None else _bound(features, replica)
            check_features(replica, function, images)
            macs = count_macs(replica, images)
        eigenvalues = kernel_eigenvalues(kernel(replica, images, chunk_size=chunk_size, features=features))
        values.append(condition_number(eigenvalues))
    return NTKCondition(
        condition=sum(values) / repeats,
        condition_std=torch.tensor(values, dtype=torch.float64).std().item() if repeats > 1 else 0.0,
        num_params=count_parameters(model),
        macs=macs,
        repeats=repeats,
        values=tuple(values),
    )


def kernel(
    model: nn.Module, images: Tensor, *, chunk_size: int = CHUNK_SIZE, features: Features | None = None
) -> Tensor:
    """Gram matrix of the gradients of sum(features) of single images, (N, N) float64.

    Args:
        model: In evaluation mode; its parameters are read only.
        images: (N, ...).
        chunk_size: Images whose gradients are computed together.
        features: As for `complexity`.
    """
    scored = _Scored(model, features)
    weights = {name: value.detach() for name, value in scored.named_parameters() if KERNEL_PART in name}

    def output(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(scored, parameters, (image[None],)).sum()

    with torch.enable_grad(), explicit_attention():
        gradients = _gradients(grad(output), weights, images, chunk_size)
    gram = torch.zeros(len(images), len(images), dtype=torch.float64, device=images.device)
    for value in gradients.values():
        for columns in value.reshape(len(images), -1).split(COLUMNS, dim=1):
            wide = columns.double()
            gram += wide @ wide.T
    return gram


def kernel_eigenvalues(gram: Tensor) -> Tensor:
    """Eigenvalues of a Gram matrix, ascending, (N,) float64; NaN where it is not finite."""
    if not bool(torch.isfinite(gram).all()):
        return torch.full((len(gram),), math.nan, dtype=torch.float64)
    return torch.linalg.eigvalsh(gram.double())


def condition_number(eigenvalues: Tensor) -> float:
    """Largest over smallest; infinite for a singular matrix, NaN where they are not finite."""
    smallest, largest = eigenvalues[0].item(), eigenvalues[-1].item()
    if math.isnan(smallest):
        return math.nan
    return largest / smallest if smallest > 0 else math.inf


class _Scored(nn.Module):
    """The features of a model as a forward pass, which `functional_call` can give other weights."""

    def __init__(self, model: nn.Module, features: Features | None) -> None:
        super().__init__()
        self.model = model
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        function = features_of(self.model) if self.features is None else _bound(self.features, self.model)
        return function(images)


def _bound(features: Features, model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda images: features(model, images)


def _gradients(
    gradient: Callable[..., dict[str, Tensor]], weights: dict[str, Tensor], images: Tensor, chunk_size: int
) -> dict[str, Tensor]:
    """Gradient of each image, name -> (N, ...); in chunks, or one by one where the model cannot be vectorised."""
    if chunk_size > 1:
        try:
            return vmap(gradient, in_dims=(None, 0), chunk_size=chunk_size)(weights, images)
        except RuntimeError:  # an operation without a batching rule, or one that writes in place
            pass
    rows = [gradient(weights, image) for image in images]
    return {name: torch.stack([row[name] for row in rows]) for name in weights}
