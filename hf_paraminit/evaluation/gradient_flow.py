"""How signals and gradients pass through a network before its first step."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_paraminit.evaluation.features import FeatureReader
from hf_paraminit.evaluation.learning_curve import LabelledImages

DEAD, EXPLODING = 1e-6, 1e3
RECTIFIERS = (nn.ReLU, nn.ReLU6)


def gradient_flow(model: nn.Module, batch: LabelledImages, *, learning_rate: float) -> dict[str, Any]:
    """Measure one batch on a copy of the model, in training mode; the model itself is not touched.

    Args:
        model: Network that ends in class scores.
        batch: Images (B, C, H, W) and labels (B,), B at least 2.
        learning_rate: Of the one AdamW step whose effect on the loss is measured.

    Returns:
        Plain record: `layers` (name, activation std and weight-gradient rms of each convolution and linear layer, in
        the order of execution), the largest over the smallest of both (`*_ratio`) and their slope in natural
        logarithms per layer (`*_slope`), `dead_layers` and `exploding_layers` (counts), `inactive_share` of the
        rectified channels, `half_batch_cosine` between the gradients of two half batches, `effective_rank` of the
        penultimate features (exponential of the entropy of normalised singular values), `loss`, and `loss_decrease`
        after one step.
    """
    images, labels = batch
    network = copy.deepcopy(model).train()
    recorder = _Recorder(network)
    with FeatureReader(network) as reader:
        loss = _backward(network, images, labels)
        features = reader.features
    recorder.close()
    layers = recorder.rows()
    activations = [row["activation_std"] for row in layers]
    gradients = [row["gradient_rms"] for row in layers if row["gradient_rms"] is not None]
    return {
        "layers": layers,
        **_spread("activation", activations),
        **_spread("gradient", gradients),
        "dead_layers": sum(value < DEAD for value in activations),
        "exploding_layers": sum(value > EXPLODING for value in activations),
        "inactive_share": recorder.inactive_share(),
        "effective_rank": None if features is None else _effective_rank(features),
        "loss": _finite(loss),
        **_half_batches(network, images, labels),
        "loss_decrease": _one_step(network, images, labels, loss, learning_rate),
    }


class _Recorder:
    """Hooks that note the output of each convolution and linear layer, and which rectified channels stay at zero."""

    def __init__(self, network: nn.Module) -> None:
        self.stds: dict[str, float] = {}
        self.inactive: list[Tensor] = []
        self.network = network
        self.handles = []
        for name, module in network.named_modules():
            if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
                self.handles.append(module.register_forward_hook(self._noting(name)))
            elif isinstance(module, RECTIFIERS):
                self.handles.append(module.register_forward_hook(self._note_inactive))

    def _noting(self, name: str) -> Any:
        def note(module: nn.Module, args: Any, output: Tensor) -> None:
            self.stds[name] = _finite(output.detach().float().std().item()) or 0.0

        return note

    def _note_inactive(self, module: nn.Module, args: Any, output: Tensor) -> None:
        is_spatial = output.ndim == 4
        largest = output.detach().amax((0, 2, 3)) if is_spatial else output.detach().flatten(0, -2).amax(0)
        self.inactive.append(largest <= 0)

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()

    def rows(self) -> list[dict[str, Any]]:
        """One per layer, in the order of execution; gradients are those of the last backward pass."""
        modules = dict(self.network.named_modules())
        return [
            {"name": name, "activation_std": std, "gradient_rms": _gradient_rms(modules[name])}
            for name, std in self.stds.items()
        ]

    def inactive_share(self) -> float | None:
        return float(torch.cat(self.inactive).float().mean()) if self.inactive else None


def _backward(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    network.zero_grad()
    loss = F.cross_entropy(network(images), labels)
    loss.backward()
    return loss.item()


def _half_batches(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Agreement of the gradients of two disjoint halves: near 1, the first steps know where to go."""
    half = len(images) // 2
    first, second = (
        _flat_gradient(network, images[part], labels[part]) for part in (slice(0, half), slice(half, 2 * half))
    )
    return {"half_batch_cosine": _finite(F.cosine_similarity(first, second, dim=0).item())}


def _flat_gradient(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    _backward(network, images, labels)
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def _one_step(network: nn.Module, images: Tensor, labels: Tensor, loss: float, learning_rate: float) -> float | None:
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate)
    _backward(network, images, labels)
    optimizer.step()
    with torch.no_grad():
        return _finite(loss - F.cross_entropy(network(images), labels).item())


def _spread(kind: str, values: Sequence[float]) -> dict[str, float | None]:
    logs = np.log([value for value in values if value > 0])
    if len(logs) < 2:
        return {f"{kind}_ratio": None, f"{kind}_slope": None}
    return {
        f"{kind}_ratio": float(np.exp(logs.max() - logs.min())),
        f"{kind}_slope": float(np.polyfit(np.arange(len(logs)), logs, 1)[0]),
    }


def _effective_rank(features: Tensor) -> float | None:
    if not features.isfinite().all():
        return None
    values = torch.linalg.svdvals(features - features.mean(0))
    shares = values / values.sum().clamp_min(1e-12)
    return float(torch.exp(torch.special.entr(shares).sum()))


def _gradient_rms(module: nn.Module) -> float | None:
    weight = module.weight
    if not isinstance(weight, Tensor) or weight.grad is None:
        return None
    return _finite(weight.grad.square().mean().sqrt().item())


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
