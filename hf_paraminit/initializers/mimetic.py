"""Mimetic initialization: attention that starts with the patterns that trained attention has (arXiv 2305.09828)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hf_paraminit.initializers.formula import Drawn, FormulaConfig, FormulaInitializer
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.initializers.sincos import position_table
from hf_paraminit.structure.attention import Attention, Projection
from hf_paraminit.structure.model import ModelStructure

Block = tuple[Projection, Tensor]  # rows of a layer, and the values for them
Mixing = tuple[Block, Tensor]  # value projection, and the output layer's weight


@register_initializer("mimetic", summary="attention that looks like trained attention", paper="2305.09828")
class Mimetic(FormulaInitializer):
    """Queries and keys: W_q^T W_k is the best rank-k approximation of a1 Z + b1 I (section 3).

    Values and output: W_out W_v = a2 Z' - b2 I. Z and Z' have independent normal entries of variance 1/d. Positions are
    sines and cosines in two dimensions, attention biases zero, everything else stays as the model made it. Under
    grouped queries each key head has one matrix, and each of its query heads fits it with noise of its own (our
    extension).
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(FormulaConfig):
        """Settings; the defaults are the paper's for vision.

        Attributes:
            a1: noise in the query-key product.
            b1: identity in the query-key product.
            a2: noise in the output-value product.
            b2: identity in the output-value product.
            pos: whether to write position tables.
            value_sign: sign of b2 over depth: "negative" in all layers, "rising" from -1 in the first to +1 in the
                last, which suits causal language models.
        """

        a1: float = 0.7
        b1: float = 0.7
        a2: float = 0.4
        b2: float = 0.4
        pos: bool = True
        value_sign: Literal["negative", "rising"] = "negative"

    config: Config

    def draw(self, model: ModelStructure, names: Sequence[str]) -> Iterator[Drawn]:
        for depth, attention in enumerate(model.attentions):
            sign = self.sign(depth, len(model.attentions))
            yield from written_attention(
                self, model, attention, self.query_key(attention), self.output_value(attention, sign)
            )
        if self.config.pos and model.attentions:
            for name in model.positions:
                table = position_table(self, model, name, scale=1.0)
                if table is not None:
                    yield Drawn(name, "sines and cosines", table)

    def sign(self, depth: int, num_layers: int) -> float:
        """Factor of b2 in a layer."""
        if self.config.value_sign == "negative":
            return -1.0
        return 2.0 * depth / max(num_layers - 1, 1) - 1.0

    def query_key(self, attention: Attention) -> list[Block]:
        """Values for the query and key projections, empty where they read different widths."""
        width = attention.query.layer.shape[1]
        if attention.key.layer.shape[1] != width:
            return []
        name, head_dim = attention.query.layer.name, attention.head_dim
        num_shared = attention.num_heads // attention.num_key_heads
        queries, keys = [], []
        for head in range(attention.num_key_heads):
            product = self._noise(self.config.a1, (width, width), name, "query-key", str(head))
            product += self.config.b1 * torch.eye(width)
            left, right = factored(product, head_dim)
            keys.append(right)
            for shared in range(num_shared):
                fresh = self._noise(self.config.a1, (width, width), name, "shared", str(head), str(shared))
                queries.append(left.mT if num_shared == 1 else ((product + fresh) @ torch.linalg.pinv(right)).mT)
        return [(attention.query, torch.cat(queries)), (attention.key, torch.cat(keys))]

    def output_value(self, attention: Attention, sign: float) -> Mixing | None:
        """Values for the value projection and the output layer."""
        return noisy_identity(self, attention, self.config.a2, sign * self.config.b2)

    def _noise(self, scale: float, shape: tuple[int, int], *words: str) -> Tensor:
        return scale * shape[1] ** -0.5 * self.normal(shape, *words)


def noisy_identity(formula: FormulaInitializer, attention: Attention, noise: float, identity: float) -> Mixing | None:
    """Values for the value projection and the output layer whose product is noise Z / sqrt(d) + identity I.

    Returns:
        None where there is no output layer that suits, or more values per token than channels.
    """
    if attention.output is None or len(attention.output.shape) != 2:
        return None
    rows, inner = attention.output.shape
    width = attention.value.layer.shape[1]
    if inner != attention.value.num_rows or inner > min(rows, width):
        return None
    drawn = formula.normal((rows, width), attention.value.layer.name, "output-value")
    left, right = factored(noise * width**-0.5 * drawn + identity * torch.eye(rows, width), inner)
    return (attention.value, right), left


def written_attention(
    formula: FormulaInitializer,
    model: ModelStructure,
    attention: Attention,
    query_key: list[Block],
    mixing: Mixing | None,
) -> Iterator[Drawn]:
    """Put the parts of an attention layer into its, possibly fused, parameters; their biases become zero."""
    blocks = [*query_key, *([mixing[0]] if mixing is not None else [])]
    layers = {projection.layer.name: projection.layer for projection, _ in blocks}
    for name, layer in layers.items():
        mine = [(projection, values) for projection, values in blocks if projection.layer is layer]
        is_whole = sum(projection.num_rows for projection, _ in mine) == layer.shape[0]
        weight = torch.empty(layer.shape) if is_whole else layer.seen(formula.current(model, name))
        for projection, values in mine:
            weight[projection.rows] = values.view(-1, *layer.shape[1:])
        yield Drawn(name, "attention projection", layer.stored(weight))
        if layer.bias is not None:
            yield Drawn(layer.bias, "zero", torch.zeros(layer.shape[0]))
    if mixing is not None and attention.output is not None:
        yield Drawn(attention.output.name, "attention output", attention.output.stored(mixing[1]))


def factored(product: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Split the best approximation of a rank evenly: U sqrt(S) of shape (rows, rank) and sqrt(S) V^T, (rank, columns).

    A part is found by eigenvectors of the Gram matrix: several times faster than the singular value decomposition, and
    as exact for large singular values.
    """
    if rank < min(product.shape):
        s_squared, v = torch.linalg.eigh(product.mT @ product)
        s, vt = s_squared[-rank:].flip(0).clamp_min(0).sqrt(), v[:, -rank:].flip(1).mT
        u = product @ vt.mT / s.clamp_min(torch.finfo(s.dtype).tiny)
    else:
        u, s, vt = torch.linalg.svd(product, full_matrices=False)
    roots = s.sqrt()
    return u * roots, roots[:, None] * vt
