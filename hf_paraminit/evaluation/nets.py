"""The small networks that initialisations are compared on; none may occur in a predictor's training set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from hf_paraminit.evaluation.plain_vgg import PlainVGG


@dataclass(frozen=True, kw_only=True)
class Net:
    """An architecture, and how fast it learns from its default initialisation.

    Attributes:
        name: What tables call it.
        architecture: Name that `timm.create_model` takes, or a callable that builds the module from `num_classes`,
            `in_chans` and the settings.
        settings: Further arguments of the constructor.
        learning_rate: Base rate of AdamW, before tuning.
        strong_settings: Arguments that give the strongest trivial variant of the same architecture.
        has_strong_position: The strongest trivial variant starts from a 2-D sine-cosine position table.
        family: What results are split by.
    """

    name: str
    architecture: str | Callable[..., nn.Module]
    settings: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 1e-3
    strong_settings: Mapping[str, Any] = field(default_factory=dict)
    has_strong_position: bool = False
    family: str = "other"

    @property
    def has_strong_variant(self) -> bool:
        """Whether a trivial variant is known that starts better than the default."""
        return bool(self.strong_settings) or self.has_strong_position

    @property
    def title(self) -> str:
        """Name and architecture."""
        is_text = isinstance(self.architecture, str)
        architecture = self.architecture if is_text else getattr(self.architecture, "__qualname__", "own")
        return self.name if self.name == architecture else f"{self.name} ({architecture}, small)"


_VIT = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4}
# Twelve 3x3 convolutions, as deep as a network without norms can be before the default initialisation stalls.
_VGG = {"widths": (16, 16, 0, 32, 32, 32, 0, 64, 64, 64, 0, 96, 96, 96, 96)}

# Rates of the first four are those of the protocol; the others follow their kind, and all are tuned.
NETS: dict[str, Net] = {
    net.name: net
    for net in (
        Net(
            name="R",
            architecture="resnet18",
            settings={"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128)},
            learning_rate=3e-3,
            strong_settings={"zero_init_last": False},
            family="residual, batch norm",
        ),
        Net(
            name="C",
            architecture="convnext_tiny",
            settings={"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 128), "patch_size": 2},
            learning_rate=2e-3,
            family="ConvNeXt",
        ),
        Net(
            name="V",
            architecture="vit_tiny_patch16_224",
            settings=_VIT,
            learning_rate=1e-3,
            has_strong_position=True,
            family="attention",
        ),
        Net(name="M", architecture="mobilenetv3_small_050", learning_rate=3e-3, family="mobile, batch norm"),
        Net(
            name="G",
            architecture="regnetx_002",
            settings={"w0": 16, "wa": 18.0, "wm": 2.0, "depth": 8, "group_size": 8, "stem_width": 16},
            learning_rate=3e-3,
            strong_settings={"zero_init_last": False},
            family="residual, batch norm",
        ),
        Net(name="E", architecture="mobilenetv2_035", learning_rate=3e-3, family="mobile, batch norm"),
        Net(
            name="X",
            architecture="timm.models.mlp_mixer:MlpMixer",
            settings={"img_size": 32, "patch_size": 4, "embed_dim": 64, "num_blocks": 4},
            learning_rate=1e-3,
            family="MLP-Mixer",
        ),
        Net(
            name="S",
            architecture="swin_tiny_patch4_window7_224",
            settings={
                "img_size": 32,
                "patch_size": 4,
                "window_size": 4,
                "embed_dim": 48,
                "depths": (2, 2),
                "num_heads": (2, 4),
            },
            learning_rate=1e-3,
            family="attention",
        ),
        Net(
            name="W",
            architecture="deit_tiny_patch16_224",
            settings={"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 6, "num_heads": 3},
            learning_rate=1e-3,
            has_strong_position=True,
            family="attention",
        ),
        Net(
            name="T",
            architecture="hf_paraminit.evaluation.pixel_bert:PixelBert",
            learning_rate=1e-3,
            family="attention",
        ),
        Net(
            name="D",
            architecture="densenet121",
            settings={"growth_rate": 12, "block_config": (3, 3, 3)},
            learning_rate=3e-3,
            family="dense, batch norm",
        ),
        Net(
            name="B",
            architecture=PlainVGG,
            settings={**_VGG, "batch_norm": True},
            learning_rate=3e-3,
            family="plain, batch norm",
        ),
        Net(name="N", architecture=PlainVGG, settings=_VGG, learning_rate=1e-3, family="plain, no norm"),
    )
}
MAIN_NETS = ("R", "C", "V", "M")

_GHOST_STAGES = [  # kernel, expansion, outputs, share of squeeze-and-excitation, stride
    [[3, 16, 16, 0, 1]],
    [[3, 48, 24, 0, 2], [3, 72, 24, 0.25, 1]],
    [[5, 96, 40, 0.25, 2]],
    [[3, 160, 80, 0, 2]],
]
# Of newer families. They were novel to earlier predictors of scales, which did worse than simple formulas on some; the
# present one was developed on their validation images. Rates follow their kind, as above.
MODERN_NETS: dict[str, Net] = {
    net.name: net
    for net in (
        Net(
            name="res2net",
            architecture="res2net50_26w_4s",
            settings={"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128), "base_width": 8},
            learning_rate=3e-3,
            strong_settings={"zero_init_last": False},
            family="residual, batch norm",
        ),
        Net(
            name="dla",
            architecture="dla46_c",
            settings={"levels": (1, 1, 1, 1, 1, 1), "channels": (8, 16, 24, 32, 64, 96)},
            learning_rate=3e-3,
            family="residual, batch norm",
        ),
        Net(
            name="ghostnet",
            architecture="timm.models.ghostnet:GhostNet",
            settings={"cfgs": _GHOST_STAGES},
            learning_rate=3e-3,
            family="mobile, batch norm",
        ),
        Net(
            name="nfnet",
            architecture="nf_resnet26",
            settings={"depths": (1, 1, 1, 1), "channels": (32, 64, 96, 128)},
            learning_rate=1e-3,
            family="plain, no norm",
        ),
        Net(
            name="focalnet",
            architecture="timm.models.focalnet:FocalNet",
            settings={"embed_dim": 24, "depths": (1, 1, 2, 1), "focal_levels": (2, 2, 2, 2)},
            learning_rate=1e-3,
            family="modulation",
        ),
        Net(
            name="edgenext",
            architecture="edgenext_xx_small",
            settings={"dims": (16, 24, 48, 80), "depths": (1, 1, 2, 1)},
            learning_rate=2e-3,
            family="ConvNeXt",
        ),
        Net(
            name="twins",
            architecture="twins_pcpvt_small",
            settings={
                "img_size": 32,
                "embed_dims": (16, 32, 64, 128),
                "num_heads": (1, 2, 4, 8),
                "depths": (1, 1, 1, 1),
            },
            learning_rate=1e-3,
            family="attention",
        ),
        Net(
            name="hiera",
            architecture="hiera_tiny_224",
            settings={"img_size": (32, 32), "embed_dim": 24, "stages": (1, 1, 1, 1)},
            learning_rate=1e-3,
            family="attention",
        ),
        Net(
            name="xcit",
            architecture="xcit_nano_12_p8_224",
            settings={"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4},
            learning_rate=1e-3,
            family="attention",
        ),
        Net(
            name="davit",
            architecture="davit_tiny",
            settings={
                "embed_dims": (16, 32, 64, 96),
                "depths": (1, 1, 2, 1),
                "num_heads": (2, 4, 4, 4),
                "window_size": 4,
            },
            learning_rate=1e-3,
            family="attention",
        ),
    )
}

# Of families that no built-in predictor was searched, taught or trained on, chosen before any of them was trained, and
# never used in development.
NOVEL_NETS: dict[str, Net] = {
    net.name: net
    for net in (
        Net(
            name="vovnet",
            architecture="ese_vovnet19b_slim",
            settings={
                "stem_chs": (16, 16, 16),
                "stage_conv_chs": (16, 24, 32, 40),
                "stage_out_chs": (32, 48, 64, 96),
            },
            learning_rate=3e-3,
            family="residual, batch norm",
        ),
        Net(
            name="dpn",
            architecture="dpn48b",
            settings={
                "small": True,
                "num_init_features": 8,
                "k_r": 16,
                "groups": 4,
                "k_sec": (1, 1, 1, 1),
                "inc_sec": (4, 8, 8, 16),
            },
            learning_rate=3e-3,
            family="residual, batch norm",
        ),
        Net(
            name="repvit",
            architecture="repvit_m0_9",
            settings={"embed_dim": (16, 24, 32, 48), "depth": (1, 1, 1, 1)},
            learning_rate=3e-3,
            family="mobile, batch norm",
        ),
        Net(
            name="levit",
            architecture="levit_128s",
            settings={
                "img_size": 32,
                "embed_dim": (48, 64, 96),
                "key_dim": 16,
                "num_heads": (2, 3, 4),
                "depth": (1, 1, 1),
            },
            learning_rate=1e-3,
            family="attention, batch norm",
        ),
        Net(
            name="mambaout",
            architecture="mambaout_femto",
            settings={"depths": (1, 1, 2, 1), "dims": (16, 32, 48, 64)},
            learning_rate=2e-3,
            family="ConvNeXt",
        ),
        Net(
            name="cait",
            architecture="cait_xxs24_224",
            settings={"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 4},
            learning_rate=1e-3,
            family="attention",
        ),
        Net(
            name="nest",
            architecture="timm.models.nest:Nest",
            settings={
                "img_size": 32,
                "patch_size": 4,
                "num_levels": 2,
                "embed_dims": (32, 64),
                "num_heads": (2, 4),
                "depths": (1, 2),
            },
            learning_rate=1e-3,
            family="attention",
        ),
        Net(
            name="gcvit",
            architecture="timm.models.gcvit:GlobalContextVit",
            settings={
                "img_size": (32, 32),
                "embed_dim": 16,
                "depths": (1, 1, 2, 1),
                "num_heads": (1, 2, 4, 8),
                "window_size": (4, 4, 2, 1),
            },
            learning_rate=1e-3,
            family="attention",
        ),
        Net(
            name="coat",
            architecture="timm.models.coat:CoaT",
            settings={
                "img_size": 32,
                "patch_size": 4,
                "embed_dims": (32, 32, 64, 64),
                "serial_depths": (1, 1, 1, 1),
                "parallel_depth": 0,
                "num_heads": 8,
                "mlp_ratios": (4, 4, 4, 4),
            },
            learning_rate=1e-3,
            family="attention",
        ),
        Net(
            name="mvitv2",
            architecture="hf_paraminit.evaluation.small_mvit:SmallMViT",
            learning_rate=1e-3,
            family="attention",
        ),
    )
}

ALL_NETS = NETS | MODERN_NETS | NOVEL_NETS


def find_net(model: str | Net) -> Net:
    """Return the benchmark network of this name, or take the name as timm's."""
    if isinstance(model, Net):
        return model
    return ALL_NETS.get(model) or Net(name=model, architecture=model)
