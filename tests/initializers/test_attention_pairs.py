"""Output layers that start by undoing the values."""

import pytest
import timm
import torch

import hf_paraminit
from hf_paraminit import GHN
from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.initializers.attention_pairs import SHARE, oppose_values
from hf_paraminit.initializers.ghn3 import GHN3
from hf_paraminit.structure.model import ModelStructure

NAMES = ("blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight")


@pytest.fixture
def model() -> torch.nn.Module:
    return timm.create_model("test_vit", num_classes=10)


def drawn(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(model.get_parameter(name).shape, generator=generator) for name in NAMES}


def test_the_product_becomes_negative_on_its_diagonal(model: torch.nn.Module) -> None:
    values = drawn(model)
    before = {name: value.clone() for name, value in values.items()}
    assert oppose_values(ModelStructure(model).attentions, values) == 1
    qkv, out = (values[name] for name in NAMES)
    assert torch.equal(qkv, before[NAMES[0]])
    value = qkv[2 * len(qkv) // 3 :]
    cosine = torch.cosine_similarity(out.flatten(), value.T.flatten(), dim=0)
    assert cosine.item() == pytest.approx(-SHARE, abs=0.05)
    assert out.square().mean().item() == pytest.approx(before[NAMES[1]].square().mean().item(), rel=0.1)


def test_layers_of_which_a_part_is_missing_stay(model: torch.nn.Module) -> None:
    values = drawn(model)
    del values[NAMES[0]]
    before = values[NAMES[1]].clone()
    assert oppose_values(ModelStructure(model).attentions, values) == 0
    assert torch.equal(values[NAMES[1]], before)


def test_a_predictor_of_scales_links_its_attention(model: torch.nn.Module) -> None:
    config = GHNConfig(hidden_dim=16, num_layers=1, num_heads=2, max_shape=(8, 8, 3, 3), decodes="scales")
    hf_paraminit.initialize(model, GHN3(predictor=GHN.new(config, seed=0)), seed=0)
    for block in model.blocks:
        value = block.attn.qkv.weight.chunk(3)[2]
        cosine = torch.cosine_similarity(block.attn.proj.weight.flatten(), value.T.flatten(), dim=0)
        assert cosine.item() == pytest.approx(-SHARE, abs=0.1)


def test_a_model_met_before_is_linked_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its attention layers are remembered with its graph, so its forward pass is not traced again."""
    hf_paraminit.clear_cache()
    first = timm.create_model("test_vit", num_classes=10, init="ghn3")

    def refused(*arguments: object) -> None:
        raise AssertionError("traced again")

    monkeypatch.setattr("hf_paraminit.initializers.graph_hypernetwork.ModelStructure", refused)
    second = timm.create_model("test_vit", num_classes=10, init="ghn3")
    for name in NAMES:
        assert torch.equal(first.get_parameter(name), second.get_parameter(name))
