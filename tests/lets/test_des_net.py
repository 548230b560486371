"""What a learngene gives to targets of other sizes and geometry."""

import dataclasses
from typing import Any

import pytest
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

from hf_paraminit.errors import InitializerConfigError, PredictionError
from hf_paraminit.lets.aux_net import AuxNet
from hf_paraminit.lets.config import LeTsConfig, adjacent_pairs
from hf_paraminit.lets.depth import LayerSource
from hf_paraminit.lets.des_net import DesNetOptions, Made, check_target, departures, des_net_values, num_class_rows
from hf_paraminit.lets.generator import LeTsGenerator
from hf_paraminit.lets.slots import find_vision_transformer

CONFIG = LeTsConfig(
    embed_dim=16, num_heads=2, depth=4, aux_dim=40, pairs=adjacent_pairs(4, 4), img_size=32, patch_size=8, num_classes=5
)
GENERATOR = LeTsGenerator.new(dataclasses.replace(CONFIG, gene_init="scaled", width_init="sel_noisy"), seed=0)


def target(**changes: Any) -> TimmVisionTransformer:
    width = changes.get("embed_dim", 24)
    settings = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 3,
        "num_heads": max(width // 8, 1),
        "num_classes": 5,
        "class_token": False,
        "global_pool": "avg",
    }
    return TimmVisionTransformer(**{**settings, **changes})


@torch.no_grad()
def values_for(model: TimmVisionTransformer, generator: LeTsGenerator = GENERATOR, **options: Any) -> dict[str, Made]:
    return des_net_values(generator, find_vision_transformer(model), DesNetOptions(**options))


def load(model: TimmVisionTransformer, made: dict[str, Made]) -> TimmVisionTransformer:
    model.load_state_dict({name: value for name, (value, _) in made.items()}, strict=False)
    return model.eval()


def test_a_target_of_the_aux_nets_size_computes_the_same() -> None:
    model = target(embed_dim=40, depth=8)
    made = values_for(model)
    assert made.keys() == model.state_dict().keys()
    assert {rule for _, rule in made.values()} == {"generated"}
    images = torch.randn(2, 3, 32, 32)
    expected = AuxNet(GENERATOR).eval()(images)
    torch.testing.assert_close(load(model, made)(images), expected, rtol=1e-5, atol=1e-6)


def test_more_layers_of_the_same_blocks_differ_from_another_choice() -> None:
    first, last = (
        values_for(target(), blocks=blocks)["blocks.1.attn.qkv.weight"].value for blocks in ([0] * 3, [3] * 3)
    )
    assert not torch.equal(first, last)
    rule = values_for(target())["blocks.1.attn.qkv.weight"].value
    assert torch.equal(rule, values_for(target(), blocks=[0, 2, 3])["blocks.1.attn.qkv.weight"].value)
    lists = {"mapping_layer": [0, 5, 7], "mapping_layer_coeff": [0, 4, 6]}
    assert torch.equal(rule, values_for(target(), **lists)["blocks.1.attn.qkv.weight"].value)
    crossed = values_for(target(), blocks=[LayerSource((0, 3), 1)] * 3)["blocks.1.attn.qkv.weight"].value
    assert not torch.equal(rule, crossed)


def test_other_geometry_is_resized_by_timms_functions() -> None:
    made = values_for(target(img_size=(48, 64), patch_size=16))
    plain = values_for(target())
    table, rule = made["pos_embed"]
    expected = resample_abs_pos_embed(plain["pos_embed"].value, [3, 4], [4, 4], num_prefix_tokens=0)
    assert torch.equal(table, expected)
    assert rule == "generated, then resized from a grid of 4 x 4"
    weight, rule = made["patch_embed.proj.weight"]
    assert torch.equal(weight, resample_patch_embed(plain["patch_embed.proj.weight"].value, [16, 16]))
    assert rule == "generated, then resized from patches of 8 x 8"


@pytest.mark.parametrize("in_chans", [1, 2, 5])
def test_other_channels_keep_the_response_to_grey(in_chans: int) -> None:
    made = values_for(target(in_chans=in_chans))["patch_embed.proj.weight"]
    plain = values_for(target())["patch_embed.proj.weight"].value
    assert made.rule == "generated, then resized from 3 channels"
    if in_chans == 1:
        torch.testing.assert_close(made.value.sum(1), plain.sum(1))
    else:
        torch.testing.assert_close(made.value[:, 1], plain[:, 1] * 3 / in_chans)


def test_rows_of_tokens_stay_and_tokens_get_nothing() -> None:
    model = target(class_token=True, reg_tokens=2, global_pool="token")
    rows = torch.randn(3, 24)
    with torch.no_grad():
        made = des_net_values(GENERATOR, find_vision_transformer(model), None, rows)
    table, rule = made["pos_embed"]
    assert torch.equal(table[0, :3], rows)
    assert torch.equal(table[:, 3:], values_for(target())["pos_embed"].value)
    assert rule == "generated, but for 3 rows of tokens"
    assert model.state_dict().keys() - made.keys() == {"cls_token", "reg_token"}
    assert "norm.weight" in made  # where the affine map of fc_norm goes
    assert values_for(target(reg_tokens=2, no_embed_class=True))["pos_embed"].value.shape == (1, 16, 24)


def test_a_learngene_with_class_token_fills_token_and_row() -> None:
    generator = LeTsGenerator.new(dataclasses.replace(CONFIG, class_token=True), seed=0)
    model = target(embed_dim=40, depth=8, class_token=True, global_pool="token")
    made = values_for(model, generator)
    assert made.keys() == model.state_dict().keys()
    assert made["pos_embed"].rule == "generated"
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(load(model, made)(images), AuxNet(generator).eval()(images), rtol=1e-5, atol=1e-6)
    registers = values_for(target(embed_dim=40, reg_tokens=2), generator)["pos_embed"].value
    assert not registers[:, :2].any()  # no row of the class token for a register


def test_layer_scale_becomes_one_and_missing_biases_are_dropped() -> None:
    made = values_for(target(init_values=1e-5, qkv_bias=False))
    assert torch.equal(made["blocks.2.ls2.gamma"].value, torch.ones(24))
    assert "blocks.0.attn.qkv.bias" not in made
    assert "blocks.0.attn.qkv.weight" in made


@pytest.mark.parametrize(
    ("num_classes", "head", "rows"),
    [
        (5, "auto", 5),
        (4, "auto", 0),
        (6, "auto", 0),
        (5, "keep", 0),
        (5, "generate", 5),
        (3, "truncate", 3),
        (0, "auto", 0),
    ],
)
def test_the_classifier_is_generated_for_the_learngenes_classes(num_classes: int, head: str, rows: int) -> None:
    model = target(num_classes=num_classes)
    assert num_class_rows(CONFIG, find_vision_transformer(model), head) == rows
    made = values_for(model, head=head)
    if not rows:
        assert "head.weight" not in made
    else:
        assert torch.equal(made["head.weight"].value, values_for(target())["head.weight"].value[:rows])
        assert made["head.bias"].rule == ("generated" if rows == 5 else "the first 3 generated classes")


@pytest.mark.parametrize(
    ("changes", "options", "word"),
    [
        ({"embed_dim": 20, "num_heads": 2}, {}, "no multiple of 8"),
        ({"embed_dim": 8}, {}, "below 16; shrink='prefix'"),
        ({"embed_dim": 48}, {}, "above 40; extend='cycle'"),
        ({"num_heads": 2}, {}, "2 heads of 12 channels, expected num_heads=3"),
        ({"mlp_ratio": 3}, {}, "72 hidden channels, expected 96"),
        ({}, {"blocks": [0, 1]}, "2 blocks are listed for its 3 layers"),
        ({"num_classes": 4}, {"head": "generate"}, "its head has 4 classes, the learngene's 5"),
        ({"num_classes": 6}, {"head": "truncate"}, "its head has 6 classes"),
    ],
)
def test_targets_that_do_not_fit_are_refused(changes: dict[str, Any], options: dict[str, Any], word: str) -> None:
    with pytest.raises(PredictionError, match=word):
        check_target(CONFIG, find_vision_transformer(target(**changes)), DesNetOptions(**options))


def test_all_faults_come_in_one_message() -> None:
    with pytest.raises(PredictionError, match=r"no multiple.*below 16.*hidden channels"):
        values_for(target(embed_dim=12, num_heads=1, mlp_ratio=2))


def test_switches_allow_what_is_not_exact() -> None:
    narrow = find_vision_transformer(target(embed_dim=8))
    wide = find_vision_transformer(target(embed_dim=48))
    mixed = find_vision_transformer(target(num_heads=2))
    for described, options in (
        (narrow, DesNetOptions(shrink="prefix")),
        (wide, DesNetOptions(extend="cycle")),
        (mixed, DesNetOptions(heads="mix")),
    ):
        with torch.no_grad():
            made = des_net_values(GENERATOR, described, options)
        assert made["fc_norm.weight"].value.shape == (described.width,)
        assert len(departures(CONFIG, described)) == 1
    assert departures(CONFIG, find_vision_transformer(target())) == []


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InitializerConfigError, match="both or none"):
        DesNetOptions(mapping_layer=[0])
    with pytest.raises(InitializerConfigError, match="not both"):
        DesNetOptions(mapping_layer=[0], mapping_layer_coeff=[0], blocks=[0])
