"""Sampled architectures: reproducible, buildable, inside the space they were drawn from."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from hf_paraminit.deepnets.genotype import OPERATIONS, ArchitectureError, Genotype
from hf_paraminit.deepnets.network import DeepNetsNetwork
from hf_paraminit.deepnets.sampling import (
    POOLING_OPERATIONS,
    ArchitectureSpace,
    count_parameters,
    sample_genotype,
    sample_network_arguments,
)
from hf_paraminit.graphs.trace import trace

SMALL = ArchitectureSpace(
    min_cells=2, max_cells=6, max_steps=3, widths=(16, 24), classifier_widths=(32,), max_parameters=200_000
)


def draw(count: int, seed: int = 0, **options: Any) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    return [sample_network_arguments(generator, SMALL, **options) for _ in range(count)]


def test_same_seed_gives_the_same_architectures_and_draws_nothing_from_torch() -> None:
    torch_state = torch.get_rng_state()
    first = draw(5)
    assert first == draw(5)
    assert first != draw(5, seed=1)
    assert torch.equal(torch_state, torch.get_rng_state())


@pytest.mark.parametrize("is_imagenet_input", [False, True])
def test_architectures_run_and_stay_in_their_space(is_imagenet_input: bool) -> None:
    for arguments in draw(40, num_classes=7, is_imagenet_input=is_imagenet_input):
        assert json.loads(json.dumps(arguments)) == arguments
        assert 2 <= arguments["n_cells"] <= 6
        assert arguments["C"] in SMALL.widths
        assert count_parameters(arguments) <= SMALL.max_parameters
        assert len(Genotype.from_dict(arguments["genotype"]).normal) <= 2 * SMALL.max_steps
        with torch.device("meta"):
            network = DeepNetsNetwork(**arguments)
        side = 224 if is_imagenet_input else 32
        assert network(torch.empty(2, 3, side, side, device="meta"))[0].shape == (2, 7)


def test_graphs_hold_exactly_the_parameters_that_the_logits_depend_on() -> None:
    for arguments in draw(8):
        with torch.device("meta"):
            network = DeepNetsNetwork(**arguments)
        network(torch.empty(2, 3, 32, 32, device="meta"))[0].sum().backward()
        used = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
        assert set(trace(network).parameter_names) == used


def test_published_rules_hold() -> None:
    for arguments in draw(150):
        genotype = Genotype.from_dict(arguments["genotype"])
        has_convolution = any("conv" in operation for operation in genotype.operations)
        assert has_convolution or genotype.has_attention
        for connections in (genotype.normal, genotype.reduce):
            count = Counter(operation for operation, _ in connections)
            assert count["cse"] <= 1
            assert count["conv_5x5"] + count["conv_7x7"] <= 1
        if len(genotype.normal) == 2:
            assert "none" not in genotype.operations
        assert genotype.normal_concat == genotype.reduce_concat
        assert genotype.normal_concat[-1] == 1 + len(genotype.normal) // 2
        assert genotype.is_connected(arguments["n_cells"])
        assert arguments["norm"] == "bnorm" or arguments["n_cells"] <= SMALL.min_cells + 1
        assert not (arguments["stem_pool"] and arguments["stem_type"] == 1)
        assert arguments["glob_avg"] or not genotype.has_attention


def test_variety() -> None:
    drawn = draw(150)
    for key, values in [("norm", {"bnorm", None}), ("preproc", {True, False}), ("glob_avg", {True, False})]:
        assert {arguments[key] for arguments in drawn} == values
    for key, values in [("ks", {3, 5, 7}), ("stem_type", {0, 1}), ("fc_layers", {1, 2}), ("C_mult", {1, 2})]:
        assert {arguments[key] for arguments in drawn} == values
    operations = set().union(*(Genotype.from_dict(arguments["genotype"]).operations for arguments in drawn))
    assert operations == set(OPERATIONS)


def test_operations_are_drawn_uniformly() -> None:
    generator = np.random.default_rng(0)
    genotypes = [sample_genotype(generator, 4) for _ in range(1000)]
    counts = Counter(operation for genotype in genotypes for operation, _ in genotype.normal)
    expected = 8000 / len(OPERATIONS)  # standard deviation about 22
    assert all(abs(counts[operation] - expected) < 150 for operation in OPERATIONS)
    pooling_only = sum(set(dict(genotype.reduce)) <= set(POOLING_OPERATIONS) for genotype in genotypes)
    assert 400 < pooling_only < 600


def test_attention_can_be_excluded() -> None:
    generator = np.random.default_rng(0)
    assert not any(sample_genotype(generator, 3, allow_attention=False).has_attention for _ in range(100))


def test_impossible_budget_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_paraminit.deepnets.sampling.MAX_CANDIDATES", 20)
    space = ArchitectureSpace(min_cells=2, max_cells=3, widths=(16,), max_parameters=10)
    with pytest.raises(ArchitectureError, match=r"at most 10 parameters.*Raise max_parameters"):
        sample_network_arguments(np.random.default_rng(0), space)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_cells": 5, "max_cells": 4}, "found 5 to 4"),
        ({"max_steps": 0}, "at least one step; found max_steps=0"),
        ({"widths": ()}, "at least one value"),
        ({"widths": (16, 20)}, r"multiples of 8, the attention heads; found \(16, 20\)"),
    ],
)
def test_impossible_spaces_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        ArchitectureSpace(**options)
