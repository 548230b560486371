"""How the published hypernetworks were trained (GHN-2's code, 2021; GHN-3's code; LoGAH, section 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.ghn.config import LOGAH_CONFIGS, PUBLISHED_CONFIGS, GHNConfig
from hf_paraminit.ghn.train import published_node_limit
from hf_paraminit.training.schedules import ScheduleName

# Sizes of GHN-3 and of LoGAH by the letters of their papers.
SIZES = {"tiny": "tm8", "small": "sm8", "large": "lm8", "xl": "xlm16"}
LARGE_IMAGES = 64  # side in pixels above which the ImageNet recipe holds rather than that of CIFAR-10
KERNEL_SIDES = (11, 16)  # largest decoded kernel: CIFAR-10, ImageNet


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a training run needs to know besides its data and its length in steps.

    Attributes:
        model: Architecture; its class count is that of the data.
        optimizer: "adam" adds the decay to the gradients, "adamw" decouples it.
        learning_rate: Peak rate.
        weight_decay: Of all weights.
        schedule: Over `epochs`; None for a warm-up over steps and a cosine.
        epochs: Parts of the run after which the rate changes.
        batch_size: Images per step.
        meta_batch: Networks per step, over all processes.
        norm_penalty: Weight of the sum of the norms of all predicted tensors.
        label_smoothing: Of the targets.
        is_mixed: Whether to compute in 16 bit where there is a GPU; decoders stay in float32.
        max_nodes: Most nodes of a step's graphs together.
    """

    model: GHNConfig
    optimizer: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = 4e-4
    weight_decay: float = 1e-2
    schedule: ScheduleName | None = "cosine-warmup"
    epochs: int = 300
    batch_size: int = 64
    meta_batch: int = 8
    norm_penalty: float = 3e-5
    label_smoothing: float = 0.0
    is_mixed: bool = False
    max_nodes: int | None = None

    def new_optimizer(self) -> Callable[[nn.Module], torch.optim.Optimizer]:
        """Return the `optimizer` argument of the training loop."""
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.optimizer]
        return lambda model: kind(model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)


def published_recipe(name: str, *, size: str = "tiny", image_size: int = 32) -> Recipe:
    """Return the recipe of a paper.

    Args:
        name: "ghn1", "ghn2", "ghn-mlp", "ghn3" or "logah".
        size: Of GHN-3 "tiny", "small", "large" or "xl", of LoGAH "tiny", "small", "base" or "large".
        image_size: Side in pixels; above 64 the ImageNet variant is meant.

    Raises:
        TrainingConfigError: There is no such method or size.
    """
    sizes = {"ghn3": tuple(SIZES), "logah": tuple(LOGAH_CONFIGS)}.get(name, ("tiny",))
    if name not in ("ghn1", "ghn2", "ghn-mlp", "ghn3", "logah") or size not in sizes:
        raise TrainingConfigError(
            f"No recipe for {name!r} of size {size!r}: expected 'ghn1', 'ghn2', 'ghn-mlp', 'ghn3' or 'logah', and of "
            f"the last two a size ({', '.join(SIZES)}; {', '.join(LOGAH_CONFIGS)})."
        )
    is_imagenet = image_size > LARGE_IMAGES
    if name == "ghn3":
        recipe = Recipe(
            model=PUBLISHED_CONFIGS[SIZES[size]],
            epochs=75 if is_imagenet else 300,
            batch_size=128 if is_imagenet else 64,
            meta_batch=16 if size == "xl" else 8,
            is_mixed=True,
        )
    elif name == "logah":
        recipe = Recipe(
            model=LOGAH_CONFIGS[size],
            learning_rate=3e-4,
            schedule="cosine",
            batch_size=128 if is_imagenet else 64,
            meta_batch=1,
            is_mixed=True,
        )
    else:
        recipe = Recipe(
            model=_ghn2_config(name),
            optimizer="adam",
            learning_rate=1e-3,
            weight_decay=1e-5,
            schedule="mstep",
            batch_size=256 if is_imagenet else 64,
            meta_batch=1 if name == "ghn1" else 8,
            norm_penalty=0.0,
        )
    outputs, inputs, _, _ = recipe.model.max_shape
    side = KERNEL_SIDES[is_imagenet]
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, max_shape=(outputs, inputs, side, side)),
        label_smoothing=0.1 if is_imagenet else 0.0,
        max_nodes=published_node_limit(recipe.meta_batch),
    )


def _ghn2_config(name: str) -> GHNConfig:
    """GHN-2, or what its paper compares it with: GHN-1 has no virtual edges and no norms, the MLP no edges."""
    config = GHNConfig(graph_network="mlp" if name == "ghn-mlp" else "gated", hidden_dim=32)
    if name != "ghn1":
        return config
    return dataclasses.replace(config, weight_norm=False, layernorm=False, virtual_edge_cutoff=1)
