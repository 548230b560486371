"""The graph transformer of GHN-3 (arXiv 2303.04143, section 3; Graphormer, arXiv 2106.05234)."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_paraminit.ghn.config import GHNConfig

# Legend: B graphs, N nodes (padded), d hidden width, H heads, U distinct (forward, backward) distance pairs.

MAX_DEGREE = 100
MAX_INPUT_DISTANCE = 1000
EDGE_CODES = 257  # rows of the published table; code = path length + 2, codes 0 and 1 stay unused
EDGE_CODE_OFFSET = 2
MASKED_SCORE = -32768.0  # finite, so that fully masked rows give a harmless uniform softmax


class EdgeEmbedding(nn.Module):
    """Table over path lengths."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(EDGE_CODES, dim)

    def forward(self, codes: Tensor) -> Tensor:
        return self.embed(codes)


class Attention(nn.Module):
    """Multi-head attention over all nodes with an additive bias per head and pair."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Attend (B, N, d) with a (B, H, N, N) bias."""
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class EdgeBiasedAttention(Attention):
    """First layer's attention, which also turns path lengths into the bias that every layer shares."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)
        self.edge_embed = EdgeEmbedding(dim)
        self.proj_e = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, num_heads))

    def edge_bias(self, distances: Tensor) -> Tensor:
        """Return (B, H, N, N) from (B, N, N) path lengths.

        A network of hundreds of nodes has only tens of distinct (forward, backward) pairs, so the two-layer map runs
        once per distinct pair and is gathered.
        """
        forward_code = distances + EDGE_CODE_OFFSET
        pair = forward_code * EDGE_CODES + forward_code.transpose(1, 2)
        is_present = torch.zeros(EDGE_CODES * EDGE_CODES, dtype=torch.bool, device=pair.device)
        is_present[pair.flatten()] = True
        present = is_present.nonzero().squeeze(1)
        codes = torch.stack([present // EDGE_CODES, present % EDGE_CODES], dim=1)
        bias_per_pair = self.proj_e(self.edge_embed(codes).flatten(1))  # (U, H)
        row = torch.empty(is_present.shape, dtype=torch.int64, device=pair.device)
        row[present] = torch.arange(len(present), device=pair.device)
        return F.embedding(row[pair], bias_per_pair).permute(0, 3, 1, 2)


class FeedForward(nn.Module):
    """Two linear maps with GELU, four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # Positions 0 and 3 carry the weights in published checkpoints; position 2 was a dropout of rate 0.
        self.net = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class GraphormerLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, dim: int, num_heads: int, *, is_first: bool) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(dim)
        self.attn = EdgeBiasedAttention(dim, num_heads) if is_first else Attention(dim, num_heads)
        self.ln2 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)
        if is_first:
            self.centrality_embed_in = nn.Embedding(MAX_DEGREE + 1, dim)
            self.centrality_embed_out = nn.Embedding(MAX_DEGREE + 1, dim)
            self.input_dist_embed = nn.Embedding(MAX_INPUT_DISTANCE + 1, dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x), bias)
        return x + self.ff(self.ln2(x))

    def encode_positions(self, distances: Tensor) -> Tensor:
        """Return (B, N, d): in-degree, out-degree and distance from the input node, each as a table row."""
        is_edge = distances == 1
        in_degree = is_edge.sum(1).clamp(max=MAX_DEGREE)
        out_degree = is_edge.sum(2).clamp(max=MAX_DEGREE)
        input_distance = distances[:, 0].clamp(max=MAX_INPUT_DISTANCE)
        return (
            self.centrality_embed_in(in_degree)
            + self.centrality_embed_out(out_degree)
            + self.input_dist_embed(input_distance)
        )


class Graphormer(nn.ModuleList):
    """Stack of graph transformer layers that share the first layer's edge bias."""

    def __init__(self, config: GHNConfig) -> None:
        super().__init__(
            GraphormerLayer(config.hidden_dim, config.num_heads, is_first=index == 0)
            for index in range(config.num_layers)
        )

    def forward(self, x: Tensor, distances: Tensor, mask: Tensor) -> Tensor:
        """Update node states.

        Args:
            x: (B, N, d) node features.
            distances: (B, N, N) int64 path lengths in hops.
            mask: (B, N) bool, True on real nodes.

        Returns:
            (B, N, d); rows of padding are meaningless.
        """
        first = cast(GraphormerLayer, self[0])
        x = (x + first.encode_positions(distances)) * mask.unsqueeze(-1)
        bias = cast(EdgeBiasedAttention, first.attn).edge_bias(distances)
        if not mask.all():
            is_pair = mask.unsqueeze(1) & mask.unsqueeze(2)
            bias = bias.masked_fill(~is_pair.unsqueeze(1), MASKED_SCORE)
        for layer in self:
            x = layer(x, bias)
        return x
