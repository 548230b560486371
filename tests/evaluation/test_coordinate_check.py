import timm
import torch
from torch import nn
from torch.optim import Adam, Optimizer

import hf_paraminit
from hf_paraminit.evaluation.coordinate_check import coordinate_check
from hf_paraminit.initializers.mup import parameter_groups

WIDTHS = (32, 64, 128, 256)


def vit(width: int) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=width,
        depth=2,
        num_heads=width // 8,
        num_classes=10,
    )


def with_mup(width: int) -> tuple[nn.Module, Optimizer]:
    model, base = vit(width), vit(WIDTHS[0])
    hf_paraminit.initialize(model, "mup", base=base)
    return model, Adam(parameter_groups(model, 1e-3, base))


def without(width: int) -> tuple[nn.Module, Optimizer]:
    model = vit(width)
    return model, Adam(model.parameters(), 1e-3)


def test_mup_keeps_scores_in_size_and_the_standard_parametrization_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(32, 3, 32, 32, generator=generator), torch.arange(32) % 10
    state = torch.get_rng_state()
    assert abs(coordinate_check(with_mup, WIDTHS, images, labels, steps=3)) < 0.1
    assert coordinate_check(without, WIDTHS, images, labels, steps=3) > 0.5
    assert torch.equal(torch.get_rng_state(), state)
