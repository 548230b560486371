"""Attention, residual branches, stems, classifiers and tables are found by what they do, in every library alike."""

from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, SwinConfig, SwinModel, ViTConfig, ViTModel

from hf_paraminit.errors import TracingError
from hf_paraminit.structure.layers import BIAS, NORM_SCALE, NORM_SHIFT, TABLE
from hf_paraminit.structure.model import ModelStructure

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TOKENS = {"input_ids": torch.zeros(2, 6, dtype=torch.int64)}


def vit(**settings: Any) -> nn.Module:
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    return timm.create_model("vit_tiny_patch16_224", **{**small, **settings})


def torchvision_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64)


def transformers_vit() -> nn.Module:
    return ViTModel(ViTConfig(image_size=32, patch_size=8, **TINY), add_pooling_layer=False)


@pytest.mark.parametrize("build", [vit, torchvision_vit, transformers_vit])
def test_vision_transformers_of_three_libraries_look_alike(build: Any) -> None:
    structure = ModelStructure(build(), input_size=32)
    assert [attention.num_heads for attention in structure.attentions] == [4, 4]
    assert all(attention.head_dim == 8 and attention.output is not None for attention in structure.attentions)
    assert len(structure.branches) == 4
    assert all(not branch.last_norms and len(branch.last_layers) == 1 for branch in structure.branches)
    assert [branch.last_layers[0] for branch in structure.branches[::2]] == [
        attention.output.name for attention in structure.attentions if attention.output
    ]
    assert len(structure.stem) == 1
    assert "proj" in structure.stem[0]
    assert len(structure.positions) == 1
    assert "pos" in structure.positions[0]


@pytest.mark.parametrize(
    ("model", "heads"),
    [
        (BertModel(BertConfig(vocab_size=50, max_position_embeddings=16, **TINY), add_pooling_layer=False), 4),
        (GPT2Model(GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4)), 4),
    ],
)
def test_language_models_are_read_with_example_inputs(model: nn.Module, heads: int) -> None:
    structure = ModelStructure(model, example_inputs=TOKENS)
    assert [attention.num_heads for attention in structure.attentions] == [heads] * 2
    assert len(structure.branches) == 4


def test_windowed_attention_and_shifted_windows() -> None:
    config = SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
    structure = ModelStructure(SwinModel(config))
    assert [attention.num_heads for attention in structure.attentions] == [2, 2, 4, 4]


def test_fused_projections_are_split_in_order() -> None:
    (attention, _) = ModelStructure(vit()).attentions
    assert attention.query.layer is attention.key.layer is attention.value.layer
    assert [part.first for part in (attention.query, attention.key, attention.value)] == [0, 32, 64]
    assert ModelStructure(vit()).fused_parts == {"blocks.0.attn.qkv.weight": 3, "blocks.1.attn.qkv.weight": 3}


class GroupedQueries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(16, 16)
        self.embed, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 2)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).mT
        query, key, value = (layer(tokens).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        return self.head((tokens + self.out(mixed.transpose(1, 2).flatten(2))).mean(1))


def test_grouped_queries_have_fewer_key_heads() -> None:
    (attention,) = ModelStructure(GroupedQueries(), input_size=16).attentions
    assert (attention.num_heads, attention.num_key_heads) == (4, 2)


def test_attention_over_channels_is_not_attention_over_tokens() -> None:
    xcit = timm.create_model("xcit_nano_12_p16_224", img_size=64)
    names = {attention.query.layer.name for attention in ModelStructure(xcit).attentions}
    assert all(name.startswith("cls_attn_blocks") for name in names)


def test_relative_positions_from_a_small_network_do_not_hide_attention() -> None:
    structure = ModelStructure(timm.create_model("test_vit_relpos"))
    assert len(structure.attentions) == 9
    assert not any("rel_pos" in layer.name for layer in structure.executed)


def test_fused_layers_of_unequal_parts_are_not_split() -> None:
    """LeViT's keys are narrower than its values."""
    with torch.device("meta"):
        structure = ModelStructure(timm.create_model("levit_128s"))
    assert structure.attentions == ()


def test_softmax_without_attention_is_none() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5), nn.Softmax(-1))
    assert ModelStructure(net, input_size=8).attentions == ()


@pytest.mark.parametrize("build", [lambda: timm.create_model("resnet18"), torchvision.models.resnet18])
def test_residual_blocks_with_and_without_projection(build: Any) -> None:
    structure = ModelStructure(build(), input_size=64)
    assert [branch.last_norms for branch in structure.branches] == [
        (f"layer{stage}.{block}.bn2.weight",) for stage in (1, 2, 3, 4) for block in (0, 1)
    ]
    assert structure.branches[2].layers == ("layer2.0.conv1.weight", "layer2.0.conv2.weight")
    assert structure.class_layers == ("fc.weight",)
    assert structure.stem == ("conv1.weight",)


def test_gates_do_not_hide_the_last_norm_of_a_branch() -> None:
    branches = ModelStructure(timm.create_model("seresnet18"), input_size=64).branches
    assert all(branch.last_norms[0].endswith("bn2.weight") for branch in branches)


def test_layer_scale_is_seen() -> None:
    branches = ModelStructure(timm.create_model("test_convnext")).branches
    assert branches
    assert all(branch.layer_scales[0].endswith("gamma") for branch in branches)


def test_networks_without_shortcuts_have_no_branches() -> None:
    structure = ModelStructure(torchvision.models.vgg11(num_classes=2), input_size=64)
    assert structure.branches == ()
    assert len(structure.executed) == 11
    assert set(structure.rectified) == {layer.name for layer in structure.executed[:-1]}


def test_layers_come_in_order_of_execution() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.Linear(4, 2), nn.Conv2d(3, 4, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.second(self.first(images).mean((2, 3)))

    structure = ModelStructure(Backwards(), input_size=8)
    assert [layer.name for layer in structure.executed] == ["first.weight", "second.weight"]


def test_kinds_of_parameters() -> None:
    kinds = ModelStructure(vit()).kinds
    assert kinds.others["blocks.0.norm1.weight"] == NORM_SCALE
    assert kinds.others["blocks.0.norm1.bias"] == NORM_SHIFT
    assert kinds.others["head.bias"] == BIAS
    assert kinds.others["pos_embed"] == TABLE
    assert "cls_token" in kinds.reasons
    assert kinds.layers["blocks.0.attn.qkv.weight"].bias == "blocks.0.attn.qkv.bias"


@pytest.mark.parametrize(
    "layer", [nn.ConvTranspose2d(6, 4, 3, groups=2), nn.ConvTranspose2d(6, 4, 2), nn.Conv2d(6, 4, 3)]
)
def test_layouts_are_exchanged_without_loss(layer: nn.Module) -> None:
    (seen,) = ModelStructure(nn.Sequential(layer)).layers.values()
    assert seen.shape[0] == 4
    assert seen.shape[1] == 6 // seen.groups
    weight = torch.randn(seen.shape)
    assert seen.stored(weight).shape == layer.weight.shape
    assert torch.equal(seen.seen(seen.stored(weight)), weight)


def test_a_grouped_transposed_layer_is_the_transpose_of_its_convolution() -> None:
    transposed = nn.ConvTranspose2d(6, 4, 1, groups=2, bias=False)
    (seen,) = ModelStructure(nn.Sequential(transposed)).layers.values()
    images = torch.randn(2, 6, 3, 3)
    convolved = nn.functional.conv2d(images, seen.seen(transposed.weight), groups=2)
    torch.testing.assert_close(transposed(images), convolved)


def test_the_model_is_only_read_and_needs_no_memory() -> None:
    with torch.device("meta"):
        structure = ModelStructure(timm.create_model("vit_base_patch16_224"))
    assert len(structure.attentions) == 12
    assert not structure.used_values


def test_a_model_that_cannot_run_says_so() -> None:
    structure = ModelStructure(nn.Sequential(nn.Linear(5, 5)))
    assert not structure.is_traceable
    with pytest.raises(TracingError, match="forward pass fails"):
        _ = structure.branches
