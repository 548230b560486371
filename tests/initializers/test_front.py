import pytest
import timm
import torch
from torch import nn

import hf_paraminit
from hf_paraminit.resizing.spectrum import resized_spectrum


def vit(embed_dim: int, depth: int) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=embed_dim, depth=depth, num_heads=4, num_classes=5
    )


def test_the_same_size_gives_the_donor_back() -> None:
    donor, target = vit(32, 2), vit(32, 2)
    report = hf_paraminit.initialize(target, "front", donor=donor)
    assert set(report.kept) == {"head.weight", "head.bias"}
    for name in report.predicted:
        torch.testing.assert_close(target.get_parameter(name), donor.get_parameter(name), atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize(("embed_dim", "depth"), [(16, 2), (48, 5)])
def test_components_are_resized_as_stacks_over_layers(embed_dim: int, depth: int) -> None:
    donor, target = vit(32, 3), vit(embed_dim, depth)
    hf_paraminit.initialize(target, "front", donor=donor)
    stack = torch.stack([block.mlp.fc1.weight.detach() for block in donor.blocks])
    expected = resized_spectrum(stack, (depth, 4 * embed_dim, embed_dim))
    for block, weight in zip(target.blocks, expected, strict=True):
        torch.testing.assert_close(block.mlp.fc1.weight, weight)


def test_norms_of_one_stay_one() -> None:
    donor, target = vit(32, 2), vit(48, 4)
    hf_paraminit.initialize(target, "front", donor=donor)
    torch.testing.assert_close(target.blocks[3].norm1.weight, torch.ones(48))


def test_fused_projections_are_resized_part_by_part() -> None:
    donor, target = vit(32, 2), vit(16, 2)
    hf_paraminit.initialize(target, "front", donor=donor)
    keys = torch.stack([block.attn.qkv.weight.detach()[32:64] for block in donor.blocks])
    torch.testing.assert_close(target.blocks[1].attn.qkv.weight[16:32], resized_spectrum(keys, (2, 16, 16))[1])


def test_larger_and_back_again_is_the_identity() -> None:
    small, large, again = vit(16, 2), vit(32, 3), vit(16, 2)
    hf_paraminit.initialize(large, "front", donor=small)
    hf_paraminit.initialize(again, "front", donor=large)
    torch.testing.assert_close(again.blocks[1].attn.proj.weight, small.blocks[1].attn.proj.weight, atol=1e-5, rtol=0)


def test_layers_of_different_shapes_are_resized_one_by_one() -> None:
    donor, target = timm.create_model("resnet18"), timm.create_model("resnet18")
    report = hf_paraminit.initialize(target, "front", donor=donor)
    assert set(report.kept) == {"fc.weight", "fc.bias"}
    torch.testing.assert_close(target.layer4[0].conv1.weight, donor.layer4[0].conv1.weight, atol=1e-5, rtol=0)


def test_components_that_the_donor_lacks_are_kept() -> None:
    donor = timm.create_model("test_resnet")
    report = hf_paraminit.initialize(vit(16, 1), "front", donor=donor)
    assert not report.predicted
    assert "no such component" in report.kept["norm.weight"]
