"""Predictors spread over devices give the values that they give whole. CPU and disk stand for the devices."""

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hf_paraminit.errors import InitializerConfigError
from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.model import GHN
from hf_paraminit.graphs.graph import ComputationalGraph
from hf_paraminit.io.dispatch import DeviceMap, execution_device, is_spread

NETWORKS = ("graphormer", "gated", "mlp")
CHILDREN = ("ln", "embed", "shape_enc", "gnn", "decoder", "decoder_1d", "bias_class")
GRAPH_ON_DISK = {name: "disk" if name in ("shape_enc", "gnn", "bias_class") else "cpu" for name in CHILDREN}
DECODERS_ON_DISK = {name: "disk" if name in ("ln", "embed", "decoder", "decoder_1d") else "cpu" for name in CHILDREN}


@pytest.fixture
def target() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def make_ghn(network: str) -> GHN:
    config = GHNConfig(
        graph_network=network, hidden_dim=8, num_heads=2, num_layers=2, max_shape=(6, 6, 11, 11), num_classes=5
    )
    return GHN.new(config, seed=0).requires_grad_(False)


def predict(ghn: GHN, target: nn.Module, graph: ComputationalGraph | None = None) -> dict[str, Tensor]:
    shapes = {name: tuple(parameter.shape) for name, parameter in target.named_parameters()}
    return ghn.predict(graph or ghn.trace(target), shapes)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("device_map", "num_away"),
    [("auto", 0), ({"": "cpu"}, 0), ({"": "disk"}, None), (GRAPH_ON_DISK, None), (DECODERS_ON_DISK, None)],
    ids=["auto", "cpu", "disk", "graph on disk", "decoders on disk"],
)
def test_prediction_is_the_same_bit_for_bit(
    network: str, device_map: DeviceMap, num_away: int | None, target: nn.Module
) -> None:
    expected = predict(make_ghn(network), target)
    assert expected.keys() == dict(target.named_parameters()).keys()
    ghn = make_ghn(network).spread(device_map)
    is_away = [parameter.is_meta for parameter in ghn.parameters()]
    assert sum(is_away) == num_away if num_away is not None else any(is_away)
    for _ in range(2):  # what was fetched for the first prediction goes back again
        found = predict(ghn, target)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert [parameter.is_meta for parameter in ghn.parameters()] == is_away


def test_memory_that_does_not_suffice_sends_parts_to_the_disk(
    target: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_ghn("graphormer")
    size = sum(parameter.nbytes for parameter in whole.parameters())
    monkeypatch.setattr("accelerate.utils.get_balanced_memory", lambda *args, **kwargs: {"cpu": size - 1})
    ghn = make_ghn("graphormer").spread("auto")
    assert set(ghn.hf_device_map.values()) == {"cpu", "disk"}
    expected, found = predict(whole, target), predict(ghn, target)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_modules_that_read_weights_of_their_submodules_are_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the memory, their keys in the map are their own or those of a parent."""
    for part in range(1, 20, 3):
        ghn = make_ghn("graphormer")
        memory = {"cpu": part * sum(parameter.nbytes for parameter in ghn.parameters()) // 20}
        monkeypatch.setattr("accelerate.utils.get_balanced_memory", lambda *args, memory=memory, **kwargs: memory)
        keys = ghn.spread("auto").hf_device_map
        assert not any(key.startswith(("gnn.", "decoder.", "shape_enc.")) for key in keys), keys


def test_files_on_the_disk_go_with_the_network() -> None:
    ghn = make_ghn("graphormer").spread({"": "disk"})
    folder = Path(ghn._offload_folder.name)
    assert any(folder.iterdir())
    del ghn
    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize("device_map", [{"ln": "cpu"}, {"": "cuda:77"}, {"": "gpu"}])
def test_maps_that_do_not_fit_are_refused(device_map: DeviceMap) -> None:
    with pytest.raises(InitializerConfigError, match="GHN could not be spread over devices as") as raised:
        make_ghn("graphormer").spread(device_map)
    assert str(device_map) in str(raised.value)


def test_where_a_module_computes() -> None:
    ghn = make_ghn("graphormer")
    assert not is_spread(ghn)
    assert ghn.device == execution_device(ghn.embed) == torch.device("cpu")
    ghn.spread({"": "disk"})
    assert is_spread(ghn)
    assert ghn.embed.weight.is_meta
    assert ghn.device == torch.device("cpu")
    assert ghn.placed(torch.device("cuda:1")) is ghn  # Accelerate decides
