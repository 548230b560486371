"""What a learngene has to be compared with: its own parts without the rest, and starts from nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hf_paraminit.lets.aux_net import skeleton
from hf_paraminit.lets.generator import LeTsGenerator
from hf_paraminit.lets.slots import find_vision_transformer
from hf_paraminit.lets.start import SCALED_POSITION_STD, start_gene

_TABLES = ("pos_embed", "cls_token")


def fresh_transforms(generator: LeTsGenerator, *, seed: int) -> LeTsGenerator:
    """The trained learngene and positions with F and G as they start: what is lost is what the maps have learned."""
    fresh = copy.deepcopy(generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh.reset_transforms()
    return fresh


@torch.no_grad()
def aux_net_state(generator: LeTsGenerator) -> dict[str, Tensor]:
    """The Aux-Net's weights by the names of timm's VisionTransformer, as a donor for weight selection."""
    described = find_vision_transformer(skeleton(generator.config))
    state = described.to_state(generator.materialize())
    return {name: value.detach().clone().contiguous() for name, value in state.items()}


def scaled_random(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Start a small ViT from nothing, but at a scale that trains: 0.7 / sqrt(fan in), and 0.2 for positions.

    The usual 0.02 is meant for widths of 192 and more, so it is too weak a rival for small nets. Takes torch's random
    state, as a function that `init=` accepts.

    Args:
        model: Read only.
        names: Parameters to give values for.
    """
    replica = copy.deepcopy(model)
    start_gene(replica.modules(), "scaled")
    with torch.no_grad():
        for name, parameter in replica.named_parameters():
            if name.rpartition(".")[2] in _TABLES:
                nn.init.trunc_normal_(parameter, std=SCALED_POSITION_STD)
    return {name: replica.get_parameter(name).detach() for name in names}
