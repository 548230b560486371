from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model, ViTConfig, ViTModel

import hf_paraminit
from hf_paraminit.initializers.mimetic import Mimetic, factored
from hf_paraminit.initializers.sincos import sincos_2d
from hf_paraminit.structure.model import ModelStructure


def vit(**settings: Any) -> nn.Module:
    small = {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 2, "num_heads": 4}
    return timm.create_model("vit_tiny_patch16_224", **{**small, **settings})


def best_approximation(product: Tensor, rank: int) -> Tensor:
    u, s, vt = torch.linalg.svd(product)
    return u[:, :rank] * s[:rank] @ vt[:rank]


@pytest.mark.parametrize("rank", [8, 32])
def test_factors_are_balanced_and_multiply_to_the_best_approximation(rank: int) -> None:
    product = 0.7 * torch.randn(32, 32) / 32**0.5 + 0.7 * torch.eye(32)
    left, right = factored(product, rank)
    assert (left @ right - best_approximation(product, rank)).norm() < 1e-4 * product.norm()
    torch.testing.assert_close(left.mT @ left, right @ right.mT, atol=1e-4, rtol=0)


def test_query_key_products_are_a_noisy_identity_of_the_heads_rank() -> None:
    model = vit()
    initializer = Mimetic()
    initializer.apply(model)
    query, key, _ = model.blocks[1].attn.qkv.weight.detach().chunk(3)
    for head in range(4):
        rows = slice(32 * head, 32 * head + 32)
        noise = initializer.normal((128, 128), "blocks.1.attn.qkv.weight", "query-key", str(head))
        product = 0.7 * noise / 128**0.5 + 0.7 * torch.eye(128)
        difference = query[rows].mT @ key[rows] - best_approximation(product, 32)
        assert difference.norm() < 1e-4 * product.norm()


def test_output_value_product_is_close_to_minus_identity() -> None:
    model = vit()
    hf_paraminit.initialize(model, "mimetic")
    product = (model.blocks[0].attn.proj.weight @ model.blocks[0].attn.qkv.weight[256:]).detach()
    assert product.diag().mean().item() == pytest.approx(-0.4, abs=0.05)
    assert (product - product.diag().diag()).std().item() == pytest.approx(0.4 / 128**0.5, rel=0.05)


def test_qkv_biases_are_zero_and_everything_else_is_kept() -> None:
    model = vit()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    report = hf_paraminit.initialize(model, "mimetic")
    assert not model.blocks[0].attn.qkv.bias.any()
    assert {name.rpartition(".attn.")[2] for name in report.predicted} == {
        "qkv.weight", "qkv.bias", "proj.weight", "pos_embed"
    }  # fmt: skip
    assert torch.equal(model.blocks[0].mlp.fc1.weight, before["blocks.0.mlp.fc1.weight"])


def test_positions_are_sines_and_cosines_and_the_class_token_row_is_kept() -> None:
    model = vit()
    row = model.pos_embed[0, 0].clone()
    hf_paraminit.initialize(model, "mimetic")
    assert torch.equal(model.pos_embed[0, 0], row)
    assert torch.equal(model.pos_embed[0, 1:], sincos_2d(8, 128))
    kept = vit()
    report = hf_paraminit.initialize(kept, "mimetic", pos=False)
    assert "pos_embed" in report.kept
    assert not torch.equal(kept.pos_embed[0, 1:], sincos_2d(8, 128))


def test_the_class_token_row_is_drawn_also_where_the_host_skips_draws() -> None:
    row = timm.create_model("test_vit", init="mimetic").pos_embed[0, 0]
    assert row.std().item() == pytest.approx(0.02, rel=0.4)


def test_sines_and_cosines_tell_rows_from_columns() -> None:
    table = sincos_2d(4, 16)
    assert table.shape == (16, 16)
    assert torch.equal(table[0], torch.tensor([0.0] * 4 + [1.0] * 4).repeat(2))
    assert torch.equal(table[1, 8:], table[0, 8:])
    assert not torch.equal(table[1, :8], table[0, :8])
    assert torch.equal(table[4, :8], table[0, :8])
    assert not torch.equal(table[4, 8:], table[0, 8:])


def test_separate_and_fused_projections_get_the_same_pattern() -> None:
    model = ViTModel(
        ViTConfig(
            image_size=32,
            patch_size=8,
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=64,
        ),
        add_pooling_layer=False,
    )
    report = hf_paraminit.initialize(model, "mimetic")
    (attention,) = ModelStructure(model).attentions
    query, key = (model.get_parameter(part.layer.name).detach() for part in (attention.query, attention.key))
    assert attention.query.layer.name in report.predicted
    products = [query[16 * head :][:16].mT @ key[16 * head :][:16] for head in range(4)]
    assert all(product.diag().mean() > 0.15 for product in products)


class GroupedQueries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 16), nn.Linear(32, 32)
        self.embed = nn.Conv2d(3, 32, 4, 4)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).mT
        query, key, value = (layer(tokens).unflatten(-1, (-1, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        return (tokens + self.out(mixed.transpose(1, 2).flatten(2))).mean(1)


def test_queries_that_share_a_key_head_differ_and_fit_it() -> None:
    model = GroupedQueries()
    hf_paraminit.initialize(model, "mimetic", input_size=16)
    queries, keys = model.q.weight.detach().view(4, 8, 32), model.k.weight.detach().view(2, 8, 32)
    assert not torch.allclose(queries[0], queries[1])
    for head in range(4):
        assert (queries[head].mT @ keys[head // 2]).diag().mean() > 0.08


def test_signs_rise_over_depth_where_asked() -> None:
    model = vit(depth=3)
    hf_paraminit.initialize(model, "mimetic", value_sign="rising")
    diagonals = [(block.attn.proj.weight @ block.attn.qkv.weight[256:]).diag().mean().item() for block in model.blocks]
    assert diagonals == pytest.approx([-0.4, 0.0, 0.4], abs=0.05)


def test_transposed_layers_of_gpt2() -> None:
    model = GPT2Model(GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2))
    tokens = {"input_ids": torch.zeros(2, 6, dtype=torch.int64)}
    hf_paraminit.initialize(model, "mimetic", example_inputs=tokens)
    fused, output = model.h[0].attn.c_attn.weight.detach(), model.h[0].attn.c_proj.weight.detach()
    assert (fused[:, 64:] @ output).diag().mean().item() == pytest.approx(-0.4, abs=0.1)


def test_strict_refuses_a_network_without_attention() -> None:
    with pytest.raises(hf_paraminit.PredictionError, match="mimetic applies to none"):
        hf_paraminit.initialize(timm.create_model("test_resnet"), "mimetic", strict=True)
