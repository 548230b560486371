"""Predictions equal those of the published code, for every recorded configuration, network and variant."""

import numpy as np
import pytest
import torch
import torchvision
from ghn_goldens import (
    CONFIGS,
    PREDICTIONS,
    cases,
    formula,
    load_graph,
    load_hypernetwork,
    recorded,
    shapes_of,
)
from torch import Tensor

from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.model import GHN

# 859 MB of weights: takes a minute and several GB.
_LARGE = pytest.mark.slow
CASES = [
    pytest.param(config, network, marks=_LARGE if config == "ghn3_l" else (), id=f"{config}-{network}")
    for config, network in cases()
]
EMBEDDED = [case for case in CASES if (PREDICTIONS / case.values[0] / f"{case.values[1]}.embed.npy").exists()]


def test_all_recorded_cases_are_collected() -> None:
    assert len(CASES) == 74
    assert len(EMBEDDED) == 24


@pytest.mark.parametrize(("config", "network"), CASES)
@torch.no_grad()
def test_prediction_equals_recorded(config: str, network: str) -> None:
    prediction = load_hypernetwork(config).predict(
        load_graph(network),
        shapes_of(config, network),
        predict_class_layers="no_class_layers" not in network,
        generator=torch.Generator(),
    )
    assert_as_recorded(prediction, config, network)


# Independent relative errors of at most 2**-8 add up like the sides of a right angle: of the state, of the weights and
# results of four linear maps (the classifier included), and of the fan-in scale.
BFLOAT16_ERROR = (1 + 4 * 2 + 1) ** 0.5 * 2.0**-8


@pytest.mark.parametrize(("config", "network"), EMBEDDED)
@torch.no_grad()
def test_bfloat16_decoder_is_within_rounding_of_float32(config: str, network: str) -> None:
    exact_ghn = load_hypernetwork(config)
    ghn = exact_ghn.placed(torch.device("cpu"), torch.bfloat16)
    exact, rounded = (
        network_of.predict(load_graph(network), shapes_of(config, network), generator=torch.Generator().manual_seed(0))
        for network_of in (exact_ghn, ghn)
    )
    assert list(rounded) == list(exact)
    for name, value in rounded.items():
        if value.dtype == torch.float32:  # of the other decoder, which stays as it is
            torch.testing.assert_close(value, exact[name], rtol=1e-5, atol=1e-6)  # the weights are aligned differently
            continue
        assert value.isfinite().all()
        error = (value.float() - exact[name]).norm()
        assert error <= BFLOAT16_ERROR * exact[name].norm(), f"{name}: {error / exact[name].norm()}"
    assert {value.dtype for value in rounded.values()} == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize(("config", "network"), EMBEDDED)
@torch.no_grad()
def test_node_states_equal_recorded(config: str, network: str) -> None:
    states = load_hypernetwork(config).embed_nodes([load_graph(network)], [shapes_of(config, network)])
    expected = np.load(PREDICTIONS / config / f"{network}.embed.npy")
    np.testing.assert_allclose(states.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "network", "attention"),
    [
        ("ghn3_t", "resnet18", "explicit"),
        ("ghn2_tiny", "resnet18", "explicit"),
        ("ghn3_t", "squeezenet1_0", "explicit"),
        ("ghn3_t", "vit_b_16", "fused"),
        ("ghn3_t", "vit_b_16__explicit_attention", "explicit"),
    ],
)
@torch.no_grad()
def test_traced_and_predicted_equals_recorded(config: str, network: str, attention: str) -> None:
    with torch.device("meta"):
        model = getattr(torchvision.models, network.partition("__")[0])()
    ghn = load_hypernetwork(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    prediction = ghn.predict(ghn.trace(model, attention=attention), shapes, generator=torch.Generator())
    assert_as_recorded(prediction, config, network)


@pytest.mark.parametrize("config", ["ghn3_t"])
def test_formula_weights_are_the_recorded_ones(config: str) -> None:
    for key, (shape, total, l2, first3) in CONFIGS[config]["check"].items():
        tensor = formula(key, tuple(shape)).double()
        assert tensor.sum().item() == pytest.approx(total, rel=1e-9, abs=1e-6), key
        assert tensor.norm().item() == pytest.approx(l2, rel=1e-9), key
        assert tensor.flatten()[:3].tolist() == pytest.approx(first3, rel=1e-6), key


@pytest.mark.parametrize("config", list(CONFIGS))
def test_parameter_count(config: str) -> None:
    skeleton = GHN.skeleton(GHNConfig.from_dict(CONFIGS[config]["args"]))
    assert sum(parameter.numel() for parameter in skeleton.parameters()) == CONFIGS[config]["total_params"]


def assert_as_recorded(prediction: dict[str, Tensor], config: str, network: str) -> None:
    rows = list(recorded(config, network))
    assert set(prediction) == {row.name for row in rows if row.status}
    for row in rows:
        if not row.status:
            continue
        tensor = prediction[row.name]
        assert tensor.shape == row.shape, row.name
        assert tensor.dtype == torch.float32
        if row.status == 2:
            tensor = tensor[:, 1:]
        assert tensor.double().norm().item() == pytest.approx(row.l2, rel=1e-5), row.name
        flat = tensor.flatten()
        tolerance = 2e-6 * flat.abs().max().item() + 1e-7
        num_first = min(8, len(flat))
        spread = [step * (len(flat) - 1) // 7 for step in range(8)]
        for found, expected in ((flat[:num_first], row.first8[:num_first]), (flat[spread], row.spread8)):
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, msg=f"{config} {network} {row.name}")
