"""Standardisation against the recordings, and that it can be undone."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hf_paraminit.errors import CheckpointError
from hf_paraminit.hyperrep.standardize import Standardization
from hf_paraminit.hyperrep.tokens import TokenLayout, legacy_layout
from hf_paraminit.hyperrep.zoo_nets import ZooCNN

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "hyperrep" / "sane_norm").glob("*.json"))
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


def checkpoints_of(tensors: dict[str, Tensor], num_models: int) -> list[dict[str, Tensor]]:
    return [
        {name.removeprefix(f"in.{i}."): tensor for name, tensor in tensors.items() if name.startswith(f"in.{i}.")}
        for i in range(num_models)
    ]


def members(count: int = 4) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in ZooCNN("cnn-tiny").state_dict().items()}
    return [
        {name: 0.3 + torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(count)
    ]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_published_statistics_and_weights(path: Path) -> None:
    record, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    checkpoints = checkpoints_of(tensors, record["n_models"])
    layout = legacy_layout(checkpoints[0], ignore_batchnorm=record["ignore_bn"])
    by_std, by_range = (Standardization.fit(layout, checkpoints, mode) for mode in ("std", "minmax"))
    # The published rule standardises running statistics twice: see the next test.
    layers = [name for name in record["layers_standardize"] if "running_" not in name]
    assert layers
    for name in layers:
        assert by_std.shift[name] == pytest.approx(record["layers_standardize"][name]["mean"], rel=1e-4, abs=1e-5)
        assert by_std.scale[name] == pytest.approx(record["layers_standardize"][name]["std"], rel=1e-4, abs=1e-5)
        low, high = (record["layers_minmax"][name][end] for end in ("min", "max"))
        assert by_range.shift[name] == pytest.approx((high + low) / 2, rel=1e-4, abs=1e-5)
        assert by_range.scale[name] == pytest.approx((high - low) / 2, rel=1e-4, abs=1e-5)
    for prefix, standardization, count in (("std", by_std, record["n_models"]), ("minmax", by_range, 1)):
        for number, checkpoint in enumerate(checkpoints[:count]):
            found = layout.detokenize(standardization.apply(layout.tokenize(checkpoint), layout))
            for name in found:
                if "running_" not in name and f"{prefix}.{number}.{name}" in tensors:
                    torch.testing.assert_close(found[name], tensors[f"{prefix}.{number}.{name}"], **TOLERANCE)


@pytest.mark.parametrize("path", [path for path in GOLDEN if "with_bn" in path.stem], ids=lambda path: path.stem)
def test_how_the_published_rule_treats_running_statistics(path: Path) -> None:
    """It takes their statistics of each tensor joined with itself, and applies them twice; here once is enough."""
    record, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    checkpoints = checkpoints_of(tensors, record["n_models"])
    layout = legacy_layout(checkpoints[0], ignore_batchnorm=record["ignore_bn"])
    ours = Standardization.fit(layout, checkpoints)
    names = [name for name in record["layers_standardize"] if "running_" in name]
    assert names
    for name in names:
        mean, std = (record["layers_standardize"][name][key] for key in ("mean", "std"))
        count = checkpoints[0][name].numel()
        assert ours.shift[name] == pytest.approx(mean, rel=1e-4, abs=1e-5)
        assert ours.scale[name] * math.sqrt(2 * (count - 1) / (2 * count - 1)) == pytest.approx(std, rel=1e-4)
        twice = ((checkpoints[0][name] - mean) / std - mean) / std
        torch.testing.assert_close(twice, tensors[f"std.0.{name}"], **TOLERANCE)


@pytest.mark.parametrize("mode", ["std", "minmax"])
def test_it_can_be_undone_and_leaves_padding_alone(mode: str) -> None:
    layout = TokenLayout.from_module(ZooCNN("cnn-tiny"), 20)
    checkpoints = members()
    standardization = Standardization.fit(layout, checkpoints, mode)
    tokens = torch.stack([layout.tokenize(checkpoint) for checkpoint in checkpoints])
    standard = standardization.apply(tokens, layout)
    torch.testing.assert_close(standardization.invert(standard, layout), tokens, atol=1e-6, rtol=1e-6)
    assert bool((standard[:, ~layout.mask] == 0).all())
    values = standard[:, layout.layers[1].tokens][:, layout.mask[layout.layers[1].tokens]]
    if mode == "std":
        assert float(values.mean()) == pytest.approx(0, abs=1e-5)
        assert float(values.std()) == pytest.approx(1, abs=0.01)
    else:
        assert float(values.max()) == pytest.approx(1, abs=1e-5)
        assert float(values.min()) == pytest.approx(-1, abs=1e-5)


def test_stacked_checkpoints_count_one_by_one() -> None:
    layout = TokenLayout.from_module(ZooCNN("cnn-tiny"))
    single = members()
    stacked = {name: torch.stack([one[name] for one in single]) for name in single[0]}
    halves = [{name: tensor[part] for name, tensor in stacked.items()} for part in (slice(0, 1), slice(1, 4))]
    found, expected = Standardization.fit(layout, halves), Standardization.fit(layout, single)
    assert found.shift == pytest.approx(expected.shift)
    assert found.scale == pytest.approx(expected.scale)


def test_a_constant_layer_keeps_its_scale() -> None:
    layout = TokenLayout.from_module(ZooCNN("cnn-tiny"))
    constant = [{name: torch.ones_like(tensor) for name, tensor in one.items()} for one in members()]
    standardization = Standardization.fit(layout, constant)
    assert set(standardization.scale.values()) == {1.0}
    assert set(standardization.shift.values()) == {1.0}


def test_it_survives_json() -> None:
    standardization = Standardization.fit(TokenLayout.from_module(ZooCNN("cnn-tiny")), members())
    values = json.loads(json.dumps(standardization.to_dict()))
    assert Standardization.from_dict(values) == standardization
    values["scale"]["module_list.0.weight"] = 0.0
    for broken in (values, {}, {"mode": "std", "shift": 3, "scale": 4}):
        with pytest.raises(CheckpointError, match="Cannot read how a zoo was standardised"):
            Standardization.from_dict(broken)


def test_what_cannot_be_standardised_is_named() -> None:
    layout = TokenLayout.from_module(ZooCNN("cnn-tiny"))
    broken = members()
    broken[1]["module_list.2.weight"][0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"module_list\.2\.weight hold NaN.*Zoo\.clean"):
        Standardization.fit(layout, broken)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        Standardization.fit(layout, [])
    with pytest.raises(CheckpointError, match="modes are std, minmax"):
        Standardization.fit(layout, members(), "l2")
    other = TokenLayout.from_module(torch.nn.Linear(3, 3))
    with pytest.raises(CheckpointError, match=r"there are no statistics of weight\. Use those"):
        Standardization.fit(layout, members()).apply(torch.zeros(3, 4), other)
