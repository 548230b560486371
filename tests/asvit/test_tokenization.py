"""Progressive tokenisation: coarser grids from the same weights, and back."""

import pytest
import timm
import torch
from torch import nn

import hf_paraminit  # noqa: F401 (registers the models)
from hf_paraminit.asvit.errors import ScoreError
from hf_paraminit.asvit.tokenization import PUBLISHED_SCHEDULE, TokenizationSchedule, set_tokenization

TINY = "8,2,2|2,1,2|2,1,2|2,1,2|8,8"


def tiny(**kwargs) -> nn.Module:
    return timm.create_model("asvit", arch=TINY, img_size=64, num_classes=4, pos_embed=True, **kwargs).eval()


def plain(name: str = "vit_tiny_patch16_224", **kwargs) -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 4, **kwargs}
    return timm.create_model(name, **sizes).eval()


@pytest.mark.parametrize(("stride", "dilation", "side"), [(16, 2, 4), (8, 1, 8), (4, 1, 16)])
def test_coarser_grids_from_the_same_weights(stride: int, dilation: int, side: int) -> None:
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        own = model(images)
        set_tokenization(model, stride)
        assert model.patch_embed.proj.dilation == (dilation, dilation)  # the published rule for a kernel of 8
        assert model.patch_embed(images).shape == (2, side, side, 8)
        assert model(images).shape == (2, 4)
        set_tokenization(model)
        assert torch.equal(model(images), own)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_every_parameter_learns_at_the_coarsest_level() -> None:
    model = tiny().train()
    set_tokenization(model, 16)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_epoch_alone_decides() -> None:
    schedule = TokenizationSchedule(epochs=300)
    strides = [schedule.stride_at(epoch) for epoch in range(300)]
    assert [strides.count(stride) for stride in (16, 8, 4)] == [80, 52, 168]
    assert strides == sorted(strides, reverse=True)
    model = tiny()
    schedule.step(model, 100)
    assert model.patch_embed.proj.stride == (8, 8)
    schedule.finish(model)
    assert model.patch_embed.proj.stride == (4, 4)


def test_costs_are_counted_and_the_model_is_put_back() -> None:
    model = tiny()
    schedule = TokenizationSchedule(epochs=10, levels=((0.0, 16), (0.5, 4)))
    counts = schedule.macs(model, 64)
    assert counts[16] < 0.25 * counts[4]
    assert schedule.relative_cost(model, 64) == pytest.approx((1 + counts[16] / counts[4]) / 2)
    assert model.patch_embed.proj.stride == (4, 4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg", "pos_embed": "none"}),
        ("vit_tiny_patch16_224", {"reg_tokens": 2, "no_embed_class": True}),
        ("deit_tiny_distilled_patch16_224", {}),
    ],
)
def test_plain_vision_transformers_and_back(name: str, settings: dict) -> None:
    model = plain(name, **settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(2, 3, 32, 32)
    own, own_patches = model(images), model.patch_embed(images)
    for stride, dilation in ((16, 5), (8, 2)):
        set_tokenization(model, stride)
        assert model.patch_embed.proj.dilation == (dilation, dilation)
        assert model.patch_embed(images).shape == (2, 32 // stride, 32 // stride, 24)
        assert model(images).shape == (2, 4)
    set_tokenization(model)
    assert torch.equal(model(images), own)
    assert torch.equal(model.patch_embed(images), own_patches)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.patch_embed.strict_img_size is not settings.get("dynamic_img_size", False)
    assert model.dynamic_img_size is settings.get("dynamic_img_size", False)


def test_coarse_patches_read_spread_pixels() -> None:
    """A kernel of 4 at stride 8 sees the pixels 0, 2, 4 and 6 of its patch, and no padding where patches fit."""
    model = plain()
    set_tokenization(model, 8)
    images = torch.randn(1, 3, 32, 32)
    weight, bias = model.patch_embed.proj.weight, model.patch_embed.proj.bias
    expected = torch.einsum("ocij,cij->o", weight, images[0, :, 8:16:2, 16:24:2]) + bias
    torch.testing.assert_close(model.patch_embed(images)[0, 1, 2], expected)


def test_grids_that_do_not_divide_are_padded() -> None:
    model = plain(img_size=28, patch_size=4)
    for stride, side in ((16, 2), (8, 4), (12, 3)):
        set_tokenization(model, stride)
        assert model.patch_embed(torch.randn(1, 3, 28, 28)).shape[1:3] == (side, side)
    set_tokenization(model)
    assert model.patch_embed(torch.randn(1, 3, 28, 28)).shape[1:] == (49, 24)


def test_every_parameter_of_a_plain_transformer_learns_at_the_coarsest_level() -> None:
    model = plain().train()
    set_tokenization(model, 16)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.pos_embed.shape == (1, 65, 24)


def test_the_published_schedule_scales_with_the_patches() -> None:
    assert TokenizationSchedule.published(tiny(), 300).levels == PUBLISHED_SCHEDULE
    schedule = TokenizationSchedule.published(plain(patch_size=8), 300)
    assert [stride for _, stride in schedule.levels] == [32, 16, 8]
    wrapped = nn.Sequential(nn.Identity(), plain(patch_size=8))
    schedule.step(wrapped, 0)
    assert wrapped[1].patch_embed.proj.stride == (32, 32)


def test_the_description_counts_what_the_model_computes() -> None:
    """Stride 8 leaves a quarter of the patches, and a class token: products by hand."""
    model = plain()
    counts = TokenizationSchedule(2, ((0.0, 8), (0.5, 4))).macs(model)
    for stride, patches in ((8, 16), (4, 64)):
        tokens = patches + 1
        block = tokens * 12 * 24**2 + 2 * tokens**2 * 24
        assert counts[stride] == patches * 48 * 24 + 2 * block + 24 * 4
    share = counts[8] / counts[4]
    text = TokenizationSchedule(2, ((0.0, 8), (0.5, 4))).describe(model)
    assert f"stride 8 for 1 epochs ({counts[8] / 1e6:.4g} MMACs an image, {share:.1%}" in text
    assert text.endswith(f"together {(1 + share) / 2:.1%}")


def test_counting_keeps_the_mode() -> None:
    model = plain().train()
    TokenizationSchedule.published(model, 3).macs(model)
    assert model.training


def test_refusals() -> None:
    with pytest.raises(ScoreError, match="needs an As-ViT or a VisionTransformer of timm, found Linear"):
        set_tokenization(nn.Linear(2, 2), 8)
    with pytest.raises(ScoreError, match="stride of at least 4"):
        set_tokenization(tiny(), 2)
    with pytest.raises(ScoreError, match="stride of at least 8"):
        set_tokenization(plain(patch_size=8), 4)
    headless = plain()
    headless.patch_embed = nn.Identity()
    with pytest.raises(ScoreError, match="patches are made by Identity"):
        set_tokenization(headless, 8)
    with pytest.raises(ScoreError, match=r"square patches, found \(4, 8\)"):
        set_tokenization(plain(patch_size=(4, 8)), 8)
    for epochs, levels in ((0, ((0.0, 4),)), (3, ()), (3, ((0.5, 4),)), (3, ((0.0, 8), (1.0, 4)))):
        with pytest.raises(ScoreError, match="A schedule needs"):
            TokenizationSchedule(epochs, levels)
