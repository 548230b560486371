"""Structured initialization: heads that start as shifts of the image by one patch (NeurIPS 2025, arXiv 2505.19985)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_paraminit.initializers.formula import Drawn, FormulaConfig, FormulaInitializer
from hf_paraminit.initializers.mimetic import Block, noisy_identity, written_attention
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.initializers.sincos import grid_of, position_table, sincos_2d
from hf_paraminit.structure.attention import Attention
from hf_paraminit.structure.model import ModelStructure

# (down, right) of the nine places in a 3 x 3 window, the centre first.
OFFSETS = ((0, 0), (-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
PEAK, BACKGROUND, BACKGROUND_STD = 1000.0, 3.0, 0.6  # target logits, from the authors' implementation
FACTOR_NORM = 7.0  # of the query and of the key factor of a head, from the authors' implementation

# Relative. The solution grows with the inverse of the eigenvalues, and after its normalization smaller ones would leave
# nothing of the pattern; with this bound every interior token of 8 x 8 and 14 x 14 grids looks at its target.
SMALLEST_EIGENVALUE = 1e-3
SPARE_STD = 0.02  # rows that the solution leaves at zero could never learn; our addition


@register_initializer("impulse", summary="attention heads that start as shifts by one patch", paper="2505.19985")
class Impulse(FormulaInitializer):
    """The attention map of every head starts as a shifted delta, solved for against the position table.

    For head i with shift T_i (one where a token attends to its neighbour): W_i = 1000 T_i + 3 noise elsewhere; A_i = P+
    W_i P+^T with P the normalized positions and P+ their pseudo-inverse of rank k; query and key are the factors of the
    rank-k part of A_i, of Frobenius norm 7 each, with small noise where A_i has no rank left. Values and output as in
    `mimetic`. Positions are sines and cosines in two dimensions times 18, so that they dominate the first norm. Rows of
    class tokens are left out of the solution. Applies to transformers with one table of positions on a square grid.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(FormulaConfig):
        """Settings; the defaults are the authors'.

        Attributes:
            a2: noise in the output-value product.
            b2: identity in the output-value product, with negative sign.
            pos_scale: factor of the position table.
        """

        a2: float = 0.4
        b2: float = 0.4
        pos_scale: float = 18.0

    config: Config

    def draw(self, model: ModelStructure, names: Sequence[str]) -> Iterator[Drawn]:
        tables = [(name, grid) for name in model.positions if (grid := grid_of(model, name)) is not None]
        if len(tables) != 1 or not model.attentions:
            self.note("needs attention and one table of positions on a square grid")
            return
        (name, (_, side)) = tables[0]
        width = model.module.get_parameter(name).shape[-1]
        positions = nn.functional.layer_norm(self.config.pos_scale * sincos_2d(side, width), (width,))
        for attention in model.attentions:
            if attention.query.layer.shape[1] == attention.key.layer.shape[1] == width:
                mixing = noisy_identity(self, attention, self.config.a2, -self.config.b2)
                query_key = self.query_key(attention, positions, side)
                yield from written_attention(self, model, attention, query_key, mixing)
        table = position_table(self, model, name, self.config.pos_scale)
        assert table is not None, "grid_of accepted it"
        yield Drawn(name, "sines and cosines", table)

    def query_key(self, attention: Attention, positions: Tensor, side: int) -> list[Block]:
        """Values for the query and key projections; empty under grouped queries.

        Args:
            attention: the layer.
            positions: (L, d) normalized table, L = side * side.
            side: of the grid.
        """
        if attention.num_heads != attention.num_key_heads:
            return []
        basis, coordinates = leading_directions(positions, attention.head_dim)
        queries: list[Tensor] = []
        keys: list[Tensor] = []
        for head in range(attention.num_heads):
            words = (attention.query.layer.name, str(head))
            logits = self.target_logits(side, OFFSETS[head % len(OFFSETS)], *words)
            u, s, vt = torch.linalg.svd(coordinates.mT @ logits.double() @ coordinates)
            for factor, rows in ((u.mT, queries), (vt, keys)):
                solved = (s.sqrt()[:, None] * factor @ basis.mT).float()
                spare = attention.head_dim - len(solved)
                noise = SPARE_STD * self.normal((spare, basis.shape[0]), *words, str(len(rows)), str(rows is keys))
                rows.append(torch.cat([FACTOR_NORM * solved / solved.norm(), noise]))
        return [(attention.query, torch.cat(queries)), (attention.key, torch.cat(keys))]

    def target_logits(self, side: int, offset: tuple[int, int], *words: str) -> Tensor:
        """(L, L): 1000 where a token should look, small noise elsewhere."""
        shift = shift_matrix(side, offset)
        noise = nn.init.trunc_normal_(torch.empty(shift.shape), std=BACKGROUND_STD, generator=self.generator(*words))
        return torch.where(shift, PEAK, BACKGROUND * noise)


def shift_matrix(side: int, offset: tuple[int, int]) -> Tensor:
    """(L, L) bool: True at (token, its neighbour at the offset); tokens at the edge may have none."""
    rows = torch.arange(side * side) // side
    columns = torch.arange(side * side) % side
    return (rows[None] == rows[:, None] + offset[0]) & (columns[None] == columns[:, None] + offset[1])


def leading_directions(positions: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The pseudo-inverse of the positions, in factors: P+ = basis @ coordinates^T.

    Args:
        positions: (L, d).
        rank: directions to keep at most; a table of sines and cosines often has fewer that count.

    Returns:
        basis: (d, r) float64 orthonormal eigenvectors of P^T P, r <= rank.
        coordinates: (L, r) float64, P times the basis, divided by the eigenvalues.
    """
    positions = positions.double()
    values, vectors = torch.linalg.eigh(positions.mT @ positions)
    leading = (torch.arange(len(values)) >= len(values) - rank) & (values > SMALLEST_EIGENVALUE * values[-1])
    basis = vectors[:, leading]
    return basis, positions @ basis / values[leading]
