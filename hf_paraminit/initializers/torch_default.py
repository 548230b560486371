"""What torch's own layers draw, whatever the model's code made of them afterwards."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from hf_paraminit.graphs.meta_copy import copy_structure, empty_on_cpu
from hf_paraminit.initializers.formula import Drawn, FormulaInitializer
from hf_paraminit.initializers.registry import register_initializer
from hf_paraminit.structure.model import ModelStructure


@register_initializer("torch-default", summary="reset_parameters() of torch's own layers")
class TorchDefault(FormulaInitializer):
    """Calls `reset_parameters` (`_reset_parameters` of `nn.MultiheadAttention`) on a copy of each of torch's layers.

    For linear and convolutional layers that is W, b ~ U(-1/sqrt(fan_in), 1/sqrt(fan_in)). Parameters of other modules
    stay as the model made them.
    """

    def draw(self, model: ModelStructure, names: Sequence[str]) -> Iterator[Drawn]:
        offered = set(names)
        for path, module in model.module.named_modules():
            own = {leaf: f"{path}.{leaf}" if path else leaf for leaf in module._parameters}
            reset = "_reset_parameters" if isinstance(module, nn.MultiheadAttention) else "reset_parameters"
            if offered.isdisjoint(own.values()) or not _is_torchs(module, reset):
                continue
            layer = copy_structure(module, empty_on_cpu)
            torch.default_generator.manual_seed(self.generator(path).initial_seed())
            getattr(layer, reset)()
            for leaf, parameter in layer.named_parameters(recurse=False):
                yield Drawn(own[leaf], f"{type(module).__name__}.{reset}", parameter.detach())


def _is_torchs(module: nn.Module, method: str) -> bool:
    """Whether a class of torch.nn that the module descends from defines the method."""
    return any(base.__module__.startswith("torch.nn.") and method in vars(base) for base in type(module).__mro__)
