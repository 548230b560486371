"""Which decoder fills which tensor: position tables in the layouts that occur."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.model import GHN
from hf_paraminit.ghn.slots import Role, iter_slots
from hf_paraminit.graphs.graph import ComputationalGraph, Node
from hf_paraminit.graphs.trace import trace

CONFIG = GHNConfig(hidden_dim=16, num_heads=2, num_layers=1, max_shape=(16, 16, 11, 11), num_classes=10)
WIDTH = 24


class Embedded(nn.Module):
    """Adds a position table to a grid of patches."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 1)
        self.pos_embed = nn.Parameter(torch.zeros(shape))
        self.fc = nn.Linear(WIDTH, 4)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv(images)  # (B, C, g, g)
        if self.pos_embed.dim() == 4 and self.pos_embed.shape[1] == WIDTH:
            return self.fc((patches + self.pos_embed).mean((2, 3)))
        patches = patches.permute(0, 2, 3, 1)
        return self.fc((patches + self.pos_embed.view(1, *patches.shape[1:])).mean((1, 2)))


@torch.no_grad()
def predicted_table(*shape: int, side: int) -> Tensor:
    model = Embedded(*shape)
    graph = trace(model, input_size=(3, side, side), mode="native")
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return GHN.new(CONFIG, seed=0).predict(graph, shapes)["pos_embed"]


@pytest.mark.parametrize("side", [4, 11, 20])
def test_channels_last_tables_equal_flat_ones(side: int) -> None:
    flat = predicted_table(1, side * side, WIDTH, side=side)
    grid = predicted_table(1, side, side, WIDTH, side=side)
    assert grid.abs().max() > 0
    torch.testing.assert_close(grid, flat.view(1, side, side, WIDTH), atol=0, rtol=0)


@pytest.mark.parametrize("side", [11, 20])  # below 11, published rules scale channels-first tables as kernels
def test_channels_last_tables_equal_channels_first_ones(side: int) -> None:
    first = predicted_table(1, WIDTH, side, side, side=side)
    last = predicted_table(1, side, side, WIDTH, side=side)
    torch.testing.assert_close(last.permute(0, 3, 1, 2), first, atol=0, rtol=0)


def test_only_position_tables_are_read_with_channels_last() -> None:
    shape = (1, 3, 3, 7)
    names = {"table": shape}
    for primitive, role in (("pos_enc", Role.POSITION_TABLE), ("conv", Role.KERNEL)):
        nodes = (Node("input", None, (), -1, "input"), Node(primitive, shape, ("table",), 0, "table"))
        distances = torch.tensor([[0, 1], [0, 0]])
        graph = ComputationalGraph(nodes=nodes, edges=torch.tensor([[0, 1]]), distances=distances, input_index=0)
        (slot,) = iter_slots(graph, names)
        assert slot.role is role
        assert slot.kernel_size == ((3, 3) if role is Role.POSITION_TABLE else (3, 7))
        assert slot.channels == ((1, 7) if role is Role.POSITION_TABLE else (1, 3))


def test_the_graph_shows_the_table_as_published_graphs_do() -> None:
    graph = trace(Embedded(1, 6, 6, WIDTH), input_size=(3, 6, 6), mode="native")
    (node,) = (node for node in graph.nodes if node.primitive == "pos_enc")
    assert node.shape == (1, WIDTH, 6, 6)
    assert replace(node, shape=None).parameters == ("pos_embed",)


def test_other_tables_are_kept() -> None:
    graph = trace(Embedded(1, 4, 9, WIDTH), input_size=(3, 6, 6), mode="native")
    assert "square grid" in graph.kept_reasons["pos_embed"]
