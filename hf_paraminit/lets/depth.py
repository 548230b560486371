"""Which depth blocks the layers of a net take: the rule for any number of layers, and the published lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hf_paraminit.errors import InitializerConfigError
from hf_paraminit.lets.config import LeTsConfig


class LayerSource(NamedTuple):
    """What a layer is made of.

    Attributes:
        pair: Learngene layers that are mixed.
        block: Depth block whose coefficients mix them, in all modules of the layer.
    """

    pair: tuple[int, int]
    block: int


def spread_blocks(depth: int, num_blocks: int) -> list[int]:
    """Give each layer of a net a depth block, rising.

    A net with at least as many layers takes every block equally often, and the most central ones once more; this gives
    back the published lists for 12 and 16 layers of 8 blocks. A shallower net takes evenly spaced ones with both ends
    (our rule, there is no published one).

    Args:
        depth: layers of the net.
        num_blocks: depth blocks of the learngene.
    """
    if depth < num_blocks:
        return [round(layer * (num_blocks - 1) / (depth - 1)) if depth > 1 else 0 for layer in range(depth)]
    share, extra = divmod(depth, num_blocks)
    by_centrality = sorted(range(num_blocks), key=lambda block: (abs(2 * block - num_blocks + 1), block))
    central = set(by_centrality[:extra])
    return [block for block in range(num_blocks) for _ in range(share + (block in central))]


def layer_sources(config: LeTsConfig, blocks: Sequence[int | LayerSource]) -> list[LayerSource]:
    """Look up what each layer is made of.

    Args:
        config: the table of pairs.
        blocks: per layer a depth block, which brings its own pair, or a `LayerSource`.

    Raises:
        InitializerConfigError: blocks or layers that the learngene does not have.
    """
    return [_layer_source(config, entry) for entry in blocks]


def _layer_source(config: LeTsConfig, entry: int | LayerSource) -> LayerSource:
    block = entry.block if isinstance(entry, LayerSource) else entry
    if type(block) is not int or not 0 <= block < config.num_blocks:
        raise InitializerConfigError(
            f"LeTs: {block!r} is no depth block; this learngene has 0 to {config.num_blocks - 1}."
        )
    source = entry if isinstance(entry, LayerSource) else LayerSource(config.pairs[block], block)
    if not all(0 <= layer < config.depth for layer in source.pair):
        raise InitializerConfigError(f"LeTs: {source} names layers beyond the {config.depth} of the learngene.")
    return source


def published_sources(
    config: LeTsConfig, mapping_layer: Sequence[int], mapping_layer_coeff: Sequence[int]
) -> list[LayerSource]:
    """Read the two lists of the published command line.

    Args:
        config: the table of pairs.
        mapping_layer: per layer a layer of the Aux-Net, used to look up the pair alone.
        mapping_layer_coeff: per layer the first Aux-Net layer of the depth block whose coefficients are used. They need
            not belong to the pair.

    Raises:
        InitializerConfigError: lists of different lengths, or layers that the Aux-Net does not have.
    """
    if len(mapping_layer) != len(mapping_layer_coeff):
        raise InitializerConfigError(
            f"LeTs: mapping_layer has {len(mapping_layer)} entries, mapping_layer_coeff {len(mapping_layer_coeff)}; "
            "expected one of each per layer of the net."
        )
    known = range(config.aux_depth)
    if bad := [layer for layer in (*mapping_layer, *mapping_layer_coeff) if layer not in known]:
        raise InitializerConfigError(f"LeTs: mapping lists name the layers {bad}; the Aux-Net has 0 to {known[-1]}.")
    if bad := [layer for layer in mapping_layer_coeff if layer % config.repeat]:
        starts = ", ".join(map(str, known[:: config.repeat]))
        raise InitializerConfigError(f"LeTs: mapping_layer_coeff names {bad}; coefficients belong to layers {starts}.")
    return [
        LayerSource(config.pairs[layer // config.repeat], coefficients // config.repeat)
        for layer, coefficients in zip(mapping_layer, mapping_layer_coeff, strict=True)
    ]
