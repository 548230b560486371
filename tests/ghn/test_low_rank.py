"""LoGAH's decoder: products of two factors, as large as the target, so that nothing is tiled."""

import dataclasses
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from hf_paraminit.errors import CheckpointError
from hf_paraminit.ghn.config import FACTOR_LENGTH, LOGAH_CONFIGS, GHNConfig
from hf_paraminit.ghn.low_rank import LowRankDecoder
from hf_paraminit.ghn.model import GHN
from hf_paraminit.ghn.slots import Role, Slot

CONFIG = GHNConfig(hidden_dim=16, num_layers=1, num_heads=2, max_shape=(8, 8, 11, 11), num_classes=20, low_rank=6)


def make_decoder() -> LowRankDecoder:
    torch.manual_seed(0)
    return LowRankDecoder(CONFIG).requires_grad_(False)


def as_the_paper_writes_it(decoder: LowRankDecoder, state: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Two whole factors of one node; rows and columns cut, multiplied and viewed."""
    outputs, inputs, height, width = shape
    code = decoder.fc(state).view(2 * 6, 6)
    tables = decoder.factors(code)
    left, right = tables[:6].T, tables[6:]
    product = left[: outputs * height] @ right[:, : inputs * width]
    return product.view(outputs, height, inputs, width).permute(0, 2, 1, 3)


def test_blocks_equal_the_paper_whatever_else_is_decoded() -> None:
    decoder, states = make_decoder(), torch.randn(3, 16)
    shapes = [(24, 40, 3, 3), (24, 40, 3, 3), (5, 7, 1, 1), (40, 24, 5, 2), (1, 9, 14, 14), (300, 2, 1, 7)]
    slots = [Slot(str(index), shape, index % 3, 0, Role.KERNEL) for index, shape in enumerate(shapes)]
    for slot, block in decoder(states, slots).items():
        expected = as_the_paper_writes_it(decoder, states[slot.node], slot.shape)
        torch.testing.assert_close(block, expected, rtol=1e-5, atol=1e-6)


def test_classes_come_from_their_own_map() -> None:
    decoder, states = make_decoder(), torch.randn(1, 16)
    slot = Slot("fc.weight", (12, 50), 0, 0, Role.CLASS_WEIGHT)
    hidden = as_the_paper_writes_it(decoder, states[0], (8, 50, 1, 1))[:, :, 0, 0]
    expected = decoder.class_layer_predictor(hidden.T).T[:12]
    torch.testing.assert_close(decoder(states, [slot])[slot][:, :, 0, 0], expected, rtol=1e-5, atol=1e-6)


def test_channels_beyond_the_factors_are_left_to_tiling() -> None:
    decoder = make_decoder()
    slot = Slot("w", (FACTOR_LENGTH // 64 + 5, 3, 64, 1), 0, 0, Role.KERNEL)
    assert decoder(torch.randn(1, 16), [slot])[slot].shape == (FACTOR_LENGTH // 64, 3, 64, 1)


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "test_convnext", "test_efficientnet"])
def test_no_filter_occurs_twice(name: str) -> None:
    """The published decoder of this size repeats filters in every wide layer."""

    def num_repeated(ghn: GHN) -> int:
        weights = ghn.predict(graph, shapes)
        rows = {key: weight.flatten(1) for key, weight in weights.items() if weight.dim() in (2, 4)}
        return sum(len(row) - len(row.unique(dim=0)) for row in rows.values())

    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=10)
    shapes = {key: tuple(parameter.shape) for key, parameter in network.named_parameters()}
    ghn = GHN.new(CONFIG, seed=0)
    graph = ghn.trace(network)
    with torch.no_grad():
        assert num_repeated(ghn) == 0
        assert num_repeated(GHN.new(dataclasses.replace(CONFIG, low_rank=None), seed=0)) > 50


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_start_is_of_the_order_of_he_initialisation(name: str) -> None:
    network = timm.create_model("resnet18", num_classes=10)
    shapes = {key: tuple(parameter.shape) for key, parameter in network.named_parameters()}
    ghn = GHN.new(LOGAH_CONFIGS[name], seed=0)
    with torch.no_grad():
        weight = ghn.predict(ghn.trace(network), shapes)["layer3.0.conv2.weight"]
    assert 0.1 < float(weight.std()) / (2 / weight[0].numel()) ** 0.5 < 1


def test_all_of_the_decoder_learns() -> None:
    network = timm.create_model("test_vit", num_classes=10)
    shapes = {key: tuple(parameter.shape) for key, parameter in network.named_parameters()}
    ghn = GHN.new(CONFIG, seed=0)
    sum(weight.square().sum() for weight in ghn.predict(ghn.trace(network), shapes).values()).backward()  # type: ignore[union-attr]
    for name, parameter in ghn.decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_saved_and_loaded(tmp_path: Path) -> None:
    ghn = GHN.new(CONFIG, seed=0)
    ghn.save_pretrained(tmp_path)
    loaded = GHN.from_pretrained(tmp_path)
    assert loaded.config == CONFIG
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in ghn.state_dict().items())
    half = ghn.placed(torch.device("cpu"), torch.bfloat16)
    assert half.decoder.dtype == torch.bfloat16


def test_configs_without_a_rank_are_written_as_before() -> None:
    config = GHNConfig()
    assert "low_rank" not in config.to_dict()
    assert GHNConfig.from_dict(CONFIG.to_dict()) == CONFIG
    assert GHNConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("rank", [0, -3, 2.5, True, 2**15])
def test_bad_ranks_are_refused(rank: int) -> None:
    with pytest.raises(CheckpointError, match="low_rank"):
        dataclasses.replace(CONFIG, low_rank=rank)


@pytest.mark.parametrize(("name", "millions"), [("tiny", 2.5), ("small", 21.4), ("base", 78.2), ("large", 289.4)])
def test_published_sizes(name: str, millions: float) -> None:
    """Table 1 is for 100 classes; the paper leaves open how vectors are decoded, hence the tolerance."""
    config = dataclasses.replace(LOGAH_CONFIGS[name], num_classes=100)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in GHN(config).parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.04)
