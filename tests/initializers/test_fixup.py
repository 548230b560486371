import math

import pytest
import torch
from torch import Tensor, nn

import hf_paraminit


class Block(nn.Module):
    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(32, 32, 3, padding=1) for _ in range(num_layers)])

    def forward(self, images: Tensor) -> Tensor:
        features = images
        for conv in self.convs:
            features = conv(features.relu())
        return images + features


def network(num_blocks: int, num_layers: int = 2) -> nn.Sequential:
    blocks = [Block(num_layers) for _ in range(num_blocks)]
    return nn.Sequential(nn.Conv2d(3, 32, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


@pytest.mark.parametrize(("num_blocks", "num_layers"), [(4, 2), (9, 3)])
def test_inner_layers_shrink_with_the_number_of_branches_and_last_ones_are_zero(
    num_blocks: int, num_layers: int
) -> None:
    model = network(num_blocks, num_layers)
    hf_paraminit.initialize(model, "fixup", input_size=8)
    he = math.sqrt(2 / (32 * 9))
    for block in model[1 : num_blocks + 1]:
        *inner, last = block.convs
        assert not last.weight.any()
        for conv in inner:
            factor = num_blocks ** (-1 / (2 * num_layers - 2))
            assert conv.weight.std().item() == pytest.approx(he * factor, rel=0.05)
    assert not model[-1].weight.any()
    assert not model[-1].bias.any()
    assert model[0].weight.std().item() == pytest.approx(he, rel=0.1)


def test_the_network_starts_as_its_stem_alone_at_any_depth() -> None:
    shallow, deep, images = network(2), network(30), torch.randn(2, 3, 8, 8)
    for model in (shallow, deep):
        hf_paraminit.initialize(model, "fixup", input_size=8)
        stem, end = model[0](images), model[:-3](images)
        assert torch.equal(stem, end)


def test_the_report_states_the_deviation_and_unsuitable_norms() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    notes = hf_paraminit.initialize(model, "fixup", input_size=8).notes
    assert any("deviation" in note for note in notes)
    assert any("norm layers" in note for note in notes)
