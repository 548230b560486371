"""Stage 2: the values that a learngene gives to the parameters of a vision transformer of any size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hf_paraminit.errors import InitializerConfigError, PredictionError
from hf_paraminit.lets.config import LeTsConfig
from hf_paraminit.lets.depth import LayerSource, layer_sources, published_sources, spread_blocks
from hf_paraminit.lets.generator import LeTsGenerator
from hf_paraminit.lets.slots import VisionTransformer
from hf_paraminit.lets.width import Select


@dataclass(frozen=True, kw_only=True, slots=True)
class DesNetOptions:
    """How a target is made. The defaults refuse whatever could not be exact.

    Attributes:
        select: Which added neurons a target narrower than the Aux-Net takes, see `hf_paraminit.lets.width`.
        blocks: Depth block of each layer; None for the rule of `spread_blocks`.
        mapping_layer: The first of the two published lists, an Aux-Net layer for each layer, and
        mapping_layer_coeff: the second, see `published_sources`. Both or none, and then no `blocks`.
        extend: What a target wider than the Aux-Net gets: "refuse", or "cycle" to use the added neurons again, so that
            some come twice; noise should be added then.
        shrink: What a target narrower than the learngene gets: "refuse", or "prefix" for the learngene's first neurons.
        heads: What a target with heads of another size gets: "refuse", or "mix", where its heads get parts of several.
        head: Values for the classifier: "auto" generates it for the learngene's number of classes and else keeps the
            model's own; "generate" insists; "keep" never does; "truncate" takes the first rows, as the published code
            does for other data sets.
        seed: For `select="random"`.
    """

    select: Select = "continuous"
    blocks: Sequence[int | LayerSource] | None = None
    mapping_layer: Sequence[int] | None = None
    mapping_layer_coeff: Sequence[int] | None = None
    extend: Literal["refuse", "cycle"] = "refuse"
    shrink: Literal["refuse", "prefix"] = "refuse"
    heads: Literal["refuse", "mix"] = "refuse"
    head: Literal["auto", "generate", "keep", "truncate"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.mapping_layer is None) != (self.mapping_layer_coeff is None):
            raise InitializerConfigError("LeTs: mapping_layer and mapping_layer_coeff go together; pass both or none.")
        if self.blocks is not None and self.mapping_layer is not None:
            raise InitializerConfigError("LeTs: pass blocks or the two mapping lists, not both.")


class Made(NamedTuple):
    """A value and how it was made."""

    value: Tensor
    rule: str


def check_target(config: LeTsConfig, target: VisionTransformer, options: DesNetOptions) -> list[LayerSource]:
    """Find out whether a learngene can make a target, and of what its layers are made. Nothing is computed.

    Raises:
        PredictionError: the target does not fit; all faults in one message.
        InitializerConfigError: blocks that do not exist.
    """
    sources = _sources(config, target, options)
    faults = [*_width_faults(config, target, options), *_class_faults(config, target, options)]
    if len(sources) != target.depth:
        faults.append(f"{len(sources)} blocks are listed for its {target.depth} layers")
    if faults:
        raise PredictionError(
            f"The learngene (width {config.embed_dim} to {config.aux_dim}, heads of {config.head_dim}) cannot make "
            f"this model, so nothing was written: {'; '.join(faults)}."
        )
    return sources


def des_net_values(
    generator: LeTsGenerator,
    target: VisionTransformer,
    options: DesNetOptions | None = None,
    prefix_rows: Tensor | None = None,
) -> dict[str, Made]:
    """Generate the parameters of a target.

    Args:
        generator: The learngene.
        target: What to make.
        options: How to make it.
        prefix_rows: (p, w) rows of the target's position table before those of the grid, which a learngene without
            class token knows nothing of. Zeros by default.

    Returns:
        Parameter of the target -> value and rule. What the learngene has nothing for is left out.

    Raises:
        PredictionError: as `check_target`.
        InitializerConfigError: as `check_target`.
    """
    options = options or DesNetOptions()
    config = generator.config
    sources = check_target(config, target, options)
    slots = generator.materialize(target.width, sources, options.select, seed=options.seed)
    rules = {}
    for slot, made in _adapted_ends(config, target, slots, prefix_rows):
        slots[slot], rules[slot] = made
    num_rows = num_class_rows(config, target, options.head)
    for part in ("weight", "bias"):
        rows = slots.pop(f"head.{part}")[:num_rows]
        if num_rows:
            slots[f"head.{part}"] = rows
        if num_rows < config.num_classes:
            rules[f"head.{part}"] = f"the first {num_rows} generated classes"
    values = {
        name: Made(value, rules.get(target.places[name][0], "generated"))
        for name, value in target.to_state(slots).items()
    }
    ones = Made(torch.ones(target.width, device=generator.device), "1, since the learngene has no LayerScale")
    return values | dict.fromkeys(target.layer_scales, ones)


def num_class_rows(config: LeTsConfig, target: VisionTransformer, head: str) -> int:
    """Rows of the classifier that are generated; 0 leaves it as the model made it."""
    if head == "keep" or (head != "truncate" and target.num_classes != config.num_classes):
        return 0
    return min(target.num_classes, config.num_classes)


def departures(config: LeTsConfig, target: VisionTransformer) -> list[str]:
    """What keeps the target from computing what the generated weights were trained to compute, one clause each."""
    found = []
    if other := sorted(target.norm_eps - {config.norm_eps}):
        found.append(f"its norms have eps {', '.join(map(str, other))}, those of the learngene {config.norm_eps}")
    if target.num_prefix_rows is None:
        found.append("it has no position table")
    if target.width > config.aux_dim:
        found.append("it is wider than the Aux-Net, so some neurons come twice; add noise to tell them apart")
    if target.width < config.embed_dim:
        found.append("it is narrower than the learngene, of which it gets the first neurons")
    if target.head_dim != config.head_dim:
        found.append(f"its heads of {target.head_dim} channels mix those of {config.head_dim} of the learngene")
    return found


def _sources(config: LeTsConfig, target: VisionTransformer, options: DesNetOptions) -> list[LayerSource]:
    if options.mapping_layer is not None and options.mapping_layer_coeff is not None:
        return published_sources(config, options.mapping_layer, options.mapping_layer_coeff)
    blocks = spread_blocks(target.depth, config.num_blocks) if options.blocks is None else options.blocks
    return layer_sources(config, blocks)


def _width_faults(config: LeTsConfig, target: VisionTransformer, options: DesNetOptions) -> Iterator[str]:
    width, head_dim = target.width, config.head_dim
    if width % head_dim:
        yield f"its width {width} is no multiple of {head_dim}"
    elif target.num_heads != width // head_dim and options.heads != "mix":
        yield (
            f"it has {target.num_heads} heads of {target.head_dim} channels, expected num_heads={width // head_dim} "
            f"for width {width}; heads='mix' puts up with it"
        )
    if width < config.embed_dim and options.shrink != "prefix":
        yield f"its width {width} is below {config.embed_dim}; shrink='prefix' takes the first neurons"
    if width > config.aux_dim and options.extend != "cycle":
        yield f"its width {width} is above {config.aux_dim}; extend='cycle' uses added neurons again"
    if target.mlp_dim != width * config.mlp_ratio:
        yield f"its MLPs have {target.mlp_dim} hidden channels, expected {width * config.mlp_ratio:g}"


def _class_faults(config: LeTsConfig, target: VisionTransformer, options: DesNetOptions) -> Iterator[str]:
    found, known = target.num_classes, config.num_classes
    if (options.head == "generate" and found != known) or (options.head == "truncate" and found > known):
        yield f"its head has {found} classes, the learngene's {known}; head='keep' leaves the model's own"


def _adapted_ends(
    config: LeTsConfig, target: VisionTransformer, slots: dict[str, Tensor], prefix_rows: Tensor | None
) -> Iterator[tuple[str, Made]]:
    """The position table and the patches, brought to the target's geometry where it is another one."""
    if target.num_prefix_rows is not None:
        yield "pos_embed", _position_table(config, target, slots["pos_embed"], prefix_rows)
    weight, rules = slots["patch_embed.proj.weight"], []
    if target.in_chans != config.in_chans:
        rules.append(f"{config.in_chans} channels")
    if target.patch_size != config.patch_size:
        rules.append("patches of {} x {}".format(*config.patch_size))
    if rules:
        weight = _resized_patches(weight, target)
        yield "patch_embed.proj.weight", Made(weight, f"generated, then resized from {' and '.join(rules)}")


def _position_table(config: LeTsConfig, target: VisionTransformer, table: Tensor, prefix_rows: Tensor | None) -> Made:
    """The rows of the grid, resized if need be, below those of the class token and its like."""
    tokens, grid = table[:, : config.class_token], table[:, config.class_token :]
    rule = "generated"
    if target.grid_size != config.grid_size:
        grid = _resized_grid(grid, config.grid_size, target.grid_size)
        rule += ", then resized from a grid of {} x {}".format(*config.grid_size)
    if not target.num_prefix_rows:
        return Made(grid, rule)
    prefix = torch.zeros(target.num_prefix_rows, target.width) if prefix_rows is None else prefix_rows
    num_own = tokens.shape[1] if target.has_class_token else 0
    if kept := target.num_prefix_rows - num_own:
        rule += f", but for {kept} row{'s' if kept > 1 else ''} of tokens"
    return Made(torch.cat([tokens[:, :num_own], prefix[None, num_own:].to(table), grid], dim=1), rule)


# timm takes over a second to import, and only targets of another geometry than the learngene's need it here.
def _resized_grid(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    from timm.layers import resample_abs_pos_embed

    return resample_abs_pos_embed(table, new_size=list(new), old_size=list(old), num_prefix_tokens=0)


def _resized_patches(weight: Tensor, target: VisionTransformer) -> Tensor:
    from timm.layers import resample_patch_embed
    from timm.models import adapt_input_conv

    weight = adapt_input_conv(target.in_chans, weight, base_chans=weight.shape[1])
    return resample_patch_embed(weight, list(target.patch_size))
