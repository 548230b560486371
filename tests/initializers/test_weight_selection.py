from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import hf_paraminit
from hf_paraminit.errors import InitializerConfigError, ParamInitError, PredictorNotFoundError


def vit(embed_dim: int, depth: int, num_heads: int = 4) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=embed_dim, depth=depth, num_heads=num_heads,
        num_classes=5,
    )  # fmt: skip


def test_the_first_layers_give_every_nth_channel() -> None:
    donor, target = vit(128, 4), vit(64, 2)
    hf_paraminit.initialize(target, "weight-selection", donor=donor)
    assert torch.equal(target.blocks[1].mlp.fc1.weight, donor.blocks[1].mlp.fc1.weight[::2, ::2])
    assert torch.equal(target.norm.weight, donor.norm.weight[::2])
    assert torch.equal(target.pos_embed, donor.pos_embed[..., ::2])
    assert torch.equal(target.patch_embed.proj.weight, donor.patch_embed.proj.weight[::2])


def test_fused_projections_are_cut_block_by_block() -> None:
    donor, target = vit(96, 2), vit(64, 1)
    hf_paraminit.initialize(target, "weight-selection", donor=donor)
    places = torch.linspace(0, 95, 64, dtype=torch.float64).round().long()
    for ours, theirs in zip(
        target.blocks[0].attn.qkv.weight.chunk(3), donor.blocks[0].attn.qkv.weight.chunk(3), strict=True
    ):
        assert torch.equal(ours, theirs[places][:, places])
    theirs = donor.blocks[0].attn.qkv.bias.chunk(3)
    assert torch.equal(target.blocks[0].attn.qkv.bias, torch.cat([part[places] for part in theirs]))


def test_parity_cuts_fused_projections_as_one() -> None:
    donor, target = vit(96, 2), vit(64, 1)
    hf_paraminit.initialize(target, "weight-selection", donor=donor, parity=True)
    rows = torch.linspace(0, 3 * 96 - 1, 3 * 64).round().long()
    columns = torch.linspace(0, 95, 64).round().long()
    assert torch.equal(target.blocks[0].attn.qkv.weight, donor.blocks[0].attn.qkv.weight[rows][:, columns])
    with pytest.raises(InitializerConfigError, match="does not go with heads='whole'"):
        hf_paraminit.initialize(target, "weight-selection", donor=donor, parity=True, heads="whole")


def test_whole_heads_can_be_kept() -> None:
    donor, target = vit(128, 1, num_heads=8), vit(64, 1, num_heads=4)  # heads of 16 channels
    hf_paraminit.initialize(target, "weight-selection", donor=donor, heads="whole")
    query = donor.blocks[0].attn.qkv.weight[:128].unflatten(0, (8, 16))[::2, :, ::2].flatten(0, 1)
    assert torch.equal(target.blocks[0].attn.qkv.weight[:64], query)
    output = donor.blocks[0].attn.proj.weight[::2].unflatten(1, (8, 16))[:, ::2].flatten(1)
    assert torch.equal(target.blocks[0].attn.proj.weight, output)


def test_the_same_places_within_all_heads_can_be_kept() -> None:
    donor, target = vit(128, 1), vit(32, 1)  # heads of 32 and 8 channels
    hf_paraminit.initialize(target, "weight-selection", donor=donor, heads="within")
    query = donor.blocks[0].attn.qkv.weight[:128].unflatten(0, (4, 32))[:, ::4, ::4].flatten(0, 1)
    assert torch.equal(target.blocks[0].attn.qkv.weight[:32], query)


def test_stages_of_a_convnext_give_their_first_blocks() -> None:
    settings: dict[str, Any] = {"num_classes": 3, "pretrained": False}
    donor = timm.create_model("convnext_atto", depths=(2, 2, 3, 2), dims=(16, 32, 48, 64), **settings)
    target = timm.create_model("convnext_atto", depths=(1, 2, 1, 1), dims=(8, 16, 24, 32), **settings)
    report = hf_paraminit.initialize(target, "weight-selection", donor=donor)
    ours, theirs = target.stages[2].blocks[0].conv_dw.weight, donor.stages[2].blocks[0].conv_dw.weight
    assert torch.equal(ours, theirs[::2])
    assert set(report.kept) == {"head.fc.weight", "head.fc.bias"}


def test_a_donor_of_the_same_size_is_copied_except_its_classifier() -> None:
    donor, target = vit(64, 2), vit(64, 2)
    report = hf_paraminit.initialize(target, "weight-selection", donor=donor)
    assert report.kept["head.weight"] == "the classifier keeps the model's own start"
    for name in report.predicted:
        assert torch.equal(target.get_parameter(name), donor.get_parameter(name)), name


def test_smaller_donors_are_enlarged_and_missing_layers_reported() -> None:
    donor, target = vit(32, 1), vit(64, 2)
    report = hf_paraminit.initialize(target, "weight-selection", donor=donor)
    assert "enlarged from (96, 32)" in report.predicted["blocks.0.attn.qkv.weight"]
    assert "front also adds layers" in report.kept["blocks.1.norm1.weight"]


def test_donors_come_from_modules_state_dicts_files_and_folders(tmp_path: Path) -> None:
    donor = vit(128, 2)
    save_file(donor.state_dict(), tmp_path / "model.safetensors")
    sources = (donor, donor.state_dict(), str(tmp_path), f"local-dir:{tmp_path}", str(tmp_path / "model.safetensors"))
    for source in sources:
        target = vit(64, 1)
        hf_paraminit.initialize(target, "weight-selection", donor=source)
        assert torch.equal(target.norm.weight, donor.norm.weight[::2])
        assert torch.equal(target.blocks[0].norm1.bias, donor.blocks[0].norm1.bias[::2])


@pytest.mark.parametrize(
    ("donor", "error", "message"),
    [
        (None, InitializerConfigError, "a donor is needed"),
        (3, InitializerConfigError, "found a int"),
        ({}, InitializerConfigError, "no floating-point tensors"),
        ("/no/such/folder", PredictorNotFoundError, "no donor at"),
    ],
)
def test_bad_donors_are_refused_and_nothing_changes(donor: Any, error: type[ParamInitError], message: str) -> None:
    target = vit(32, 1)
    before = [parameter.clone() for parameter in target.parameters()]
    with pytest.raises(error, match=message):
        hf_paraminit.initialize(target, "weight-selection", donor=donor)
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), before, strict=True))
