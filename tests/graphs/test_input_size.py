"""What models say about the size of their images, in the ways that hosts and users write it."""

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hf_paraminit.graphs.input_size import resolve_input_size


def model_with(**attributes: Any) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


@pytest.mark.parametrize("image_size", [48, (48, 48), [48, 48], (3, 48, 48), {"height": 48, "width": 48}])
def test_sizes_in_a_config(image_size: Any) -> None:
    model = model_with(config=SimpleNamespace(image_size=image_size, num_channels=3))
    assert resolve_input_size(model) == (3, 48, 48)


@pytest.mark.parametrize("image_size", ["48", {"shortest_edge": 48}, (48,), -48, (48, None), None, 48.5])
def test_what_cannot_be_understood_is_passed_over(image_size: Any) -> None:
    model = model_with(config=SimpleNamespace(image_size=image_size, num_channels="three"), in_chans="3")
    assert resolve_input_size(model) == (3, 224, 224)


@pytest.mark.parametrize("attributes", [{"_traits": 3}, {"pretrained_cfg": "x"}, {"config": {"image_size": 48}}])
def test_attributes_of_other_kinds_are_passed_over(attributes: dict[str, Any]) -> None:
    assert resolve_input_size(model_with(**attributes)) == (3, 224, 224)


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel])
def test_wrappers_have_the_size_of_the_model_inside(wrap: Any) -> None:
    assert resolve_input_size(wrap(model_with(expected_input_sz=(3, 20, 20)))) == (3, 20, 20)
