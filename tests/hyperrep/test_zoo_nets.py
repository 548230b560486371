"""The networks of the published zoos: sizes and names."""

import pytest
import torch

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.hyperrep.zoo_nets import ZOO_NETS, ZooCNN, example_images

# Number of parameters, indices of the layers with weights, ends of the layers in the vector of all weights.
PUBLISHED = {
    ("cnn-small", 1): ([0, 3, 6, 9, 11], [208, 1414, 1514, 2254, 2464]),
    ("cnn-small", 3): ([0, 3, 6, 9, 11], [608, 1814, 1914, 2654, 2864]),
    ("cnn-medium", 1): ([0, 3, 6, 9, 11], [156, 1515, 1737, 2837, 3047]),
    ("cnn-large", 3): ([0, 4, 8, 13, 16], [448, 5088, 9423, 10643, 10853]),
}


@pytest.mark.parametrize(("name", "channels"), PUBLISHED)
def test_published_sizes_and_names(name: str, channels: int) -> None:
    indices, ends = PUBLISHED[name, channels]
    model = ZooCNN(name, in_chans=channels)
    assert [*model.state_dict()] == [f"module_list.{i}.{kind}" for i in indices for kind in ("weight", "bias")]
    sizes = torch.tensor([tensor.numel() for tensor in model.parameters()])
    assert sizes.cumsum(0)[1::2].tolist() == ends


@pytest.mark.parametrize("name", ZOO_NETS)
def test_networks_take_their_images(name: str) -> None:
    net = ZOO_NETS[name]
    assert ZooCNN(name, num_classes=7)(example_images(net.in_chans, net.img_size)).shape == (2, 7)


def test_drop_out_shifts_the_indices_of_the_small_network_only() -> None:
    assert "module_list.4.weight" in ZooCNN("cnn-small", dropout=0.1).state_dict()
    assert [*ZooCNN("cnn-large", dropout=0.1).state_dict()] == [*ZooCNN("cnn-large").state_dict()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"name": "cnn"}, "no network 'cnn'"), ({"activation": "x"}, "no activation 'x'"), ({"img_size": 9}, "too small")],
)
def test_what_cannot_be_built(settings: dict, message: str) -> None:
    with pytest.raises(TrainingConfigError, match=message):
        ZooCNN(**settings)
