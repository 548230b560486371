"""The nets through which a learngene is trained: their weights are generated anew in every step."""

from __future__ import annotations

from typing import cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

from hf_paraminit.lets.config import LeTsConfig
from hf_paraminit.lets.depth import spread_blocks
from hf_paraminit.lets.generator import LeTsGenerator
from hf_paraminit.lets.slots import VisionTransformer as Described, find_vision_transformer
from hf_paraminit.lets.tleg import TLEG

TLEG_NORM_EPS = 1e-5  # of the published training; its descendants have 1e-6


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
        samples_sizes: In train mode, run a Des-Net of random size instead: of any width that the learngene makes, and
            of 2 layers up to the Aux-Net's. Sizes are drawn evenly, from torch's generator. This is ours: the published
            run trains the Aux-Net alone, so that no smaller net is ever trained.
    """

    def __init__(self, generator: LeTsGenerator, *, drop_path_rate: float = 0.1, samples_sizes: bool = False) -> None:
        super().__init__()
        self.generator = generator
        self.drop_path_rate = drop_path_rate
        self.samples_sizes = samples_sizes
        self.__dict__["_nets"] = {}  # past nn.Module, which would count their parameters

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised images to (B, K) logits."""
        config = self.generator.config
        width, depth = (
            self._drawn_size() if self.training and self.samples_sizes else (config.aux_dim, config.aux_depth)
        )
        net, described = self._net(width, depth)
        net.train(self.training)
        blocks = config.aux_blocks if depth == config.aux_depth else spread_blocks(depth, config.num_blocks)
        with torch.autocast(images.device.type, enabled=False):
            state = described.to_state(self.generator.materialize(width, blocks))
        return cast(Tensor, functional_call(net, state, (images,), strict=True))

    def _drawn_size(self) -> tuple[int, int]:
        config = self.generator.config
        widths = range(config.embed_dim, config.aux_dim + 1, config.head_dim)
        depths = range(min(2, config.aux_depth), config.aux_depth + 1)
        return widths[int(torch.randint(len(widths), ()))], depths[int(torch.randint(len(depths), ()))]

    def _net(self, width: int, depth: int) -> tuple[VisionTransformer, Described]:
        """The skeleton of a size, built at its first use."""
        nets: dict[tuple[int, int], tuple[VisionTransformer, Described]] = self.__dict__["_nets"]
        if (width, depth) not in nets:
            net = skeleton(self.generator.config, width=width, depth=depth, drop_path_rate=self.drop_path_rate)
            nets[width, depth] = net, find_vision_transformer(net)
        return nets[width, depth]


class TLEGAuxNet(nn.Module):
    """Runs a net of a TLEG learngene; its parameters are exactly the learngene's.

    As in the published training the patches are normed and then averaged, with epsilon 1e-5, and there is no class
    token.

    Args:
        generator: What is trained.
        depth: Layers of the net.
        drop_path_rate: Stochastic depth of the last layer in train mode.
    """

    def __init__(self, generator: TLEG, *, depth: int = 12, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        config = generator.config
        self.generator = generator
        self.depth = depth
        with torch.device("meta"):
            net = VisionTransformer(
                img_size=config.img_size,
                patch_size=config.patch_size,
                in_chans=config.in_chans,
                num_classes=config.num_classes,
                embed_dim=config.embed_dim,
                depth=depth,
                num_heads=config.num_heads,
                mlp_ratio=config.mlp_ratio,
                global_pool="avg",
                class_token=False,
                fc_norm=False,
                norm_layer=lambda size, **kwargs: nn.LayerNorm(size, eps=TLEG_NORM_EPS, **kwargs),
                drop_path_rate=drop_path_rate,
                weight_init="skip",
            )
        self.__dict__["_net"] = net, find_vision_transformer(net)  # past nn.Module, which would count its parameters

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised images to (B, K) logits."""
        net, described = self.__dict__["_net"]
        net.train(self.training)
        with torch.autocast(images.device.type, enabled=False):
            state = described.to_state(self.generator.materialize(self.depth))
        return cast(Tensor, functional_call(net, state, (images,), strict=True))
