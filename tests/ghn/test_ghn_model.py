"""Laws of hypernetwork predictions that hold for any weights."""

import random
from dataclasses import replace

import pytest
import torch
from ghn_goldens import FOUR_KINDS, load_graph, load_hypernetwork, shapes_of
from torch import Tensor, nn

from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.graphormer import EDGE_CODES
from hf_paraminit.ghn.model import GHN
from hf_paraminit.graphs.graph import ComputationalGraph

NETWORKS = ("resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small")  # 53 to 154 nodes
Shapes = dict[str, tuple[int, ...]]


def problem(network: str) -> tuple[ComputationalGraph, Shapes]:
    return load_graph(network), shapes_of("ghn3_tiny", network)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal up to the order of sums in matrix products."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        tolerance = 1e-5 * tensor.abs().max().item() + 1e-7
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance, msg=name)


# Meta-batches


@pytest.mark.parametrize("config", FOUR_KINDS)
@pytest.mark.parametrize("order", [NETWORKS, NETWORKS[::-1]], ids=["small first", "large first"])
@torch.no_grad()
def test_meta_batch_equals_single_predictions(config: str, order: tuple[str, ...]) -> None:
    ghn = load_hypernetwork(config)
    graphs, shapes = zip(*map(problem, order), strict=True)
    together = ghn.predict_batch(graphs, shapes)
    assert len(together) == len(order)
    for prediction, graph, network_shapes in zip(together, graphs, shapes, strict=True):
        assert_same(prediction, ghn.predict(graph, network_shapes))


@pytest.mark.parametrize("config", FOUR_KINDS)
@torch.no_grad()
def test_meta_batch_states_have_no_padding(config: str) -> None:
    ghn = load_hypernetwork(config)
    graphs, shapes = zip(*map(problem, NETWORKS), strict=True)
    states = ghn.embed_nodes(graphs, shapes)
    assert len(states) == sum(len(graph) for graph in graphs)
    alone = [ghn.embed_nodes([graph], [network_shapes]) for graph, network_shapes in zip(graphs, shapes, strict=True)]
    torch.testing.assert_close(states, torch.cat(alone), rtol=0, atol=1e-5)


@torch.no_grad()
def test_names_of_a_meta_batch_are_per_network() -> None:
    graph, shapes = problem("resnet18")
    first, second = load_hypernetwork("ghn3_tiny").predict_batch(
        [graph, graph], [shapes, shapes], names=[{"conv1.weight"}, {"fc.bias", "bn1.weight"}]
    )
    assert set(first) == {"conv1.weight"}
    assert set(second) == {"fc.bias", "bn1.weight"}


# Order of nodes


def renumbered(graph: ComputationalGraph, order: list[int]) -> ComputationalGraph:
    """The same graph with node `order[i]` at position i."""
    position = {old: new for new, old in enumerate(order)}
    return replace(
        graph,
        nodes=tuple(graph.nodes[old] for old in order),
        edges=torch.tensor([[position[a], position[b]] for a, b in graph.edges.tolist()]),
        distances=graph.distances[order][:, order],
        class_weight_index=position[graph.class_weight_index],
        class_bias_index=position[graph.class_bias_index],
    )


def random_topological_order(graph: ComputationalGraph, rng: random.Random) -> list[int]:
    """Any order in which edges run forward; the input stays first."""
    waiting = [int(column.sum()) for column in (graph.distances == 1).T]
    ready, order = [index for index, count in enumerate(waiting) if not count], []
    while ready:
        node = graph.input_index if not order else rng.choice(ready)
        ready.remove(node)
        order.append(node)
        for target in (graph.distances[node] == 1).nonzero().flatten().tolist():
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    return order


@pytest.mark.parametrize("config", FOUR_KINDS)
@pytest.mark.parametrize("network", ["shufflenet_v2_x0_5", "geno_g01"])
@torch.no_grad()
def test_order_of_independent_nodes_does_not_matter(config: str, network: str) -> None:
    graph, shapes = problem(network)
    order = random_topological_order(graph, random.Random(0))
    assert sorted(order) == list(range(len(graph)))
    assert order != list(range(len(graph)))
    ghn = load_hypernetwork(config)
    assert_same(ghn.predict(renumbered(graph, order), shapes), ghn.predict(graph, shapes))


@torch.no_grad()
def test_graphormer_takes_any_order_behind_the_input() -> None:
    graph, shapes = problem("shufflenet_v2_x0_5")
    order = list(range(1, len(graph)))
    random.Random(0).shuffle(order)
    ghn = load_hypernetwork("ghn3_tiny")
    assert_same(ghn.predict(renumbered(graph, [0, *order]), shapes), ghn.predict(graph, shapes))


@torch.no_grad()
def test_edges_matter_except_for_the_baseline() -> None:
    graph, shapes = problem("resnet18")
    cut = replace(graph, distances=torch.zeros_like(graph.distances))
    for config in FOUR_KINDS:
        ghn = load_hypernetwork(config)
        is_equal = torch.equal(ghn.predict(cut, shapes)["conv1.weight"], ghn.predict(graph, shapes)["conv1.weight"])
        assert is_equal == (config == "mlp_tiny")


@torch.no_grad()
def test_virtual_edges_beyond_the_cutoff_do_not_count() -> None:
    graph, shapes = problem("resnet18")
    one_hop = replace(graph, distances=graph.distances.masked_fill(graph.distances > 1, 0))
    ghn1 = load_hypernetwork("ghn1_tiny")
    assert_same(ghn1.predict(graph, shapes), ghn1.predict(one_hop, shapes))


# Purity


@pytest.mark.parametrize("config", FOUR_KINDS)
@torch.no_grad()
def test_prediction_is_deterministic_and_leaves_the_global_generator(config: str) -> None:
    ghn, (graph, shapes) = load_hypernetwork(config), problem("vit_b_16")
    random_state = torch.get_rng_state()
    first = ghn.predict(graph, shapes, generator=torch.Generator().manual_seed(4))
    second = ghn.predict(graph, shapes, generator=torch.Generator().manual_seed(4))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    other = ghn.predict(graph, shapes, generator=torch.Generator().manual_seed(5))
    differing = [name for name, tensor in first.items() if not torch.equal(tensor, other[name])]
    assert differing == ["encoder.pos_embedding"]
    assert torch.equal(first[differing[0]][:, 1:], other[differing[0]][:, 1:])


@torch.no_grad()
def test_predicted_tensors_share_no_memory() -> None:
    ghn, (graph, shapes) = load_hypernetwork("ghn3_tiny"), problem("shufflenet_v2_x0_5")
    ours = {parameter.untyped_storage().data_ptr() for parameter in ghn.parameters()}
    for first, second in [(ghn.predict(graph, shapes), ghn.predict(graph, shapes))]:
        assert not ours & {tensor.untyped_storage().data_ptr() for tensor in first.values()}
        for tensor in first.values():
            tensor.fill_(7)
        assert_same(ghn.predict(graph, shapes), second)


# Which parameters


@pytest.mark.parametrize("config", FOUR_KINDS)
@torch.no_grad()
def test_names_restrict_the_full_prediction(config: str) -> None:
    ghn, (graph, shapes) = load_hypernetwork(config), problem("mobilenet_v3_small")
    full = ghn.predict(graph, shapes)
    rng = random.Random(1)
    for count in (1, 5, 40):
        names = set(rng.sample(list(shapes), count))
        assert_same(ghn.predict(graph, shapes, names=names), {name: full[name] for name in names & set(full)})
    assert ghn.predict(graph, shapes, names=set()) == {}
    assert ghn.predict(graph, shapes, names={"no such parameter"}) == {}


@torch.no_grad()
def test_class_layers_can_be_left_out() -> None:
    ghn, (graph, shapes) = load_hypernetwork("ghn3_tiny"), problem("resnet18")
    full = ghn.predict(graph, shapes)
    without = ghn.predict(graph, shapes, predict_class_layers=False)
    assert set(full) - set(without) == {"fc.weight", "fc.bias"}
    assert_same(without, {name: full[name] for name in without})


@torch.no_grad()
def test_parameters_without_a_shape_are_not_predicted() -> None:
    ghn, (graph, shapes) = load_hypernetwork("ghn3_tiny"), problem("resnet18")
    del shapes["layer1.0.conv1.weight"]
    prediction = ghn.predict(graph, shapes)
    assert "layer1.0.conv1.weight" not in prediction
    assert set(prediction) <= set(shapes)


# Shapes of targets


@pytest.mark.parametrize("num_classes", [1, 2, 10, 999, 1000, 1001, 2500])
@torch.no_grad()
def test_head_repeats_the_classes_of_the_checkpoint(num_classes: int) -> None:
    ghn, (graph, shapes) = load_hypernetwork("ghn3_tiny"), problem("resnet18")
    shapes |= {"fc.weight": (num_classes, 512), "fc.bias": (num_classes,)}
    prediction = ghn.predict(graph, shapes)
    assert prediction["fc.weight"].shape == (num_classes, 512)
    rows = torch.arange(num_classes) % 1000
    assert torch.equal(prediction["fc.weight"], prediction["fc.weight"][rows])
    assert torch.equal(prediction["fc.bias"], prediction["fc.bias"][rows])
    assert torch.equal(prediction["fc.weight"], prediction["fc.weight"][:, torch.arange(512) % 32])


@torch.no_grad()
def test_wide_layers_repeat_the_largest_block() -> None:
    ghn, (graph, shapes) = load_hypernetwork("ghn3_tiny"), problem("resnet50")
    weight = ghn.predict(graph, shapes)["layer4.2.conv2.weight"]
    assert weight.shape == (512, 512, 3, 3)
    index = torch.arange(512) % 32
    assert torch.equal(weight, weight[index][:, index])


@pytest.mark.parametrize("kernel_size", [(1, 1), (2, 2), (31, 31), (1, 31), (17, 3)])
@torch.no_grad()
def test_two_equal_kernels_of_any_size(kernel_size: tuple[int, int]) -> None:
    ghn, (graph, shapes) = load_hypernetwork("ghn3_tiny"), problem("resnet18")
    names = ["layer1.0.conv1.weight", "layer1.0.conv2.weight"]
    shapes |= dict.fromkeys(names, (64, 64, *kernel_size))
    prediction = ghn.predict(graph, shapes)
    for name in names:
        assert prediction[name].shape == (64, 64, *kernel_size)
        assert prediction[name].isfinite().all()
    assert not torch.equal(prediction[names[0]], prediction[names[1]])


@pytest.mark.parametrize("config", FOUR_KINDS)
@torch.no_grad()
def test_scale_of_predictions(config: str) -> None:
    """Norm weights lie in (0, 2), biases in (-1, 1), unless the weight norm is off as in GHN-1."""
    ghn, (graph, shapes) = load_hypernetwork(config), problem("resnet18")
    prediction = ghn.predict(graph, shapes)
    has_norm = ghn.config.weight_norm
    assert bool((prediction["bn1.weight"] > 0).all()) or not has_norm
    vectors = torch.cat([tensor for tensor in prediction.values() if tensor.dim() == 1])
    assert bool((vectors.abs() < 2).all()) or not has_norm
    free = GHN.from_state_dict(ghn.state_dict(), {**ghn.config.to_dict(), "weight_norm": not has_norm})
    raw, scaled = (free, ghn) if has_norm else (ghn, free)
    name = "layer1.0.conv1.weight"
    expected = raw.predict(graph, shapes)[name] * (2 / (64 * 9)) ** 0.5
    torch.testing.assert_close(scaled.predict(graph, shapes)[name], expected, rtol=1e-5, atol=1e-7)


# Gradients


@pytest.mark.parametrize("config", FOUR_KINDS)
def test_gradient_reaches_every_parameter(config: str) -> None:
    ghn = load_hypernetwork(config)
    graph, shapes = problem("resnet18")
    prediction = ghn.predict(graph, shapes)
    generator = torch.Generator().manual_seed(0)
    total = sum((tensor * torch.randn(tensor.shape, generator=generator)).sum() for tensor in prediction.values())
    names, parameters = zip(*ghn.named_parameters(), strict=True)
    gradients = torch.autograd.grad(total, parameters)
    for name, gradient in zip(names, gradients, strict=True):
        assert gradient.isfinite().all(), name
        assert gradient.any(), name
    assert all(tensor.requires_grad for tensor in prediction.values())


def test_no_gradient_is_kept_under_no_grad() -> None:
    graph, shapes = problem("resnet18")
    with torch.no_grad():
        prediction = load_hypernetwork("ghn3_tiny").predict(graph, shapes)
    assert not any(tensor.requires_grad for tensor in prediction.values())


def test_decoders_stay_in_float32_under_autocast() -> None:
    ghn, (graph, shapes) = load_hypernetwork("ghn3_tiny"), problem("resnet18")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = ghn.predict(graph, shapes)
    with torch.no_grad():
        full = ghn.predict(graph, shapes)
    for name, tensor in mixed.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, full[name], rtol=0.1, atol=0.1 * full[name].abs().max().item(), msg=name)


# Networks of our own


def test_edge_bias_equals_the_map_on_all_pairs() -> None:
    ghn = load_hypernetwork("ghn3_tiny")
    attention = ghn.gnn[0].attn
    distances = load_graph("shufflenet_v2_x0_5").distances[None]
    codes = distances + 2
    table = attention.edge_embed(torch.stack([codes, codes.transpose(1, 2)], dim=-1)).flatten(-2)
    with torch.no_grad():
        torch.testing.assert_close(attention.edge_bias(distances), attention.proj_e(table).permute(0, 3, 1, 2))
    assert attention.edge_embed.embed.weight.shape[0] == EDGE_CODES


def test_new_network_starts_as_published() -> None:
    config = GHNConfig(hidden_dim=64, num_layers=1, num_heads=4, max_shape=(16, 16, 11, 11), num_classes=10)
    ghn = GHN(config)
    for last in (ghn.decoder_1d.fc[-1], ghn.decoder.conv[-1], ghn.decoder.class_layer_predictor[-1]):
        assert not last.bias.any()
        assert last.weight.abs().max().item() <= last.in_features**-0.5 / 5
    tables = [module for module in ghn.modules() if isinstance(module, nn.Embedding)]
    assert len(tables) == 7
    for table in tables:
        assert table.weight.std().item() == pytest.approx(table.embedding_dim**-0.5, rel=0.15)


def test_layers_behind_the_classifier_do_not_break_the_prediction() -> None:
    """A bias-free head is the last node and counts as an ordinary matrix: a rule of the published code."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(8, 10, bias=False))
    ghn = load_hypernetwork("ghn3_tiny")
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    graph = ghn.trace(model, input_size=32)
    with torch.no_grad():
        prediction = ghn.predict(graph, shapes, predict_class_layers=False)
    assert "4.weight" in prediction
