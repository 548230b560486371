"""Roles of tensors."""

import timm

from hf_paraminit.structure.model import ModelStructure
from hf_paraminit.structure.roles import (
    ATTENTION,
    CLASSIFIER,
    DEPTHWISE,
    DEPTHWISE_BRANCH,
    KERNEL,
    LAST,
    LAST_NORM,
    NORM,
    POINTWISE,
    STEM,
    tensor_roles,
)


def roles(name: str, **settings: object) -> dict[str, str]:
    return tensor_roles(ModelStructure(timm.create_model(name, num_classes=10, **settings)))


def test_residual_network() -> None:
    found = roles("resnet18")
    assert found["conv1.weight"] == STEM
    assert found["layer1.0.conv1.weight"] == KERNEL
    assert found["layer1.0.conv2.weight"] == LAST
    assert found["layer2.0.downsample.0.weight"] == POINTWISE
    assert (found["layer1.0.bn1.weight"], found["layer1.0.bn2.weight"]) == (NORM, LAST_NORM)
    assert found["fc.weight"] == CLASSIFIER
    assert not [name for name in found if name.endswith("bias")]


def test_vision_transformer() -> None:
    found = roles("test_vit")
    assert found["patch_embed.proj.weight"] == STEM
    assert found["blocks.0.attn.qkv.weight"] == found["blocks.0.attn.proj.weight"] == ATTENTION
    assert found["blocks.0.mlp.fc1.weight"] == POINTWISE
    assert found["blocks.0.mlp.fc2.weight"] == LAST
    assert "pos_embed" not in found


def test_mobile_network() -> None:
    found = roles("mobilenetv3_small_050")
    assert found["blocks.1.0.conv_dw.weight"] == DEPTHWISE
    assert found["blocks.1.1.conv_pwl.weight"] == LAST
    assert found["blocks.1.1.bn3.weight"] == LAST_NORM


def test_hierarchical_network() -> None:
    """DaViT's positions are depthwise convolutions with a shortcut of their own; ConvNeXt's lead into a branch."""
    found = roles("davit_tiny", depths=(1, 1, 1, 1), embed_dims=(8, 16, 16, 16), num_heads=(1, 2, 2, 2))
    assert found["stages.0.blocks.0.0.cpe1.proj.weight"] == DEPTHWISE_BRANCH
    assert found["stages.0.blocks.0.0.mlp.fc2.weight"] == LAST
    assert found["stages.1.downsample.conv.weight"] == KERNEL
    assert roles("test_convnext")["stages.0.blocks.0.conv_dw.weight"] == DEPTHWISE
