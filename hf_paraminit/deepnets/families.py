"""Small random networks of timm's families: architectures that users initialise, which DeepNets-1M does not contain."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from timm.layers import GatedMlp
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.convmixer import ConvMixer
from timm.models.convnext import ConvNeXt
from timm.models.davit import DaVit
from timm.models.deit import VisionTransformerDistilled
from timm.models.densenet import DenseNet
from timm.models.edgenext import EdgeNeXt
from timm.models.efficientnet import EfficientNet
from timm.models.focalnet import FocalNet
from timm.models.hiera import Hiera
from timm.models.inception_next import MetaNeXt
from timm.models.metaformer import MetaFormer
from timm.models.mlp_mixer import MlpMixer, SpatialGatingBlock
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.nfnet import NfCfg, NormFreeNet
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.regnet import RegNet, RegNetCfg, generate_regnet
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.starnet import StarNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.twins import Twins
from timm.models.vision_transformer import VisionTransformer
from timm.models.xcit import Xcit
from torch import nn

from hf_paraminit.deepnets.genotype import ArchitectureError
from hf_paraminit.deepnets.sampling import MAX_CANDIDATES
from hf_paraminit.deepnets.sources import checked_index

IMAGE_SIDE = 32
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


def draw_resnext(rng: Generator, num_classes: int) -> nn.Module:
    """Residual network whose bottlenecks have grouped convolutions."""
    groups = 4
    width = int(rng.choice(BASE_WIDTHS[:4]))
    return ResNet(
        Bottleneck,  # type: ignore[arg-type]  # timm means the class
        layers=_depths(rng, NUM_STAGES),
        channels=_doubling(width),
        cardinality=groups,
        base_width=64 // groups,
        num_classes=num_classes,
        stem_width=width,
        block_args={"attn_layer": str(rng.choice(["se", "eca"]))} if rng.random() < 0.3 else None,
    )


def draw_mobilenet_v3(rng: Generator, num_classes: int) -> nn.Module:
    """Inverted residuals with hard-swish and hard-sigmoid gates, and a head behind the pooling."""
    width = int(rng.choice(BASE_WIDTHS[:4]))
    definition = [[f"ds_r1_k3_s1_e1_c{width // 4 * 4}_nre"]]
    for stage in range(3):
        gate = "_se0.25" if rng.random() < 0.6 else ""
        activation = "_nre" if stage == 0 and rng.random() < 0.7 else ""
        kernel, expansion, depth = rng.choice([3, 5]), rng.integers(2, 5), rng.integers(1, 3)
        definition.append([f"ir_r{depth}_k{kernel}_s2_e{expansion}_c{width * 2**stage // 4 * 4}{gate}{activation}"])
    definition.append([f"cn_r1_k1_s1_c{width * 6}"])
    return MobileNetV3(
        decode_arch_def(definition),
        num_classes=num_classes,
        num_features=width * 8,
        stem_size=12,
        act_layer=nn.Hardswish,
        se_layer=partial(SqueezeExcite, gate_layer="hard_sigmoid"),
    )


def draw_efficientnet(rng: Generator, num_classes: int) -> nn.Module:
    """EfficientNet: inverted residuals with gates and SiLU throughout, sometimes fused ones first (version 2)."""
    width = int(rng.choice(BASE_WIDTHS[:4]))
    is_fused = bool(rng.random() < 0.3)
    definition = [[f"{'cn' if is_fused else 'ds'}_r1_k3_s1_e1_c{width // 2 // 4 * 4}{'' if is_fused else '_se0.25'}"]]
    for stage in range(3):
        kernel, expansion, depth = rng.choice([3, 5]), rng.integers(2, 5), rng.integers(1, 3)
        kind, gate = ("er", "") if is_fused and stage == 0 else ("ir", "_se0.25")
        definition.append([f"{kind}_r{depth}_k{kernel}_s2_e{expansion}_c{width * 2**stage // 4 * 4}{gate}"])
    return EfficientNet(
        decode_arch_def(definition), num_classes=num_classes, num_features=width * 10, stem_size=20, act_layer="silu"
    )


def draw_vgg(rng: Generator, num_classes: int) -> nn.Module:
    """Plain 3x3 convolutions between poolings, as VGG, with batch norm or without, and one linear layer."""
    width, has_norm = int(rng.choice(BASE_WIDTHS)), bool(rng.random() < 0.6)
    depths = _depths(rng, NUM_STAGES, most=3 if has_norm else 2)  # deeper ones do not learn without norm
    layers: list[nn.Module] = []
    channels = 3
    for stage, depth in enumerate(depths):
        out_channels = min(width * 2**stage, 4 * width)
        for _ in range(depth):
            layers.append(nn.Conv2d(channels, out_channels, 3, padding=1))
            layers += [nn.BatchNorm2d(out_channels), nn.ReLU()] if has_norm else [nn.ReLU()]
            channels = out_channels
        if stage + 1 < NUM_STAGES:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def draw_repvgg(rng: Generator, num_classes: int) -> nn.Module:
    """RepVGG: each block adds a 3x3 convolution, a 1x1 convolution and its input."""
    width = int(rng.choice(BASE_WIDTHS[:4]))
    blocks = tuple(
        ByoBlockCfg(type="rep", d=depth, c=channels, s=2 if stage else 1, gs=0)
        for stage, (depth, channels) in enumerate(zip(_depths(rng, NUM_STAGES), _doubling(width), strict=True))
    )
    return ByobNet(ByoModelCfg(blocks=blocks, stem_type="rep", stem_chs=width, stem_pool=None), num_classes=num_classes)


def draw_deit(rng: Generator, num_classes: int) -> nn.Module:
    """Vision transformer with a distillation token and its second classifier."""
    heads = int(rng.integers(2, 5))
    return VisionTransformerDistilled(
        img_size=IMAGE_SIDE,
        patch_size=int(rng.choice([4, 8])),
        embed_dim=heads * int(rng.choice([12, 20, 24])),
        depth=int(rng.integers(2, 6)),
        num_heads=heads,
        num_classes=num_classes,
    )


def draw_swin(rng: Generator, num_classes: int) -> nn.Module:
    """Swin: attention in shifted windows, two or three stages."""
    patch_size = int(rng.choice([2, 4]))
    num_stages = int(rng.integers(2, 4)) if patch_size == 2 else 2
    heads = int(rng.integers(2, 4))
    return SwinTransformer(
        img_size=IMAGE_SIDE,
        patch_size=patch_size,
        num_classes=num_classes,
        embed_dim=heads * int(rng.choice([10, 14, 20])),
        depths=tuple(2 * depth for depth in _depths(rng, num_stages)),
        num_heads=tuple(heads * 2**stage for stage in range(num_stages)),
        window_size=4,
        drop_path_rate=0.0,
    )


def draw_pvt(rng: Generator, num_classes: int) -> nn.Module:
    """Pyramid vision transformer (version 2): attention to a coarser grid, depthwise convolutions in its MLPs."""
    width = int(rng.choice([12, 20, 24]))
    return PyramidVisionTransformerV2(
        num_classes=num_classes,
        depths=_depths(rng, NUM_STAGES),
        embed_dims=_doubling(width),
        num_heads=(1, 2, 4, 4),
        sr_ratios=(4, 2, 1, 1),
        mlp_ratios=(float(rng.integers(2, 5)),) * NUM_STAGES,
    )


def draw_davit(rng: Generator, num_classes: int) -> nn.Module:
    """DaViT: attention over windows, then over channels, each behind a depthwise convolution with its own shortcut."""
    return DaVit(
        num_classes=num_classes,
        depths=_depths(rng, NUM_STAGES),
        embed_dims=_doubling(int(rng.choice([12, 20, 24]))),
        num_heads=(1, 2, 4, 4),
        window_size=4,
        mlp_ratio=int(rng.integers(2, 5)),
        down_kernel_size=int(rng.integers(2, 4)),
    )


def draw_focalnet(rng: Generator, num_classes: int) -> nn.Module:
    """FocalNet: tokens mix by gated depthwise convolutions."""
    return FocalNet(
        num_classes=num_classes,
        embed_dim=int(rng.choice([12, 20, 28])),
        depths=_depths(rng, NUM_STAGES),
        mlp_ratio=int(rng.integers(2, 5)),
        focal_levels=(int(rng.integers(1, 4)),) * NUM_STAGES,
        use_overlap_down=bool(rng.random() < 0.3),
        drop_path_rate=0.0,
    )


def draw_twins(rng: Generator, num_classes: int) -> nn.Module:
    """Twins-PCPVT: attention to a coarser grid, positions from a depthwise convolution with a shortcut."""
    return Twins(
        img_size=IMAGE_SIDE,
        num_classes=num_classes,
        embed_dims=_doubling(int(rng.choice([12, 20, 24]))),
        num_heads=(1, 2, 4, 4),
        mlp_ratios=(int(rng.integers(2, 5)),) * NUM_STAGES,
        depths=_depths(rng, NUM_STAGES),
    )


def draw_hiera(rng: Generator, num_classes: int) -> nn.Module:
    """Hiera: attention in units of the map, which is pooled between stages."""
    return Hiera(
        img_size=(IMAGE_SIDE, IMAGE_SIDE),
        num_classes=num_classes,
        embed_dim=int(rng.choice([12, 20, 28])),
        stages=_depths(rng, NUM_STAGES),
        mlp_ratio=int(rng.integers(2, 5)),
    )


def draw_xcit(rng: Generator, num_classes: int) -> nn.Module:
    """XCiT: attention between channels, tokens mixed by depthwise convolutions, a stem with batch norms."""
    heads = int(rng.integers(2, 5))
    return Xcit(
        img_size=IMAGE_SIDE,
        patch_size=8,
        num_classes=num_classes,
        embed_dim=heads * int(rng.choice([12, 20, 24])),
        depth=int(rng.integers(2, 6)),
        num_heads=heads,
        mlp_ratio=int(rng.integers(2, 5)),
        eta=1.0 if rng.random() < 0.5 else 1e-5,
    )


def draw_edgenext(rng: Generator, num_classes: int) -> nn.Module:
    """EdgeNeXt: ConvNeXt's blocks, and split depthwise convolutions in front of attention between channels."""
    return EdgeNeXt(
        num_classes=num_classes,
        dims=_doubling(int(rng.choice([24, 28, 40]))),
        depths=_depths(rng, NUM_STAGES),
        expand_ratio=int(rng.integers(2, 5)),
        ls_init_value=1.0 if rng.random() < 0.5 else 1e-6,
    )


def draw_nfnet(rng: Generator, num_classes: int) -> nn.Module:
    """Residual network without norms: every kernel is standardised before it is used."""
    width = int(rng.choice(BASE_WIDTHS[1:]))
    return NormFreeNet(
        NfCfg(
            depths=_depths(rng, NUM_STAGES),  # type: ignore[arg-type]  # timm writes four numbers as one
            channels=tuple(width * factor for factor in (1, 2, 3, 4)),  # type: ignore[arg-type]
            stem_type=str(rng.choice(["3x3", "7x7_pool"])),
            stem_chs=width,
            num_features=0,
            skipinit=bool(rng.random() < 0.5),
            act_layer=str(rng.choice(["relu", "silu"])),
        ),
        num_classes=num_classes,
    )


def draw_mixer(rng: Generator, num_classes: int) -> nn.Module:
    """MLP-Mixer, or gMLP with its spatial gates."""
    gated: dict[str, Any] = {"block_layer": SpatialGatingBlock, "mlp_layer": GatedMlp, "mlp_ratio": 4}
    return MlpMixer(
        img_size=IMAGE_SIDE,
        patch_size=int(rng.choice([4, 8])),
        num_classes=num_classes,
        num_blocks=int(rng.integers(2, 7)),
        embed_dim=int(rng.choice([40, 56, 72, 88])),
        **(gated if rng.random() < 0.3 else {}),
    )


def draw_convmixer(rng: Generator, num_classes: int) -> nn.Module:
    """ConvMixer: patches, then depthwise and pointwise convolutions at one resolution."""
    return ConvMixer(
        int(rng.choice([40, 56, 72, 96])),
        depth=int(rng.integers(3, 8)),
        kernel_size=int(rng.choice([5, 7, 9])),
        patch_size=int(rng.choice([2, 4])),
        num_classes=num_classes,
    )


def draw_poolformer(rng: Generator, num_classes: int) -> nn.Module:
    """PoolFormer: a transformer whose tokens mix by pooling."""
    return MetaFormer(
        num_classes=num_classes,
        depths=_depths(rng, NUM_STAGES),
        dims=_doubling(int(rng.choice(BASE_WIDTHS[:4]))),
        mlp_act=nn.GELU,
        mlp_bias=True,
        norm_layers=_group_norm,  # type: ignore[arg-type]  # timm means anything that makes a norm
        downsample_norm=None,
        use_mlp_head=False,
    )


def draw_inception_next(rng: Generator, num_classes: int) -> nn.Module:
    """InceptionNeXt: large depthwise kernels split into a square and two bands."""
    return MetaNeXt(
        num_classes=num_classes,
        depths=_depths(rng, NUM_STAGES),
        dims=_doubling(int(rng.choice([24, 28, 40]))),
        mlp_ratios=(int(rng.integers(2, 5)),) * NUM_STAGES,
        ls_init_value=1.0,
    )


def draw_starnet(rng: Generator, num_classes: int) -> nn.Module:
    """StarNet: two branches that are multiplied."""
    return StarNet(
        base_dim=int(rng.choice([12, 20, 24])),
        depths=list(_depths(rng, NUM_STAGES)),
        mlp_ratio=int(rng.integers(2, 5)),
        num_classes=num_classes,
    )


def _depths(rng: Generator, num_stages: int, most: int = 2) -> tuple[int, ...]:
    return tuple(int(depth) for depth in rng.integers(1, most + 1, num_stages))


def _doubling(width: int) -> tuple[int, ...]:
    return tuple(width * 2**stage for stage in range(NUM_STAGES))


def _group_norm(channels: int, **options: object) -> nn.Module:
    return nn.GroupNorm(1, channels)


FAMILIES: dict[str, Callable[[Generator, int], nn.Module]] = {
    "resnet": draw_resnet,
    "resnext": draw_resnext,
    "regnet": draw_regnet,
    "convnext": draw_convnext,
    "mobile": draw_mobile,
    "mobilenet_v3": draw_mobilenet_v3,
    "efficientnet": draw_efficientnet,
    "densenet": draw_densenet,
    "vgg": draw_vgg,
    "repvgg": draw_repvgg,
    "vit": draw_vit,
    "deit": draw_deit,
    "swin": draw_swin,
    "pvt": draw_pvt,
    "davit": draw_davit,
    "focalnet": draw_focalnet,
    "twins": draw_twins,
    "hiera": draw_hiera,
    "xcit": draw_xcit,
    "edgenext": draw_edgenext,
    "nfnet": draw_nfnet,
    "mixer": draw_mixer,
    "convmixer": draw_convmixer,
    "poolformer": draw_poolformer,
    "inception_next": draw_inception_next,
    "starnet": draw_starnet,
}

# How often each family is drawn. Residual networks and transformers come first: they are what most users initialise.
DEFAULT_FAMILIES: Mapping[str, float] = dict.fromkeys(FAMILIES, 1.0) | {"resnet": 4.0, "convnext": 2.0, "vit": 3.0}


# The families of `draw_pool`, and how often each is drawn.
SHARES = {"resnet": 0.5, "regnet": 0.1, "convnext": 0.15, "mobile": 0.1, "densenet": 0.1, "vit": 0.05}


def draw_network(rng: Generator, num_classes: int) -> nn.Module:
    """Draw a network for 3 x 32 x 32 images.

    Args:
        rng: Decides family and configuration; initial values come from torch's global generator.
        num_classes: Width of the classifier.
    """
    family = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    network = FAMILIES[family](rng, num_classes)
    return _for_small_images(network)


def _for_small_images(network: nn.Module) -> nn.Module:
    network.expected_input_sz = (3, IMAGE_SIDE, IMAGE_SIDE)  # type: ignore[assignment]
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


class FamilyNetworks:
    """A source (see `sources.ArchitectureSource`) of small networks of timm's families, with their own initial values.

    Args:
        num_classes: Classes of the networks.
        families: Names of `FAMILIES`, drawn equally often, or names with weights; by default all of them.
        seed: Of architectures and initial values.
        max_parameters: Most parameters of a network; larger ones are drawn anew.
        length: Number of networks.

    Raises:
        ArchitectureError: A family is unknown, or there is none.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        families: Sequence[str] | Mapping[str, float] | None = None,
        seed: int = 0,
        max_parameters: int = 1_200_000,
        length: int = 100_000,
    ) -> None:
        chosen = DEFAULT_FAMILIES if families is None else families
        weights = dict(chosen) if isinstance(chosen, Mapping) else dict.fromkeys(chosen, 1.0)
        _check_families(weights)
        total = sum(weights.values())
        self.shares = {name: weight / total for name, weight in weights.items()}
        self.num_classes = num_classes
        self.seed = seed
        self.max_parameters = max_parameters
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> nn.Module:
        """Draw and build a network for 3 x 32 x 32 images; torch's random state is kept.

        Raises:
            ArchitectureError: None of many networks drawn is small enough.
        """
        rng = np.random.default_rng([self.seed, checked_index(index, len(self))])
        family = self._draw_family(rng)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            for _ in range(MAX_CANDIDATES):
                network = FAMILIES[family](rng, self.num_classes)
                if sum(parameter.numel() for parameter in network.parameters()) <= self.max_parameters:
                    return _for_small_images(network)
        raise ArchitectureError(
            f"None of {MAX_CANDIDATES} networks of family {family!r} has at most {self.max_parameters} parameters. "
            "Raise max_parameters, or leave the family out."
        )

    def graph(self, index: int) -> None:
        """Return None: these networks have to be traced."""
        checked_index(index, len(self))

    def family(self, index: int) -> str:
        """Return the family that a network belongs to."""
        return self._draw_family(np.random.default_rng([self.seed, checked_index(index, len(self))]))

    def _draw_family(self, rng: Generator) -> str:
        return str(rng.choice(list(self.shares), p=list(self.shares.values())))


def _check_families(weights: Mapping[str, float]) -> None:
    unknown = [name for name in weights if name not in FAMILIES]
    if unknown:
        close = difflib.get_close_matches(unknown[0], FAMILIES)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(FAMILIES)}."
        raise ArchitectureError(f"There is no family {unknown[0]!r}; {hint}")
    if not weights or min(weights.values()) < 0 or not 0 < sum(weights.values()) < float("inf"):
        raise ArchitectureError(
            f"Families need finite weights of at least 0, one of them positive; found {dict(weights)}."
        )
