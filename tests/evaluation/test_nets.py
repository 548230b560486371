import pytest
import timm
import torch

from hf_paraminit.errors import ParamInitError
from hf_paraminit.evaluation.hosts import build_network, require_known, require_runs
from hf_paraminit.evaluation.nets import ALL_NETS, MAIN_NETS, MODERN_NETS, NETS, NOVEL_NETS, Net, find_net
from hf_paraminit.initializers.initialize import initialize

IMAGES = torch.zeros(2, 3, 32, 32)


@pytest.mark.parametrize("net", ALL_NETS.values(), ids=list(ALL_NETS))
def test_every_benchmark_network_is_small_and_runs(net: Net) -> None:
    require_known(net)
    model = build_network(net, num_classes=7, in_chans=3, img_size=32)
    require_runs(model, net, IMAGES, 7)
    assert 5e4 < sum(parameter.numel() for parameter in model.parameters()) < 1e6


@pytest.mark.parametrize("net", ALL_NETS.values(), ids=list(ALL_NETS))
def test_every_benchmark_network_sees_its_images(net: Net) -> None:
    """A class token that no layer mixes with the image would leave nothing to learn; zero classifiers are replaced."""
    torch.manual_seed(0)
    model = build_network(net, num_classes=7, in_chans=3, img_size=32).eval()
    initialize(model, "torch-default", seed=0)
    scores = model(torch.randn(2, 3, 32, 32))
    assert not torch.equal(scores[0], scores[1])


@pytest.mark.parametrize("nets", [NETS, MODERN_NETS, NOVEL_NETS], ids=["standing", "modern", "novel"])
def test_each_set_is_as_diverse_as_a_headline_claim_needs(nets: dict[str, Net]) -> None:
    """At least 8 architectures, 3 without batch norm, 2 with attention."""
    models = {name: build_network(net, num_classes=10, in_chans=3, img_size=32) for name, net in nets.items()}
    with_norm = [
        name for name, model in models.items() if any("BatchNorm" in type(m).__name__ for m in model.modules())
    ]
    assert len(models) >= 8
    assert len(models) - len(with_norm) >= 3
    assert sum(net.family == "attention" for net in nets.values()) >= 2


def test_names_are_told_apart() -> None:
    assert set(MAIN_NETS) <= set(NETS)
    assert len(ALL_NETS) == len(NETS) + len(MODERN_NETS) + len(NOVEL_NETS)


def test_building_draws_what_timm_draws() -> None:
    """Also for a model that refuses the image size: the refused attempt leaves no trace in the random state."""
    torch.manual_seed(3)
    expected = timm.create_model("mobilenetv3_small_050", num_classes=4)
    torch.manual_seed(3)
    found = build_network(find_net("mobilenetv3_small_050"), num_classes=4, in_chans=3, img_size=32)
    assert all(map(torch.equal, expected.state_dict().values(), found.state_dict().values()))


def test_models_that_ask_for_the_image_size_get_it() -> None:
    model = build_network(find_net("vit_tiny_patch16_224"), num_classes=4, in_chans=1, img_size=48)
    assert model.patch_embed.grid_size == (3, 3)


def test_what_gives_no_class_scores_is_refused() -> None:
    net = Net(name="pair", architecture=lambda num_classes, in_chans: torch.nn.LSTM(32, num_classes))
    model = build_network(net, num_classes=4, in_chans=3, img_size=32)
    with pytest.raises(ParamInitError, match="pair"):
        require_runs(model, net, IMAGES, 4)
