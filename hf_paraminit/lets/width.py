"""Which added neurons a narrower net takes: one set of places for every tensor that shares an axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from hf_paraminit.errors import InitializerConfigError
from hf_paraminit.lets.config import LeTsConfig

Select = Literal["continuous", "stepwise", "random", "l1", "l2"]
SELECTS: tuple[str, ...] = get_args(Select)


@dataclass(frozen=True, slots=True)
class Places:
    """Places among the added neurons, counted from the first added one.

    Attributes:
        embed: (c,) int64, of the stream between the blocks: F_emb, F_cls and the columns of the position table.
        attention: (c,) int64, of queries, keys and values, whole heads.
        ffn: (r c,) int64, of the hidden layer of the MLPs.
    """

    embed: Tensor
    attention: Tensor
    ffn: Tensor


@dataclass(frozen=True, slots=True)
class Scored:
    """The matrices that "l1" and "l2" rate added neurons by.

    Attributes:
        embed: F_emb, (D - d, d).
        attention: F_q, F_k and F_v of all layers, (D - d, d) each.
        ffn: F_ffn of all layers, (r (D - d), r d) each.
    """

    embed: Tensor
    attention: Sequence[Tensor]
    ffn: Sequence[Tensor]


def choose_places(config: LeTsConfig, width: int, select: Select, scored: Scored, seed: int = 0) -> Places:
    """Choose the added neurons of a net.

    Args:
        config: sizes of learngene and Aux-Net.
        width: of the net, a multiple of the head size.
        select: "continuous" takes the first ones, as published; "stepwise" evenly spaced ones, "random" any; "l1" and
            "l2" those whose rows of F have the largest norms, of equal ones the first. The paper names a magnitude-wise
            rule without a formula, so the last four are ours. In a net wider than the Aux-Net the places go round.
        scored: the matrices, for "l1" and "l2".
        seed: for "random".

    Raises:
        InitializerConfigError: an unknown rule, or a wider net than an Aux-Net without added neurons can give.
    """
    if select not in SELECTS:
        raise InitializerConfigError(f"LeTs: select={select!r}; expected one of {', '.join(SELECTS)}.")
    added, head_dim = config.aux_dim - config.embed_dim, config.head_dim
    count = max(width - config.embed_dim, 0)
    added_ffn = config.mlp_dim(config.aux_dim) - config.mlp_dim(config.embed_dim)
    count_ffn = max(config.mlp_dim(width) - config.mlp_dim(config.embed_dim), 0)
    if count and not added:
        raise InitializerConfigError(f"LeTs: this learngene adds no neurons, so every net has width {width - count}.")
    draw = torch.Generator().manual_seed(seed)
    embed = _choose(added, count, select, [scored.embed], draw)
    heads = _choose(added // head_dim, count // head_dim, select, scored.attention, draw)
    return Places(
        embed=embed,
        attention=(heads[:, None] * head_dim + torch.arange(head_dim)).flatten(),
        ffn=_choose(added_ffn, count_ffn, select, scored.ffn, draw),
    )


def _choose(size: int, count: int, select: Select, matrices: Sequence[Tensor], draw: torch.Generator) -> Tensor:
    """Choose `count` of `size` units of one axis, rising; the rows of the matrices divide evenly over the units."""
    if count > size:
        return torch.arange(count) % size
    if select == "continuous":
        return torch.arange(count)
    if select == "stepwise":
        return torch.arange(count) * size // max(count, 1)
    if select == "random":
        return torch.randperm(size, generator=draw)[:count].sort().values
    order = 1 if select == "l1" else 2
    norms = sum(matrix.detach().norm(p=order, dim=1) for matrix in matrices)
    assert isinstance(norms, Tensor)
    scores = norms.view(size, -1).sum(1)
    return scores.sort(descending=True, stable=True).indices[:count].sort().values.cpu()
