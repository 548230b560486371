"""Sizes, depth rule, published lists, and the choice of added neurons."""

import dataclasses
import json
from typing import Any

import pytest
import torch

from hf_paraminit.errors import CheckpointError, InitializerConfigError
from hf_paraminit.lets.config import PUBLISHED_PAIRS, LeTsConfig, adjacent_pairs
from hf_paraminit.lets.depth import LayerSource, layer_sources, published_sources, spread_blocks
from hf_paraminit.lets.width import SELECTS, Scored, choose_places

SMALL = LeTsConfig(embed_dim=16, num_heads=4, depth=4, aux_dim=40, pairs=adjacent_pairs(4, 4), img_size=32)


def scored(config: LeTsConfig, seed: int = 0) -> Scored:
    draw = torch.Generator().manual_seed(seed)
    added, added_ffn = config.aux_dim - config.embed_dim, config.mlp_dim(config.aux_dim - config.embed_dim)
    return Scored(
        embed=torch.randn(added, config.embed_dim, generator=draw),
        attention=[torch.randn(added, config.embed_dim, generator=draw) for _ in range(3 * config.depth)],
        ffn=[torch.randn(added_ffn, 4 * config.embed_dim, generator=draw) for _ in range(config.depth)],
    )


def test_the_defaults_are_the_published_sizes() -> None:
    config = LeTsConfig()
    assert (config.head_dim, config.aux_heads, config.aux_depth, config.num_tokens) == (64, 12, 16, 196)
    assert config.aux_blocks == (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7)
    assert adjacent_pairs(8, 8) == PUBLISHED_PAIRS == config.pairs


def test_a_config_survives_json() -> None:
    config = dataclasses.replace(SMALL, patch_size=(8, 4), class_token=True, init_noise=0.0)
    assert LeTsConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert LeTsConfig(img_size=64) == LeTsConfig(img_size=(64, 64))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"embed_dim": 385}, "num_heads"),
        ({"aux_dim": 800}, "multiple of the head size 64"),
        ({"aux_dim": 320}, "at least"),
        ({"depth": 6}, "pairs"),
        ({"pairs": [[0, 1, 2]]}, "pairs"),
        ({"pairs": [[0, "1"]]}, "pairs"),
        ({"pairs": []}, "pairs"),
        ({"pairs": 5}, "pairs"),
        ({"img_size": 220}, "patches"),
        ({"img_size": [1, 2, 3]}, "img_size"),
        ({"num_heads": 0}, "num_heads"),
        ({"depth": True}, "depth"),
        ({"embed_dim": 10**9}, "embed_dim"),
        ({"num_classes": 2**30}, "num_classes"),
        ({"mlp_ratio": 0}, "mlp_ratio"),
        ({"mlp_ratio": 1 / 7}, "mlp_ratio"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"width_init": "zeros"}, "width_init"),
        ({"depth_init": "interlace"}, "depth_init"),
        ({"gene_init": 3}, "gene_init"),
        ({"class_token": 1}, "class_token"),
        ({"colour": 1}, "colour"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(CheckpointError, match=word):
        LeTsConfig.from_dict({**LeTsConfig().to_dict(), **changes})


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [
        (16, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]),
        (12, [0, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7]),
        (10, [0, 1, 2, 3, 3, 4, 4, 5, 6, 7]),
        (13, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7]),
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (6, [0, 1, 3, 4, 6, 7]),
        (4, [0, 2, 5, 7]),
        (1, [0]),
    ],
)
def test_layers_take_the_blocks_of_the_rule(depth: int, blocks: list[int]) -> None:
    assert spread_blocks(depth, 8) == blocks


def test_any_depth_takes_rising_blocks_evenly() -> None:
    for num_blocks in range(1, 10):
        for depth in range(1, 40):
            blocks = spread_blocks(depth, num_blocks)
            counts = [blocks.count(block) for block in range(num_blocks)]
            assert blocks == sorted(blocks)
            assert len(blocks) == depth
            assert max(counts) - min(counts) <= 1
            assert depth == 1 or {blocks[0], blocks[-1]} == {0, num_blocks - 1}


def test_published_lists_may_cross() -> None:
    assert published_sources(LeTsConfig(), [0, 12, 5], [0, 4, 4]) == [
        LayerSource((0, 1), 0),
        LayerSource((6, 7), 2),
        LayerSource((2, 3), 2),
    ]


@pytest.mark.parametrize(
    ("layers", "coefficients", "word"),
    [([0, 1], [0], "2 entries"), ([16], [0], "16"), ([0], [-2], "-2"), ([0], [1], r"\[1\].*layers 0, 2, 4")],
)
def test_published_lists_are_checked(layers: list[int], coefficients: list[int], word: str) -> None:
    with pytest.raises(InitializerConfigError, match=word):
        published_sources(LeTsConfig(), layers, coefficients)


@pytest.mark.parametrize("block", [-1, 8, True, "0", 1.0, LayerSource((0, 1), 9), LayerSource((0, 8), 0)])
def test_blocks_are_checked(block: Any) -> None:
    with pytest.raises(InitializerConfigError):
        layer_sources(LeTsConfig(), [0, block])


@pytest.mark.parametrize("select", SELECTS)
def test_rules_agree_where_there_is_nothing_to_choose(select: Any) -> None:
    none, all_ = (choose_places(SMALL, width, select, scored(SMALL), seed=5) for width in (16, 40))
    assert [len(none.embed), len(none.attention), len(none.ffn)] == [0, 0, 0]
    assert all_.embed.tolist() == all_.attention.tolist() == list(range(24))
    assert all_.ffn.tolist() == list(range(96))


@pytest.mark.parametrize("select", SELECTS)
def test_chosen_neurons_rise_and_attention_takes_whole_heads(select: Any) -> None:
    places = choose_places(SMALL, 28, select, scored(SMALL), seed=5)
    for axis, count, size in ((places.embed, 12, 24), (places.attention, 12, 24), (places.ffn, 48, 96)):
        assert len(axis) == count
        assert axis.tolist() == sorted(set(axis.tolist()))
        assert 0 <= axis.min() <= axis.max() < size
    heads = places.attention.view(-1, 4)
    assert (heads[:, 0] % 4 == 0).all()
    assert torch.equal(heads, heads[:, :1] + torch.arange(4))


def test_each_rule_chooses_as_it_says() -> None:
    assert choose_places(SMALL, 28, "continuous", scored(SMALL)).embed.tolist() == list(range(12))
    assert choose_places(SMALL, 28, "stepwise", scored(SMALL)).embed.tolist() == list(range(0, 24, 2))
    assert choose_places(SMALL, 32, "stepwise", scored(SMALL)).attention.view(-1, 4)[:, 0].tolist() == [0, 4, 12, 16]
    draws = [choose_places(SMALL, 28, "random", scored(SMALL), seed=seed).ffn.tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(("select", "order"), [("l1", 1), ("l2", 2)])
def test_magnitudes_are_summed_over_layers_and_rows_of_a_head(select: Any, order: int) -> None:
    matrices = scored(SMALL)
    places = choose_places(SMALL, 28, select, matrices)
    assert set(places.embed.tolist()) == set(matrices.embed.norm(p=order, dim=1).topk(12).indices.tolist())
    heads = torch.stack([matrix.norm(p=order, dim=1) for matrix in matrices.attention]).sum(0).view(6, 4).sum(1)
    assert set((places.attention[::4] // 4).tolist()) == set(heads.topk(3).indices.tolist())
    units = torch.stack([matrix.norm(p=order, dim=1) for matrix in matrices.ffn]).sum(0)
    assert set(places.ffn.tolist()) == set(units.topk(48).indices.tolist())


def test_equal_magnitudes_go_to_the_first() -> None:
    equal = Scored(embed=torch.ones(24, 16), attention=[torch.ones(24, 16)], ffn=[torch.ones(96, 64)])
    assert choose_places(SMALL, 24, "l2", equal).embed.tolist() == list(range(8))


def test_wider_nets_go_round() -> None:
    places = choose_places(SMALL, 44, "l1", scored(SMALL))
    assert places.embed.tolist() == [*range(24), 0, 1, 2, 3]
    assert places.attention.tolist() == [*range(24), 0, 1, 2, 3]
    assert places.ffn.tolist() == [*range(96), *range(16)]
    with pytest.raises(InitializerConfigError, match="adds no neurons"):
        choose_places(dataclasses.replace(SMALL, aux_dim=16), 20, "l1", scored(SMALL))


def test_unknown_rules_are_named() -> None:
    with pytest.raises(InitializerConfigError, match="continuous, stepwise"):
        choose_places(SMALL, 28, "best", scored(SMALL))  # type: ignore[arg-type]
