"""The values that predicted scales multiply."""

import math

import pytest
import torch

from hf_paraminit.ghn.noise import BLOCK_SIDE, PATCH_MEAN, TABLE_STD, orthogonal, standard_start
from hf_paraminit.ghn.slots import Role, Slot
from hf_paraminit.seeds import seeded_generator


def slot(shape: tuple[int, ...], role: Role = Role.KERNEL, name: str = "layer.weight") -> Slot:
    return Slot(name, shape, node=0, graph=0, role=role)


@pytest.mark.parametrize(
    "shape", [(16, 8, 3, 3), (64, 12), (12, 64), (24, 1, 5, 5), (40, 6, 3), (8, 4, 3, 3, 3), (7, 7)]
)
def test_small_matrices_are_orthogonal_with_variance_one_over_fan_in(shape: tuple[int, ...]) -> None:
    weight = orthogonal(shape, seeded_generator(0, "x")).flatten(1)
    rows, columns = weight.shape
    assert weight.square().mean().item() == pytest.approx(1 / columns, rel=1e-4)
    gram = weight @ weight.T if rows <= columns else weight.T @ weight
    expected = gram.diagonal().mean() * torch.eye(len(gram))
    torch.testing.assert_close(gram, expected, rtol=0, atol=1e-5 * gram.diagonal().mean().item() + 1e-6)


def test_large_matrices_are_orthogonal_in_blocks_and_have_no_equal_rows() -> None:
    weight = orthogonal((3 * BLOCK_SIDE - 5, 2 * BLOCK_SIDE), seeded_generator(0, "x"))
    first = weight[:BLOCK_SIDE]
    torch.testing.assert_close(first @ first.T, torch.eye(BLOCK_SIDE), rtol=0, atol=1e-4)
    cosines = torch.nn.functional.normalize(weight) @ torch.nn.functional.normalize(weight).T
    assert (cosines - torch.eye(len(weight))).abs().max() < 0.6
    assert weight.square().mean().item() == pytest.approx(1 / (2 * BLOCK_SIDE), rel=1e-2)


def test_filters_sum_to_zero_unless_they_read_the_image() -> None:
    inner = standard_start(slot((16, 8, 3, 3)), seed=0)
    assert inner.flatten(1).sum(1).abs().max() < 1e-5
    assert standard_start(slot((16, 3, 3, 3)), seed=0).flatten(1).sum(1).abs().min() > 1e-4


@pytest.mark.parametrize("shape", [(64, 3, 4, 4), (200, 3, 16, 16), (24, 1, 8, 8), (16, 3, 2, 4, 4)])
def test_patch_embeddings_hardly_see_flat_colours(shape: tuple[int, ...]) -> None:
    taps = tuple(range(2, len(shape)))
    plain = orthogonal(shape, seeded_generator(0, "layer.weight"), 0.5)
    patches = standard_start(slot(shape), seed=0, scale=0.5)
    assert patches.square().mean().item() == pytest.approx(plain.square().mean().item(), rel=1e-4)
    share = (patches.mean(taps).norm() / plain.mean(taps).norm()).item()
    assert PATCH_MEAN < share < PATCH_MEAN * 1.2  # larger by what keeps the mean square
    torch.testing.assert_close(patches.mean(taps), share * plain.mean(taps), rtol=1e-3, atol=1e-7)
    patterns, plain_patterns = (kernel - kernel.mean(taps, keepdim=True) for kernel in (patches, plain))
    assert torch.nn.functional.cosine_similarity(patterns.flatten(), plain_patterns.flatten(), 0).item() > 1 - 1e-5


def test_stems_with_odd_kernels_keep_their_mean() -> None:
    shape = (16, 3, 7, 7)
    assert torch.equal(standard_start(slot(shape), seed=0), orthogonal(shape, seeded_generator(0, "layer.weight")))


def test_a_value_depends_on_its_name_and_the_seed_alone() -> None:
    first = standard_start(slot((8, 8)), seed=1)
    assert torch.equal(first, standard_start(slot((8, 8), Role.CLASS_WEIGHT), seed=1))
    assert not torch.equal(first, standard_start(slot((8, 8)), seed=2))
    assert not torch.equal(first, standard_start(slot((8, 8), name="other.weight"), seed=1))


def test_vectors_and_tables() -> None:
    assert torch.equal(standard_start(slot((5,), Role.NORM_WEIGHT), 0), torch.ones(5))
    assert torch.equal(standard_start(slot((5,), Role.BIAS), 0), torch.zeros(5))
    assert torch.equal(standard_start(slot((5,), Role.CLASS_BIAS), 0), torch.zeros(5))
    table = standard_start(slot((1, 65, 64), Role.POSITION_TABLE), 0)
    assert table.std().item() == pytest.approx(TABLE_STD, rel=0.05)


def test_torch_random_state_stays() -> None:
    before = torch.random.get_rng_state()
    standard_start(slot((300, 300)), seed=0)
    assert torch.equal(before, torch.random.get_rng_state())
    assert math.isfinite(standard_start(slot((300, 300)), seed=0).sum().item())


def test_padding_does_not_count_as_fan_in() -> None:
    """On a map of one pixel a padded 3 x 3 kernel gives outputs as large as on any other."""
    name, shape = "layer.weight", (32, 16, 3, 3)
    plain = standard_start(Slot(name, shape, node=0, graph=0, role=Role.KERNEL), seed=0)
    padded = standard_start(Slot(name, shape, node=0, graph=0, role=Role.KERNEL, tap_share=1 / 9), seed=0)
    torch.testing.assert_close(padded, 3 * plain)
