import torch
from torch import nn

from hf_paraminit.graphs.autograd_walk import Operation, OperationGraph, parameter_owners, walk_autograd


def walk(model: nn.Module, sample: torch.Tensor) -> tuple[list[str], set[tuple[str, str]]]:
    graph = walk_autograd([model(sample).grad_fn], parameter_owners(model), explicit=True)
    names = [operation.name for _, operation in graph]
    return names, {(names[source], names[target]) for source in graph.order for target in graph.successors[source]}


def test_walk_lists_outputs_first_and_lets_data_flow_through_the_bias():
    names, edges = walk(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)), torch.zeros(2, 3, 8, 8))
    assert names == ["2.weight", "2.bias", "ReluBackward0", "0.weight", "0.bias"]
    assert edges == {
        ("0.weight", "0.bias"),
        ("0.bias", "ReluBackward0"),
        ("ReluBackward0", "2.weight"),
        ("2.weight", "2.bias"),
    }


def test_root_parameters_get_a_leading_dot_and_tied_ones_their_last_name():
    model = nn.Module()
    model.a = nn.Linear(3, 3)
    model.b = nn.Linear(3, 3)
    model.b.weight = model.a.weight
    model.scale = nn.Parameter(torch.ones(3))
    names = {name for name, _ in parameter_owners(model).values()}
    assert names == {".scale", "a.bias", "b.weight", "b.bias"}


def test_contraction_keeps_paths_through_cycles_and_makes_no_self_loops():
    graph = OperationGraph()
    a, b, c, d = (graph.append(Operation(name, None)) for name in "abcd")
    for edge in ((a, b), (b, c), (c, d), (c, b), (c, a)):
        graph.link(*edge)
    graph.contract({b, c})
    assert graph.order == [a, d]
    assert graph.successors[a] == {d}
    assert graph.predecessors[d] == {a}
    assert graph.predecessors[a] == set()
