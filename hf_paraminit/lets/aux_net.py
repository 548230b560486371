"""The large net through which a learngene is trained: its weights are generated anew in every step."""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

from hf_paraminit.lets.config import LeTsConfig
from hf_paraminit.lets.generator import LeTsGenerator
from hf_paraminit.lets.slots import find_vision_transformer


def skeleton(
    config: LeTsConfig, *, width: int | None = None, depth: int | None = None, drop_path_rate: float = 0.0
) -> VisionTransformer:
    """Build the net that a learngene makes, without memory (on the meta device).

    As in the published one there is no class token unless the config has one: the mean of the patches is normed, then
    classified.

    Args:
        config: Sizes.
        width: Of the net; None for the Aux-Net's.
        depth: Of the net; None for the Aux-Net's.
        drop_path_rate: Of the last layer; it grows linearly from 0.
    """
    width = config.aux_dim if width is None else width
    with torch.device("meta"):
        return VisionTransformer(
            img_size=config.img_size,
            patch_size=config.patch_size,
            in_chans=config.in_chans,
            num_classes=config.num_classes,
            embed_dim=width,
            depth=config.aux_depth if depth is None else depth,
            num_heads=width // config.head_dim,
            mlp_ratio=config.mlp_ratio,
            global_pool="token" if config.class_token else "avg",
            class_token=config.class_token,
            norm_layer=lambda size, **kwargs: nn.LayerNorm(size, eps=config.norm_eps, **kwargs),
            drop_path_rate=drop_path_rate,
            weight_init="skip",
        )


class AuxNet(nn.Module):
    """Runs the Aux-Net of a generator; its parameters are exactly the generator's.

    Weights are generated once per forward pass in float32, whatever autocast says; blocks that share a source share
    their tensors. The net itself is a skeleton without memory, kept out of the submodules.

    Args:
        generator: What is trained.
        drop_path_rate: Stochastic depth in train mode, 0.1 in the published run.
    """

    def __init__(self, generator: LeTsGenerator, *, drop_path_rate: float = 0.1) -> None:
        super().__init__()
        self.generator = generator
        net = skeleton(generator.config, drop_path_rate=drop_path_rate)
        self._hold(net)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised images to (B, K) logits."""
        net = cast(VisionTransformer, self.__dict__["_net"])
        with torch.autocast(images.device.type, enabled=False):
            state = self._described.to_state(self.generator.materialize())
        return cast(Tensor, functional_call(net, state, (images,), strict=True))

    def train(self, mode: bool = True) -> AuxNet:
        """Set train or eval mode, of the skeleton too."""
        self.__dict__["_net"].train(mode)
        return super().train(mode)

    def _hold(self, net: Any) -> None:
        self.__dict__["_net"] = net  # past nn.Module, which would count its parameters
        self._described = find_vision_transformer(net)
