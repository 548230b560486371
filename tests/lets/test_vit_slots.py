"""Which parameter of a host's vision transformer is which, and what is no such model."""

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import Attention, VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from hf_paraminit.errors import PredictionError
from hf_paraminit.lets.slots import find_vision_transformer, joined

SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
HF = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "num_labels": 5,
}


def unplaced(model: nn.Module) -> set[str]:
    described = find_vision_transformer(model)
    return {name for name, _ in model.named_parameters()} - {*described.places, *described.layer_scales}


def timm_vit(**changes: Any) -> TimmVisionTransformer:
    return TimmVisionTransformer(**{**SMALL, **changes})


@pytest.mark.parametrize(
    ("changes", "left", "prefix_rows"),
    [
        ({}, set(), 1),
        ({"class_token": False, "global_pool": "avg"}, set(), 0),
        ({"global_pool": "avg", "fc_norm": False}, set(), 1),
        ({"reg_tokens": 4}, {"reg_token"}, 5),
        ({"reg_tokens": 4, "no_embed_class": True}, {"reg_token"}, 0),
        ({"init_values": 1e-5}, set(), 1),
        ({"qkv_bias": False}, set(), 1),
        ({"pos_embed": "none"}, set(), None),
        ({"num_classes": 0}, set(), 1),
        ({"dynamic_img_size": True}, set(), 1),
        ({"pre_norm": True}, {"norm_pre.weight", "norm_pre.bias"}, 1),
    ],
)
def test_every_parameter_of_timms_has_a_place(changes: dict[str, Any], left: set[str], prefix_rows: int | None) -> None:
    model = timm_vit(**changes)
    described = find_vision_transformer(model)
    assert unplaced(model) == left
    assert described.num_prefix_rows == prefix_rows
    assert (described.width, described.depth, described.num_heads, described.mlp_dim) == (16, 2, 2, 64)
    assert described.num_classes == changes.get("num_classes", 5)
    assert described.norm_eps == {1e-6}
    assert len(described.layer_scales) == (4 if "init_values" in changes else 0)


def test_geometry_is_that_of_the_patches() -> None:
    described = find_vision_transformer(timm_vit(img_size=(32, 48), patch_size=(8, 16), in_chans=2))
    assert (described.grid_size, described.patch_size, described.in_chans) == ((4, 3), (8, 16), 2)


def test_both_heads_of_a_distilled_model_are_found() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", **SMALL)
    described = find_vision_transformer(model)
    assert unplaced(model) == {"dist_token"}
    assert described.num_prefix_rows == 2
    assert described.places["head_dist.bias"] == described.places["head.bias"] == ("head.bias",)


def test_transformers_models_have_places() -> None:
    vit = ViTForImageClassification(ViTConfig(**HF))
    assert unplaced(vit) == set()
    described = find_vision_transformer(vit)
    assert (described.width, described.depth, described.num_heads, described.mlp_dim) == (16, 2, 2, 64)
    assert (described.grid_size, described.num_prefix_rows, described.num_classes) == ((2, 2), 1, 5)
    assert described.norm_eps == {1e-12}
    assert unplaced(ViTModel(ViTConfig(**HF))) == {"pooler.dense.weight", "pooler.dense.bias"}
    deit = DeiTForImageClassificationWithTeacher(DeiTConfig(**HF))
    assert unplaced(deit) == {"deit.embeddings.distillation_token"}
    assert find_vision_transformer(deit).num_prefix_rows == 2
    assert find_vision_transformer(deit).places["cls_classifier.weight"] == ("head.weight",)


def test_a_model_inside_another_is_found() -> None:
    wrapped = TimmWrapperForImageClassification(TimmWrapperConfig(architecture="test_vit"))
    assert unplaced(wrapped) == set()
    assert all(name.startswith("timm_model.") for name in find_vision_transformer(wrapped).places)
    assert unplaced(nn.Sequential(nn.Identity(), timm_vit())) == set()
    features = timm.create_model("test_vit", features_only=True)
    assert unplaced(features) == set()


def test_queries_keys_and_values_may_be_apart() -> None:
    class Apart(nn.Module):
        def __init__(self, dim: int, num_heads: int, **_: Any) -> None:
            super().__init__()
            self.num_heads = num_heads
            self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    model = timm_vit(attn_layer=Apart)
    assert unplaced(model) == set()
    assert find_vision_transformer(model).places["blocks.1.attn.k.bias"] == ("blocks.1.attn.k.bias",)


@pytest.mark.parametrize("build", [timm_vit, lambda: ViTForImageClassification(ViTConfig(**HF))])
def test_slots_go_there_and_back(build: Any) -> None:
    model = build()
    described = find_vision_transformer(model)
    state = dict(model.named_parameters())
    slots = described.to_slots(state)
    assert slots["blocks.1.attn.k.weight"].shape == (16, 16)
    back = described.to_state(slots)
    assert back.keys() == described.places.keys()
    assert all(torch.equal(back[name], state[name]) for name in back)


def test_rows_of_one_tensor_are_joined_without_a_copy() -> None:
    whole = torch.randn(6, 2)
    parts = whole.chunk(3)
    assert joined(parts) is whole
    for others in ([parts[1], parts[0], parts[2]], parts[:2], [part.clone() for part in parts]):
        result: Tensor = joined(others)
        assert result is not whole
        assert torch.equal(result, torch.cat(list(others)))


class Gated(Attention):
    """An attention layer of somebody else's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{key: value for key, value in kwargs.items() if key != "depth"})
        self.temperature = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("resnet18", "no vision transformer"),
        ("eva02_tiny_patch14_224", "no vision transformer"),  # rotary positions
        ("vit_small_patch16_rope_224", "no vision transformer"),
        ("vit_giant_patch14_dinov2", "gated"),  # SwiGLU
        ("vit_small_patch16_18x2_224", "ParallelThingsBlock"),
        ("vit_base_patch16_rpn_224", "ResPostBlock"),
        ("vit_tiny_r_s16_p8_224", "patch_embed.backbone"),
    ],
)
def test_other_architectures_are_refused(name: str, word: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(PredictionError, match=word):
        find_vision_transformer(model)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"qk_norm": True}, "q_norm"),
        ({"scale_mlp_norm": True}, "mlp.norm"),
        ({"attn_layer": Gated}, "temperature"),
        ({"norm_layer": "rmsnorm"}, "RmsNorm"),
        ({"depth": 0}, "no blocks"),
    ],
)
def test_blocks_with_other_parts_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(PredictionError, match=word):
        find_vision_transformer(timm_vit(**changes))


def test_two_transformers_in_one_model_are_refused() -> None:
    with pytest.raises(PredictionError, match="2 vision transformers"):
        find_vision_transformer(nn.ModuleList([timm_vit(), timm_vit()]))
