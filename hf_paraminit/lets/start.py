"""How the width transform F, the depth transform G and the learngene start."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hf_paraminit.lets.config import GeneScheme, WidthScheme

PUBLISHED_STD = 0.02  # of timm's vision transformers
SCALED_GAIN = 0.7  # over sqrt(fan in): where 0.02 left a net of width 48 at half the accuracy after 20 epochs
SCALED_POSITION_STD = 0.2


def width_start(shape: tuple[int, int], scheme: WidthScheme, noise: float = 0.03) -> Tensor:
    """Draw rows of F from torch's generator, one for each added neuron.

    Args:
        shape: (added neurons, old neurons).
        scheme: "rand" divides U(0, 1) by its sum, so a new neuron is an average of all old ones; "rand_softmax" takes
            the softmax of U(0, 1); "sel" copies a random old neuron, as Net2Net does; "sel_noisy" adds U(0, noise).
            The last two are not normalised. As in the published code, columns are drawn before the noise.
        noise: upper end of the noise.
    """
    if scheme == "rand":
        rows = torch.rand(shape)
        return rows / rows.sum(1, keepdim=True)
    if scheme == "rand_softmax":
        return torch.rand(shape).softmax(1)
    columns = torch.randint(0, shape[1], (shape[0],))
    rows = noise * torch.rand(shape) if scheme == "sel_noisy" else torch.zeros(shape)
    rows[torch.arange(shape[0]), columns] = 1.0
    return rows


def depth_start(layer: int, scheme: str, *, count: int = 2, noise: float = 0.03) -> Tensor:
    """Draw the coefficients with which a layer mixes `count` source layers, from torch's generator.

    Args:
        layer: layer of the generated net that the coefficients are for; with LeTs the first of its depth block.
        scheme: "rand" or "rand_softmax", as for `width_start`; "stackbert" takes source layer % count alone,
            "interlace" (of LiGO) layer // 2; "stackbert_noisy" and "interlace_noisy" give the other sources U(0, noise)
            and divide by the sum.
        count: number of coefficients.
        noise: upper end of the noise.

    Returns:
        (count,) float32.
    """
    if scheme == "rand":
        values = torch.rand(count)
        return values / values.sum()
    if scheme == "rand_softmax":
        return torch.rand(count).softmax(0)
    kind, _, noisy = scheme.partition("_")
    values = noise * torch.rand(count) if noisy else torch.zeros(count)
    values[layer % count if kind == "stackbert" else layer // 2] = 1.0
    return values / values.sum()


def start_gene(modules: Iterable[nn.Module], scheme: GeneScheme) -> None:
    """Draw weights of linear layers as timm does for vision transformers; biases become 0.

    Args:
        modules: of the learngene. Norms stay as they are, as does the convolution unless the scheme is "scaled".
        scheme: "published" or "scaled", see `LeTsConfig`.
    """
    for module in modules:
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and scheme == "scaled"):
            std = PUBLISHED_STD if scheme == "published" else SCALED_GAIN / module.weight[0].numel() ** 0.5
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
