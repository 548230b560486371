"""Splits: their rules, and that every network depends on seed and number alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hf_paraminit.deepnets.genotype import ArchitectureError, Genotype
from hf_paraminit.deepnets.network import DeepNetsNetwork
from hf_paraminit.deepnets.splits import SPLITS, draw_record, draw_widths, find_split, network_arguments


def records(name: str, count: int = 25) -> list[dict[str, Any]]:
    return [draw_record(SPLITS[name], index)[0] for index in range(count)]


def num_steps(record: dict[str, Any]) -> int:
    return len(record["genotype"]["normal"]) // 2


def test_published_numbers() -> None:
    sizes = {name: split.num_networks for name, split in SPLITS.items()}
    assert sizes == {
        "train": 10**6,
        "val": 500,
        "test": 500,
        "wide": 100,
        "deep": 100,
        "dense": 100,
        "bnfree": 100,
        "search": 10**5,
    }
    assert [name for name, split in SPLITS.items() if split.file == "eval"] == [
        "val",
        "test",
        "wide",
        "deep",
        "dense",
        "bnfree",
    ]
    assert SPLITS["val"].seed == 0


@pytest.mark.parametrize("name", SPLITS)
def test_rules_of_each_split(name: str) -> None:
    split = SPLITS[name]
    space = split.space
    for record in records(name):
        steps, cells = num_steps(record), record["n_cells"]
        genotype = Genotype.from_dict(record["genotype"])
        assert space.min_cells <= cells <= space.max_cells
        assert space.min_steps <= steps <= space.max_steps
        assert steps <= space.max_steps_deep or cells <= max(space.deep_thresholds)
        assert max(record["num_params"].values()) <= space.max_parameters
        assert record["preproc"] or (steps == 1 and record["C_mult"] == 1)
        assert ("C" in record) == (name != "train")
        assert record["glob_avg"] or not (genotype.has_attention or cells > max(space.deep_thresholds))
        assert genotype.is_connected(cells)
        assert record["fc_dim"] == 256


def test_what_sets_the_splits_apart() -> None:
    assert {record["norm"] for record in records("bnfree")} == {None}
    assert {record["norm"] for record in records("search", 40)} == {"bnorm"}
    assert max(record["n_cells"] for record in records("deep")) > 18
    assert max(map(num_steps, records("dense", 40))) > 6
    train = records("train", 100)
    assert {record["norm"] for record in train} == {"bnorm", None}
    assert all(record["n_cells"] <= 5 for record in train if record["norm"] is None)


def test_search_may_do_without_preprocessing() -> None:
    space = replace(SPLITS["search"].space, max_steps=1, max_steps_deep=1, allow_attention=False)
    split = replace(SPLITS["search"], space=space)
    drawn = [draw_record(split, index)[0] for index in range(60)]
    optional = [record["preproc"] for record in drawn if record["C_mult"] == 1]
    assert len(optional) > 20
    assert {True, False} == set(optional)
    assert optional.count(True) > optional.count(False)
    train_like = replace(SPLITS["train"], space=replace(space, preproc_share=1.0))
    assert all(draw_record(train_like, index)[0]["preproc"] for index in range(20))


def test_networks_depend_on_seed_and_number_alone() -> None:
    first, _ = draw_record(SPLITS["train"], 7)
    draw_record(SPLITS["train"], 3)
    torch_state = torch.get_rng_state()
    again, _ = draw_record(SPLITS["train"], 7)
    assert again == first
    assert torch.equal(torch_state, torch.get_rng_state())
    assert draw_record(SPLITS["train"], 7, seed=5)[0] != first


def test_wide_repeats_test_and_training_does_not() -> None:
    assert records("wide", 5) == records("test", 5)
    kept = [record["genotype"] for record in records("test", 5)]
    assert all(record["genotype"] not in kept for record in records("train", 20))


def test_counts_are_those_of_the_networks() -> None:
    for record in records("train", 4):
        for size, is_imagenet in (("cifar10", False), ("imagenet", True)):
            with torch.device("meta"):
                network = DeepNetsNetwork(
                    C=32, fc_dim=256, num_classes=10, **network_arguments(record, is_imagenet_input=is_imagenet)
                )
            assert sum(parameter.numel() for parameter in network.parameters()) == record["num_params"][size]


def record_of(**changes: Any) -> dict[str, Any]:
    genotype = {"normal": [["conv_3x3", 0], ["msa", 1]], "reduce": [["skip_connect", 0], ["none", 1]]}
    record = {"n_cells": 6, "glob_avg": True, "stem_type": 0, "stem_pool": True, "genotype": genotype}
    return record | {"num_params": {"cifar10": 100_000, "imagenet": 100_000}} | changes


HEAVY = {"normal": [["conv_5x5", 0], ["msa", 1]], "reduce": [["skip_connect", 0], ["none", 1]]}


@pytest.mark.parametrize(
    ("changes", "widest", "widest_of_wider"),
    [
        ({}, 128, 128),
        ({"num_params": {"cifar10": 300_000, "imagenet": 300_000}}, 64, 96),
        ({"n_cells": 9}, 64, 96),
        ({"num_params": {"cifar10": 500_000, "imagenet": 500_000}}, 48, 80),
        ({"n_cells": 11}, 48, 80),
        ({"num_params": {"cifar10": 900_000, "imagenet": 900_000}}, 32, 80),
        ({"n_cells": 13}, 32, 80),
        ({"n_cells": 15}, 32, 32),
        ({"num_params": {"cifar10": 2_100_000, "imagenet": 2_100_000}}, 32, 32),
        ({"num_params": {"cifar10": 100_000, "imagenet": 900_000}}, 32, 128),  # the wider rule counts 32-pixel networks
        ({"glob_avg": False}, 32, 32),
        ({"genotype": HEAVY}, 32, 32),
    ],
)
def test_widths_follow_the_published_table(changes: dict[str, Any], widest: int, widest_of_wider: int) -> None:
    rng = np.random.default_rng(0)
    for wider, expected in ((False, widest), (True, widest_of_wider)):
        drawn = [draw_widths(record_of(**changes), rng, is_imagenet_input=True, wider=wider) for _ in range(150)]
        assert {widths["C"] for widths in drawn} == set(range(32, expected + 1, 16))
        is_free = expected == 128
        assert {widths["fc_dim"] for widths in drawn if widths["C"] <= 64} == set(
            range(64, 513 if is_free else 257, 64)
        )
        assert {widths["fc_dim"] for widths in drawn if widths["C"] > 64} <= set(range(64, 257, 64))


@pytest.mark.parametrize(
    ("changes", "options", "strides"),
    [
        ({}, {"wider": True, "is_imagenet_input": True}, {2, 4}),
        ({}, {"wider": False, "is_imagenet_input": True}, {4}),
        ({}, {"wider": True, "is_imagenet_input": False}, {4}),
        ({"stem_pool": False}, {"wider": True, "is_imagenet_input": True}, {4}),
        ({"stem_type": 1}, {"wider": True, "is_imagenet_input": True}, {4}),
        ({"n_cells": 9}, {"wider": True, "is_imagenet_input": True}, {4}),
        ({"num_params": {"cifar10": 300_000, "imagenet": 1}}, {"wider": True, "is_imagenet_input": True}, {4}),
        ({"genotype": HEAVY}, {"wider": True, "is_imagenet_input": True}, {4}),
    ],
)
def test_first_stride_varies_only_in_light_wide_networks(
    changes: dict[str, Any], options: dict[str, bool], strides: set[int]
) -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_widths(record_of(**changes), rng, **options) for _ in range(30)]
    assert {widths["imagenet_stride"] for widths in drawn} == strides


@pytest.mark.parametrize(("name", "message"), [("tset", "did you mean 'test'"), ("xyz", "known are train, val")])
def test_unknown_splits_are_refused(name: str, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        find_split(name)


def test_impossible_budget_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_paraminit.deepnets.splits.MAX_CANDIDATES", 10)
    split = replace(SPLITS["train"], space=replace(SPLITS["train"].space, max_parameters=10))
    with pytest.raises(ArchitectureError, match="network 3 of 'train' has at most 10 parameters"):
        draw_record(split, 3)
