"""A hypernetwork that decodes scales: what it predicts, and how it learns them."""

import copy
import math
from pathlib import Path

import pytest
import timm
import torch

from hf_paraminit import GHN
from hf_paraminit.errors import CheckpointError
from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.noise import standard_start
from hf_paraminit.ghn.scale_training import ScaleBatches, ScaledNetwork, ScaleTraining
from hf_paraminit.ghn.slots import iter_slots

CONFIG = GHNConfig(hidden_dim=16, num_layers=1, num_heads=2, max_shape=(8, 8, 3, 3), num_classes=10, decodes="scales")


@pytest.fixture
def network() -> torch.nn.Module:
    return timm.create_model("test_resnet", num_classes=10)


def shapes_of(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}


def scaled(ghn: GHN, network: torch.nn.Module, scale: float) -> ScaledNetwork:
    return ScaledNetwork.from_module(ghn, network, {name: scale for name in shapes_of(network) if "weight" in name})


def test_untrained_it_predicts_the_standard_start(network: torch.nn.Module) -> None:
    ghn = GHN.new(CONFIG, seed=0)
    graph, shapes = ghn.trace(network, input_size=32), shapes_of(network)
    with torch.no_grad():
        values = ghn.predict(graph, shapes)
    assert values.keys() == shapes.keys()
    for slot in iter_slots(graph, shapes):
        assert torch.equal(values[slot.name], standard_start(slot, seed=0))


def test_a_meta_batch_equals_its_networks_one_by_one(network: torch.nn.Module) -> None:
    ghn = GHN.new(CONFIG, seed=0)
    torch.nn.init.normal_(ghn.decoder.fc[2].weight, std=0.1)
    other = timm.create_model("test_vit", num_classes=10)
    graphs = [ghn.trace(network, input_size=64), ghn.trace(other)]
    shapes = [shapes_of(network), shapes_of(other)]
    with torch.no_grad():
        together = ghn.predict_batch(graphs, shapes, generator=torch.Generator().manual_seed(3))
        alone = [
            ghn.predict(graph, shape, generator=torch.Generator().manual_seed(3))
            for graph, shape in zip(graphs, shapes, strict=True)
        ]
    for one, two in zip(together, alone, strict=True):
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6)


def test_a_scale_multiplies_every_value(network: torch.nn.Module) -> None:
    ghn = GHN.new(CONFIG, seed=0).requires_grad_(False)
    graph, shapes = ghn.trace(network, input_size=32), shapes_of(network)
    plain = ghn.predict(graph, shapes)
    ghn.decoder.fc[2].bias.fill_(math.log(2.0))
    doubled = ghn.predict(graph, shapes)
    for name, value in plain.items():
        torch.testing.assert_close(doubled[name], 2 * value)


def test_a_wrapper_does_not_change_the_values(network: torch.nn.Module) -> None:
    ghn = GHN.new(CONFIG, seed=0).requires_grad_(False)
    wrapped = torch.nn.Sequential(network)
    plain = ghn.predict(ghn.trace(network, input_size=32), shapes_of(network))
    inside = ghn.predict(ghn.trace(wrapped, input_size=32), shapes_of(wrapped))
    assert inside.keys() == {f"0.{name}" for name in plain}
    assert all(torch.equal(inside[f"0.{name}"], value) for name, value in plain.items())


def test_it_learns_scales(network: torch.nn.Module) -> None:
    objective = ScaleTraining(GHN.new(CONFIG, seed=0))
    batch = [scaled(objective.ghn, network, 4.0)]
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    first = objective(batch)["loss"].item()
    for _ in range(30):
        optimizer.zero_grad()
        loss = objective(batch)["loss"]
        loss.backward()
        optimizer.step()
    assert first == pytest.approx(math.log(4.0) ** 2)
    assert loss.item() < 0.1 * first


def test_batches_are_a_pure_function_of_their_index(network: torch.nn.Module) -> None:
    ghn = GHN.new(CONFIG, seed=0)
    networks = [scaled(ghn, network, scale) for scale in (1.0, 2.0, 4.0)]
    batches = ScaleBatches(networks=networks, batch_size=5)
    assert batches(7) == batches(7)
    assert any(batches(index) != batches(0) for index in range(1, 5))


def test_the_module_that_is_learned_from_stays(network: torch.nn.Module) -> None:
    before = copy.deepcopy(network.state_dict())
    scaled(GHN.new(CONFIG, seed=0), network, 2.0)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_round_trip(tmp_path: Path, network: torch.nn.Module) -> None:
    ghn = GHN.new(CONFIG, seed=0).eval()
    torch.nn.init.normal_(ghn.decoder.fc[2].weight)
    ghn.save_pretrained(tmp_path)
    again = GHN.from_pretrained(tmp_path)
    assert again.config == CONFIG
    graph, shapes = ghn.trace(network, input_size=32), shapes_of(network)
    with torch.no_grad():
        expected, found = ghn.predict(graph, shapes), again.predict(graph, shapes)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_unknown_kind_of_decoder() -> None:
    with pytest.raises(CheckpointError, match="'values' or 'scales'"):
        GHNConfig.from_dict({"decodes": "magic"})


def test_configs_of_former_versions_read_the_same() -> None:
    assert "decodes" not in GHNConfig().to_dict()
    assert GHNConfig.from_dict(CONFIG.to_dict()) == CONFIG
