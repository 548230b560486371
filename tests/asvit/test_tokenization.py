"""Progressive tokenisation: coarser grids from the same weights, and back."""

import pytest
import timm
import torch
from torch import nn

import hf_paraminit  # noqa: F401 (registers the models)
from hf_paraminit.asvit.errors import ScoreError
from hf_paraminit.asvit.tokenization import TokenizationSchedule, set_tokenization

TINY = "8,2,2|2,1,2|2,1,2|2,1,2|8,8"


def tiny(**kwargs) -> nn.Module:
    return timm.create_model("asvit", arch=TINY, img_size=64, num_classes=4, pos_embed=True, **kwargs).eval()


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


def test_refusals() -> None:
    with pytest.raises(ScoreError, match="needs an As-ViT, found Linear"):
        set_tokenization(nn.Linear(2, 2), 8)
    with pytest.raises(ScoreError, match="stride of at least 4"):
        set_tokenization(tiny(), 2)
    for epochs, levels in ((0, ((0.0, 4),)), (3, ()), (3, ((0.5, 4),)), (3, ((0.0, 8), (1.0, 4)))):
        with pytest.raises(ScoreError, match="A schedule needs"):
            TokenizationSchedule(epochs, levels)
