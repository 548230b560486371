"""Sources of architectures: pure in seed and number, and mixed by weight."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_paraminit.deepnets.catalog import PREDEFINED, PredefinedNetworks, networks_of
from hf_paraminit.deepnets.dataset import StoredNetworks
from hf_paraminit.deepnets.described import DescribedNetworks, GeneratedNetworks
from hf_paraminit.deepnets.families import FamilyNetworks
from hf_paraminit.deepnets.genotype import ArchitectureError
from hf_paraminit.deepnets.network import DeepNetsNetwork
from hf_paraminit.deepnets.sources import ArchitectureSource, Mixture
from hf_paraminit.errors import MissingDependencyError
from hf_paraminit.graphs.trace import trace


class Numbers:
    """A source whose networks are told apart by their width."""

    def __init__(self, first: int, length: int) -> None:
        self.first, self.length = first, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> nn.Module:
        return nn.Linear(self.first + index, 1)

    def graph(self, index: int) -> None:
        return None


def width(network: nn.Module) -> int:
    return network.in_features


@pytest.mark.parametrize(
    "source", [GeneratedNetworks("val"), FamilyNetworks(), PredefinedNetworks(), Mixture([(Numbers(1, 2), 1)])]
)
def test_all_sources_keep_the_contract(source: Any) -> None:
    assert isinstance(source, ArchitectureSource)
    assert len(source) > 0
    for read in (source.__getitem__, source.graph):
        with pytest.raises(IndexError, match="no network"):
            read(len(source))


@pytest.mark.parametrize("split", ["train", "wide"])
def test_generated_networks_fit_their_graphs(split: str) -> None:
    source = GeneratedNetworks(split, num_classes=7)
    for index in range(3):
        network, graph = source[index], source.graph(index)
        assert isinstance(network, DeepNetsNetwork)
        assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
        logits, _ = network(torch.empty(2, 3, 32, 32, device="meta"))
        assert logits.shape == (2, 7)
        logits.sum().backward()
        used = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
        assert set(graph.parameter_names) == used


def test_generated_networks_depend_on_seed_and_number() -> None:
    source = GeneratedNetworks("train", seed=3)
    torch_state = torch.get_rng_state()
    assert source.arguments(5) == GeneratedNetworks("train", seed=3).arguments(5)
    assert source.record(5) == GeneratedNetworks("train", seed=4).record(5)  # the seed decides widths only
    assert source.record(5) != GeneratedNetworks("train", generator_seed=4).record(5)
    widths = {GeneratedNetworks("train", seed=seed).arguments(5)["fc_dim"] for seed in range(20)}
    assert len(widths) > 2
    source[5]
    assert torch.equal(torch_state, torch.get_rng_state())
    assert len(GeneratedNetworks("train", length=17)) == 17


def test_generated_networks_for_large_images() -> None:
    source = GeneratedNetworks("val", is_imagenet_input=True)
    assert source[0].expected_input_sz == 224
    assert source.graph(0).input_size == (3, 224, 224)


def test_a_mixture_follows_the_weights() -> None:
    mixture = Mixture([(Numbers(1, 5), 3), (Numbers(101, 50), 1), (Numbers(1001, 5), 0)], length=2000)
    widths = [width(mixture[index]) for index in range(2000)]
    share = sum(value > 100 for value in widths) / 2000
    assert 0.2 < share < 0.3  # a quarter; the standard deviation is 0.01
    assert max(widths) <= 150
    assert {value for value in widths if value < 100} == {1, 2, 3, 4, 5}


def test_a_mixture_is_pure() -> None:
    parts = [(Numbers(1, 100), 1), (Numbers(101, 100), 1)]
    mixture = Mixture(parts, seed=2)
    assert len(mixture) == 200
    widths = [width(mixture[index]) for index in range(50)]
    assert [width(mixture[index]) for index in reversed(range(50))] == widths[::-1]
    assert [width(Mixture(parts, seed=3)[index]) for index in range(50)] != widths


def test_a_mixture_hands_on_graphs() -> None:
    generated, families = GeneratedNetworks("val"), FamilyNetworks(families=("vgg",))
    mixture = Mixture([(generated, 1), (families, 1)])
    kinds = set()
    for index in range(12):
        source, position = mixture.locate(index)
        graph = mixture.graph(index)
        kinds.add(graph is None)
        assert (graph is None) == (source is families)
        if graph is not None:
            assert graph.parameter_names == generated.graph(position).parameter_names
    assert kinds == {True, False}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((), "found \\[\\]"),
        ((0,), "one of them positive"),
        ((-1, 2), "at least 0"),
        ((float("nan"),), "finite weights"),
    ],
)
def test_impossible_weights_are_refused(weights: tuple[float, ...], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        Mixture([(Numbers(1, 3), weight) for weight in weights])


def test_empty_sources_are_refused() -> None:
    with pytest.raises(ArchitectureError, match="source without networks"):
        Mixture([(Numbers(1, 3), 1), (Numbers(1, 0), 1)])


@pytest.mark.parametrize("is_imagenet_input", [False, True])
def test_predefined_networks(is_imagenet_input: bool) -> None:
    pytest.importorskip("torchvision")
    source = PredefinedNetworks(num_classes=5, is_imagenet_input=is_imagenet_input)
    assert len(source) == len(PREDEFINED) == 2
    side = 224 if is_imagenet_input else 32
    resnet, vit = source[0], source[1]
    for network in (resnet, vit):
        assert network.expected_input_sz == side
        output = network(torch.empty(2, 3, side, side, device="meta"))
        assert (output[0] if isinstance(output, tuple) else output).shape == (2, 5)
    features = resnet.layer1(
        resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(torch.empty(2, 3, side, side, device="meta")))))
    )
    assert features.shape[-1] == (56 if is_imagenet_input else 32)
    assert source.graph(0) is None
    assert set(source.graph(1).parameter_names) == set(trace(vit).parameter_names)
    assert len(vit.cells) == 12
    assert vit.stem0.weight.shape[0] == 128


def test_torchvision_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    assert isinstance(PredefinedNetworks()[1], DeepNetsNetwork)
    with pytest.raises(MissingDependencyError, match="torchvision"):
        PredefinedNetworks()[0]


def test_networks_by_name() -> None:
    assert isinstance(networks_of("test"), GeneratedNetworks)
    assert isinstance(networks_of("predefined"), PredefinedNetworks)
    pytest.importorskip("h5py")
    assert isinstance(networks_of("test", Path(__file__).parents[1] / "golden" / "deepnets1m"), StoredNetworks)
    with pytest.raises(ArchitectureError, match="no split 'predefind'"):
        networks_of("predefind")


def test_described_networks_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        DescribedNetworks("val")
