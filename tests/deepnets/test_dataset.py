"""Reading DeepNets-1M files: against what the reference loader makes of them, and refusals of damaged ones."""

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_paraminit.deepnets.dataset import DatasetError, StoredNetworks, find_file
from hf_paraminit.deepnets.genotype import ArchitectureError
from hf_paraminit.deepnets.stored_graph import full_name, primitive_of, repair_wiring, stored_name
from hf_paraminit.errors import MissingDependencyError, ParamInitError
from hf_paraminit.graphs.graph import ComputationalGraph, Node
from hf_paraminit.graphs.primitives import PRIMITIVE_INDEX

h5py = pytest.importorskip("h5py")

GOLDEN = Path(__file__).parents[1] / "golden" / "deepnets1m"
SPLITS = sorted(path.stem.removeprefix("loaded_") for path in GOLDEN.glob("loaded_*.npz"))


def node_info(graph: ComputationalGraph) -> list[list[list[Any]]]:
    cells: list[list[list[Any]]] = [[] for _ in range(graph.num_cells)]
    for index, node in enumerate(graph.nodes):
        if node.cell >= 0:
            shape = None if node.shape is None else list(node.shape)
            flags = [index == graph.class_weight_index, index == graph.class_bias_index]
            cells[node.cell].append([index, node.name, node.primitive, shape, *flags])
    return cells


# --- Against the reference loader ------------------------------------------------------------------------------------


def test_all_recordings_are_there() -> None:
    assert SPLITS == ["bnfree", "deep", "dense", "test", "train", "val", "wide"]


@pytest.mark.parametrize("split", SPLITS)
def test_graphs_equal_the_reference_loaders(split: str) -> None:
    networks = StoredNetworks(GOLDEN, split)
    arrays = np.load(GOLDEN / f"loaded_{split}.npz")
    records = json.loads((GOLDEN / f"loaded_{split}.json").read_text())
    assert len(networks) == len(records)
    for record in records:
        index = record["index"]
        graph = networks.graph(index)
        assert list(graph.primitives) == record["op"]
        np.testing.assert_array_equal(
            [PRIMITIVE_INDEX[name] for name in graph.primitives], arrays[f"{index}/node_type"]
        )
        np.testing.assert_array_equal(graph.distances.numpy(), arrays[f"{index}/dist"])
        np.testing.assert_array_equal(graph.edges.numpy(), np.argwhere(arrays[f"{index}/dist"] == 1))
        assert node_info(graph) == record["node_info"]
        arguments = networks.arguments(index)
        assert {key: arguments[key] for key in record["net_args"]} == record["net_args"]
        untouched = StoredNetworks(GOLDEN, split, repair=False).graph(index)
        assert (not torch.equal(untouched.distances, graph.distances)) == record["changed_vs_file"]


@pytest.mark.parametrize("split", SPLITS)
def test_graphs_name_exactly_the_parameters_that_the_network_uses(split: str) -> None:
    networks = StoredNetworks(GOLDEN, split)
    for index in range(3 if split == "train" else 1):
        network = networks[index]
        network(torch.empty(2, 3, 32, 32, device="meta"))[0].sum().backward()
        used = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
        assert set(networks.graph(index).parameter_names) == used


@pytest.mark.parametrize("split", SPLITS)
def test_stored_counts_are_those_of_the_network(split: str) -> None:
    networks = StoredNetworks(GOLDEN, split)
    record = networks.record(0)
    for size, is_imagenet in (("cifar10", False), ("imagenet", True)):
        sized = StoredNetworks(GOLDEN, split, is_imagenet_input=is_imagenet)
        arguments = sized.arguments(0) | {"C": 32, "fc_dim": 256, "num_classes": 10}
        with torch.device("meta"):
            network = type(sized[0])(**arguments)
        assert sum(parameter.numel() for parameter in network.parameters()) == record["num_params"][size]


def test_wide_networks_are_widened_by_image_size() -> None:
    stored = StoredNetworks(GOLDEN, "wide").record(1)["C"]
    assert StoredNetworks(GOLDEN, "wide").arguments(1)["C"] == 4 * stored
    assert StoredNetworks(GOLDEN, "wide", is_imagenet_input=True).arguments(1)["C"] == 2 * stored
    assert StoredNetworks(GOLDEN, "test").arguments(1)["C"] == stored


def test_training_widths_depend_on_seed_and_number() -> None:
    widths = [StoredNetworks(GOLDEN, "train", seed=seed).arguments(6)["C"] for seed in range(40)]
    assert len(set(widths)) > 3
    assert widths == [StoredNetworks(GOLDEN, "train", seed=seed).arguments(6)["C"] for seed in range(40)]


def test_a_cutoff_of_one_leaves_the_edges() -> None:
    graph = StoredNetworks(GOLDEN, "train").graph(7, virtual_edge_cutoff=1)
    assert int(graph.distances.max()) == 1
    assert int(graph.distances.sum()) == len(graph.edges)


def test_another_process_opens_the_file_for_itself() -> None:
    networks = StoredNetworks(GOLDEN, "val")
    networks.graph(0)
    copy = pickle.loads(pickle.dumps(networks))
    assert torch.equal(copy.graph(1).distances, networks.graph(1).distances)


def test_networks_can_be_built_with_values() -> None:
    network = StoredNetworks(GOLDEN, "bnfree", device="cpu", num_classes=7)[1]
    assert network(torch.randn(2, 3, 32, 32))[0].isfinite().all()


# --- Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("", "cells.3.input"),
        ("classifier.0.weight", "classifier.0.weight"),
        ("_ops.1.to_qkv.weight", "cells.3._ops.1.attn.to_qkv.weight"),
        ("_ops.1.attn.to_qkv", "cells.3._ops.1.attn.to_qkv"),
        ("_ops.1.to_out.0.", "cells.3._ops.1.attn.to_out.0.weight"),
        ("_ops.12.1.weight", "cells.3._ops.12.op.1.weight"),
        ("_ops.2.op.1.weight", "cells.3._ops.2.op.1.weight"),
        ("_ops.2.fc1.bias", "cells.3._ops.2.fc1.bias"),
        ("preprocess0.conv_1", "cells.3.preprocess0.conv_1"),
        ("stem0.3", "stem0.3"),
        ("pos_enc.weight", "pos_enc.weight"),
        ("max_pool", "cells.3.max_pool"),
    ],
)
def test_names_are_completed(stored: str, name: str) -> None:
    assert full_name(stored, 3) == name


@pytest.mark.parametrize(
    "name", ["cells.11._ops.0.attn.to_qkv.weight", "stem0.0.weight", "cells.0.preprocess0.bn.weight"]
)
def test_stored_names_lead_back(name: str) -> None:
    cell = int(name.split(".")[1]) if name.startswith("cells") else 0
    assert full_name(stored_name(name), cell) == name


@pytest.mark.parametrize(
    ("stored", "primitive"),
    [
        ("conv_7x7", "conv"),
        ("conv_1x1", "conv"),
        ("sep_conv_3x3", "sep_conv"),
        ("dil_conv_5x5", "dil_conv"),
        ("max_pool_3x3", "max_pool"),
        ("avg_pool_3x3", "avg_pool"),
        ("fc-b", "bias"),
        ("glob_avg", "glob_avg"),
        ("concat", "concat"),
        ("conv", "conv"),
    ],
)
def test_primitives_lose_their_kernel_size(stored: str, primitive: str) -> None:
    assert primitive_of(stored) == primitive


# --- Repairs ---------------------------------------------------------------------------------------------------------


def nodes_of(*names: str) -> tuple[Node, ...]:
    return tuple(Node(name.partition(":")[0], None, (), 0, name.partition(":")[2]) for name in names)


STEMS = (
    "input:input",
    "conv:stem0.0.weight",
    "conv:stem0.3.weight",
    "conv:stem1.1.weight",
    "conv:a",
    "sum:b",
    "conv:c",
)


def distances_of(edges: list[tuple[int, int]], size: int) -> np.ndarray:
    distances = np.zeros((size, size), dtype=np.int64)
    distances[tuple(np.transpose(edges))] = 1
    return distances


def test_the_second_cell_moves_to_the_second_stem() -> None:
    edges = [(0, 1), (1, 2), (2, 3), (2, 4), (2, 6), (3, 5), (4, 5)]
    distances = distances_of(edges, 7)
    assert repair_wiring(distances, nodes_of(*STEMS), has_two_stems=True)
    assert np.argwhere(distances == 1).tolist() == [[0, 1], [1, 2], [2, 3], [2, 4], [3, 5], [3, 6], [4, 5]]
    intact = distances_of(edges, 7)
    assert not repair_wiring(intact, nodes_of(*STEMS), has_two_stems=False)
    np.testing.assert_array_equal(intact, distances_of(edges, 7))


@pytest.mark.parametrize(
    "edges",
    [
        [(0, 1), (1, 2), (2, 3), (2, 4), (2, 5), (3, 6)],  # the last two targets are neighbours
        [(0, 1), (1, 2), (2, 3), (2, 4), (2, 6), (3, 5), (3, 4)],  # the second stem has two targets already
        [(0, 1), (1, 2), (2, 6), (3, 5)],  # the first stem has only one
    ],
)
def test_a_sound_stem_stays(edges: list[tuple[int, int]]) -> None:
    nodes = nodes_of(*(name if ":a" not in name else "sum:a" for name in STEMS))
    assert not repair_wiring(distances_of(edges, 7), nodes, has_two_stems=True)


@pytest.mark.parametrize("primitive", ["conv", "msa", "bn", "bias", "max_pool", "glob_avg"])
def test_operations_with_one_input_keep_the_first(primitive: str) -> None:
    distances = distances_of([(0, 1), (0, 2), (1, 2)], 3)
    distances[0, 1] = 1
    assert repair_wiring(distances, nodes_of("input:i", "conv:a", f"{primitive}:b"), has_two_stems=False)
    assert np.argwhere(distances == 1).tolist() == [[0, 1], [0, 2]]


@pytest.mark.parametrize("primitive", ["sum", "concat", "cse"])
def test_joins_keep_all_inputs(primitive: str) -> None:
    distances = distances_of([(0, 1), (0, 2), (1, 2)], 3)
    assert not repair_wiring(distances, nodes_of("input:i", "conv:a", f"{primitive}:b"), has_two_stems=False)


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file in GOLDEN.glob("deepnets1m_*"):
        shutil.copy(file, tmp_path / file.name)
    return tmp_path


def edit_metadata(folder: Path, edit: Callable[[dict[str, Any]], None], part: str = "train") -> None:
    file = folder / f"deepnets1m_{part}_meta.json"
    metadata = json.loads(file.read_text())
    edit(metadata)
    file.write_text(json.dumps(metadata))


def edit_hdf5(folder: Path, edit: Callable[[Any], None], part: str = "train") -> None:
    with h5py.File(folder / f"deepnets1m_{part}.hdf5", "r+") as file:
        edit(file)


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all", None])
def test_a_damaged_file(folder: Path, content: bytes | None) -> None:
    file = folder / "deepnets1m_train.hdf5"
    file.write_bytes(file.read_bytes()[:20_000] if content is None else content)
    with pytest.raises(DatasetError, match=r"deepnets1m_train\.hdf5 cannot be read.*damaged or incomplete"):
        StoredNetworks(folder, "train").graph(0)


def test_a_network_without_one_of_its_arrays(folder: Path) -> None:
    edit_hdf5(folder, lambda file: file["train/3"].__delitem__("nodes"))
    with pytest.raises(DatasetError, match=r"Network 3 of 'train'.*expected the arrays adj and nodes, found adj"):
        StoredNetworks(folder, "train").graph(3)


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    (folder / "deepnets1m_train_meta.json").unlink()
    with pytest.raises(DatasetError, match=r"needs .*deepnets1m_train_meta\.json in the same folder"):
        StoredNetworks(folder, "train")
    with pytest.raises(DatasetError, match=r"no file of the split 'search'.*paraminit deepnets generate search"):
        find_file("search", folder)
    with pytest.raises(DatasetError, match=r"needs .*none_meta\.json"):
        StoredNetworks(tmp_path / "none.hdf5", "train")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"train": 3}', '{"train": {"nets": []}}'])
def test_damaged_metadata(folder: Path, text: str) -> None:
    (folder / "deepnets1m_train_meta.json").write_text(text)
    with pytest.raises(DatasetError, match=r"deepnets1m_train_meta\.json"):
        StoredNetworks(folder, "train")


def test_a_split_without_networks(folder: Path) -> None:
    edit_metadata(folder, lambda metadata: metadata["train"].update(nets=[]))
    with pytest.raises(DatasetError, match="'train' holds no networks"):
        StoredNetworks(folder, "train")


def test_unknown_splits(folder: Path) -> None:
    with pytest.raises(ArchitectureError, match="no split 'tests'; did you mean 'test'"):
        StoredNetworks(folder, "tests")
    with pytest.raises(DatasetError, match="has no split 'search'; it has train"):
        StoredNetworks(folder / "deepnets1m_train.hdf5", "search")


def test_fewer_graphs_than_descriptions(folder: Path) -> None:
    edit_hdf5(folder, lambda file: file["train"].__delitem__("7"))
    with pytest.raises(DatasetError, match=r"has 7 graphs in 'train'.*describes 8 networks"):
        StoredNetworks(folder, "train")


def test_a_graph_of_another_network(folder: Path) -> None:
    def swap(metadata: dict[str, Any]) -> None:
        networks = metadata["train"]["nets"]
        networks[0]["genotype"], networks[3]["genotype"] = networks[3]["genotype"], networks[0]["genotype"]

    edit_metadata(folder, swap)
    with pytest.raises(DatasetError, match=r"Network 0 .*nodes for \d+ parameters that the described network lacks"):
        StoredNetworks(folder, "train").graph(0)
    edit_metadata(folder, lambda metadata: metadata["train"]["nets"][2].update(num_nodes=99))
    with pytest.raises(DatasetError, match=r"Network 2 .*graph has 92 nodes, but its description says 99"):
        StoredNetworks(folder, "train").graph(2)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda network: network.pop("n_cells"), "lacks a usable 'n_cells'"),
        (lambda network: network.update(n_cells="many"), "lacks a usable 'n_cells'"),
        (lambda network: network.update(num_params={}), "lacks 'num_params' for cifar10 and imagenet"),
        (lambda network: network["genotype"].update(normal=[["conv_9x9", 0], ["msa", 1]]), "Unknown operation"),
        (lambda network: network["genotype"].pop("reduce"), r"missing \['reduce'\]"),
        (lambda network: network["genotype"].update(normal=7), "not iterable"),
        (
            lambda network: network["genotype"].update(normal=[["none", 0], ["none", 1]], normal_concat=[2]),
            "'none' operations of its genotype cut every path",
        ),
        (lambda network: network.update(norm="layer"), "found 'layer'"),
        (lambda network: network.update(n_cells=0), "at least one cell"),
    ],
)
def test_descriptions_that_no_network_can_be_built_from(
    folder: Path, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit_metadata(folder, lambda metadata: edit(metadata["train"]["nets"][1]))
    networks = StoredNetworks(folder, "train")
    with pytest.raises(DatasetError, match=f"Network 1 .*{message}"):
        networks[1]
    assert len(networks.graph(0)) == 156  # the others can be used


def test_a_description_without_the_stored_width(folder: Path) -> None:
    edit_metadata(folder, lambda metadata: metadata["val"]["nets"][0].pop("C"), "eval")
    with pytest.raises(DatasetError, match="lacks a usable 'C'"):
        StoredNetworks(folder, "val")[0]


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("adj", np.zeros((3, 4), np.uint8), r"expected adj \(N, N\)"),
        ("adj", np.tri(92, dtype=np.uint8), "does not run from an earlier to a later node"),
        ("nodes", np.zeros((92, 2), np.uint16), r"found \(92, 92\) and \(92, 2\)"),
        ("nodes", np.full((92, 3), 999, np.uint16), "number 999 is not in the tables"),
        ("nodes", np.ones((92, 3), np.uint16), "first node must be the input; found 'conv'"),
    ],
)
def test_damaged_graphs(folder: Path, name: str, array: np.ndarray, message: str) -> None:
    def replace(file: Any) -> None:
        del file[f"train/2/{name}"]
        file[f"train/2/{name}"] = array

    edit_hdf5(folder, replace)
    with pytest.raises(DatasetError, match=f"Network 2 .*{message}"):
        StoredNetworks(folder, "train").graph(2)


def test_unknown_primitives_and_missing_tables(folder: Path) -> None:
    edit_metadata(folder, lambda metadata: metadata["train"]["meta"]["primitives_ext"].update({"5": "group_norm"}))
    with pytest.raises(DatasetError, match="unknown primitive 'group_norm'"):
        StoredNetworks(folder, "train").graph(0)
    edit_metadata(folder, lambda metadata: metadata["train"]["meta"].pop("unique_op_names"))
    with pytest.raises(DatasetError, match="no usable table 'unique_op_names'"):
        StoredNetworks(folder, "train")


@pytest.mark.parametrize("index", [8, 1000, -9])
def test_numbers_outside(index: int) -> None:
    networks = StoredNetworks(GOLDEN, "train")
    for read in (networks.__getitem__, networks.graph, networks.record):
        with pytest.raises(IndexError, match=f"no network {index}: 8 networks have numbers 0 to 7"):
            read(index)


def test_h5py_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingDependencyError, match=r"hf_paraminit\[deepnets\]"):
        StoredNetworks(GOLDEN, "train")
    assert issubclass(DatasetError, ParamInitError)
