"""Fixup: residual networks that train without norms, by scaling their branches (arXiv 1901.09321)."""

from collections.abc import Iterator, Sequence

import torch

from hf_paraminit.initializers.formula import Drawn
from hf_paraminit.initializers.he import He
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.structure.layers import NORM_SCALE
from hf_paraminit.structure.model import ModelStructure


@register_initializer("fixup", summary="He, scaled down by depth inside residual branches", paper="1901.09321")
class Fixup(He):
    """Rules 1 and 2 of section 3: classifier and last layer of each branch 0; the other m - 1 layers of each of L
    branches He times L^(-1/(2m-2)); layers outside of branches He; biases 0.

    The scalar biases and multipliers of rule 3 would change the architecture and are not added. Constants are from
    general knowledge of the paper, not compared with its code.
    """

    def draw(self, model: ModelStructure, names: Sequence[str]) -> Iterator[Drawn]:
        self.note("deviation: Fixup's scalar biases and multipliers are not added to the architecture")
        if model.kinds.named(NORM_SCALE):
            self.note("the model has norm layers, for which Fixup was not meant")
        scales = {
            name: len(model.branches) ** (-1 / (2 * len(branch.layers) - 2))
            for branch in model.branches
            for name in branch.layers
            if len(branch.layers) > 1
        }
        ends = set(model.ends)
        for name, rule, value in super().draw(model, names):
            if name in ends:
                yield Drawn(name, "zero: last of its branch, or classifier", torch.zeros_like(value))
            elif name in scales:
                yield Drawn(name, f"He x {scales[name]:.3g}", value * scales[name])
            else:
                yield Drawn(name, rule, value)
