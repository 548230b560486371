import pytest
import timm
import torch
from torch import Tensor, nn

import hf_paraminit


def scaled(model: nn.Module, **settings: str) -> dict[str, Tensor]:
    """Factor by which each written weight changed."""
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    report = hf_paraminit.initialize(model, "depth-scaled", **settings)
    return {name: (model.get_parameter(name) / before[name]).detach() for name in report.predicted}


def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=4)


def test_gpt2_divides_all_residual_outputs_by_the_root_of_their_number() -> None:
    factors = scaled(vit())
    assert set(factors) == {f"blocks.{block}.{end}.weight" for block in range(4) for end in ("attn.proj", "mlp.fc2")}
    for factor in factors.values():
        torch.testing.assert_close(factor, torch.full_like(factor, 8**-0.5))


def test_beit_divides_by_the_depth_of_the_layer() -> None:
    factors = scaled(vit(), rule="beit")
    for block in range(4):
        for end in ("attn.proj", "mlp.fc2"):
            factor = factors[f"blocks.{block}.{end}.weight"]
            torch.testing.assert_close(factor, torch.full_like(factor, (2 * (block + 1)) ** -0.5))


def test_deepnorm_scales_values_outputs_and_mlps() -> None:
    factors = scaled(vit(), rule="deepnorm")
    assert len(factors) == 16
    query_key, value = factors["blocks.1.attn.qkv.weight"].split([64, 32])
    torch.testing.assert_close(query_key, torch.ones(64, 32))
    torch.testing.assert_close(value, torch.full((32, 32), 32**-0.25))
    fc1 = factors["blocks.1.mlp.fc1.weight"]
    torch.testing.assert_close(fc1, torch.full_like(fc1, 32**-0.25))


def test_deepnorm_reports_the_factor_it_does_not_write() -> None:
    report = hf_paraminit.initialize(vit(), "depth-scaled", rule="deepnorm")
    assert any("1.68" in note for note in report.notes)  # (2 * 4)^(1/4)


def test_residual_networks_count_blocks() -> None:
    factors = scaled(timm.create_model("resnet18", zero_init_last=False), rule="beit")
    assert factors["layer4.1.conv2.weight"].flatten()[0].item() == pytest.approx(16**-0.5)


def test_it_is_relative_so_a_host_that_skips_draws_draws_them_after_all() -> None:
    torch.manual_seed(0)
    plain = timm.create_model("vit_tiny_patch16_224")
    torch.manual_seed(0)
    scaled_model = timm.create_model("vit_tiny_patch16_224", init="depth-scaled")
    torch.testing.assert_close(scaled_model.blocks[0].mlp.fc2.weight, plain.blocks[0].mlp.fc2.weight * 24**-0.5)
