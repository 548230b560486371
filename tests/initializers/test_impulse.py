from typing import Any

import pytest
import timm
import torch
from torch import nn

import hf_paraminit
from hf_paraminit.initializers.impulse import OFFSETS, shift_matrix
from hf_paraminit.initializers.sincos import sincos_2d


def vit(**settings: Any) -> nn.Module:
    small = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 2, "num_heads": 6}
    return timm.create_model("vit_tiny_patch16_224", **{**small, **settings})


def test_a_shift_moves_each_token_to_its_neighbour() -> None:
    assert torch.equal(shift_matrix(3, (0, 0)), torch.eye(9, dtype=torch.bool))
    down_right = shift_matrix(3, (1, 1))
    assert down_right[0, 4]
    assert down_right[4, 8]
    assert down_right.sum() == 4
    assert len(set(OFFSETS)) == 9


@pytest.mark.parametrize(("embed_dim", "num_heads"), [(192, 6), (192, 12)])
def test_heads_look_at_their_target(embed_dim: int, num_heads: int) -> None:
    model = vit(embed_dim=embed_dim, num_heads=num_heads)
    hf_paraminit.initialize(model, "impulse")
    positions = nn.functional.layer_norm(model.pos_embed[0, 1:], (embed_dim,)).detach()
    query, key, _ = model.blocks[0].attn.qkv.weight.detach().chunk(3)
    row, column = torch.arange(64) // 8, torch.arange(64) % 8
    interior = (row > 0) & (row < 7) & (column > 0) & (column < 7)
    head_dim = embed_dim // num_heads
    for head in range(num_heads):
        part = slice(head * head_dim, (head + 1) * head_dim)
        scores = positions @ query[part].mT @ (positions @ key[part].mT).mT / head_dim**0.5
        targets = shift_matrix(8, OFFSETS[head % 9]).float().argmax(1)
        assert (scores.argmax(1) == targets)[interior].float().mean() >= 0.9, head
        assert scores.softmax(1)[torch.arange(64), targets][interior].mean() > 5 / 64


def test_positions_are_eighteen_times_sines_and_cosines() -> None:
    model = vit(class_token=False, global_pool="avg")
    hf_paraminit.initialize(model, "impulse")
    torch.testing.assert_close(model.pos_embed[0], 18 * sincos_2d(8, 192))


def test_values_and_outputs_are_those_of_mimetic() -> None:
    model = vit()
    hf_paraminit.initialize(model, "impulse")
    product = model.blocks[1].attn.proj.weight @ model.blocks[1].attn.qkv.weight[384:]
    assert product.diag().mean().item() == pytest.approx(-0.4, abs=0.05)


def test_no_row_of_queries_or_keys_is_dead() -> None:
    model = vit()
    hf_paraminit.initialize(model, "impulse")
    assert model.blocks[0].attn.qkv.weight.norm(dim=1).min() > 0.01


def test_a_network_without_one_table_of_positions_is_left_alone_with_a_note() -> None:
    report = hf_paraminit.initialize(timm.create_model("test_maxvit"), "impulse")
    assert not report.predicted
    assert any("table of positions" in note for note in report.notes)
