"""Decoding only what a target needs equals decoding the full maximal tensor and cutting it."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.decoder import KernelDecoder
from hf_paraminit.ghn.slots import Role, Slot

SIDES = (1, 2, 3, 4, 6, 7, 14, 16, 17, 31)
NUM_NODES = 4


def make_decoder(side: int, network: str) -> KernelDecoder:
    config = GHNConfig(graph_network=network, hidden_dim=8, max_shape=(6, 10, side, side), num_classes=5)
    return KernelDecoder(config).requires_grad_(False)


def states() -> Tensor:
    return torch.randn(NUM_NODES, 8)


def full_tensor(decoder: KernelDecoder, state: Tensor) -> Tensor:
    """The maximal (o, c, s, s) tensor of one node: the three linear maps as the paper writes them."""
    side = decoder.max_side
    grid = F.relu(decoder.fc(state)).view(-1, side, side)
    decoded = decoder.conv(grid.permute(1, 2, 0))
    return decoded.view(side, side, decoder.max_outputs, decoder.max_inputs).permute(2, 3, 0, 1)


def kept_rows(size: int, side: int, is_centred: bool) -> slice:
    """Rows max(0, z - a//2) .. z + ceil(a/2) - 1 around z = s//2, or the first a rows."""
    if not is_centred:
        return slice(0, min(size, side))
    return slice(max(0, side // 2 - size // 2), min(side, side // 2 + (size + 1) // 2))


def expected_kernel(decoder: KernelDecoder, state: Tensor, shape: tuple[int, ...]) -> Tensor:
    outputs, inputs, height, width = shape
    rows, columns = (kept_rows(size, decoder.max_side, decoder.is_centred) for size in (height, width))
    kernel = full_tensor(decoder, state)[:outputs, :inputs, rows, columns]
    if kernel.shape[2:] != (height, width):
        kernel = F.interpolate(kernel, (height, width), mode="bilinear", align_corners=False)
    return kernel


@pytest.mark.parametrize("network", ["graphormer", "gated"])
@pytest.mark.parametrize("side", [11, 16])
def test_kernels_of_all_sides(side: int, network: str) -> None:
    decoder, nodes = make_decoder(side, network), states()
    rectangles = [(1, 7), (7, 1), (3, 17), (31, 5), (1, 31), (16, 17)]
    kernel_sizes = [*zip(SIDES, SIDES, strict=True), *rectangles]
    slots = [
        Slot(f"{index}", (6, 10, *size), index % NUM_NODES, 0, Role.KERNEL) for index, size in enumerate(kernel_sizes)
    ]
    blocks = decoder(nodes, slots)
    for slot in slots:
        expected = expected_kernel(decoder, nodes[slot.node], slot.shape)
        torch.testing.assert_close(blocks[slot], expected, rtol=1e-5, atol=1e-6, msg=str(slot.shape))


@pytest.mark.parametrize(
    ("side", "size", "first", "last"),
    [
        *((16, 1, 8, 8), (16, 2, 7, 8), (16, 3, 7, 9), (16, 4, 6, 9), (16, 7, 5, 11), (16, 14, 1, 14)),
        *((16, 16, 0, 15), (16, 17, 0, 15)),
        *((11, 1, 5, 5), (11, 3, 4, 6), (11, 7, 2, 8), (11, 11, 0, 10), (11, 31, 0, 10)),
    ],
)
def test_published_centre_slices(side: int, size: int, first: int, last: int) -> None:
    kept = make_decoder(side, "graphormer")._kept_side(size)
    assert (kept.start, kept.stop - 1) == (first, last)


@pytest.mark.parametrize(("outputs", "inputs"), list(itertools.product((1, 4, 6, 9), (1, 3, 10, 25))))
def test_channels_are_cut_at_the_largest_block(outputs: int, inputs: int) -> None:
    decoder, nodes = make_decoder(11, "graphormer"), states()
    slot = Slot("w", (outputs, inputs, 3, 3), 1, 0, Role.KERNEL)
    block = decoder(nodes, [slot])[slot]
    assert block.shape == (min(outputs, 6), min(inputs, 10), 3, 3)
    torch.testing.assert_close(block, expected_kernel(decoder, nodes[1], (6, 10, 3, 3))[:outputs, :inputs])


@pytest.mark.parametrize("shape", [(5, 8), (3, 8), (12, 8), (5, 30), (5, 8, 1, 1), (5, 8, 3, 3)])
def test_classifier_maps_all_outputs_of_the_middle_position(shape: tuple[int, ...]) -> None:
    decoder, nodes = make_decoder(11, "graphormer"), states()
    slot = Slot("head", shape, 2, 0, Role.CLASS_WEIGHT)
    block = decoder(nodes, [slot])[slot]
    middle = full_tensor(decoder, nodes[2])[:, : shape[1], 5, 5]
    expected = decoder.class_layer_predictor(middle.T).T[: shape[0]]
    torch.testing.assert_close(block, expected[..., None, None])


def test_position_table_is_one_output_on_a_square_grid() -> None:
    decoder, nodes = make_decoder(16, "graphormer"), states()
    slot = Slot("pos", (1, 197, 24), 0, 0, Role.POSITION_TABLE)
    block = decoder(nodes, [slot])[slot]
    torch.testing.assert_close(block, expected_kernel(decoder, nodes[0], (1, 10, 14, 14)))


def test_what_else_is_decoded_does_not_matter() -> None:
    decoder, nodes = make_decoder(11, "graphormer"), states()
    slots = [Slot(f"{side}", (4, 3, side, side), side % NUM_NODES, 0, Role.KERNEL) for side in SIDES]
    together = decoder(nodes, slots)
    for slot in slots:
        torch.testing.assert_close(together[slot], decoder(nodes, [slot])[slot])


# Roundings to bfloat16 between a node state and a block: states; weights and result of each of the three linear maps;
# of the class map; two of an interpolation. Each is off by at most one part in 2**8, whatever the order of summation.
ROUNDINGS = 1 + 3 * 2 + 2 + 2
ROUNDING = 2.0**-8
BLOCKS = {
    "matrix": ((6, 10), Role.KERNEL),
    "wider than decoded": ((9, 25), Role.KERNEL),
    "kernel": ((6, 10, 3, 3), Role.KERNEL),
    "interpolated kernel": ((6, 10, 31, 31), Role.KERNEL),
    "classifier": ((5, 8), Role.CLASS_WEIGHT),
    "position table": ((1, 197, 24), Role.POSITION_TABLE),
}


def magnitude(decoder: KernelDecoder) -> KernelDecoder:
    """The sums of absolute terms that a decoder adds up: rounding errors are relative to these, not to the results."""
    absolute = copy.deepcopy(decoder)
    for parameter in absolute.parameters():
        parameter.abs_()
    return absolute


@pytest.mark.parametrize("case", BLOCKS)
@pytest.mark.parametrize("network", ["graphormer", "gated"])
def test_bfloat16_is_within_rounding_of_float32(network: str, case: str) -> None:
    decoder, nodes = make_decoder(11, network), states()
    shape, role = BLOCKS[case]
    slot = Slot("w", shape, 1, 0, role)
    exact = decoder(nodes, [slot])[slot]
    scale = magnitude(decoder)(nodes.abs(), [slot])[slot]
    rounded = copy.deepcopy(decoder).to(torch.bfloat16)(nodes, [slot])[slot]
    assert (exact.dtype, rounded.dtype, rounded.shape) == (torch.float32, torch.bfloat16, exact.shape)
    assert rounded.isfinite().all()
    error = (rounded.float() - exact).abs()
    assert (error <= ((1 + ROUNDING) ** ROUNDINGS - 1) * scale).all()
    assert error.max() > 0  # it was another arithmetic
    # Roundings are independent, so in the whole block they add up like the sides of a right angle.
    assert error.norm() <= ROUNDINGS**0.5 * ROUNDING * exact.norm()
