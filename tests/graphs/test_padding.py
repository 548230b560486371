"""The share of a kernel's taps that fall on the map."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import hf_paraminit
from hf_paraminit.graphs.graph import ComputationalGraph
from hf_paraminit.graphs.padding import tap_share

PIXEL = torch.ones(1, 1, 1, 1, requires_grad=True)
CONVOLUTIONS = [
    nn.Conv2d(2, 4, 3, padding=1),
    nn.Conv2d(2, 4, (5, 3), stride=2, padding=(2, 0)),
    nn.Conv2d(2, 4, 3, padding=2, dilation=2),
    nn.Conv2d(2, 4, 7, padding="same"),
    nn.Conv2d(2, 4, 2),
]


@pytest.mark.parametrize("convolution", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("size", [(5, 9), (7, 7)], ids=str)
def test_it_is_the_mean_of_a_kernel_of_ones_over_a_map_of_ones(convolution: nn.Conv2d, size: tuple[int, int]) -> None:
    """An average filter, which sees ones on the map and zeros around it, measures the share."""
    nn.init.constant_(convolution.weight, 1 / convolution.weight[0].numel())
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    output = convolution(torch.ones(1, 2, *size, requires_grad=True))
    assert tap_share(output.grad_fn) == pytest.approx(output.mean().item(), rel=1e-5)


def test_a_map_of_one_pixel_meets_the_centre_alone() -> None:
    assert tap_share(nn.Conv2d(1, 1, 3, padding=1)(PIXEL).grad_fn) == pytest.approx(1 / 9)


def test_other_operations_have_share_one() -> None:
    image = torch.ones(1, 1, 4, 4, requires_grad=True)
    transposed = nn.ConvTranspose2d(1, 1, 3, padding=1)(image)
    constant = nn.Conv2d(1, 1, 3, padding=1)(image.detach())
    functions = (None, transposed.grad_fn, F.relu(image).grad_fn, constant.grad_fn)
    assert {tap_share(function) for function in functions} == {1.0}


def test_the_input_of_a_checkpointed_convolution_is_not_computed_again() -> None:
    block = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    calls: list[object] = []
    block[0].register_forward_hook(lambda *arguments: calls.append(arguments))
    image = torch.ones(1, 3, 4, 4, requires_grad=True)
    output = checkpoint(block, image, use_reentrant=False)
    assert isinstance(output, torch.Tensor)
    assert tap_share(output.grad_fn) == pytest.approx((10 / 12) ** 2)
    assert len(calls) == 1


def test_native_graphs_carry_it_to_disk_and_back() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(64, 2))
    graph = hf_paraminit.trace(network, input_size=4, mode="native")
    shares = {name: node.tap_share for node in graph.nodes for name in node.parameters}
    assert shares == {"0.weight": pytest.approx((10 / 12) ** 2), "0.bias": 1.0, "2.weight": 1.0, "2.bias": 1.0}
    assert ComputationalGraph.from_dict(graph.to_dict()).nodes == graph.nodes
    former = graph.to_dict()
    for node in former["nodes"]:
        del node["tap_share"]
    assert {node.tap_share for node in ComputationalGraph.from_dict(former).nodes} == {1.0}
