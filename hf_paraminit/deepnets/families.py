"""Small random networks of timm's families: architectures that users initialise, which DeepNets-1M does not contain."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.random import Generator
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.convnext import ConvNeXt
from timm.models.densenet import DenseNet
from timm.models.efficientnet import EfficientNet
from timm.models.regnet import RegNet, RegNetCfg, generate_regnet
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

# Widths of the first stage. Powers of two below 32 are left out: small test networks like to have them, and a network
# that serves for evaluation must not be among those trained on.
BASE_WIDTHS = (12, 20, 24, 28, 40, 48)
NUM_STAGES = 4  # timm's residual networks and RegNets need exactly four
ACTIVATIONS = ("relu", "silu", "gelu", "hardswish")


def draw_resnet(rng: Generator, num_classes: int) -> nn.Module:
    """Residual network with basic or bottleneck blocks and one of timm's stems."""
    is_bottleneck = bool(rng.random() < 0.3)
    width = int(rng.choice(BASE_WIDTHS))
    first = width // 2 if is_bottleneck else width  # a bottleneck widens its output fourfold
    return ResNet(
        Bottleneck if is_bottleneck else BasicBlock,  # type: ignore[arg-type]  # timm means the class
        layers=tuple(int(depth) for depth in rng.integers(1, 3, NUM_STAGES)),
        channels=tuple(first * 2**stage for stage in range(NUM_STAGES)),
        num_classes=num_classes,
        stem_type=str(rng.choice(["", "deep"])),
        stem_width=width,
        avg_down=bool(rng.random() < 0.3),
        block_args={"attn_layer": "se"} if rng.random() < 0.2 else None,
    )


def draw_regnet(rng: Generator, num_classes: int) -> nn.Module:
    """RegNet with grouped convolutions, sometimes with squeeze-and-excitation."""
    while True:  # about every second draw has four stages
        group_size = int(rng.choice([8, 16]))
        config = RegNetCfg(
            depth=int(rng.integers(5, 10)),
            w0=group_size * int(rng.integers(1, 4)),
            wa=float(rng.uniform(10, 24)),
            wm=float(rng.uniform(1.8, 2.6)),
            group_size=group_size,
            se_ratio=0.25 if rng.random() < 0.5 else 0.0,
            stem_width=int(rng.choice([16, 24, 32])),
        )
        _, num_stages, _ = generate_regnet(config.wa, config.w0, config.wm, config.depth, config.group_size)
        if num_stages == NUM_STAGES:
            return RegNet(config, num_classes=num_classes)


def draw_convnext(rng: Generator, num_classes: int) -> nn.Module:
    """ConvNeXt with patches of 2 or 4 pixels."""
    width = int(rng.choice(BASE_WIDTHS))
    return ConvNeXt(
        num_classes=num_classes,
        depths=tuple(int(depth) for depth in rng.integers(1, 3, NUM_STAGES)),
        dims=tuple(width * 2**stage for stage in range(NUM_STAGES)),
        kernel_sizes=int(rng.choice([3, 5, 7])),
        patch_size=int(rng.choice([2, 4])),
        conv_mlp=bool(rng.random() < 0.5),
        # A layer scale of 1e-6 hides every branch, and with it every weight that could be learned.
        ls_init_value=None if rng.random() < 0.5 else 1e-6,
    )


def draw_mobile(rng: Generator, num_classes: int) -> nn.Module:
    """Inverted residuals in the manner of MobileNet-V2 and -V3 and EfficientNet."""
    width = int(rng.choice(BASE_WIDTHS[:4]))
    definition = [[f"ds_r1_k3_s1_c{width // 2 // 4 * 4}"]]
    for stage in range(3):
        gate = "_se0.25" if rng.random() < 0.5 else ""
        kernel, expansion, depth = rng.choice([3, 5]), rng.integers(2, 5), rng.integers(1, 3)
        definition.append([f"ir_r{depth}_k{kernel}_s2_e{expansion}_c{width * 2**stage // 4 * 4}{gate}"])
    return EfficientNet(
        decode_arch_def(definition),
        num_classes=num_classes,
        num_features=width * 12,
        stem_size=16,
        act_layer=str(rng.choice(ACTIVATIONS)),
    )


def draw_densenet(rng: Generator, num_classes: int) -> nn.Module:
    """Densely connected network."""
    return DenseNet(
        growth_rate=int(rng.choice([8, 12, 16])),
        block_config=tuple(int(depth) for depth in rng.integers(2, 5, 3)),
        num_classes=num_classes,
    )


def draw_vit(rng: Generator, num_classes: int) -> nn.Module:
    """Vision transformer for 32-pixel images."""
    heads = int(rng.integers(2, 5))
    return VisionTransformer(
        img_size=32,
        patch_size=int(rng.choice([4, 8])),
        embed_dim=heads * int(rng.choice([12, 20, 24])),
        depth=int(rng.integers(2, 6)),
        num_heads=heads,
        num_classes=num_classes,
        global_pool="token" if rng.random() < 0.5 else "avg",
    )


FAMILIES: dict[str, Callable[[Generator, int], nn.Module]] = {
    "resnet": draw_resnet,
    "regnet": draw_regnet,
    "convnext": draw_convnext,
    "mobile": draw_mobile,
    "densenet": draw_densenet,
    "vit": draw_vit,
}


# How often each family is drawn. Residual networks come first because they are what most users initialise.
SHARES = {"resnet": 0.5, "regnet": 0.1, "convnext": 0.15, "mobile": 0.1, "densenet": 0.1, "vit": 0.05}


def draw_network(rng: Generator, num_classes: int) -> nn.Module:
    """Draw a network for 3 x 32 x 32 images.

    Args:
        rng: Decides family and configuration; initial values come from torch's global generator.
        num_classes: Width of the classifier.
    """
    family = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    network = FAMILIES[family](rng, num_classes)
    network.expected_input_sz = (3, 32, 32)  # type: ignore[assignment]
    return network


def draw_pool(num_networks: int, num_classes: int, *, seed: int, max_parameters: int) -> list[nn.Module]:
    """Draw networks of at most `max_parameters`; the first is a residual network. Torch's random state is kept."""
    rng = np.random.default_rng(seed)
    pool: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        while len(pool) < num_networks:
            network = draw_network(rng, num_classes)
            fits = sum(parameter.numel() for parameter in network.parameters()) <= max_parameters
            if fits and (pool or isinstance(network, ResNet)):
                pool.append(network)
    return pool
