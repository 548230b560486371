from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM, ViTConfig, ViTModel

import hf_paraminit
from hf_paraminit.errors import InitializerConfigError, PredictionError
from hf_paraminit.lets.ligo import LiGO

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "lets" / "ligo_operators.safetensors")
TOLERANCE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-6}


def vit(embed_dim: int, depth: int, num_classes: int = 5, **settings: Any) -> nn.Module:
    torch.manual_seed(embed_dim + depth)
    sizes = {"img_size": 32, "patch_size": 8, "num_heads": embed_dim // 16, **settings}
    return timm.create_model("vit_tiny_patch16_224", embed_dim=embed_dim, depth=depth, num_classes=num_classes, **sizes)


def layers(values: Tensor, name: str) -> dict[str, Tensor]:
    return {f"blocks.{layer}.{name}": values[..., layer] for layer in range(values.shape[-1])}


def set_parameters(growth: LiGO, rows: dict[str, Tensor], mixes: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in rows.items():
            growth.rows[name].copy_(value)
        for name, value in mixes.items():
            growth.mixes[name].copy_(value)


def test_a_linear_layer_grows_as_recorded() -> None:
    small = {
        **layers(GOLDEN["source.lin_weight"], "mlp.fc1.weight"),
        **layers(GOLDEN["source.lin_bias"], "mlp.fc1.bias"),
    }
    growth = LiGO(small, {"blocks.0.mlp.fc1.weight": (20, 16), "blocks.0.mlp.fc1.bias": (20,)})
    set_parameters(
        growth,
        {"0/ffn": GOLDEN["F_out"], "emb": GOLDEN["F_in"]},
        {"blocks/0/mlp/fc1/weight": GOLDEN["g_weight"], "blocks/0/mlp/fc1/bias": GOLDEN["g_bias"]},
    )
    grown = growth.materialize()
    torch.testing.assert_close(grown["blocks.0.mlp.fc1.weight"], GOLDEN["out.lin_weight"], **TOLERANCE)
    torch.testing.assert_close(grown["blocks.0.mlp.fc1.bias"], GOLDEN["out.lin_bias"], **TOLERANCE)


def test_norms_and_embeddings_grow_as_recorded() -> None:
    small = {
        **layers(GOLDEN["source.ln_weight"], "norm1.weight"),
        **layers(GOLDEN["source.ln_bias"], "norm1.bias"),
        "word_embeddings.weight": GOLDEN["source.emb_weight"],
    }
    shapes = {"blocks.0.norm1.weight": (20,), "blocks.0.norm1.bias": (20,), "word_embeddings.weight": (9, 20)}
    growth = LiGO(small, shapes)
    set_parameters(
        growth,
        {"emb": GOLDEN["F_out"]},
        {"blocks/0/norm1/weight": GOLDEN["g_weight"], "blocks/0/norm1/bias": GOLDEN["g_bias"]},
    )
    grown = growth.materialize()
    for name, recorded in (
        ("blocks.0.norm1.weight", "ln_weight"),
        ("blocks.0.norm1.bias", "ln_bias"),
        ("word_embeddings.weight", "emb_weight"),
    ):
        torch.testing.assert_close(grown[name], GOLDEN[f"out.{recorded}"], **TOLERANCE)


def test_copying_starts_preserve_a_stack_of_the_same_width() -> None:
    donor, target = vit(32, 2), vit(32, 4)
    hf_paraminit.initialize(target, "ligo", donor=donor, steps=0, depth_init="interlace")
    assert torch.equal(target.blocks[3].attn.qkv.weight, donor.blocks[1].attn.qkv.weight)
    assert torch.equal(target.head.weight, donor.head.weight)
    hf_paraminit.initialize(target, "ligo", donor=donor, steps=0, depth_init="stackbert")
    assert torch.equal(target.blocks[3].mlp.fc2.weight, donor.blocks[1].mlp.fc2.weight)
    assert torch.equal(target.blocks[2].norm1.bias, donor.blocks[0].norm1.bias)


def test_old_channels_come_first_in_each_part_of_fused_layers() -> None:
    donor, target = vit(32, 1), vit(64, 1)
    report = hf_paraminit.initialize(target, "ligo", donor=donor, steps=0)
    assert report.coverage_tensors == 1
    for new, old in zip(
        target.blocks[0].attn.qkv.weight.chunk(3), donor.blocks[0].attn.qkv.weight.chunk(3), strict=True
    ):
        torch.testing.assert_close(new[:32, :32], old)
    torch.testing.assert_close(target.pos_embed[..., :32], donor.pos_embed)


def test_values_are_tied_to_the_inputs_of_the_projection() -> None:
    """So doubling one added value channel's row of F doubles what goes in and what is read out."""
    small = {name: p.detach() for name, p in vit(32, 1).named_parameters()}
    shapes = {name: tuple(p.shape) for name, p in vit(48, 1).named_parameters()}
    growth = LiGO(small, shapes)
    before = growth.materialize()
    with torch.no_grad():
        growth.rows["0/v"][3] *= 2
    after = growth.materialize()
    values = slice(96, 144)  # rows of the values in the fused layer
    assert torch.allclose(
        after["blocks.0.attn.qkv.weight"][values][35], 2 * before["blocks.0.attn.qkv.weight"][values][35]
    )
    assert torch.allclose(after["blocks.0.attn.proj.weight"][:, 35], 2 * before["blocks.0.attn.proj.weight"][:, 35])


def test_learning_lowers_the_loss_and_is_repeatable() -> None:
    donor = vit(32, 2)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8) % 5

    def loss(steps: int) -> float:
        target = vit(48, 3)
        settings = {"donor": donor, "steps": steps, "batches": lambda step: (images, labels), "learning_rate": 5e-3}
        hf_paraminit.initialize(target, "ligo", **settings)
        return nn.functional.cross_entropy(target.eval()(images), labels).item()

    learned = loss(8)
    assert learned < loss(0)
    assert learned == loss(8)


def test_generated_images_teach_under_a_classifier_of_their_own() -> None:
    donor, target = vit(32, 1), vit(48, 2, num_classes=7)
    head = target.head.weight.clone()
    report = hf_paraminit.initialize(target, "ligo", donor=donor, steps=2, batch_size=4)
    assert torch.equal(target.head.weight, head)
    assert "only widths are grown" in report.kept["head.weight"]
    assert any("loss on the last batch" in note for note in report.notes)


@pytest.mark.parametrize(("config", "network"), [(BertConfig, BertForMaskedLM), (RobertaConfig, RobertaForMaskedLM)])
def test_language_models_grow_with_all_their_tensors(config: Any, network: Any) -> None:
    def built(dim: int, num_layers: int) -> nn.Module:
        torch.manual_seed(dim)
        sizes = {"vocab_size": 50, "max_position_embeddings": 20, "num_attention_heads": dim // 8}
        return network(
            config(hidden_size=dim, intermediate_size=2 * dim, num_hidden_layers=num_layers, pad_token_id=1, **sizes)
        )

    donor, target = built(16, 2), built(32, 4)
    tokens = torch.randint(2, 50, (3, 8), generator=torch.Generator().manual_seed(0))

    def batches(step: int) -> dict[str, Tensor]:
        return {"input_ids": tokens, "labels": tokens}

    report = hf_paraminit.initialize(target, "ligo", donor=donor, steps=2, batches=batches)
    assert report.coverage_tensors == 1, report.kept
    name = next(name for name, _ in target.named_parameters() if name.endswith("word_embeddings.weight"))
    assert torch.equal(target.get_parameter(name)[:, :16], donor.get_parameter(name))
    assert target(input_ids=tokens).logits.isfinite().all()


def test_vit_of_transformers_grows() -> None:
    def built(dim: int, num_layers: int) -> ViTModel:
        sizes = {"image_size": 16, "patch_size": 8, "num_attention_heads": dim // 8, "intermediate_size": 2 * dim}
        return ViTModel(ViTConfig(hidden_size=dim, num_hidden_layers=num_layers, **sizes))

    report = hf_paraminit.initialize(built(32, 3), "ligo", donor=built(16, 2), steps=0)
    assert set(report.kept) == set(), report.kept


def test_what_cannot_grow_is_refused_and_nothing_changes() -> None:
    target = vit(32, 2)
    before = [parameter.clone() for parameter in target.parameters()]
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"donor": vit(48, 2)}, PredictionError, "smaller than the donor"),
        ({"donor": vit(16, 1), "steps": -1}, InitializerConfigError, "steps >= 0"),
        ({"donor": vit(16, 1), "batches": 3}, InitializerConfigError, "must be a function"),
        ({}, InitializerConfigError, "a donor is needed"),
        ({"donor": timm.create_model("test_resnet"), "strict": True}, PredictionError, "none of the offered"),
    ]
    for settings, error, message in cases:
        with pytest.raises(error, match=message):
            hf_paraminit.initialize(target, "ligo", **settings)
    with pytest.raises(InitializerConfigError, match="more than twice as many"):
        hf_paraminit.initialize(vit(32, 3), "ligo", donor=vit(16, 1), depth_init="interlace", steps=0)
    nan = (torch.full((2, 3, 32, 32), torch.nan), torch.tensor([0, 1]))
    with pytest.raises(PredictionError, match="diverged"):
        hf_paraminit.initialize(target, "ligo", donor=vit(16, 1), batches=lambda step: nan)
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), before, strict=True))
