"""Networks against recorded parameter tables, and laws of their forward pass."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from hf_paraminit.deepnets.genotype import DARTS, PDARTS, VIT, ArchitectureError, Genotype
from hf_paraminit.deepnets.network import DeepNetsNetwork, PosEnc

# Published-format networks: constructor arguments, parameters in order, and those that the logits do not depend on.
RECORDED = json.loads((Path(__file__).parents[1] / "golden/deepnets/networks.json").read_text())
SMALL = [name for name, record in RECORDED.items() if not record["arguments"]["is_imagenet_input"]]

SEPARABLE = Genotype((("sep_conv_3x3", 0), ("conv_1x1", 1)), (2,), (("max_pool_3x3", 0), ("skip_connect", 1)), (2,))


def build_on_meta(**arguments: Any) -> DeepNetsNetwork:
    with torch.device("meta"):
        return DeepNetsNetwork(**arguments)


@pytest.mark.parametrize("name", RECORDED)
def test_parameters_equal_the_record(name: str) -> None:
    record = RECORDED[name]
    network = build_on_meta(**record["arguments"])
    assert [[key, list(value.shape)] for key, value in network.named_parameters()] == record["parameters"]
    assert network._n_cells == len(network.cells) == record["arguments"]["n_cells"]
    assert [cell._cell_ind for cell in network.cells] == list(range(network._n_cells))
    assert network.expected_input_sz == record["expected_input"][-1]


@pytest.mark.parametrize("name", RECORDED)
def test_meta_forward_gives_logits(name: str) -> None:
    record = RECORDED[name]
    logits, auxiliary_logits = build_on_meta(**record["arguments"])(
        torch.empty(2, *record["expected_input"], device="meta")
    )
    assert logits.shape == (2, record["arguments"]["num_classes"])
    assert auxiliary_logits is None


@pytest.mark.parametrize("name", [name for name, record in RECORDED.items() if record["unused"] or name in SMALL])
def test_exactly_the_recorded_parameters_are_unused(name: str) -> None:
    record = RECORDED[name]
    network = build_on_meta(**record["arguments"])
    logits, _ = network(torch.empty(2, *record["expected_input"], device="meta"))
    logits.sum().backward()
    assert [key for key, value in network.named_parameters() if value.grad is None] == record["unused"]


@pytest.mark.parametrize("name", SMALL)
def test_network_on_meta_runs_on_the_used_parameters_alone(name: str) -> None:
    record = RECORDED[name]
    real = DeepNetsNetwork(**record["arguments"]).eval()
    used = {key: value for key, value in real.named_parameters() if key not in record["unused"]}
    images = torch.randn(2, 3, 32, 32)
    skeleton = build_on_meta(**record["arguments"]).eval()
    torch.testing.assert_close(functional_call(skeleton, used, (images,))[0], real(images)[0], rtol=0, atol=0)


def test_construction_on_meta_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    build_on_meta(**RECORDED["g07"]["arguments"])
    assert torch.equal(before, torch.get_rng_state())


def test_gradients_reach_all_parameters_of_a_real_network() -> None:
    network = DeepNetsNetwork(16, 5, PDARTS, 3, is_imagenet_input=False, stem_type=1, norm="bnorm")
    network(torch.randn(4, 3, 32, 32))[0].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def test_running_statistics_only_for_tracking_norms() -> None:
    arguments = {"C": 16, "num_classes": 5, "genotype": SEPARABLE, "n_cells": 2, "is_imagenet_input": False}
    assert not list(build_on_meta(**arguments, norm="bnorm").buffers())
    assert list(build_on_meta(**arguments, norm="bn-track").buffers())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in build_on_meta(**arguments, norm=None).modules())


@pytest.mark.parametrize(
    ("arguments", "features"),
    [
        ({"is_imagenet_input": False}, 16 * 4 * 8**2),
        ({"is_imagenet_input": False, "stem_pool": True}, 16 * 4 * 4**2),
        ({"is_imagenet_input": False, "stem_type": 1}, 16 * 4 * 4**2),
        ({}, 16 * 4 * 14**2),
        ({"stem_pool": True}, 16 * 4 * 7**2),
        ({"imagenet_stride": 2, "stem_pool": True}, 16 * 4 * 14**2),
        ({"stem_type": 1}, 16 * 4 * 7**2),
        ({"is_vit": True}, 16 * 4 * 14**2),
        ({"is_vit": True, "is_imagenet_input": False}, 16 * 4 * 11**2),
    ],
)
def test_flattened_features_fit_the_classifier(arguments: dict[str, Any], features: int) -> None:
    network = build_on_meta(C=16, num_classes=5, genotype=SEPARABLE, n_cells=6, glob_avg=False, **arguments)
    assert network.classifier[0].in_features == features
    side = network.expected_input_sz
    assert network(torch.empty(2, 3, side, side, device="meta"))[0].shape == (2, 5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"is_imagenet_input": False},
        {"is_imagenet_input": False, "stem_type": 1},
        {"is_imagenet_input": False, "stem_pool": True},
        {"stem_type": 1},
        {"stem_pool": True},
    ],
)
def test_auxiliary_head_speaks_in_training_only(arguments: dict[str, Any]) -> None:
    network = build_on_meta(C=16, num_classes=5, genotype=DARTS, n_cells=6, auxiliary=True, **arguments)
    images = torch.empty(2, 3, network.expected_input_sz, network.expected_input_sz, device="meta")
    assert network(images)[1].shape == (2, 5)
    assert network.eval()(images)[1] is None


def test_logits_are_computed_in_full_precision_under_autocast() -> None:
    network = DeepNetsNetwork(16, 5, VIT, 2, is_imagenet_input=False, C_mult=1, preproc=False, fc_layers=2, fc_dim=8)
    dtypes = []
    network.classifier.register_forward_hook(
        lambda module, inputs, output: dtypes.append((inputs[0].dtype, output.dtype))
    )
    network.cells[0]._ops[1].ff.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(torch.randn(2, 3, 32, 32))
    assert dtypes == [torch.bfloat16, (torch.float32, torch.float32)]


def test_classifier_layers_have_the_published_positions() -> None:
    for num_layers, positions in [(0, [0]), (1, [0]), (2, [0, 3]), (3, [0, 3, 6])]:
        network = build_on_meta(C=16, num_classes=5, genotype=SEPARABLE, n_cells=2, fc_layers=num_layers, fc_dim=24)
        linear = [int(name) for name, layer in network.classifier.named_children() if isinstance(layer, nn.Linear)]
        assert linear == positions


def test_missing_states_count_as_zeros() -> None:
    only_second = Genotype(
        (("none", 0), ("none", 1), ("skip_connect", 1), ("none", 2)),
        (2, 3),
        (("skip_connect", 0), ("skip_connect", 1), ("skip_connect", 0), ("skip_connect", 1)),
        (2, 3),
    )
    cell = DeepNetsNetwork(8, 5, only_second, 1, is_imagenet_input=False).cells[0]
    with torch.no_grad():
        features = torch.randn(2, 24, 4, 4)
        output = cell(features, features)
        torch.testing.assert_close(output[:, :8], torch.zeros(2, 8, 4, 4))
        torch.testing.assert_close(output[:, 8:], cell.preprocess1(features))
        assert cell(features, None) is None


def test_position_encoding_is_added() -> None:
    encoding = PosEnc(4, 11)
    images = torch.randn(2, 4, 11, 11)
    torch.testing.assert_close(encoding(images) - images, encoding.weight.expand_as(images))
    assert encoding.weight.shape == (1, 4, 11, 11)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_cells": 0}, "at least one cell; found n_cells=0"),
        ({"stem_type": 2}, "stem_type must be 0 or 1; found 2"),
        ({"norm": "layer"}, "norm must be None or start with 'bn'.*found 'layer'"),
        ({"preproc": False}, "C_mult must be 1.*found C_mult=2.*Pass preproc=True"),
        ({"preproc": False, "C_mult": 1, "genotype": DARTS}, r"normal_concat=\(2, 3, 4, 5\)"),
        ({"fc_layers": 2}, "2 classifier layers need a width between them; found fc_dim=0"),
        ({"genotype": VIT, "C": 20}, "8 heads; found width 20"),
        ({"auxiliary": True}, "side 7; this network has side 14.*auxiliary=False"),
        ({"genotype": Genotype((("none", 0), ("none", 1)), (2,), VIT.reduce, (2,))}, "With 6 cells.*cut every path"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        build_on_meta(**{"C": 16, "num_classes": 5, "genotype": SEPARABLE, "n_cells": 6} | arguments)


# Drop-path

IDENTITIES = Genotype(
    (("skip_connect", 0), ("skip_connect", 1)), (2,), (("skip_connect", 0), ("skip_connect", 1)), (2,)
)


def small_network(genotype: Genotype) -> DeepNetsNetwork:
    return DeepNetsNetwork(C=8, num_classes=3, genotype=genotype, n_cells=1, is_imagenet_input=False, norm=None)


def test_drop_path_is_for_training_and_never_drops_an_identity() -> None:
    images = torch.randn(4, 3, 32, 32)
    for genotype, is_changed in ((SEPARABLE, True), (IDENTITIES, False)):
        network = small_network(genotype)
        plain, _ = network(images)
        network.drop_path_rate = 0.5
        assert torch.equal(network.eval()(images)[0], plain)
        assert torch.equal(network.train()(images)[0], plain) is not is_changed


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    """One cell of two operations: what reaches the classifier is the sum of 0, 1 or both, each twice as large."""
    network = small_network(SEPARABLE)
    cell, image = network.cells[0], torch.randn(1, 24, 32, 32)
    both = [cell.preprocess0(image), cell.preprocess1(image)]
    first, second = (operation(x) for operation, x in zip(cell._ops, both, strict=True))
    outputs = cell(image.expand(400, -1, -1, -1), image.expand(400, -1, -1, -1), 0.5)
    candidates = torch.cat([torch.zeros_like(first), 2 * first, 2 * second, 2 * (first + second)])
    distances = (outputs.unsqueeze(1) - candidates).abs().amax((2, 3, 4))
    assert (distances.min(1).values < 1e-4).all()
    assert (distances.argmin(1).bincount(minlength=4) > 60).all()  # of 400, about 100 each
