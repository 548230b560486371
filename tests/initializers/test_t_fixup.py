import math

import pytest
import timm
import torch
from transformers import BertConfig, BertModel

import hf_paraminit


@pytest.mark.parametrize(("kind", "factor"), [("encoder", 0.67 * 4**-0.25), ("decoder", 36**-0.25)])
def test_values_outputs_and_mlps_are_scaled_and_queries_and_keys_are_not(kind: str, factor: float) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=64, depth=4, num_heads=4)
    hf_paraminit.initialize(model, "t-fixup", kind=kind)
    bound = math.sqrt(6 / 128)
    query, key, value = model.blocks[2].attn.qkv.weight.chunk(3)
    assert query.abs().max().item() == pytest.approx(bound, rel=0.02)
    assert key.abs().max().item() == pytest.approx(bound, rel=0.02)
    assert value.abs().max().item() == pytest.approx(factor * bound, rel=0.02)
    assert model.blocks[2].attn.proj.weight.abs().max().item() == pytest.approx(factor * bound, rel=0.02)
    mlp = factor * math.sqrt(6 / (64 + 256))
    assert model.blocks[0].mlp.fc1.weight.abs().max().item() == pytest.approx(mlp, rel=0.02)
    assert model.blocks[0].mlp.fc2.weight.abs().max().item() == pytest.approx(mlp, rel=0.02)


def test_tables_of_a_language_model_shrink_with_depth() -> None:
    config = BertConfig(
        vocab_size=500, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    model = BertModel(config, add_pooling_layer=False)
    tokens = {"input_ids": torch.zeros(2, 6, dtype=torch.int64)}
    hf_paraminit.initialize(model, "t-fixup", example_inputs=tokens)
    expected = 32**-0.5 * 18**-0.25
    assert model.embeddings.word_embeddings.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_a_network_without_attention_is_left_alone() -> None:
    report = hf_paraminit.initialize(timm.create_model("test_resnet"), "t-fixup")
    assert not report.predicted
    assert any("no attention" in note for note in report.notes)
