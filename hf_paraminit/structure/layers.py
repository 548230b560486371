"""The layers of a model, in one layout for all libraries, and what its other parameters are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from hf_paraminit.graphs.autograd_walk import parameter_owners
from hf_paraminit.graphs.primitives import is_instance_of
from hf_paraminit.graphs.roles import Uses, norm_bias, parameter_role

NORM_SCALE, NORM_SHIFT, BIAS, TABLE = "norm scale", "norm shift", "bias", "table"


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightLayer:
    """A linear or convolutional layer, seen as torch stores `nn.Linear` and `nn.Conv2d`.

    Attributes:
        name: Name of the weight parameter.
        bias: Name of the bias, if there is one.
        shape: (out, in / groups, *kernel) of the weight.
        groups: Groups of a convolution.
        is_transposed: Whether the parameter itself has the first two axes the other way round, as in transposed
            convolutions and in GPT-2's `Conv1D`.
    """

    name: str
    bias: str | None
    shape: tuple[int, ...]
    groups: int = 1
    is_transposed: bool = False

    @property
    def is_conv(self) -> bool:
        return len(self.shape) > 2

    @property
    def is_depthwise(self) -> bool:
        return self.is_conv and self.groups > 1 and self.shape[1] == 1

    @property
    def window(self) -> int:
        """Number of taps of the kernel, 1 for linear layers."""
        return math.prod(self.shape[2:])

    @property
    def fan_in(self) -> int:
        """Inputs that one output reads."""
        return self.shape[1] * self.window

    @property
    def fan_out(self) -> int:
        """Outputs times taps, as torch counts: groups are not divided by."""
        return self.shape[0] * self.window

    def stored(self, weight: Tensor) -> Tensor:
        """The weight of shape `shape`, in the layout of the parameter."""
        return self._swapped(weight, self.shape[0] // self.groups) if self.is_transposed else weight

    def seen(self, parameter: Tensor) -> Tensor:
        """The inverse of `stored`."""
        return self._swapped(parameter, self.shape[1]) if self.is_transposed else parameter

    def _swapped(self, tensor: Tensor, rows_per_group: int) -> Tensor:
        grouped = tensor.reshape(self.groups, rows_per_group, *tensor.shape[1:])
        return grouped.transpose(1, 2).flatten(0, 1).contiguous()


@dataclass(frozen=True, slots=True)
class ParameterKinds:
    """The parameters of a model by what they are; tied ones once, under their first name.

    Attributes:
        layers: Linear and convolutional layers by the name of their weight, in the model's order.
        others: Name -> "norm scale", "norm shift", "bias" or "table" (embeddings, positions).
        reasons: Name of every other parameter -> what it is.
    """

    layers: Mapping[str, WeightLayer]
    others: Mapping[str, str]
    reasons: Mapping[str, str]

    def named(self, kind: str) -> list[str]:
        """The parameters of one kind in `others`."""
        return [name for name, found in self.others.items() if found == kind]


def parameter_kinds(model: nn.Module) -> ParameterKinds:
    """Sort the parameters of a model by the classes of their owners and, where these say nothing, by shape.

    No forward pass is needed, so it works for every module.
    """
    owners = parameter_owners(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    num_prefix_tokens = getattr(model, "num_prefix_tokens", None)
    layers, others, reasons = {}, {}, {}
    for name, parameter in model.named_parameters():
        path, owner = owners[id(parameter)]
        leaf = path.rpartition(".")[2]
        role = parameter_role(owner, leaf, parameter, Uses(False, False), num_prefix_tokens)
        if role.primitive in ("conv", "sep_conv", "dil_conv"):
            layers[name] = _layer(name, leaf, parameter, owner, names)
        elif role.primitive in ("bn", "ln"):
            others[name] = NORM_SCALE
        elif role.primitive == "pos_enc":
            others[name] = TABLE
        elif role.primitive == "bias":
            others[name] = BIAS
        elif parameter is norm_bias(owner) and not role.kept_reason:
            others[name] = NORM_SHIFT
        else:
            reasons[name] = role.kept_reason
    return ParameterKinds(layers, others, reasons)


def _layer(name: str, leaf: str, parameter: Tensor, owner: nn.Module, names: Mapping[int, str]) -> WeightLayer:
    bias = owner._parameters.get(leaf.replace("weight", "bias"))
    groups = owner.groups if isinstance(owner, _ConvNd) else 1
    is_transposed = isinstance(owner, _ConvTransposeNd) or is_instance_of(owner, "transformers", "Conv1D")
    shape = tuple(parameter.shape)
    if is_transposed:
        shape = (shape[1] * groups, shape[0] // groups, *shape[2:])
    return WeightLayer(
        name=name,
        bias=None if bias is None else names.get(id(bias)),
        shape=shape,
        groups=groups,
        is_transposed=is_transposed,
    )
