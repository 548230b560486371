"""How far a network stretches a circle of images: length distortion, curvature and Gauss-map length.

As-ViT (ICLR 2022, section 3.2). The circle has one parameter theta and images do not interact, so one forward-mode
derivative gives dz/dtheta of all points and all outputs; the published code took one backward pass per output.
"""

# Axes: T points of the circle, C features.

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp

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

NUM_POINTS = 10
REPEATS = 5
# Values of the images that are computed together by default: ten of 64 pixels, one of 224. Explicit attention keeps
# its score matrices, so a circle of large images at once would take many times the memory of a forward pass.
CHUNK_VALUES = 10 * 3 * 64 * 64
PUBLISHED_CHUNK = 6  # points that the published code takes together
DEFAULT_INPUT_SIZE = (3, 224, 224)

Features = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Complexity:
    """Length distortion of a model with two free baselines beside it, each a number of one model.

    Scores compare only within one family, at one kind of start and one radius: they differ by orders of magnitude
    between families for reasons that have nothing to do with accuracy.

    Attributes:
        length_distortion: Length of the circle's image over the circle's own (the paper's L^E); mean over repeats.
        length_distortion_std: Standard deviation over repeats; 0 for one.
        speed_sum: Sum over points of |dz/dtheta|, both ends of the circle counted, as the published code; mean.
        curvature: Sum over points of the extrinsic curvature, mean over repeats; None unless asked for.
        gauss_length: Sum over points of |d(v/|v|)/dtheta|, how fast the unit tangent turns; mean, or None.
        num_params: Parameters of the model.
        macs: Multiply-accumulates for one image.
        repeats: Draws and circles.
        values: `speed_sum` of each repeat.
    """

    length_distortion: float
    length_distortion_std: float
    speed_sum: float
    curvature: float | None
    gauss_length: float | None
    num_params: int
    macs: int
    repeats: int
    values: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class CircleGeometry:
    """The image of a circle under a network.

    Attributes:
        speeds: (T,) float64 |v| at each point, v = dz/dtheta.
        accelerations: (T,) float64 |dv/dtheta|, None unless asked for.
        curvatures: (T,) float64 extrinsic curvature, None unless asked for.
        turning: (T,) float64 |d(v/|v|)/dtheta|, None unless asked for.
    """

    speeds: Tensor
    accelerations: Tensor | None = None
    curvatures: Tensor | None = None
    turning: Tensor | None = None


def complexity(
    model: nn.Module,
    *,
    input_size: tuple[int, int, int] | None = None,
    norm: Norm = "identity",
    reinit: Reinit = "none",
    repeats: int = REPEATS,
    num_points: int = NUM_POINTS,
    radius: float = 1.0,
    curvature: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    chunk_size: int | None = None,
    features: Features | None = None,
) -> Complexity:
    """Score any timm model without data or training; the model, its mode and torch's random state stay as they are.

    The scored features are what enters the classifier, `forward_head(..., pre_logits=True)`; for As-ViT the pooled
    tokens before the last norm, as published.

    Args:
        model: A model of timm, or one with `forward_pooled(images)`; on the CPU or an accelerator.
        input_size: (channels, height, width) of the images; the model's default if None.
        norm: "identity" takes normalisation layers out, as published; "keep" leaves them.
        reinit: Weights of each repeat: "none" (the model's own), "native" (drawn as the model does), a function that
            changes the copy it is given, or what `init=` takes, for instance "ghn3".
        repeats: Circles, and draws of the weights; their seeds are `seed`, `seed + 1` and so on.
        num_points: Points of the circle, from 0 to 2 pi with both ends.
        radius: Of the circle; the published 1 is far smaller than an image, which has a norm near sqrt(3 * side^2).
        curvature: Also compute curvature and Gauss-map length, which need a second derivative.
        seed: Of circles and draws.
        dtype: Precision of the computation.
        chunk_size: Points computed together; None for all of small images and one of large ones. It changes memory, not
            values.
        features: Function of (model, images) to score instead, giving (B, C).

    Raises:
        ScoreError: The model has no pooled features, or settings that cannot work.
        ParamInitError: What the initializer in `reinit` cannot do.
    """
    check_settings(norm, repeats)
    _check_circle(num_points, radius, chunk_size)
    channels_first = input_size or default_input_size(model)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    image = torch.zeros(1, *channels_first, dtype=dtype, device=device)
    theta = circle_points(num_points, dtype, device)
    sums, lengths, curvatures, turnings = [], [], [], []
    for repeat in range(repeats):
        replica = scored_copy(model, norm=norm, reinit=reinit, seed=seed + repeat, dtype=dtype)
        function = _function(replica, features)
        if repeat == 0:
            check_features(replica, function, image)
            macs = count_macs(replica, image)
        frame = draw_frame(channels_first, seed + repeat).to(image) * radius
        geometry = circle_geometry(function, frame, theta, curvature=curvature, chunk_size=chunk_size)
        sums.append(geometry.speeds.sum().item())
        lengths.append(_mean_speed(geometry.speeds) / radius)
        if geometry.curvatures is not None and geometry.turning is not None:
            curvatures.append(geometry.curvatures.sum().item())
            turnings.append(geometry.turning.sum().item())
    return Complexity(
        length_distortion=_mean(lengths),
        length_distortion_std=torch.tensor(lengths, dtype=torch.float64).std().item() if repeats > 1 else 0.0,
        speed_sum=_mean(sums),
        curvature=_mean(curvatures) if curvature else None,
        gauss_length=_mean(turnings) if curvature else None,
        num_params=count_parameters(model),
        macs=macs,
        repeats=repeats,
        values=tuple(sums),
    )


def circle_geometry(
    features: Callable[[Tensor], Tensor],
    frame: Tensor,
    theta: Tensor,
    *,
    curvature: bool = False,
    chunk_size: int | None = None,
) -> CircleGeometry:
    """Derivatives along theta -> features(frame[0] cos(theta) + frame[1] sin(theta)).

    Args:
        features: Images (T, ...) to features (T, C), each image for itself.
        frame: (2, ...) two orthogonal images of equal norm, the radius.
        theta: (T,) points.
        curvature: Also compute what needs second derivatives.
        chunk_size: Points computed together; None for so many that memory stays near that of a forward pass.
    """

    def curve(points: Tensor) -> Tensor:
        cosine, sine = (f(points).reshape(-1, *[1] * (frame.dim() - 1)) for f in (torch.cos, torch.sin))
        return features(frame[0] * cosine + frame[1] * sine)

    def velocity(points: Tensor) -> Tensor:
        return jvp(curve, (points,), (torch.ones_like(points),))[1]

    with torch.no_grad(), explicit_attention():
        chunks = theta.split(chunk_size or max(1, CHUNK_VALUES // frame[0].numel()))
        if not curvature:
            return CircleGeometry(torch.cat([velocity(chunk).double().norm(dim=1) for chunk in chunks]))
        pairs = [jvp(velocity, (chunk,), (torch.ones_like(chunk),)) for chunk in chunks]
    v, a = (torch.cat(parts).double() for parts in zip(*pairs, strict=True))
    vv, aa, va = (v * v).sum(1), (a * a).sum(1), (v * a).sum(1)
    area = (vv * aa - va**2).clamp(min=0).sqrt()  # of the parallelogram of v and dv/dtheta
    return CircleGeometry(v.norm(dim=1), a.norm(dim=1), area / vv**1.5, area / vv)


def published_gauss_length(geometry: CircleGeometry) -> float:
    """The number that the published code prints for the Gauss-map length; use `CircleGeometry.turning` instead.

    It holds |v| constant, and divides every acceleration by every speed of the same chunk of six points.

    Args:
        geometry: With accelerations.
    """
    if geometry.accelerations is None:
        raise ScoreError(
            "The published Gauss-map length needs accelerations: compute the geometry with curvature=True."
        )
    pairs = zip(geometry.accelerations.split(PUBLISHED_CHUNK), geometry.speeds.split(PUBLISHED_CHUNK), strict=True)
    return sum((accelerations.sum() * (1 / speeds).sum()).item() for accelerations, speeds in pairs)


def draw_frame(shape: tuple[int, ...], seed: int) -> Tensor:
    """Two random orthonormal images, (2, *shape) float64: a uniformly random plane.

    Args:
        shape: Of one image.
        seed: Of a generator of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(math.prod(shape), 2, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(normal).Q.T.reshape(2, *shape).contiguous()


def circle_points(num_points: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """(T,) angles from 0 to 2 pi, both ends included as in the published code."""
    return torch.linspace(0, 2 * math.pi, num_points, dtype=torch.float64).to(device=device, dtype=dtype)


def default_input_size(model: nn.Module) -> tuple[int, int, int]:
    """(channels, height, width) that a timm model says it takes, else 3 x 224 x 224."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    size = tuple(cfg.get("input_size", DEFAULT_INPUT_SIZE))
    embed = getattr(model, "patch_embed", None)
    side = getattr(embed, "img_size", None)
    if isinstance(side, tuple) and len(side) == 2:
        size = (size[0], *side)
    return (int(getattr(model, "in_chans", size[0])), *size[1:])


def _function(replica: nn.Module, features: Features | None) -> Callable[[Tensor], Tensor]:
    return features_of(replica) if features is None else lambda images: features(replica, images)


def _check_circle(num_points: int, radius: float, chunk_size: int | None) -> None:
    if num_points < 2:
        raise ScoreError(f"num_points must be at least 2, found {num_points}.")
    if not (math.isfinite(radius) and radius > 0):
        raise ScoreError(f"radius must be a positive number, found {radius}.")
    if chunk_size is not None and chunk_size < 1:
        raise ScoreError(f"chunk_size must be at least 1, found {chunk_size}.")


def _mean_speed(speeds: Tensor) -> float:
    """Mean over the closed circle: the trapezoid rule, in which the doubled end counts once."""
    return ((speeds.sum() - (speeds[0] + speeds[-1]) / 2) / (len(speeds) - 1)).item()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
